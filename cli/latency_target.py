"""`export --max-latency`: thresholds of a routed network that keep its mean latency here within a target.

Each way through the network is timed with thresholds that force it; from there the validation data's curve of accuracy against
mean latency is exact, and its most accurate point within the target gives the artifact's default thresholds.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .dynamic import nature
from .models import files
from .models.errors import UserError

if TYPE_CHECKING:
    from .compress.routing.answers import Answers
    from .export.convert import Converted
    from .exporting import Settings
    from .models.bundle import Bundle
    from .models.tasks.task import Task


@dataclass(frozen=True)
class Target:
    """What was timed and chosen for one artifact. `paths_ms`: the way to each branch's answer, the smaller ones of a cascade included.

    `shares`, `expected_ms` and `accuracy` are over the validation samples; `reference` is the largest branch's accuracy.
    """

    format: str
    precision: str
    runtime: str
    max_ms: float
    paths_ms: tuple[float, ...]
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    expected_ms: float
    accuracy: float
    reference: float


def check_target(max_ms: float, bundle: Bundle, mode: str | None, formats: Sequence[str]) -> None:
    """None, when thresholds can be set to `max_ms` milliseconds for all `formats`. Raises UserError with the way out."""
    from .devices.runtime import fitting, why_none

    if not (math.isfinite(max_ms) and max_ms > 0):
        raise UserError(f"--max-latency {max_ms:g} is not a time", hint="give milliseconds above 0")
    if mode != "routed" and (mode is not None or nature(bundle) != "routed"):
        raise UserError(
            "--max-latency sets the thresholds of a routed network"
            + (f", and --dynamic {mode} was asked" if mode else f", and {bundle.folder.name} has no branches"),
            hint="write --dynamic routed",
        )
    if bundle.plan.routes and bundle.plan.routes.rule == "cluster":
        raise UserError(
            f"{bundle.folder.name} picks its branch by cluster: it has no thresholds to set",
            hint='make the route with by = "difficulty"',
        )
    for name in formats:
        if not fitting(name):
            raise UserError(
                f"--max-latency times the artifact here, and it can't be for {name}: {why_none(name)}",
                hint="export that format without it; the thresholds are an input of the artifact all the same",
            )


def export_within(
    bundle: Bundle,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    max_ms: float,
    task: Task,
    label: str,
    settings: Settings,
    origin: Mapping[str, str],
    on_artifact: Callable[[Converted], None],
    on_found: Callable[[Target], None],
) -> list[Converted]:
    """One artifact per (format, precision), each with thresholds of its own that keep its mean latency within `max_ms`.

    Raises UserError where the smallest branch alone takes longer, or a trial artifact is wrong or can't be timed.
    """
    from .compress.routing.answers import validation_answers
    from .compress.train import Runtime
    from .exporting import export_bundle
    from .models.routed import RoutedNet

    net = bundle.module()
    if not isinstance(net, RoutedNet):
        raise TypeError(f"{bundle.folder} holds no RoutedNet")
    for name, precision in pairs:
        files.refuse_overwrite(out / f"{name}-{precision}", force=settings.force)
    said = validation_answers(net, task, runtime=Runtime("auto", amp="off"))
    made = []
    for pair in pairs:
        with tempfile.TemporaryDirectory(prefix="trimtab-") as work:
            (trial,) = export_bundle(bundle, [pair], Path(work), task=task, label=label, settings=settings)
            runtime, paths_ms = _timed(trial, len(net.branches), Path(work), seed=settings.seed)
        target = _chosen(said, paths_ms, pair=pair, runtime=runtime, max_ms=max_ms)
        on_found(target)
        made += export_bundle(
            bundle,
            [pair],
            out,
            task=task,
            label=label,
            settings=settings,
            origin=origin,
            thresholds=target.thresholds,
            facts={"latency_target": asdict(target)},
            on_artifact=on_artifact,
        )
    return made


def _timed(trial: Converted, branches: int, work: Path, *, seed: int) -> tuple[str, tuple[float, ...]]:
    """The runtime, and the mean latency in ms of the way to each branch: the same file, its default thresholds forcing that way."""
    from .devices.profile import profile
    from .devices.runtime import fitting
    from .export.artifact import MANIFEST
    from .export.dynamic.routed import THRESHOLDS, forcing

    if not trial.ok:
        raise UserError(
            f"the artifact to be timed failed its parity check: {trial.artifact.parity.reason}",
            hint="export without --max-latency to keep the rejected artifact and look at it",
            exit_code=1,
        )
    runtime = fitting(trial.artifact.format)[0]
    copies = []
    for number, setting in enumerate(forcing(branches - 1)):
        folder = work / f"way{number}"
        shutil.copytree(trial.folder, folder)
        contract = trial.artifact.contract
        forced = tuple(
            spec.model_copy(update={"default": tuple(setting[THRESHOLDS].tolist())}) if spec.name == THRESHOLDS else spec
            for spec in contract.inputs
        )
        manifest = trial.artifact.model_copy(
            update={"name": f"branch {number + 1}", "contract": contract.model_copy(update={"inputs": forced})}
        )
        files.write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
        copies.append(folder)
    result = profile(copies, runtimes=[runtime], preset="quick", seed=seed)
    if missing := result.skipped:
        raise UserError(
            f"{missing[0].label} could not be timed on {runtime}: {missing[0].reason}", hint="trimtab devices doctor"
        )
    means = {m.artifact: m.mean_ms for m in result.measurements}
    return runtime, tuple(means[f"branch {number + 1}"] for number in range(branches))


def _chosen(said: Answers, paths_ms: tuple[float, ...], *, pair: tuple[str, str], runtime: str, max_ms: float) -> Target:
    """The most accurate thresholds whose mean latency over the validation samples is at most `max_ms`. Raises UserError."""
    from .compress.routing.calibration import curve, within

    dense = max(paths_ms)
    found = curve(said.observed(paths_ms, dense))
    best = within(found, max_ms / dense)
    if best is None:
        raise UserError(
            f"--max-latency {max_ms:g} can't be reached by {' '.join(pair)} on {runtime}: {found.points[0].cost:.3f} ms is the "
            "least, with the smallest branch for every sample",
            hint="give more time, or make the route again with a smaller first ratio",
        )
    name, precision = pair
    return Target(
        format=name,
        precision=precision,
        runtime=runtime,
        max_ms=max_ms,
        paths_ms=paths_ms,
        thresholds=best.thresholds,
        shares=best.shares,
        expected_ms=best.cost,
        accuracy=best.accuracy,
        reference=found.reference,
    )
