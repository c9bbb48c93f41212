"""What other converters make of the same network, as artifacts that can be judged and timed beside ours.

Each is used as its documentation shows, with its defaults. A converter that is not there, or fails, is a line with the reason.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from export_nets import Net

from trimtab.export.artifact import GOLDEN, MANIFEST, Artifact
from trimtab.export.exporter import exporters
from trimtab.export.parity import inputs_in_layout, judge, probes, relayout
from trimtab.models import files
from trimtab.models.contract import Contract


class UnableError(Exception):
    """A converter can't do this network, or is not there."""


@dataclass(frozen=True)
class Made:
    """A file that another converter wrote, the contract it follows, and the seconds it took."""

    path: Path
    contract: Contract
    seconds: float


Converter = Callable[[Net, Path], tuple[Path, Contract]]


def torch_onnx(net: Net, work: Path, *, dynamo: bool) -> tuple[Path, Contract]:
    """torch.onnx.export as it comes, in one file, with the batch (and a free size) dynamic."""
    contract, path = net.source.contract, work / "model.onnx"
    example = tuple(torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(batch=2), seed=0).values())
    names: dict[str, Any] = {
        "input_names": [s.name for s in contract.inputs],
        "output_names": [s.name for s in contract.outputs],
    }
    axes = {s.name: {i: d for i, d in enumerate(s.shape) if isinstance(d, str)} for s in contract.inputs}
    free = {"dynamic_shapes": tuple(axes.values()), "external_data": False} if dynamo else {"dynamic_axes": axes}
    torch.onnx.export(net.module.eval(), example, str(path), dynamo=dynamo, **names, **free)
    return path, contract


def onnx_int8(net: Net, work: Path) -> tuple[Path, Contract]:
    """ONNX Runtime's static quantiser with its defaults, on torch.onnx's graph."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, contract = torch_onnx(net, work, dynamo=False)
    name = contract.inputs[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(net.calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.left, None)
            return None if sample is None else {name: sample[None]}

    quant_pre_process(str(path), str(work / "prepared.onnx"))
    quantize_static(str(work / "prepared.onnx"), str(work / "int8.onnx"), Reader())
    return work / "int8.onnx", contract


def openvino_ir(net: Net, work: Path, *, int8: bool) -> tuple[Path, Contract]:
    """openvino.convert_model from the torch module; nncf.quantize with its defaults."""
    from trimtab.export.openvino_core import library

    openvino = library("openvino")
    contract = net.source.contract
    example = tuple(torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(batch=2), seed=0).values())
    shapes = [[d if isinstance(d, int) else -1 for d in s.shape] for s in contract.inputs]
    model = openvino.convert_model(net.module.eval(), example_input=example, input=[openvino.PartialShape(s) for s in shapes])
    for port, spec in zip((*model.inputs, *model.outputs), (*contract.inputs, *contract.outputs), strict=True):
        port.get_tensor().set_names({spec.name})
    if int8:
        nncf = library("nncf")
        model = nncf.quantize(model, nncf.Dataset([sample[None] for sample in net.calibration]))
    folder = work / "model.openvino"
    folder.mkdir()
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder, contract


def route(net: Net, work: Path, *, name: str, precision: str = "fp32") -> tuple[Path, Contract]:
    """TFLite by another road of trimtab's own: litert-torch (NCHW, as it comes) or TensorFlow's converter, in their environments."""
    from dataclasses import replace

    from trimtab.export.convert import order_of
    from trimtab.export.exporter import ExportRequest
    from trimtab.export.routes.litert_torch import export_litert_torch
    from trimtab.export.routes.tensorflow import export_tensorflow

    order = order_of(net.source, ("tflite", precision), calibration=net.calibration)
    fixed = net.source.contract
    request = ExportRequest(
        fixed,
        precision,
        work / "model.tflite",
        graph=order.graph,
        module=net.module,
        calibration=order.feeds,
        options=order.options,
    )
    made = (export_litert_torch if name == "litert-torch" else export_tensorflow)(replace(request))
    return request.out, made.contract


def aeq_defaults(net: Net, work: Path) -> tuple[Path, Contract]:
    """ai-edge-quantizer's own static recipe with its defaults, on litert-torch's file."""
    from ai_edge_quantizer import quantizer, recipe

    path, contract = route(net, work, name="litert-torch")
    work_on = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    module, name = net.source.contract, net.source.contract.inputs[0].name
    feeds = [inputs_in_layout({name: sample[None]}, module=module, artifact=contract) for sample in net.calibration]
    ranges = work_on.calibrate({"serving_default": feeds})
    from trimtab.export.routes.flatbuffer import named

    own = {side: {s.name: s.name for s in getattr(contract, side)} for side in ("inputs", "outputs")}
    told = named(
        bytes(work_on.quantize(ranges).quantized_model),
        contract,
        inputs=own["inputs"],
        outputs=own["outputs"],
        by="ai-edge-quantizer",
    )
    made = work / "int8.tflite"
    made.write_bytes(told.data)
    return made, told.contract  # its doors are integers


def onnx2tf(net: Net, work: Path, *, python: str) -> tuple[Path, Contract]:
    """onnx2tf on our ONNX graph, in the interpreter that has it (it wants Python 3.12 and its own pins)."""
    from trimtab.export.tflite.exporter import laid_out

    onnx.save(net.source.graph, work / "model.onnx")
    command = [str(Path(python).with_name("onnx2tf")), "-i", str(work / "model.onnx"), "-o", str(work / "out"), "-n"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    found = sorted((work / "out").glob("*float32.tflite")) if (work / "out").exists() else []
    if done.returncode or not found:
        raise UnableError(
            (done.stderr or done.stdout).strip().splitlines()[-1][:200] if done.stderr or done.stdout else "no file"
        )
    return _renamed(found[0], laid_out(net.source.contract, "NHWC"))


def _renamed(path: Path, contract: Contract) -> tuple[Path, Contract]:
    """The file with the contract's names in its signature, taken in order."""
    from ai_edge_litert.interpreter import Interpreter

    from trimtab.export.routes.flatbuffer import named

    (signature,) = Interpreter(str(path)).get_signature_list().values()
    sides = [
        dict(zip(signature[side], (s.name for s in getattr(contract, side)), strict=True)) for side in ("inputs", "outputs")
    ]
    made = named(path.read_bytes(), contract, inputs=sides[0], outputs=sides[1], by="onnx2tf")
    path.write_bytes(made.data)
    return path, made.contract


