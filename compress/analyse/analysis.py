"""The geometric view of several models over clean and corrupted test data: everything, in one pass over the samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...models.errors import UserError
from ...models.tasks.corruptions import Corruption, check_severities, corrupt, corruption_records
from ..apply import tool_versions
from ..runtime import Runtime
from .analysis_record import FORMAT, AnalysisRecord, Info, ModelRow, SurvivalRow
from .observe import Observed, check_models
from .survival import redundancy, resampled, survival_row
from .worst import SAMPLES_KEPT, accuracy_by_class, worst_classes, worst_samples

if TYPE_CHECKING:
    from ...models.bundle import Bundle
    from ...models.progress import Meter, Progress
    from ...models.tasks.task import RawBatch, Samples, Task
    from .geometry import Geometry

__all__ = ["AnalysisRecord", "analyse_models"]

BLOCK = 128
"""Samples corrupted and shown together. Each block draws from a generator of its own, so `limit` changes no sample's noise."""
IMAGES_KEPT = 256
THUMBNAIL = 64
CLEAN_KEPT = ("norm", "angle", "margin", "confidence")
HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class _Plan:
    """What is run: kinds K × severities S over the first n samples, and the severity whose figures are kept."""

    kinds: tuple[Corruption, ...]
    severities: tuple[int, ...]
    samples: int
    seed: int

    @property
    def kept(self) -> int:
        """The position of the middle severity (of two, the larger)."""
        return len(self.severities) // 2


class _Tables:
    """Everything seen of M models: clean (M, n), at the kept severity (M, K, n), right (M, K, S, n), margins summed over S."""

    def __init__(self, models: int, plan: _Plan) -> None:
        k, s, n = len(plan.kinds), len(plan.severities), plan.samples
        self.plan = plan
        self.targets = np.zeros(n, np.int16)
        self.clean = {name: np.zeros((models, n)) for name in CLEAN_KEPT}
        self.clean_predicted = np.zeros((models, n), np.int16)
        self.kept = {name: np.zeros((models, k, n), np.float32) for name in CLEAN_KEPT}
        self.predicted = np.zeros((models, k, n), np.int16)
        self.right = np.zeros((models, k, s, n), bool)
        self.margins = np.zeros((models, k, n))

    def put_clean(self, model: int, where: slice, seen: Geometry) -> None:
        """None; a clean block of one model is in."""
        for name, table in self.clean.items():
            table[model, where] = getattr(seen, name)
        self.clean_predicted[model, where] = seen.predicted

    def put(self, model: int, kind: int, severity: int, where: slice, seen: Geometry) -> None:
        """None; a corrupted block of one model is in."""
        self.right[model, kind, severity, where] = seen.predicted.numpy() == self.targets[where]
        self.margins[model, kind, where] += seen.margin.numpy() / len(self.plan.severities)
        if severity == self.plan.kept:
            for name, table in self.kept.items():
                table[model, kind, where] = getattr(seen, name)
            self.predicted[model, kind, where] = seen.predicted

    @property
    def clean_right(self) -> np.ndarray:
        """Bool (M, n)."""
        return self.clean_predicted == self.targets


def analyse_models(
    bundles: Sequence[tuple[str, Bundle]],
    task: Task,
    *,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    limit: int = 0,
    seed: int = 0,
    device: str = "auto",
    progress: Progress,
    command: str = "",
) -> AnalysisRecord:
    """The record of (name, Bundle) models on the first `limit` (0: all) test samples, clean and under every corruption.

    The first model is the reference. `corruptions` are names (none: all kinds), shown family by family or as given. Each
    corrupted block is made once and shown to all models; with equal seeds the pixels are equal whatever the models and the limit.

    Raises UserError for models that do not share the task's classes or input, for one without a linear classifier or with several,
    for unknown kinds and severities, and for a limit below 0.
    """
    check_models(bundles, task)
    samples = task.samples("test")
    if limit < 0:
        raise UserError(f"limit={limit} must be 0 (all test samples) or more", hint="leave limit out to use all samples")
    total = min(limit or len(samples), len(samples))
    plan = _Plan(corruption_records(corruptions), check_severities(severities), total, seed)
    runtime = Runtime(device)
    with ExitStack() as stack:
        models = []
        for name, bundle in bundles:
            models.append(Observed(name, bundle, task, runtime))
            stack.callback(models[-1].head.close)
        tables = _Tables(len(models), plan)
        units = total * (1 + len(plan.kinds) * len(plan.severities))
        meter = stack.enter_context(progress.meter("analyse", units, "images"))
        for start in range(0, total, BLOCK):
            raw = samples.__getitems__(range(start, min(start + BLOCK, len(samples))))
            _block(models, raw, start, tables, meter)
    info = _info(tables, [m.row(float(hits.mean())) for m, hits in zip(models, tables.clean_right, strict=True)], task)
    info["command"] = command
    return AnalysisRecord(info, _arrays(tables, info, samples))


