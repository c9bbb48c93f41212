"""Core ML: an mlprogram package written by coremltools, read back and evaluated without an Apple device.

Both precisions keep the contract's own types at the door: a "fp16" package computes in float16 and casts float32 inputs and
outputs at its edges, so that apps feed the same arrays to either.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.contract import Contract, TensorSpec
from ..models.errors import UserError
from .exporter import Exported, ExporterCard, ExportRequest, Runner, Tensors, exporters

if TYPE_CHECKING:
    from torch import Tensor, nn

CARD = ExporterCard(
    title="Core ML mlprogram",
    suffix=".mlpackage",
    source="module",
    precisions={"fp32": "", "fp16": "", "int8": "weight-only int8 is not written yet"},
    defaults=("fp16",),
    packages=("coremltools",),
    extra="coreml",
    runtimes=(),
)

_BATCH = (1, 64)
_SIDE = (8, 4096)
_TRACED_BATCH = 2  # not 1: a batch of 1 hides code that only works for it
_TRACED_SIDE = 64
_LEGAL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPES: dict[str, type[np.generic]] = {"float32": np.float32, "float16": np.float16, "int32": np.int32}


@dataclass(frozen=True)
class Range:
    """What a free dimension may be in the package, its default there, and the size the module is traced at."""

    low: int
    high: int
    default: int
    traced: int


@exporters.register("coreml", CARD)
class CoremlExporter:
    """Writes `.mlpackage` folders and runs saved ones by the evaluator in `coreml_eval`."""

    @staticmethod
    def export(request: ExportRequest) -> Exported:
        """Facts about the package written at `request.out`. A RoutedNet becomes control flow.

        Raises UserError for a request without a module, tensor names or types that Core ML has not, a module whose outputs are
        not the contract's, and operations that Core ML or coremltools has not (naming the operation and its module).
        """
        CARD.refuse(request.precision)
        if request.module is None:
            raise UserError(
                "Core ML packages are written from a torch module, and this request has only an ONNX graph",
                hint="start from a checkpoint or bundle, or export the graph to onnx or tflite",
            )
        from ..models.routed import RoutedNet
        from . import coreml_trace as roads

        if isinstance(request.module, RoutedNet):
            from .dynamic.coreml_routed import export_routed

            return export_routed(request.module, request.contract, request.out, request.precision)
        contract, warnings = narrowed_contract(request.contract)
        ranges = free_ranges(contract, request.example)
        example = _example(contract, ranges, request.example)
        module = roads.flat(request.module, example, contract)
        model, heard = _convert(module, example, contract, ranges, half=request.precision == "fp16")
        if ranges:
            warnings.append(_flexible(ranges))
        return saved(model, contract, request.out, (*warnings, *heard))

    @staticmethod
    def runner(path: Path, contract: Contract) -> Runner:
        """A function that evaluates the saved package; outputs come back in the contract's order."""
        from .coreml_eval import evaluate, load_program

        program = load_program(path)

        def run(inputs: Tensors) -> dict[str, np.ndarray]:
            outputs = evaluate(program, inputs)
            return {spec.name: outputs[spec.name] for spec in contract.outputs}

        return run


def narrowed_contract(contract: Contract) -> tuple[Contract, list[str]]:
    """The contract with int64 as int32, and a warning for each. Raises UserError for names and types that Core ML has not."""
    warnings: list[str] = []

    def narrowed(spec: TensorSpec) -> TensorSpec:
        if not _LEGAL.fullmatch(spec.name):
            raise UserError(
                f"tensor name {spec.name!r} is not legal in Core ML (letters, digits and _, not starting with a digit)",
                hint=f"rename it in the contract, say to {re.sub(r'[^A-Za-z0-9_]', '_', '_' * spec.name[0].isdigit() + spec.name)!r}",
            )
        if spec.dtype == "int64":
            warnings.append(f"Core ML has no int64 arrays: {spec.name!r} is int32 in the package")
            return spec.model_copy(update={"dtype": "int32"})
        if spec.dtype not in _TYPES:
            raise UserError(
                f"tensor {spec.name!r} is {spec.dtype}, Core ML arrays are {', '.join(_TYPES)}",
                hint="give the network a float32 input and let the app convert",
            )
        return spec

    inputs, outputs = tuple(map(narrowed, contract.inputs)), tuple(map(narrowed, contract.outputs))
    return contract.model_copy(update={"inputs": inputs, "outputs": outputs}), warnings


def free_ranges(contract: Contract, example: tuple[Any, ...]) -> dict[str, Range]:
    """The range of every free dimension: 1…64 along the first axis (the batch), 8…4096 elsewhere, wider when the example is.

    An example's own side becomes the default; the default batch is 1.
    """
    ranges: dict[str, Range] = {}
    shown = example if len(example) == len(contract.inputs) else (None,) * len(contract.inputs)
    for spec, value in zip(contract.inputs, shown, strict=True):
        sizes = tuple(getattr(value, "shape", ()))
        for axis, symbol in enumerate(spec.shape):
            if not isinstance(symbol, str) or symbol in ranges:
                continue
            if axis == 0:
                ranges[symbol] = Range(*_BATCH, default=1, traced=_TRACED_BATCH)
            else:
                side = int(sizes[axis]) if len(sizes) == len(spec.shape) else _TRACED_SIDE
                ranges[symbol] = Range(min(_SIDE[0], side), max(_SIDE[1], side), default=side, traced=side)
    return ranges


