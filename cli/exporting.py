"""From a Bundle or an `.onnx` file to proven artifacts: the source, the data it is judged and calibrated on, and what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from .export.convert import Converted, Limits, Source
    from .export.exporter import Options
    from .max_drop import Reverted
    from .models.bundle import Bundle
    from .models.contract import Contract
    from .models.tasks.task import Task


@dataclass(frozen=True)
class Settings:
    """How artifacts are made, whatever they are made of.

    `calibrate`: how many training samples integer ranges are taken from. `options` by format. `limits`: converters run in
    processes of their own within these; None: in this one. `max_drop`: how much of the metric an integer artifact may lose
    before layers are kept in float (a share: 0.005 is half a point).
    """

    calibrate: int = 128
    options: Mapping[str, Options] = field(default_factory=dict)
    limits: Limits | None = None
    max_drop: float | None = None
    seed: int = 0
    force: bool = False


def format_options(texts: Sequence[str], formats: Sequence[str]) -> dict[str, Options]:
    """`--set tflite.layout=NCHW` …: each format's options, checked. Raises UserError for what is no option of a format asked for."""
    from .export.exporter import exporters
    from .loading import literal

    given: dict[str, dict[str, Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and option):
            raise UserError(f"--set {text!r} is not FORMAT.NAME=VALUE", hint="--set tflite.layout=NCHW")
        if name not in formats:
            raise UserError(f"--set {text}: {name!r} is not among the formats asked for", hint=did_you_mean(name, formats))
        given.setdefault(name, {})[option] = literal(value)
    return {name: exporters.entry(name).card.configured(values) for name, values in given.items()}


def bundle_source(
    bundle: Bundle,
    *,
    label: str,
    task: Task | None = None,
    contract: Contract | None = None,
    origin: Mapping[str, str] | None = None,
    seed: int = 0,
    mode: str = "",
    thresholds: Sequence[float] = (),
    facts: Mapping[str, Any] | None = None,
) -> Source:
    """A Bundle's network as a Source; `contract` in place of its own, if given.

    `origin` is noted in the artifacts beside the Bundle's hash. `mode` "gathered" writes a gated network in that form; a routed
    Bundle becomes control flow, with `thresholds` in place of its own, if given, and `facts` beside what else is said of them.
    """
    import torch

    from .develop_network import sensor_note
    from .export.source import module_source

    noted = {"bundle_hash": bundle.hash, **sensor_note(bundle.manifest.architecture), **_threshold(bundle.manifest.metrics)}
    noted |= origin or {}
    module = bundle.module()
    make: Callable[..., Source] = module_source
    if bundle.plan.routes:
        from .export.dynamic.routed import routed_source as make

        if thresholds:
            buffers = dict(module.named_buffers())
            buffers["thresholds"].copy_(torch.tensor(thresholds))
    elif mode == "gathered":
        from .export.dynamic.gathered import gathered_source

        make = partial(gathered_source, keep=_shares(module, task, seed)) if task else gathered_source
    source = make(module, contract or bundle.contract, label=label, origin=noted, seed=seed)
    return replace(source, dynamic={**source.dynamic, **facts}) if facts else source


def _threshold(metrics: Mapping[str, float]) -> dict[str, str]:
    """The score above which the Bundle calls a picture odd, for whoever deploys the file; {} where there is no such thing."""
    return {"threshold": f"{metrics['threshold']:.9g}"} if "threshold" in metrics else {}


def export_source(
    source: Source,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    task: Task | None,
    settings: Settings,
    on_artifact: Callable[[Converted], None] | None = None,
    on_reverted: Callable[[Reverted], None] | None = None,
) -> list[Converted]:
    """One verified artifact per (format, precision), judged on the task's test samples when there is a task.

    Raises UserError, and ConversionError for formats that could not be written after the others are done.
    """
    from .export.convert import convert
    from .scoring import score

    real, calibration = real_samples(task), calibration_samples(task, pairs, settings.calibrate)
    keep: dict[tuple[str, str], frozenset[str]] = {}
    reverts: dict[tuple[str, str], Any] = {}
    if settings.max_drop is not None:
        from .max_drop import reverted

        for pair in pairs:
            found = reverted(source, pair, task=task, calibration=calibration, settings=settings)
            if found is None:
                continue
            keep[pair], reverts[pair] = found.keep, found.record
            if on_reverted:
                on_reverted(found)
    return convert(
        source,
        pairs,
        out,
        real=real,
        calibration=calibration,
        seed=settings.seed,
        force=settings.force,
        options=settings.options,
        keep_float=keep,
        reverts=reverts,
        score=score(source, task) if task is not None else None,
        limits=settings.limits,
        on_artifact=on_artifact,
    )


def export_bundle(
    bundle: Bundle,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    task: Task | None,
    label: str,
    settings: Settings | None = None,
    origin: Mapping[str, str] | None = None,
    mode: str = "",
    thresholds: Sequence[float] = (),
    facts: Mapping[str, Any] | None = None,
    on_artifact: Callable[[Converted], None] | None = None,
) -> list[Converted]:
    """`export_source` of `bundle_source`."""
    settings = settings or Settings()
    source = bundle_source(
        bundle, label=label, task=task, origin=origin, seed=settings.seed, mode=mode, thresholds=thresholds, facts=facts
    )
    return export_source(source, pairs, out, task=task, settings=settings, on_artifact=on_artifact)


def _shares(module: nn.Module, task: Task, seed: int, images: int = 512) -> dict[str, float]:
    """How many of every gate's channels are on, as a mean share over training images: it tells where gathering pays."""
    from .compress.dynamic.static import mean_masks
    from .compress.train import Runtime

    means = mean_masks(module, task, images=images, seed=seed, runtime=Runtime("auto", amp="off"))
    return {path: float(mean.mean()) for path, mean in means.items()}


def real_samples(task: Task | None, count: int = 64) -> np.ndarray | None:
    """The first `count` test samples as network inputs (N, C, H, W), or None without a task or with fewer than eight."""
    if task is None:
        return None
    samples = task.samples("test")
    if len(samples) < 8:
        return None
    return task.inputs(samples.__getitems__(range(min(count, len(samples))))).numpy()


def calibration_samples(task: Task | None, pairs: Sequence[tuple[str, str]], count: int) -> np.ndarray | None:
    """`count` training samples as network inputs (N, C, H, W), spread over the split; None where no pair wants them, or no task is."""
    import numpy as np

    from .export.exporter import exporters

    if task is None or not any(precision in exporters.entry(name).card.calibrated for name, precision in pairs):
        return None
    samples = task.samples("train")
    picked = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return task.inputs(samples.__getitems__(picked.tolist())).numpy()
