"""TFLite and SavedModels by TensorFlow: trimtab's own NHWC program, executed by TensorFlow's operators in an environment of its own."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models import files
from ...models.contract import Contract
from ...models.errors import UnchangedError, UserError
from ..exporter import Exported, ExportRequest
from .environment import find, run, versions
from .flatbuffer import evaluator, named
from .scripts.tf_ops import TABLE

if TYPE_CHECKING:
    from ..tflite.ir import Program, Tensor

NAME = "tensorflow"
SECONDS = 900.0
PRECISIONS = ("fp32", "fp16", "int8", "sparse")
EXACT_DB = 90.0
"""What a SavedModel must reach: both sides compute in float32."""


def export_tensorflow(request: ExportRequest, *, io: str = "", seconds: float = SECONDS) -> Exported:
    """Facts about the `.tflite` file written at `request.out` by TensorFlow's converter; images are NHWC in its contract.

    Precisions: fp32, fp16 (weights), int8 (ranges from `request.calibration`; `io`: the dtype of its inputs and outputs, by default
    what the options say, else float32), and sparse (float weights, those with many zeros stored without them). Raises UserError when
    the environment is not set up, for operators that have no TensorFlow call here, and where nothing became what was asked.
    """
    from ..parity import inputs_in_layout
    from ..tflite.audit import audit

    if request.precision not in PRECISIONS:
        raise UserError(f"the route {NAME} has no precision {request.precision!r}", hint="one of " + ", ".join(PRECISIONS))
    io = io or getattr(request.options, "io", "float32")
    if io != "float32" and request.precision != "int8":
        raise UserError(f"{io} inputs and outputs go with int8 alone, not {request.precision}", hint="io = float32")
    if request.precision == "int8" and not request.calibration:
        raise UserError(
            f"the route {NAME} takes int8's ranges from real inputs, and there are none", hint="give calibration data"
        )
    contract, program = program_of(request)
    find(NAME)
    names = safe_names(contract)
    with tempfile.TemporaryDirectory(prefix="trimtab-tensorflow-") as name:
        folder, feeds = Path(name), []
        for number, feed in enumerate(request.calibration if request.precision == "int8" else ()):
            feeds.append(str(folder / f"feed{number}.npz"))
            laid = inputs_in_layout(feed, module=request.contract, artifact=contract)
            np.savez(feeds[-1], **{names[key]: array for key, array in laid.items()})  # type: ignore[arg-type]
        out = folder / "model.tflite"
        job = {
            **write_program(program, names, folder),
            "out": str(out),
            "precision": request.precision,
            "io": io,
            "feeds": feeds,
        }
        run(NAME, "tf_lite", job, seconds=seconds)
        back = {safe: own for own, safe in names.items()}
        made = named(out.read_bytes(), contract, inputs=back, outputs=back, by="TensorFlow")
    found = audit(made.data, integer=request.precision == "int8")
    warnings = _checked(made.data, made.ops, made.sparse, request.precision, found.islands)
    files.write_bytes(request.out, made.data)
    return Exported(
        contract=made.contract,
        ops=made.ops,
        spec_version="tflite schema 3",
        evaluator=evaluator(),
        warnings=warnings,
        tool_versions={"tensorflow": versions(NAME)["tensorflow"]},
        audit=found,
    )


@dataclass(frozen=True)
class SavedModel:
    """What was written: its folder, its contract, its signature's names by the contract's, and how far it is from the reference."""

    path: Path
    contract: Contract
    names: Mapping[str, str]
    max_abs_error: float
    sqnr_db: float


def saved_model(request: ExportRequest, *, seconds: float = SECONDS, force: bool = False) -> SavedModel:
    """The SavedModel folder written at `request.out`: float32, images in NHWC, one signature "serving_default".

    It was loaded again and run beside the reference (the module, or the ONNX graph in ONNX Runtime) on a random input. Raises
    UserError as `export_tensorflow` does, and with exit code 1 when it does not compute the same function.
    """
    from ..parity import inputs_in_layout, relayout, sqnr_db

    if request.precision != "fp32":
        raise UserError(f"a SavedModel is written as fp32, not {request.precision}", hint="use --precision fp32")
    contract, program = program_of(request)
    find(NAME)
    names = safe_names(contract)
    inputs = request.contract.random_inputs(request.contract.example_dims(batch=2), seed=0)
    inputs |= request.contract.defaults()
    wanted = _reference(request, inputs)
    with tempfile.TemporaryDirectory(prefix="trimtab-tensorflow-") as name, files.new_folder(request.out, force=force) as place:
        folder = Path(name)
        laid = inputs_in_layout(inputs, module=request.contract, artifact=contract)
        np.savez(folder / "feeds.npz", **{names[key]: array for key, array in laid.items()})  # type: ignore[arg-type]
        job = {
            **write_program(program, names, folder),
            "saved": str(place),
            "feeds": str(folder / "feeds.npz"),
            "answers": str(folder / "answers.npz"),
        }
        run(NAME, "tf_program", job, seconds=seconds)
        worst, error = float("inf"), 0.0
        with np.load(folder / "answers.npz", allow_pickle=False) as answers:
            for own, laid_spec in zip(request.contract.outputs, contract.outputs, strict=True):
                got = relayout(answers[names[own.name]], laid_spec, own)
                worst = min(worst, sqnr_db(wanted[own.name], got))
                error = max(error, float(np.abs(wanted[own.name].astype(np.float64) - got).max(initial=0)))
        if worst < EXACT_DB:
            raise UserError(
                f"the SavedModel does not compute the same function: {worst:.1f} dB, errors up to {error:.2g}",
                hint="report this network; trimtab's own TFLite writer does without TensorFlow",
                exit_code=1,
            )
    return SavedModel(request.out, contract, names, error, worst)


def _reference(request: ExportRequest, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    from ..source import torch_reference

    if request.module is not None:
        return torch_reference(request.module.eval(), request.contract)(inputs)
    import onnxruntime

    assert request.graph is not None  # noqa: S101 - `program_of` asked for it
    session = onnxruntime.InferenceSession(request.graph.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [spec.name for spec in request.contract.outputs]
    return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))


def program_of(request: ExportRequest) -> tuple[Contract, Program]:
    """The contract in NHWC, and the program of TFLite operators. Raises UserError for those that have no TensorFlow call here."""
    from ..tflite.exporter import nhwc
    from ..tflite.model import build

    if request.graph is None:
        raise UserError(
            f"the route {NAME} starts from an ONNX graph and none was given", hint="export the module to ONNX first"
        )
    contract = nhwc(request.contract)
    program = build(request.graph, contract)
    if strange := Counter(op.kind for op in program.ops if op.kind not in TABLE):
        listed = ", ".join(f"{kind} ({count}×)" for kind, count in sorted(strange.items()))
        raise UserError(f"the route {NAME} has no TensorFlow call for {listed}", hint="leave the route out")
    return contract, program


def safe_names(contract: Contract) -> dict[str, str]:
    """A name that TensorFlow takes for every tensor of the contract: its own where it can, else by side and number."""
    found = {}
    for side, specs in (("input", contract.inputs), ("output", contract.outputs)):
        for number, spec in enumerate(specs):
            fits = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", spec.name)
            found[spec.name] = spec.name if fits else f"trimtab_{side}_{number}"
    return found


def write_program(program: Program, names: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The program as JSON and its constants as npz in `folder`, and where they lie."""
    tensors = list(program.tensors())
    numbers: dict[Tensor, int] = {tensor: number for number, tensor in enumerate(tensors)}
    told: dict[str, Any] = {
        "tensors": [{"shape": list(tensor.shape), "dtype": str(np.dtype(tensor.dtype))} for tensor in tensors],
        "inputs": {names[name]: numbers[tensor] for name, tensor in program.inputs.items()},
        "outputs": {names[name]: numbers[tensor] for name, tensor in program.outputs.items()},
        "ops": [
            {
                "kind": op.kind,
                "inputs": [-1 if tensor is None else numbers[tensor] for tensor in op.inputs],
                "outputs": [numbers[tensor] for tensor in op.outputs],
                "options": op.options,
            }
            for op in program.ops
        ],
    }
    (folder / "program.json").write_text(json.dumps(told, default=_plain))
    held = {str(numbers[tensor]): tensor.data for tensor in tensors if tensor.data is not None}
    np.savez(folder / "constants.npz", **held)  # type: ignore[arg-type]
    return {"program": str(folder / "program.json"), "constants": str(folder / "constants.npz")}