def _example(contract: Contract, ranges: Mapping[str, Range], given: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The tensors to trace with: the given ones where they fit the shapes to trace, else seeded random ones."""
    import torch

    dims = {symbol: bounds.traced for symbol, bounds in ranges.items()}
    arrays = contract.random_inputs(dims, seed=0)
    shapes = [spec.concrete(dims) for spec in contract.inputs]
    if len(given) == len(shapes) and all(tuple(t.shape) == shape for t, shape in zip(given, shapes, strict=True)):
        return tuple(torch.as_tensor(tensor) for tensor in given)
    return tuple(torch.from_numpy(arrays[spec.name]) for spec in contract.inputs)


def _convert(
    module: nn.Module, example: tuple[Tensor, ...], contract: Contract, ranges: Mapping[str, Range], *, half: bool
) -> tuple[Any, list[str]]:
    """(the converted model, the warnings heard): by tracing, else by torch.export with a warning that says so."""
    from . import coreml_trace as roads
    from .coreml_quiet import quiet

    first = {spec.shape[0] for spec in contract.inputs if spec.shape}
    sides_known = all(symbol in first for symbol in ranges)
    free = [
        {axis: (d, ranges[d].low, ranges[d].high) for axis, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in contract.inputs
    ]
    with quiet() as heard:
        inputs, outputs = features(contract, ranges)
        traced: Any = None
        try:
            traced = roads.trace(module, example, sides_known=sides_known)
            return roads.converted(traced, inputs=inputs, outputs=outputs, half=half), heard
        except Exception as error:  # torch and coremltools refuse with every kind of exception
            heard.clear()
            try:
                program = roads.exported(module, example, sides_known=sides_known, free=free)
                model = roads.converted(program, inputs=inputs, outputs=outputs, half=half)
            except Exception:
                raise roads.refusal(error, traced) from error
            heard.append(f"converted through torch.export, since tracing failed: {roads.first_line(error)}")
            return model, heard


def features(contract: Contract, ranges: Mapping[str, Range]) -> tuple[list[Any], list[Any]]:
    """coremltools' descriptions of the contract's inputs and outputs; one symbol is one range, shared between inputs."""
    import coremltools as ct

    dims = {s: ct.RangeDim(lower_bound=r.low, upper_bound=r.high, default=r.default) for s, r in ranges.items()}
    inputs = [
        ct.TensorType(
            name=spec.name,
            shape=ct.Shape(tuple(dims[d] if isinstance(d, str) else d for d in spec.shape)),
            dtype=_TYPES[spec.dtype],
        )
        for spec in contract.inputs
    ]
    return inputs, [ct.TensorType(name=spec.name, dtype=_TYPES[spec.dtype]) for spec in contract.outputs]


def saved(model: Any, contract: Contract, out: Path, warnings: tuple[str, ...]) -> Exported:
    """The facts about `model`, saved at `out` and read back. Raises UserError when coremltools changed a tensor's name."""
    import coremltools as ct
    import torch

    from .coreml_quiet import quiet
    from .coreml_trace import system_of

    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with quiet() as heard:
        model.save(str(out))
        spec = ct.utils.load_spec(str(out))
    for side, written in (("inputs", spec.description.input), ("outputs", spec.description.output)):
        names, wanted = [feature.name for feature in written], [tensor.name for tensor in getattr(contract, side)]
        if names != wanted:
            shutil.rmtree(out)
            raise UserError(
                f"coremltools renamed the {side} {wanted} to {names}: a name of theirs is reserved in Core ML",
                hint="choose other names in the contract",
            )
    return Exported(
        contract=contract,
        ops=operations(spec),
        spec_version=system_of(spec.specificationVersion),
        warnings=(*warnings, *heard),
        evaluator=evaluator_name(),
        tool_versions={"coremltools": ct.__version__, "torch": torch.__version__},
    )


def operations(spec: Any) -> dict[str, int]:
    """The MIL operations of a package by type, constants left out, those of nested blocks counted in."""
    counts: Counter[str] = Counter()
    blocks = [block for function in spec.mlProgram.functions.values() for block in function.block_specializations.values()]
    while blocks:
        for operation in blocks.pop().operations:
            counts[operation.type] += 1
            blocks.extend(operation.blocks)
    del counts["const"]
    return dict(sorted(counts.items()))


def evaluator_name() -> str:
    """What computes a package here, in words."""
    from .coreml_quiet import quiet

    with quiet():
        import coremltools as ct
    return f"MIL evaluator on the saved package (runtime-independent; not Apple's kernels), coremltools {ct.__version__}"


def _flexible(ranges: Mapping[str, Range]) -> str:
    """The warning that goes with free dimensions (Apple: range flexibility runs on the Neural Engine at the default alone)."""
    shown = ", ".join(f"{symbol} {r.low}…{r.high}, default {r.default}" for symbol, r in ranges.items())
    return (
        f"free dimensions ({shown}): Core ML uses the Neural Engine at the default shape alone, and CPU or GPU at others; "
        "fix them in the contract for the fastest package"
    )
