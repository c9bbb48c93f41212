"""TFLite by litert-torch, Google's converter for torch modules: a second road to the same format, in an environment of its own."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models import files
from ...models.contract import Contract
from ...models.errors import UserError
from ..exporter import Exported, ExportRequest
from .environment import find, run, versions
from .flatbuffer import SIGNATURE, evaluator, freed, named

if TYPE_CHECKING:
    from torch import nn

NAME = "litert-torch"
SECONDS = 900.0
_BATCH = 23
"""Traced in place of a free batch, and found again in the file: with a free one, litert-torch 0.10 lowers few networks (no flattening,
no PixelShuffle), and some files of those bake the traced batch in."""


def export_litert_torch(request: ExportRequest, *, seconds: float = SECONDS) -> Exported:
    """Facts about the float32 `.tflite` file written at `request.out`; images are NHWC in its contract.

    Raises UserError when the environment is not set up, for other precisions, free image sizes, and networks that litert-torch
    can't convert.
    """
    from ..tflite.audit import audit
    from ..tflite.exporter import nhwc

    if request.precision != "fp32":
        raise UserError(f"the route {NAME} writes fp32 only, not {request.precision}", hint="leave the route out")
    if request.module is None:
        raise UserError(f"the route {NAME} starts from a torch module, and this is an ONNX file", hint="leave the route out")
    if sizes := [symbol for symbol in request.contract.symbols if symbol != "N"]:
        raise UserError(
            f"litert-torch can't leave {' and '.join(sizes)} free: it computes with the shapes it traced",
            hint="fix the image's size in the contract, or leave the route out",
        )
    find(NAME)
    contract = nhwc(request.contract)
    with tempfile.TemporaryDirectory(prefix="trimtab-litert-") as folder:
        program, out = Path(folder) / "program.pt2", Path(folder) / "model.tflite"
        _save_program(request.module, request.contract, program)
        job = {"program": str(program), "out": str(out), **_doors(contract)}
        run(NAME, "litert", job, seconds=seconds)
        names = {side: {name: spec.name for name, spec in _numbered(side, contract)} for side in ("inputs", "outputs")}
        data = freed(out.read_bytes(), _BATCH) if contract.symbols else out.read_bytes()
        made = named(data, contract, inputs=names["inputs"], outputs=names["outputs"], by="litert-torch")
    if contract.symbols:
        _refuse_baked_batch(made.data, made.contract)
    files.write_bytes(request.out, made.data)
    installed = versions(NAME)
    return Exported(
        contract=made.contract,
        ops=made.ops,
        spec_version="tflite schema 3",
        evaluator=evaluator(),
        tool_versions={name: installed[name] for name in ("litert-torch", "litert-converter", "torch")},
        audit=audit(made.data, integer=False),
    )


def _refuse_baked_batch(data: bytes, contract: Contract) -> None:
    """None, when the file runs at other batches than the traced one. Raises UserError when that one could not be freed."""
    from ai_edge_litert.interpreter import Interpreter

    for batch in (1, 3):
        interpreter = Interpreter(model_content=data, num_threads=1)
        known = interpreter._get_full_signature_list()[SIGNATURE]["inputs"]
        try:
            for spec in contract.inputs:
                interpreter.resize_tensor_input(known[spec.name], spec.concrete({"N": batch}))
            interpreter.allocate_tensors()
            for spec in contract.inputs:
                interpreter.set_tensor(known[spec.name], np.zeros(spec.concrete({"N": batch}), spec.dtype))
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            said = str(error).strip().splitlines()[-1][:200]
            raise UserError(
                f"litert-torch bakes the traced batch into this network's file, which does not run with {batch}: {said}",
                hint="fix the batch at 1 in the contract, or use trimtab's own writer",
            ) from None


def _numbered(side: str, contract: Contract) -> list[tuple[str, Any]]:
    """litert-torch's names of the contract's tensors."""
    stem = "args" if side == "inputs" else "output"
    return [(f"{stem}_{number}", spec) for number, spec in enumerate(getattr(contract, side))]


def _doors(contract: Contract) -> dict[str, Any]:
    """What the script needs to know of the inputs and outputs."""
    return {
        "inputs": [{"shape": spec.concrete({"N": _BATCH}), "dtype": spec.dtype} for spec in contract.inputs],
        "images_in": [i for i, spec in enumerate(contract.inputs) if spec.layout == "NHWC"],
        "images_out": [i for i, spec in enumerate(contract.outputs) if spec.layout == "NHWC"],
    }


def _save_program(module: nn.Module, contract: Contract, path: Path) -> None:
    """`module`, exported and saved at `path`, its outputs in a plain tuple. Raises UserError when torch can't export it."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Any) -> Any:
            from ...models.outputs import entries

            found = tuple(entries(self.inner(*inputs)).values())
            return found[0] if len(found) == 1 else found

    inputs = contract.random_inputs(contract.example_dims(batch=_BATCH), seed=0)
    samples = tuple(torch.from_numpy(array) for array in inputs.values())
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(Plain(module).eval(), samples), path)
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "")[:300]
        raise UserError(
            f"torch.export can't export this network: {type(error).__name__}: {said}",
            hint="leave the route out: trimtab's own writer starts from the ONNX graph",
        ) from error
