"""`export --dynamic`: the form in which a network that adapts to its input is written, and the measured choice among the forms."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .models import files
from .models.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from .compress.apply import StepDone
    from .export.convert import Converted
    from .exporting import Settings
    from .models.bundle import Bundle
    from .models.tasks.task import Task

Nature = Literal["gated", "routed", "plain"]
FORMATS = {"gathered": ("onnx",)}
"""The formats that can hold a mode, where not all can."""
WHY_NOT = (
    "a convolution whose weights are picked at run time runs in ONNX Runtime alone (OpenVINO does not compile it, LiteRT runs it "
    "slower than the dense one, it is not written for Core ML)"
)

MODES = {
    "masked": "the gates' masks multiply; every layer is computed whole (the reference: never faster)",
    "gathered": "each layer's weights gathered for the channels that are on (ONNX Runtime alone)",
    "static": "the average mask sliced once: no longer dynamic, the control that dynamic forms must beat",
    "routed": "dense branches of different size behind a decision",
    "auto": "each of them made and measured here; the fastest whose accuracy holds is kept",
}
MAX_DROP = 0.01
"""`auto` takes no form whose validation metric lies further below the best one's."""


@dataclass(frozen=True)
class Form:
    """A Bundle in the form that is written: the mode, and the recipe step that made it (None: it was there)."""

    mode: str
    bundle: Bundle
    step: StepDone | None = None


@dataclass(frozen=True)
class Trial:
    """One form of one artifact under `auto`: its mean latency (None with the reason: not measured) and its metric."""

    mode: str
    made: Converted
    metric: float
    latency_ms: float | None
    reason: str = ""


def nature(bundle: Bundle) -> Nature:
    """What a Bundle's surgery plan makes of it."""
    plan = bundle.plan
    return "routed" if plan.routes else "gated" if plan.gates else "plain"


def check_mode(mode: str, bundle: Bundle, formats: Sequence[str]) -> None:
    """None, when `bundle` can be written in `mode` to all `formats`. Raises UserError with the reason and the way out."""
    if mode not in MODES:
        raise UserError(f"--dynamic {mode} is no mode", hint=did_you_mean(mode, MODES))
    found = nature(bundle)
    if found == "plain" and mode != "routed":
        raise UserError(
            f"--dynamic {mode} is for a network with gates, and {bundle.folder.name} has none",
            hint='train gates with the recipe step "ftwt", or use --dynamic routed, which branches any network',
        )
    if found == "routed" and mode not in ("routed", "auto"):
        raise UserError(
            f"--dynamic {mode} is for a network with gates, and {bundle.folder.name} is routed already",
            hint="export it as it is (routed), or export the Bundle that it was made from",
        )
    able = FORMATS.get(mode)
    if able and (unable := [name for name in formats if name not in able]):
        raise UserError(
            f"--dynamic {mode} cannot be written as {', '.join(unable)}: {WHY_NOT}",
            hint=f"--to {','.join(able)}, or --dynamic routed, which every format holds",
        )


def left_out(bundle: Bundle, formats: Sequence[str]) -> list[str]:
    """What `auto` does not try, a sentence for each format and mode, with the reason."""
    if nature(bundle) != "gated":
        return []
    return [f"{name} {mode}: left out: {WHY_NOT}" for mode, able in FORMATS.items() for name in formats if name not in able]


def formed(bundle: Bundle, mode: str, task: Task | None, stack: ExitStack, *, seed: int) -> Form:
    """`bundle` in the form that `mode` writes; what a step makes lies in a temp folder that `stack` removes.

    Raises UserError when that takes data and there is no task.
    """
    kinds = {"routed": "route", "static": "static-average"}
    if mode not in kinds or nature(bundle) == "routed":
        return Form(mode, bundle)
    if task is None:
        raise UserError(
            f"--dynamic {mode} looks at data, and the Bundle names none", hint="add --data fashion-mnist, folder:PATH, …"
        )
    from .compress.apply import run_recipe
    from .compress.recipe import parse_recipe

    recipe = parse_recipe({"format": 1, "seed": seed, "step": [{"kind": kinds[mode]}]}, origin=f"--dynamic {mode}")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-")))
    (step,) = run_recipe(bundle, recipe, task, folder)
    return Form(mode, step.bundle, step)