def _plain(value: Any) -> Any:
    """A NumPy number or array as JSON has it."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _checked(data: bytes, ops: Mapping[str, int], sparse: int, precision: str, islands: Mapping[str, int]) -> tuple[str, ...]:
    """Warnings about what stays in float. Raises UserError when nothing is as it was asked."""
    from ..tflite.writer import schema, unpacked

    model = unpacked(data)
    held = (tensor for graph in model.subgraphs for tensor in graph.tensors if model.buffers[tensor.buffer].data is not None)
    stored = {tensor.type for tensor in held}
    missing = {
        "fp32": "",
        "fp16": "" if schema.TensorType.FLOAT16 in stored else "no weight could be held in float16",
        "int8": "" if schema.TensorType.INT8 in stored else "no weight could be held in int8",
        "sparse": "" if sparse else "no weight has zeros enough to be stored without them",
    }[precision]
    if missing:
        raise UnchangedError(f"TFLite {precision} was asked of TensorFlow, and {missing}", hint="export fp32")
    if precision == "int8" and islands:
        named_ones = ", ".join(f"{count} {kind}" for kind, count in islands.items())
        return (f"{sum(islands.values())} of {sum(ops.values())} operators stay in float: {named_ones}",)
    if precision == "sparse":
        return (
            f"{sparse} weights are stored without their zeros and unpacked when the file is loaded: it is smaller, not faster",
        )
    return ()