def _block(models: Sequence[Observed], raw: RawBatch, start: int, tables: _Tables, meter: Meter) -> None:
    """One block, clean and corrupted in every way, through every model. The last block is corrupted whole, then cut to the limit."""
    plan = tables.plan
    stop = min(start + len(raw.targets), plan.samples)
    where, count = slice(start, stop), stop - start
    tables.targets[where] = raw.targets[:count]
    for m, model in enumerate(models):
        tables.put_clean(m, where, model.look(_first(raw, count)))
    meter.advance(count)
    for k, kind in enumerate(plan.kinds):
        for s, severity in enumerate(plan.severities):
            pixels = corrupt(raw.pixels, kind.name, severity, _generator(plan.seed, kind.name, start))
            shown = _first(replace(raw, pixels=pixels), count)
            for m, model in enumerate(models):
                tables.put(m, k, s, where, model.look(shown))
            meter.advance(count)


def _first(raw: RawBatch, count: int) -> RawBatch:
    return replace(raw, pixels=raw.pixels[:count], targets=raw.targets[:count], index=raw.index[:count])


def _generator(seed: int, kind: str, start: int) -> torch.Generator:
    """The block's generator, the same for all severities: a sample turns to one side, further with each."""
    digest = hashlib.sha256(f"{seed} {kind} {start}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _info(tables: _Tables, rows: list[ModelRow], task: Task) -> Info:
    plan, targets = tables.plan, tables.targets
    names, kinds, classes = [row["name"] for row in rows], [kind.name for kind in plan.kinds], list(task.contract.classes)
    right = tables.right.mean(2)  # (M, K, n): the share of severities
    clean_by_class = accuracy_by_class(tables.clean_right, targets, len(classes))
    by_class = accuracy_by_class(right, targets, len(classes))
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "",
        "data": task.data,
        "data_id": task.data_id,
        "split": "test",
        "samples": plan.samples,
        "classes": classes,
        "models": rows,
        "corruptions": [{"name": kind.name, "family": kind.family, "help": kind.help} for kind in plan.kinds],
        "severities": list(plan.severities),
        "severity_kept": plan.severities[plan.kept],
        "accuracy": tables.right.mean(3).tolist(),
        "clean_accuracy": [row["accuracy"] for row in rows],
        "class_accuracy": {"clean": _listed(clean_by_class), "corrupted": [_listed(model) for model in by_class]},
        "survival": _survival(tables, names),
        "redundancy": redundancy(tables.margins - tables.clean["margin"][:, None], kinds),
        "worst_classes": worst_classes(clean_by_class, by_class, targets, models=names, kinds=kinds, classes=classes),
        "worst_samples": worst_samples(tables.clean["margin"], tables.margins.mean(1), targets, models=names),
        "versions": tool_versions(("torch", "numpy", "scipy", "pillow")),
        "seed": plan.seed,
    }


def _listed(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _survival(tables: _Tables, names: Sequence[str]) -> list[SurvivalRow]:
    """A row for every model and corruption, severities pooled, and one for all corruptions together ("all")."""
    plan = tables.plan
    weights = resampled(plan.samples, plan.seed)
    survived = (tables.right & tables.clean_right[:, None, None]).sum(2)  # (M, K, n)
    tries = tables.clean_right.astype(np.int64) * len(plan.severities)
    rows = []
    for m, name in enumerate(names):
        scores = {score: tables.clean[score][m] for score in CLEAN_KEPT}
        for k, kind in enumerate(plan.kinds):
            rows.append(survival_row(name, kind.name, scores=scores, survived=survived[m, k], tries=tries[m], weights=weights))
        pooled, all_tries = survived[m].sum(0), tries[m] * len(plan.kinds)
        rows.append(survival_row(name, "all", scores=scores, survived=pooled, tries=all_tries, weights=weights))
    return rows


def _arrays(tables: _Tables, info: Info, samples: Samples) -> dict[str, np.ndarray]:
    index = _chosen([fall["index"] for fall in info["worst_samples"]], tables.plan)
    return {
        "targets": tables.targets,
        **{f"clean_{name}": table.astype(np.float32) for name, table in tables.clean.items()},
        "clean_predicted": tables.clean_predicted,
        **{name: table.clip(-HALF, HALF).astype(np.float16) for name, table in tables.kept.items()},
        "predicted": tables.predicted,
        "survived": (tables.right & tables.clean_right[:, None, None]).sum(2).astype(np.uint8),
        "images": _thumbnails(samples.__getitems__(index.tolist()).pixels),
        "image_index": index,
    }


def _chosen(worst: Sequence[int], plan: _Plan) -> np.ndarray:
    """Positions of at most 256 samples: the worst-hit, then as many others at random as there is room for."""
    worst = list(worst[:SAMPLES_KEPT])
    others = np.setdiff1d(np.arange(plan.samples), worst)
    room = min(IMAGES_KEPT - len(worst), len(others))
    drawn = np.random.default_rng(plan.seed).choice(others, room, replace=False) if room else others[:0]
    return np.concatenate([np.asarray(worst, np.int32), np.sort(drawn).astype(np.int32)])


def _thumbnails(pixels: torch.Tensor) -> np.ndarray:
    """uint8 (m, C, h, w) whose longest side is at most 64: means over areas, nothing enlarged."""
    longest = max(pixels.shape[2:])
    if longest <= THUMBNAIL:
        return pixels.numpy().copy()
    size = [max(1, round(side * THUMBNAIL / longest)) for side in pixels.shape[2:]]
    small = torch.nn.functional.interpolate(pixels.float(), size=size, mode="area")
    return small.round_().clamp_(0, 255).to(torch.uint8).numpy()
