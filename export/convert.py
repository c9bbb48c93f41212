"""From a network to proven artifacts: export, run back, judge, and keep or reject."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..models import files
from ..models.contract import Contract
from ..models.errors import UserError
from .artifact import GOLDEN, MANIFEST, SAMPLES, Artifact, MetricGate, Parity, Reverts
from .calibration import calibration_feeds
from .choices import POOL, clearest, mix, telling, unproven
from .exporter import Options, Runner, exporters
from .making import Order, Product, make
from .parity import GATES_DB, Probe, probes, relayout
from .source import Source, file_source, module_source, torch_reference
from .worker import Limits, Worker

__all__ = [
    "ConversionError",
    "Converted",
    "Limits",
    "Score",
    "Source",
    "check_packages",
    "convert",
    "file_source",
    "fitting_probes",
    "module_source",
    "plan_formats",
    "probed",
    "torch_reference",
]

ROUNDED = (
    "gates switch on by the sign of a logit, and rounded to {precision} some decide otherwise: export fp32, static or routed"
)

_NODE = re.compile(r"'(/[^'\s]+)'")
"""How errors name nodes of the graph."""
_PLACES = 5

Score = Callable[[Runner, Contract], MetricGate]
"""The task's metric through a loaded artifact (its runner and contract), beside the torch module's."""


@dataclass(frozen=True)
class Converted:
    """One artifact made: where it lies (a `.rejected` folder when its parity failed) and its manifest."""

    folder: Path
    artifact: Artifact

    @property
    def ok(self) -> bool:
        """True when the parity gate was passed."""
        return self.artifact.parity.ok


class ConversionError(UserError):
    """Some formats could not be written at all. `made` holds the artifacts of the others, which are in their places, and
    `failures` the error of each (format, precision)."""

    def __init__(self, failures: Mapping[tuple[str, str], UserError], made: Sequence[Converted], asked: int) -> None:
        self.failures, self.made = dict(failures), list(made)
        errors = list(failures.values())
        if asked == 1:
            super().__init__(errors[0].what, hint=errors[0].hint, exit_code=errors[0].exit_code)
            return
        by_text: dict[str, list[str]] = {}
        for pair, error in failures.items():
            by_text.setdefault(str(error), []).append(" ".join(pair))
        said = [text if text.startswith(names[0]) else f"{', '.join(names)}: {text}" for text, names in by_text.items()]
        lines = [f"\n{text}".replace("\n", "\n  ") for text in said]
        written = ", ".join(f"{c.artifact.format} {c.artifact.precision}" for c in made)
        super().__init__(
            f"{len(errors)} of {asked} artifacts could not be written:{''.join(lines)}",
            hint=f"{written} {'is' if len(made) == 1 else 'are'} in place" if made else "nothing was written",
            exit_code=2 if all(error.exit_code == 2 for error in errors) else 1,
        )


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


def check_packages(formats: Sequence[str]) -> None:
    """None, when the packages that these formats are written with go together here. Raises UserError with every conflict (a
    protobuf or numpy that another package pins, say) and the pip line."""
    from .routes.conflicts import refuse_conflicts

    refuse_conflicts(dict.fromkeys(package for name in formats for package in exporters.entry(name).card.packages))


def convert(
    source: Source,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    real: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    seed: int = 0,
    force: bool = False,
    options: Mapping[str, Options] | None = None,
    keep_float: Mapping[tuple[str, str], frozenset[str]] | None = None,
    reverts: Mapping[tuple[str, str], Reverts] | None = None,
    score: Score | None = None,
    limits: Limits | None = None,
    on_artifact: Callable[[Converted], None] | None = None,
) -> list[Converted]:
    """One artifact per (format, precision) under `out/<format>-<precision>/`, each with its parity verdict, in this order.

    `real`: at least eight normalised samples (N, …) to judge on; without, seeded random inputs. `calibration`: at least sixteen
    others, that integer ranges are taken from; UserError where a precision wants them and they are missing or say nothing.
    `options` by format; `keep_float`: nodes of `source.graph` that stay in float, by pair, and `reverts`, how they were chosen. `score`
    decides on reduced precisions whose SQNR is below the gate. With `limits` converters run in processes of their own, several
    formats at once; without, here.
    An artifact that fails parity lies in `<format>-<precision>.rejected/` instead. Raises ConversionError when some could not be
    written at all, after all others are done.
    """
    for name, precision in pairs:
        files.refuse_overwrite(out / f"{name}-{precision}", force=force)
    source, found = probed(source, real, seed)
    orders, failures = [], dict[tuple[str, str], UserError]()
    for pair in pairs:
        own = (options or {}).get(pair[0])
        try:
            order = order_of(source, pair, calibration=calibration, options=own, found=found, real=real)
        except UserError as error:
            if error is not source.untraced:
                raise
            failures[pair] = error
            continue
        orders.append(replace(order, keep_float=(keep_float or {}).get(pair, frozenset())))
    out.mkdir(parents=True, exist_ok=True)
    made: dict[tuple[str, str], Converted] = {}
    with contextlib.closing(_products(orders, out, limits)) as products:
        for order, product in products:
            pair = (order.format, order.precision)
            if isinstance(product, UserError):
                failures[pair] = located(source, product)
                continue
            made[pair] = _finished(source, order, product, out, real=real, score=score, reverts=(reverts or {}).get(pair))
            if on_artifact:
                on_artifact(made[pair])
    ready = [made[pair] for pair in pairs if pair in made]
    if failures:
        raise ConversionError({pair: failures[pair] for pair in pairs if pair in failures}, ready, len(pairs))
    return ready


def probed(source: Source, real: np.ndarray | None, seed: int) -> tuple[Source, tuple[Probe, ...]]:
    """The probes that artifacts are judged on, and the source with what looking for them told."""
    _check_classes(source.contract)
    pool = real
    if source.branch:
        pool = telling(source.contract, source.branch, real=real, seed=seed)
        if real is not None:
            source = replace(source, dynamic={**source.dynamic, "samples": mix(source.contract, source.branch, real)})
    elif source.margin and real is not None:
        pool = clearest(source.contract, source.margin, real)
    found = probes(source.contract, source.reference, real=pool, seed=seed, settings=source.settings, branch=source.branch)
    return replace(source, warnings=(*source.warnings, *unproven(source.dynamic, found))), tuple(found)


def _check_classes(contract: Contract) -> None:
    """None, when there are as many class names as the first output has entries. Raises UserError."""
    spec = contract.outputs[0]
    if contract.classes and spec.layout == "NC" and isinstance(spec.shape[-1], int) and spec.shape[-1] != len(contract.classes):
        raise UserError(
            f"there are {len(contract.classes)} class names, and output {spec.name!r} has {spec.shape[-1]} entries",
            hint="name every class once in the contract, in the order of the outputs",
        )


def fitting_probes(source: Source, options: Options, found: Sequence[Probe], real: np.ndarray | None) -> tuple[Probe, ...]:
    """The probes of an artifact with these options: those `found`, or one set for each of the only sizes that it takes."""
    listed = options.dims(source.contract)
    return tuple(probes(source.contract, source.reference, real=real, seed=0, listed=listed)) if listed else tuple(found)


def order_of(
    source: Source,
    pair: tuple[str, str],
    *,
    calibration: np.ndarray | None,
    options: Options | None = None,
    found: Sequence[Probe] = (),
    real: np.ndarray | None = None,
) -> Order:
    """One artifact of `source` as an order, its path still to be placed; without probes one seeded random input is looked at.

    Raises UserError for a format that can't be made of this source, and for calibration samples that are missing or say nothing.
    """
    name, precision = pair
    card = exporters.entry(name).card
    if card.source == "module" and source.module is None:
        raise UserError(
            f"{card.title} is made from a torch module, and {source.label} is an ONNX file",
            hint="export the Bundle instead, or --to onnx,tflite,openvino,mnn",
        )
    options = options if options is not None else card.options()
    found = fitting_probes(source, options, found, real)
    feeds: tuple[Mapping[str, np.ndarray], ...] = ()
    if precision in card.calibrated:
        feeds = calibration_feeds(source.contract, calibration, what=f"{card.title} {precision}")
    return Order(
        name,
        precision,
        path=Path(f"model{card.suffix}"),
        contract=source.contract,
        graph=source.traced() if card.source == "onnx" else source.graph,
        module=source.module if card.source == "module" or options.wants_module else None,
        probes=found or tuple(probes(source.contract, source.reference, real=None, seed=0)[:1]),
        inputs="random" if real is None else "real",
        options=options,
        feeds=feeds,
        doubt=ROUNDED.format(precision=precision) if source.margin and precision != "fp32" else "",
        name=source.label,
    )


def located(source: Source, error: UserError) -> UserError:
    """The error, with the torch module and the source line of the nodes that it names."""
    from .explain.scopes import locate

    names = list(dict.fromkeys(_NODE.findall(error.what)))[:_PLACES]
    places = {name: place for name in names if (place := locate(source, name))}
    if not places:
        return error
    told = "; ".join(f"{name} is {place}" for name, place in places.items())
    return error.reworded(f"{error.what}\n    where: {told}")


def _products(
    orders: Sequence[Order], out: Path, limits: Limits | None
) -> Generator[tuple[Order, Product | UserError], None, None]:
    """Every order, now with its path, and what came of it, as they are done. Work folders are gone when this is closed."""
    placed = [replace(order, path=_work(out, order) / order.path) for order in orders]
    for order in placed:
        shutil.rmtree(order.path.parent, ignore_errors=True)  # one left by a killed run goes now
        order.path.parent.mkdir(parents=True)
    try:
        if limits is None:
            for order in placed:
                yield order, _tried(make, order)
        else:
            yield from _in_lanes(placed, limits)
    finally:
        for order in placed:
            shutil.rmtree(order.path.parent, ignore_errors=True)


def _work(out: Path, order: Order) -> Path:
    return out.absolute() / f".{order.format}-{order.precision}.work"


def _tried(make_one: Callable[[Order], Product], order: Order) -> Product | UserError:
    try:
        return make_one(order)
    except UserError as error:
        return error


def _in_lanes(orders: Sequence[Order], limits: Limits) -> Iterator[tuple[Order, Product | UserError]]:
    """The orders of one format one after the other in a worker, `limits.jobs` formats at once."""
    lanes: dict[str, list[Order]] = {}
    for order in orders:
        lanes.setdefault(order.format, []).append(order)
    done: list[tuple[Order, Product | UserError]] = []

    def lane(own: list[Order], worker: Worker) -> None:
        done.extend((order, _tried(worker.make, order)) for order in own)  # a generator: each is there as soon as it is done

    with contextlib.ExitStack() as stack:
        # workers are stopped first when this is left early, so that the threads that wait for them end
        pool = stack.enter_context(ThreadPoolExecutor(max(1, limits.jobs)))
        pending: set[Future[None]] = {pool.submit(lane, own, stack.enter_context(Worker(limits))) for own in lanes.values()}
        try:
            while pending or done:
                while done:
                    yield done.pop(0)
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
        finally:
            for future in pending:
                future.cancel()


def _finished(
    source: Source,
    order: Order,
    product: Product,
    out: Path,
    *,
    real: np.ndarray | None,
    score: Score | None,
    reverts: Reverts | None,
) -> Converted:
    """The artifact in its place, with its manifest, its golden output, and samples where its time depends on the input."""
    parity = product.parity
    if score and not parity.ok and order.precision not in GATES_DB and parity.max_abs_error is not None:
        parity = _second_gate(order, product, score)
    artifact = _manifest(source, order, product, parity).model_copy(update={"reverts": reverts})
    work = order.path.parent
    _golden(work / GOLDEN, source.contract, artifact.contract, order.probes[0])
    if source.dynamic and real is not None:
        _samples(work / SAMPLES, source.contract, artifact.contract, real)
    files.write_json(work / MANIFEST, artifact.model_dump(mode="json"))
    return Converted(_place(work, out / f"{order.format}-{order.precision}", ok=parity.ok), artifact)


def _second_gate(order: Order, product: Product, score: Score) -> Parity:
    """The verdict by the task's metric, for a reduced precision whose SQNR is below its gate."""
    parity = product.parity
    found = score(exporters.get(order.format).runner(order.path, product.exported.contract), product.exported.contract)
    ok = found.drop <= found.allowed
    shown = f"{found.name} {found.artifact:.4f}, the network's {found.reference:.4f}, over {found.samples} samples"
    reason = (
        f"judged by the metric: {shown}; the SQNR of {parity.sqnr_db:.1f} dB is below the gate of {parity.gate_db:g} dB"
        if ok
        else f"{parity.reason}; and {shown}: {found.drop:.4f} worse, {found.allowed:g} is allowed"
    )
    return parity.model_copy(update={"ok": ok, "metric": found, "reason": reason})


def _manifest(source: Source, order: Order, product: Product, parity: Parity) -> Artifact:
    exported, path = product.exported, order.path
    return Artifact(
        name=f"{source.label}-{order.format}-{order.precision}",
        format=order.format,
        precision=order.precision,
        file=path.name,
        size_bytes=files.size_bytes(path),
        deflated_bytes=files.deflated_bytes(path),
        sha256=files.sha256(path),
        contract=exported.contract,
        spec_version=exported.spec_version,
        ops=dict(exported.ops),
        audit=exported.audit,
        parity=parity,
        warnings=(*source.warnings, *exported.warnings),
        source=source.origin,
        dynamic=source.dynamic,
        route=exported.route,
        options=order.options.model_dump(mode="json", exclude_defaults=True),
        kept_float=tuple(sorted(order.keep_float)),
        tool_versions=dict(exported.tool_versions),
    )


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