def others(pair: tuple[str, str], *, onnx2tf_python: str = "") -> dict[str, Converter]:
    """The other converters of a format and precision, by name."""
    tables: dict[tuple[str, str], dict[str, Converter]] = {
        ("onnx", "fp32"): {
            "torch.onnx (dynamo)": lambda net, work: torch_onnx(net, work, dynamo=True),
            "torch.onnx (TorchScript)": lambda net, work: torch_onnx(net, work, dynamo=False),
        },
        ("onnx", "int8"): {"onnxruntime quantize_static": onnx_int8},
        ("openvino", "fp32"): {"openvino.convert_model": lambda net, work: openvino_ir(net, work, int8=False)},
        ("openvino", "int8"): {"nncf.quantize": lambda net, work: openvino_ir(net, work, int8=True)},
        ("tflite", "fp32"): {
            "litert-torch": lambda net, work: route(net, work, name="litert-torch"),
            "tf.lite converter": lambda net, work: route(net, work, name="tensorflow"),
            **({"onnx2tf": lambda net, work: onnx2tf(net, work, python=onnx2tf_python)} if onnx2tf_python else {}),
        },
        ("tflite", "int8"): {
            "ai-edge-quantizer": aeq_defaults,
            "tf.lite converter": lambda net, work: route(net, work, name="tensorflow", precision="int8"),
        },
    }
    return tables.get(pair, {})


def artifact(net: Net, pair: tuple[str, str], label: str, make: Converter, folder: Path) -> tuple[Path, Artifact, float]:
    """(artifact folder, its manifest, seconds) of another converter's file, judged by the same probes as ours."""
    name, precision = pair
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="trimtab-") as temporary, _quiet():
        started = time.perf_counter()
        made, contract = make(net, Path(temporary))
        seconds = time.perf_counter() - started
        path = folder / f"model{made.suffix}"
        shutil.move(made, path)
    found = probes(net.source.contract, net.source.reference, real=net.real, seed=0)
    runner = exporters.get(name).runner(path, contract)
    parity = judge(
        runner, found, module=net.source.contract, artifact=contract, precision=precision, inputs="real", evaluator=label
    )
    manifest = Artifact(
        name=f"{net.name} {label}",
        format=name,
        precision=precision,
        file=path.name,
        size_bytes=files.size_bytes(path),
        sha256=files.sha256(path),
        contract=contract,
        spec_version="",
        ops={},
        parity=parity,
    )
    arrays = {}
    for kind, specs, targets, values in (
        ("input", net.source.contract.inputs, contract.inputs, found[0].inputs),
        ("output", net.source.contract.outputs, contract.outputs, found[0].outputs),
    ):
        for spec, target in zip(specs, targets, strict=True):
            arrays[f"{kind}:{target.name}"] = relayout(values[spec.name], spec, target)
    np.savez(folder / GOLDEN, **arrays)
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json")))
    return folder, manifest, seconds


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what converters print."""
    import io
    import warnings

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