def fastest(
    bundle: Bundle,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    task: Task,
    label: str,
    settings: Settings,
    on_trial: Callable[[Trial], None],
) -> list[Converted]:
    """Per (format, precision) the artifact of the mode that ran fastest here, among those whose parity and metric hold.

    A format that no runtime here runs gets the form that computes least. What was made and not chosen is removed.
    """
    from .exporting import export_bundle
    from .models.tasks.task import tasks

    for name, precision in pairs:
        files.refuse_overwrite(out / f"{name}-{precision}", force=settings.force)
    sign = 1 if tasks.entry(task.name).card.higher_is_better else -1
    modes = ("routed",) if nature(bundle) == "routed" else ("masked", "gathered", "static", "routed")
    chosen = []
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".auto-", dir=out)))
        forms = [formed(bundle, mode, task, stack, seed=settings.seed) for mode in modes]
        metrics = [_metric(form.bundle, task) for form in forms]
        trials: dict[tuple[str, str], list[Trial]] = {pair: [] for pair in pairs}
        for form, metric in zip(forms, metrics, strict=True):
            wanted = [pair for pair in pairs if pair[0] in FORMATS.get(form.mode, (pair[0],))]
            made = export_bundle(
                form.bundle,
                wanted,
                work / form.mode,
                task=task,
                label=f"{label}-{form.mode}",
                settings=settings,
                mode=form.mode,
            )
            for pair, converted in zip(wanted, made, strict=True):
                trials[pair].append(Trial(form.mode, converted, metric, None))
        for pair, found in trials.items():
            measured = _measured(found, best=max(sign * value for value in metrics), sign=sign, seed=settings.seed)
            for trial in measured:
                on_trial(trial)
            chosen.append(_kept(_choice(measured, pair), out / "-".join(pair)))
    return chosen


def _metric(bundle: Bundle, task: Task) -> float:
    from .compress.train import Runtime, evaluate

    return evaluate(bundle.module(), task, "val", runtime=Runtime("auto", amp="off"), limit=5000)[task.metric]


def _measured(found: Sequence[Trial], *, best: float, sign: int, seed: int) -> list[Trial]:
    """The trials with their mean latencies, all timed in the same rounds; those that are out say why."""
    from .devices.profile import profile
    from .devices.runtime import fitting, why_none

    kept, out = [], []
    for trial in found:
        drop = best - sign * trial.metric
        if not trial.made.ok:
            out.append(replace(trial, reason=f"parity: {trial.made.artifact.parity.reason}"))
        elif drop > MAX_DROP:
            out.append(replace(trial, reason=f"its validation metric is {drop:.4f} worse than the best form's"))
        else:
            kept.append(trial)
    if not kept or not fitting(kept[0].made.artifact.format):
        why = why_none(kept[0].made.artifact.format) if kept else ""
        return [*(replace(trial, reason=why) for trial in kept), *out]
    runtime = fitting(kept[0].made.artifact.format)[0]
    result = profile([trial.made.folder for trial in kept], runtimes=[runtime], preset="quick", seed=seed)
    means = {m.artifact: m.mean_ms for m in result.measurements}
    skipped = {s.label: s.reason for s in result.skipped}
    timed = [replace(t, latency_ms=means.get(t.made.artifact.name), reason=skipped.get(t.made.artifact.name, "")) for t in kept]
    return [*timed, *out]


def _choice(measured: Sequence[Trial], pair: tuple[str, str]) -> Trial:
    """The fastest trial; where nothing could be measured, the proven one that comes last: routed, then static, then masked."""
    timed = [trial for trial in measured if trial.latency_ms is not None]
    if timed:
        return min(timed, key=lambda trial: trial.latency_ms or 0.0)
    proven = [trial for trial in measured if trial.made.ok]
    if not proven:
        raise UserError(
            f"no form of the network passed as {' '.join(pair)}: " + "; ".join(f"{t.mode}: {t.reason}" for t in measured),
            hint="export with one mode (--dynamic routed) to keep the rejected artifact and look at it",
            exit_code=1,
        )
    return proven[-1]


def _kept(trial: Trial, final: Path) -> Converted:
    """The chosen artifact in its place."""
    if final.exists():
        shutil.rmtree(final)
    shutil.move(trial.made.folder, final)
    return replace(trial.made, folder=final)
