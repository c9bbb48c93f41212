"""Core ML: an mlprogram package written by coremltools, read back and evaluated without an Apple device.

Every precision keeps the contract's own types at the door: but for "fp32", a package computes in float16 and casts float32 inputs
and outputs at its edges, so that apps feed the same arrays to all. The precisions named after integers, palettes and zeros are
of weights alone (`coreml_weights`). An image package takes pixels instead, and normalises them itself.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.contract import Contract
from ..models.errors import UserError
from .coreml_audit import audited
from .coreml_image import Pixels, image_contract, image_of
from .coreml_inputs import (
    Range,
    features,
    fixed_contract,
    free_ranges,
    listed_ranges,
    narrowed_contract,
    traced_example,
)
from .coreml_options import CoremlOptions
from .coreml_weights import FORMS, Weight, islands, left_alone, packed
from .exporter import Exported, ExporterCard, ExportRequest, Runner, exporters

if TYPE_CHECKING:
    from torch import Tensor, nn

CARD = ExporterCard(
    title="Core ML mlprogram",
    suffix=".mlpackage",
    source="module",
    precisions={
        "fp32": "",
        "fp16": "",
        **dict.fromkeys(FORMS, ""),
        "int8-activations": "coremltools takes the ranges of activations by running the model, which Core ML does on macOS alone",
    },
    defaults=("fp16",),
    packages=("coremltools",),
    extra="coreml",
    runtimes=(),
    options=CoremlOptions,
    keeps_float="coremltools packs all weights that are large enough; arithmetic is float16 in any case",
    taps="modules",
)


@dataclass(frozen=True)
class Plan:
    """What one package is to be: its contract, what it is told, the sizes it takes, and its image input, if it has one."""

    contract: Contract
    precision: str
    options: CoremlOptions
    specifications: tuple[int, ...]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    listed: Sequence[Mapping[str, int]] = ()
    image: tuple[str, Pixels] | None = None

    @property
    def half(self) -> bool:
        """Whether it computes in float16."""
        return self.precision != "fp32"

    def features(self, scores: str) -> tuple[list[Any], list[Any]]:
        """coremltools' descriptions of inputs and outputs; `scores` names one more output ("" for none)."""
        import coremltools as ct
        import numpy as np

        pixels = dict([self.image]) if self.image else None
        inputs, outputs = features(self.contract, self.ranges, listed=self.listed, pixels=pixels)
        return inputs, [*outputs, *([ct.TensorType(name=scores, dtype=np.float32)] if scores else [])]


@exporters.register("coreml", CARD)
class CoremlExporter:
    """Writes `.mlpackage` folders and runs saved ones by the evaluator in `coreml_eval`."""

    @staticmethod
    def export(request: ExportRequest) -> Exported:
        """Facts about the package written at `request.out`. A RoutedNet becomes control flow.

        Raises UserError for a request without a module, tensor names or types that Core ML has not, a module whose outputs are
        not the contract's, options that the network does not allow, and operations that Core ML or coremltools has not (naming the
        operation and its module).
        """
        CARD.refuse(request.precision)
        if request.module is None:
            raise UserError(
                "Core ML packages are written from a torch module, and this request has only an ONNX graph",
                hint="start from a checkpoint or bundle, or export the graph to onnx or tflite",
            )
        from ..models.routed import RoutedNet

        options = request.options if isinstance(request.options, CoremlOptions) else CoremlOptions()
        if isinstance(request.module, RoutedNet):
            from .dynamic.coreml_routed import export_routed

            if options != CoremlOptions():
                raise UserError(
                    "a routed Core ML package decides at one size, on arrays: it takes no options",
                    hint="export its branches one by one, or leave the options out",
                )
            return export_routed(request.module, request.contract, request.out, request.precision)
        plan, warnings = planned(request.contract, request.precision, options, request.example)
        return _written(request.module, plan, request, warnings)

    @staticmethod
    def runner(path: Path, contract: Contract) -> Runner:
        """A function that evaluates the saved package; outputs come back in the contract's order.

        It is fed normalised tensors, also where the package takes an image: those are brought back to pixels.
        """
        from .coreml_runner import outputs_of

        return outputs_of(path, contract)

    @staticmethod
    def tapped(path: Path, contract: Contract) -> Runner:
        """The same function with the results of the torch modules inside, by their paths.

        Raises UserError for packages that don't tell their layers.
        """
        from .coreml_runner import taps_of

        return taps_of(path, contract)


