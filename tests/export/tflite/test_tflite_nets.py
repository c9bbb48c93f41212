"""Whole networks from both of torch's ONNX exporters: the same function at every batch and image size, without transposes."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")

from tflite_nets import NETS, build
from tflite_support import export, sqnr_db

from trimtab.models.contract import Contract, TensorSpec

GATE_DB = 90.0
"""Float32 rounding leaves 100–150 dB on these depths; a wrong weight order or pad leaves less than 40."""

MOVES = {"shuffle": 0, "vit": 8}
"""TRANSPOSE operators that the function itself needs: q, k, v and the heads' merge per attention block."""

LEGACY = [pytest.param(name, False, id=f"{name}-legacy") for name in NETS]
DYNAMO = [pytest.param(name, True, id=f"{name}-dynamo", marks=pytest.mark.slow) for name in NETS]


def to_onnx(name: str, module: torch.nn.Module, *, dynamo: bool, slim: bool) -> tuple[onnx.ModelProto, Contract]:
    """The ONNX model with free batch (and image size where the network takes any), and its contract."""
    _, shape, free = NETS[name]
    axes = {0: "N", 2: "H", 3: "W"} if free else {0: "N"}
    example = torch.rand(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = {axis: torch.export.Dim(label, min=1, max=4096) for axis, label in axes.items()}
            if free and name != "isp":
                dims = {a: (torch.export.Dim.DYNAMIC if a else d) for a, d in dims.items()}
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["image"],
                output_names=["out"],
                dynamic_shapes=(dims,),
                verbose=False,
            )
            model = program.model_proto
        else:
            buffer = io.BytesIO()
            torch.onnx.export(
                module,
                (example,),
                buffer,
                dynamo=False,
                input_names=["image"],
                output_names=["out"],
                dynamic_axes={"image": axes},
            )
            model = onnx.load_from_string(buffer.getvalue())
        if slim:
            import onnxslim

            model = onnxslim.slim(model)
    out = module(example)
    inside = tuple(axes.get(a, d) for a, d in enumerate(example.shape))
    wide = out.dim() == 4
    outside = ("N", *(("h", "w")[a - 2] if wide and free and a > 1 else d for a, d in enumerate(out.shape) if a))
    layout = "NCHW" if len(inside) == 4 else "other"
    return model, Contract(
        inputs=(TensorSpec(name="image", shape=inside, layout=layout),),
        outputs=(TensorSpec(name="out", shape=outside, layout="NCHW" if wide else "other"),),
    )


def sizes(name: str) -> list[tuple[int, ...]]:
    """Input shapes to prove a network at: batch 1, 2 and 5, and where it takes them two other image sizes."""
    _, shape, free = NETS[name]
    found = [(1, *shape), (2, *shape), (5, *shape)]
    if free:
        found += [(1, shape[0], 64, 96), (2, shape[0], 40, 32)]
    return found


@pytest.mark.parametrize(("name", "dynamo"), [*LEGACY, *DYNAMO])
def test_network_is_the_same_function(name: str, dynamo: bool, tmp_path):
    torch.set_num_threads(1)
    module = build(name)
    model, contract = to_onnx(name, module, dynamo=dynamo, slim=True)
    converted = export(model, tmp_path, contract)
    for shape in sizes(name):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
        with torch.no_grad():
            wanted = module(x).numpy()
        found = converted({"image": x.numpy()})["out"]
        assert found.shape == wanted.shape
        assert sqnr_db(wanted, found) > GATE_DB, shape
    assert converted.facts.ops.get("TRANSPOSE", 0) <= MOVES.get(name, 0), converted.facts.ops


@pytest.mark.parametrize("name", ["mixed", "isp", "vit"])
def test_an_unslimmed_graph_gives_the_same_network(name: str, tmp_path):
    torch.set_num_threads(1)
    module = build(name)
    model, contract = to_onnx(name, module, dynamo=False, slim=False)
    converted = export(model, tmp_path, contract)
    x = torch.rand((3, *NETS[name][1]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = module(x).numpy()
    assert sqnr_db(wanted, converted({"image": x.numpy()})["out"]) > GATE_DB
    assert np.isfinite(wanted).all()
