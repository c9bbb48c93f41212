"""From a network to proven artifacts: export, run back, judge, and keep or reject."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..models import files
from ..models.contract import Contract
from ..models.errors import UserError
from .artifact import GOLDEN, MANIFEST, SAMPLES, Artifact
from .calibration import calibration_feeds
from .choices import POOL, clearest, mix, telling, unproven
from .exporter import Exported, ExporterCard, ExportRequest, Runner, exporters
from .parity import Probe, judge, probes, relayout

if TYPE_CHECKING:
    import onnx
    from torch import nn

ROUNDED = (
    "gates switch on by the sign of a logit, and rounded to {precision} some decide otherwise: export fp32, static or routed"
)


@dataclass(frozen=True)
class Source:
    """A network to export: its contract, its reference function, and the forms that exporters read.

    For one that adapts to its input: `dynamic` says how, `branch` tells which branch answers given inputs, and `settings` are
    the values of inputs with a default that make each branch answer, one after the other; `margin` tells how far, in logits, the
    nearest of all gates is from deciding otherwise.
    """

    label: str
    contract: Contract
    reference: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    graph: onnx.ModelProto
    module: nn.Module | None
    origin: dict[str, str]
    dynamic: dict[str, Any] = field(default_factory=dict)
    branch: Callable[[Mapping[str, np.ndarray]], int] | None = None
    settings: tuple[Mapping[str, np.ndarray], ...] = ()
    margin: Callable[[Mapping[str, np.ndarray]], float] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """One artifact made: where it lies (a `.rejected` folder when its parity failed) and its manifest."""

    folder: Path
    artifact: Artifact

    @property
    def ok(self) -> bool:
        """True when the parity gate was passed."""
        return self.artifact.parity.ok


def plan_formats(formats: Sequence[str], precisions: Sequence[str] | None) -> list[tuple[str, str]]:
    """The (format, precision) pairs to write, checked before anything heavy runs.

    Without `precisions` every format writes its default ones; with them, every pair must be possible.
    Raises UserError for unknown formats, missing packages and precisions a format can't hold.
    """
    pairs = []
    for name in formats:
        card = exporters.entry(name).card
        for precision in precisions or card.defaults:
            card.refuse(precision)
            pairs.append((name, precision))
    return list(dict.fromkeys(pairs))


def module_source(
    module: nn.Module, contract: Contract, *, label: str, origin: dict[str, str] | None = None, seed: int = 0
) -> Source:
    """A torch module as a Source: traced once to ONNX; the module itself is the reference."""
    import torch

    from .onnx import to_graph

    module = module.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
    example = tuple(torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(batch=2), seed=seed).values())
    graph = to_graph(module, contract, example)
    return Source(
        label, contract, torch_reference(module, contract), graph, module, origin or {}, margin=gate_margin(module, contract)
    )


def torch_reference(module: nn.Module, contract: Contract) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A torch module as a function of named arrays, with the contract's names."""
    import torch

    from ..models.outputs import entries

    def reference(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            returned = entries(module(*(torch.from_numpy(inputs[s.name]) for s in contract.inputs)))
        return {spec.name: tensor.numpy() for spec, tensor in zip(contract.outputs, returned.values(), strict=True)}

    return reference


def gate_margin(module: nn.Module, contract: Contract) -> Callable[[Mapping[str, np.ndarray]], float] | None:
    """How near to zero the gates' logits come for given inputs; None for a network without gates."""
    from ..models.gates import gates_of

    gates, reference = gates_of(module).values(), torch_reference(module, contract)
    if not gates:
        return None

    def margin(inputs: Mapping[str, np.ndarray]) -> float:
        reference(inputs)
        return min(float(gate.logits.abs().min()) for gate in gates if gate.logits is not None)

    return margin


def file_source(path: Path) -> Source:
    """A user's own `.onnx` file as a Source: the original file in ONNX Runtime is the reference."""
    from .onnx import OnnxExporter, contract_of, load_graph

    graph = load_graph(path)
    contract = contract_of(graph)
    return Source(path.stem, contract, OnnxExporter.runner(path, contract), graph, None, {"onnx_sha256": files.sha256(path)})


def convert(
    source: Source,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    real: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    seed: int = 0,
    force: bool = False,
    on_artifact: Callable[[Converted], None] | None = None,
) -> list[Converted]:
    """One artifact per (format, precision) under `out/<format>-<precision>/`, each with its parity verdict.

    `real`: at least eight normalised samples (N, …) to judge on; without, seeded random inputs. `calibration`: at least sixteen
    others, that integer ranges are taken from; UserError where a precision wants them and they are missing or say nothing.
    An artifact that fails parity lies in `<format>-<precision>.rejected/` instead.
    """
    feeds: dict[tuple[str, str], tuple[Mapping[str, np.ndarray], ...]] = {}
    for name, precision in pairs:
        card = exporters.entry(name).card
        if card.source == "module" and source.module is None:
            raise UserError(
                f"{card.title} is made from a torch module, and {source.label} is an ONNX file",
                hint="export the Bundle instead, or --to onnx,tflite",
            )
        if precision in card.calibrated:
            feeds[name, precision] = calibration_feeds(source.contract, calibration, what=f"{card.title} {precision}")
        files.refuse_overwrite(out / f"{name}-{precision}", force=force)
    pool = real
    if source.branch:
        pool = telling(source.contract, source.branch, real=real, seed=seed)
        if real is not None:
            source = replace(source, dynamic={**source.dynamic, "samples": mix(source.contract, source.branch, real)})
    elif source.margin and real is not None:
        pool = clearest(source.contract, source.margin, real)
    found = probes(source.contract, source.reference, real=pool, seed=seed, settings=source.settings, branch=source.branch)
    source = replace(source, warnings=(*source.warnings, *unproven(source.dynamic, found)))
    made = []
    for name, precision in pairs:
        converted = _one(source, name, precision, out, found, real, feeds.get((name, precision), ()))
        made.append(converted)
        if on_artifact:
            on_artifact(converted)
    return made


def _one(
    source: Source,
    name: str,
    precision: str,
    out: Path,
    found: list[Probe],
    real: np.ndarray | None,
    feeds: tuple[Mapping[str, np.ndarray], ...],
) -> Converted:
    import onnx

    entry = exporters.entry(name)
    out.mkdir(parents=True, exist_ok=True)
    work = out / f".{name}-{precision}.work"  # one left by a killed run goes now
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        path = work / f"model{entry.card.suffix}"
        graph = onnx.ModelProto()
        graph.CopyFrom(source.graph)
        request = ExportRequest(source.contract, precision, path, graph=graph, module=source.module, calibration=feeds)
        exported = entry.value.export(request)
        artifact = _judged(
            source,
            entry.card,
            entry.value.runner,
            exported,
            path,
            found,
            "random" if real is None else "real",
            name=name,
            precision=precision,
        )
        _golden(work / GOLDEN, source.contract, artifact.contract, found[0])
        if source.dynamic and real is not None:
            _samples(work / SAMPLES, source.contract, artifact.contract, real)
        files.write_json(work / MANIFEST, artifact.model_dump(mode="json"))
        return Converted(_place(work, out / f"{name}-{precision}", ok=artifact.parity.ok), artifact)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _judged(
    source: Source,
    card: ExporterCard,
    runner: Callable[[Path, Contract], Runner],
    exported: Exported,
    path: Path,
    found: list[Probe],
    inputs: Literal["real", "random"],
    *,
    name: str,
    precision: str,
) -> Artifact:
    """The manifest of a freshly written file, with the verdict on the file as it was saved."""
    run = _lazy(runner, path, exported.contract)
    parity = judge(
        run,
        found,
        module=source.contract,
        artifact=exported.contract,
        precision=precision,
        inputs=inputs,
        evaluator=exported.evaluator or card.title,
    )
    if source.margin and precision != "fp32" and not parity.ok:
        parity = parity.model_copy(update={"reason": f"{parity.reason}; {ROUNDED.format(precision=precision)}"})
    return Artifact(
        name=f"{source.label}-{name}-{precision}",
        format=name,
        precision=precision,
        file=path.name,
        size_bytes=files.size_bytes(path),
        sha256=files.sha256(path),
        contract=exported.contract,
        spec_version=exported.spec_version,
        ops=dict(exported.ops),
        parity=parity,
        warnings=(*source.warnings, *exported.warnings),
        source=source.origin,
        dynamic=source.dynamic,
        tool_versions=dict(exported.tool_versions),
    )


def _lazy(runner: Callable[[Path, Contract], Runner], path: Path, contract: Contract) -> Runner:
    """A runner that loads the artifact at its first call, so that a file its runtime rejects is a failed parity, not a crash."""
    loaded: list[Runner] = []

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not loaded:
            loaded.append(runner(path, contract))
        return loaded[0](inputs)

    return run


def _golden(path: Path, module: Contract, artifact: Contract, probe: Probe) -> None:
    """One input and the reference's output, in the artifact's layout, for a check on the device."""
    arrays: dict[str, Any] = {}
    for s, t in zip(module.inputs, artifact.inputs, strict=True):
        arrays[f"input:{t.name}"] = relayout(probe.inputs[s.name], s, t)
    for s, t in zip(module.outputs, artifact.outputs, strict=True):
        arrays[f"output:{t.name}"] = relayout(probe.outputs[s.name], s, t)
    np.savez(path, **arrays)


def _samples(path: Path, module: Contract, artifact: Contract, real: np.ndarray) -> None:
    """Real inputs in the artifact's layout, for profilers: a network that adapts takes as long as its inputs ask."""
    source, target = module.inputs[0], artifact.inputs[0]
    np.savez_compressed(path, inputs=relayout(real[:POOL].astype(source.dtype), source, target))


def _place(work: Path, final: Path, *, ok: bool) -> Path:
    """The finished folder in its place: an accepted artifact replaces its rejected twin, and the other way round."""
    rejected = final.with_name(f"{final.name}.rejected")
    target = final if ok else rejected
    for old in (final, rejected):
        if old.exists():
            gone = old.with_name(f".{old.name}.{os.getpid()}.old")
            os.replace(old, gone)
            shutil.rmtree(gone)
    os.replace(work, target)
    return target