def planned(contract: Contract, precision: str, options: CoremlOptions, example: tuple[Any, ...]) -> tuple[Plan, list[str]]:
    """(what the package is to be, warnings). Raises UserError for what the contract or the options do not allow."""
    from .coreml_trace import systems

    contract, warnings = narrowed_contract(contract)
    least = FORMS[precision].specification if precision in FORMS else 7
    least = max(least, 9) if options.group and "palette" in precision else least
    plan = Plan(contract, precision, options, systems(options.minimum_target, least=least))
    if options.image or options.classifier:
        kind = "image" if options.image else "classifier"
        batches = {spec.shape[0] for spec in contract.inputs if spec.shape and isinstance(spec.shape[0], str)}
        if batches:
            warnings.append(f"Core ML's {kind} packages take one sample at a time: the batch is 1")
            contract = fixed_contract(contract, dict.fromkeys(batches, 1))
    listed = options.dims(contract)
    if listed:
        same = {symbol: sizes for symbol, sizes in listed[0].items() if all(dims[symbol] == sizes for dims in listed)}
        contract = fixed_contract(contract, same)
    image = image_of(contract) if options.image else None
    ranges = listed_ranges(contract, listed) if listed else free_ranges(contract, example)
    if image:
        contract = image_contract(contract, *image)
    if ranges and not listed:
        warnings.append(_flexible(ranges))
    return replace(plan, contract=contract, ranges=ranges, listed=listed, image=image), warnings


def _written(module: nn.Module, plan: Plan, request: ExportRequest, warnings: list[str]) -> Exported:
    """Facts about the package of `module` at `request.out`."""
    from . import coreml_doors as doors
    from . import coreml_trace as roads
    from .coreml_classifier import labelled
    from .coreml_layers import layers_of, places_of, scopes_of
    from .coreml_quiet import quiet
    from .tracing import tensors_only

    contract = plan.contract
    example = traced_example(contract, plan.ranges, request.example)
    module = tensors_only(module, example, contract, title="Core ML")
    softmax = plan.options.classifier and not doors.gives_probabilities(module, example, contract)
    module, example = doors.with_doors(module, example, contract, image=plan.image, softmax=softmax)
    model, heard, traced = _convert(module, example, plan, scores=doors.SCORES if softmax else "")
    with quiet() as more:
        depth = roads.wrappers(module)
        scopes = scopes_of(traced, depth)
        layers = layers_of(model, module, example, scopes, depth=depth)
        rest: list[Weight] = []
        if plan.precision in FORMS:
            places = places_of(model, scopes)
            model, rest = packed(model, plan.precision, group=plan.options.group, places=places)
            warnings += left_alone(rest, plan.precision, places)
        if plan.options.classifier:
            scores = doors.SCORES if softmax else contract.outputs[0].name
            model = labelled(model, contract.classes, scores, keep_scores=not softmax)
    made = saved(model, contract, request.out, (*warnings, *heard, *more), layers=layers)
    flexible = bool(plan.ranges) and not plan.listed
    return replace(made, audit=audited(made.ops, half=plan.half, flexible=flexible, islands=islands(rest)))


def _convert(module: nn.Module, example: tuple[Tensor, ...], plan: Plan, *, scores: str) -> tuple[Any, list[str], Any]:
    """(the converted model, the warnings heard, the trace it came from): else, by torch.export, None and a warning that says so."""
    from . import coreml_trace as roads
    from .coreml_quiet import quiet

    contract, ranges = plan.contract, plan.ranges
    first = {spec.shape[0] for spec in contract.inputs if spec.shape}
    sides_known = all(symbol in first for symbol in ranges)
    free = [
        {axis: (d, ranges[d].low, ranges[d].high) for axis, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in contract.inputs
    ]
    with quiet() as heard:
        inputs, outputs = plan.features(scores)

        def convert(program: Any) -> Any:
            return roads.converted(program, inputs=inputs, outputs=outputs, half=plan.half, specifications=plan.specifications)

        traced: Any = None
        try:
            traced = roads.trace(module, example, sides_known=sides_known)
            return convert(traced), heard, traced
        except Exception as error:  # torch and coremltools refuse with every kind of exception
            heard.clear()
            try:
                model = convert(roads.exported(module, example, sides_known=sides_known, free=free))
            except Exception:
                raise roads.refusal(error, traced) from error
            heard.append(f"converted through torch.export, since tracing failed: {roads.first_line(error)}")
            return model, heard, None


def saved(
    model: Any, contract: Contract, out: Path, warnings: tuple[str, ...], *, layers: Mapping[str, str] | None = None
) -> Exported:
    """The facts about `model`, saved at `out` with its `layers` noted, and read back.

    Raises UserError when coremltools changed a tensor's name.
    """
    import coremltools as ct
    import torch

    from .coreml_classifier import LABEL, PROBABILITIES
    from .coreml_layers import noted
    from .coreml_quiet import quiet
    from .coreml_trace import system_of

    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with quiet() as heard:
        noted(model._spec, layers or {})
        model.save(str(out))
        spec = ct.utils.load_spec(str(out))
    labels = (LABEL, PROBABILITIES) if spec.description.predictedFeatureName else ()
    for side, written in (("inputs", spec.description.input), ("outputs", spec.description.output)):
        names = [feature.name for feature in written if feature.name not in labels]
        wanted = [tensor.name for tensor in getattr(contract, side)]
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
