"""What the report's template says, worked out from the RunRecord: ratios, differences with their errors, rows and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from . import plots
from .record import ArtifactRecord, LayerRecord, ModelRecord, RunRecord, StepRecord
from .report_dynamic import GATES, ROUTE, SHOWN_ELSEWHERE, dynamic_views
from .report_export import export_views
from .report_latency import LatencyView, latency_view
from .report_lottery import LOTTERY, LotteryView, lottery_view
from .report_lottery import SHOWN_ELSEWHERE as IN_LOTTERY
from .report_text import by_reason, fixed, plain, whole

PROPORTIONS = ("accuracy", "top1", "top-1", "top5", "top-5", "top1_accuracy", "top5_accuracy")
"""Metrics that are a share of independent hits, so that the binomial standard error holds."""

MAX_BARS = 48


@dataclass(frozen=True)
class Score:
    """The deciding metric of one network; `se` is its binomial standard error, None where that does not apply."""

    value: float
    se: float | None


@dataclass(frozen=True)
class Change:
    """The deciding metric before and after. `se` takes the two as independent: an upper bound, since they share samples."""

    before: Score
    after: Score
    delta: float
    se: float | None


@dataclass(frozen=True)
class SizePair:
    """The accepted artifacts of both networks in one format and precision."""

    label: str
    before: int
    after: int
    ratio: float


@dataclass(frozen=True)
class LayerRow:
    """One layer in every network (None: it is not there), and the share of the first network's MACs that the second keeps."""

    path: str
    kind: str
    cells: tuple[LayerRecord | None, ...]
    kept: float | None


@dataclass(frozen=True)
class StepView:
    """A step: flat facts for lists, long values as preformatted text, training curves."""

    step: StepRecord
    config: tuple[tuple[str, str], ...]
    figures: tuple[tuple[str, str], ...]
    long: tuple[tuple[str, str], ...]
    curves: tuple[Markup, ...]
    lottery: LotteryView | None


def view(record: RunRecord) -> dict[str, Any]:
    """The template's variables."""
    parent, compressed = pair(record)
    proven = [a for a in record.artifacts if is_proven(a)]
    latency = latency_view(record, [model.name for model in _ordered(record)])
    return {
        "parent": parent,
        "compressed": compressed,
        "is_share": record.metric in PROPORTIONS,
        "scores": {model.name: score(record, model) for model in record.models},
        "change": change(record),
        "mac_ratio": ratio(parent.macs, compressed.macs) if compressed else None,
        "param_ratio": ratio(parent.params, compressed.params) if compressed else None,
        "sizes": sizes(record),
        "proven": proven,
        "rejected": [a for a in record.artifacts if not is_proven(a)],
        "is_proven": is_proven,
        "tradeoffs": _tradeoffs(record, latency),
        "layers": layer_rows(record),
        **_layer_plot(record),
        "latency": latency,
        **dynamic_views(record),
        **export_views(record),
        "steps": [_step(step, i) for i, step in enumerate(record.steps)],
        "warnings": by_reason((a.artifact.name, text) for a in record.artifacts for text in a.artifact.warnings),
        "seconds_total": sum(stage.seconds for stage in record.stages),
    }


def pair(record: RunRecord) -> tuple[ModelRecord, ModelRecord | None]:
    """The network that went in and the one that came out (None when the run has a single network)."""
    by_name = {model.name: model for model in record.models}
    parent = by_name.get("parent", record.models[0])
    others = [model for model in record.models if model is not parent]
    return parent, by_name.get("compressed", others[-1]) if others else None


def is_proven(entry: ArtifactRecord) -> bool:
    """Whether the artifact was accepted and its own parity verdict says so too."""
    return entry.status == "accepted" and entry.artifact.parity.ok


def ratio(before: float, after: float) -> float | None:
    """before / after, None where that is not defined."""
    return before / after if after else None


def score(record: RunRecord, model: ModelRecord) -> Score | None:
    """The deciding metric with √(p(1 − p)/n), None when the network has no such figure."""
    value = model.metrics.get(record.metric)
    if value is None:
        return None
    known = record.metric in PROPORTIONS and record.test_samples > 0 and 0 <= value <= 1
    return Score(value, math.sqrt(value * (1 - value) / record.test_samples) if known else None)


def change(record: RunRecord) -> Change | None:
    """The deciding metric from parent to compressed, None when either lacks it."""
    parent, compressed = pair(record)
    before, after = score(record, parent), score(record, compressed) if compressed else None
    if before is None or after is None:
        return None
    error = None if before.se is None or after.se is None else math.hypot(before.se, after.se)
    return Change(before, after, after.value - before.value, error)


def sizes(record: RunRecord) -> list[SizePair]:
    """File sizes of what both networks were exported to, in the record's order. Rejected artifacts don't count."""
    parent, compressed = pair(record)
    found = {(a.model, a.artifact.format, a.artifact.precision): a.artifact for a in record.artifacts if is_proven(a)}
    pairs = []
    for (model, kind, precision), artifact in found.items():
        after = found.get((compressed.name, kind, precision)) if compressed else None
        if model == parent.name and after and after.size_bytes:
            label = f"{kind} {precision}"
            pairs.append(SizePair(label, artifact.size_bytes, after.size_bytes, artifact.size_bytes / after.size_bytes))
    return pairs


def layer_rows(record: RunRecord) -> list[LayerRow]:
    """Every layer with MACs or params of any network, in the first one's order; layers that only a later one has come last."""
    models = _ordered(record)
    tables = [{layer.path: layer for layer in model.layers} for model in models]
    rows = []
    for path in dict.fromkeys(path for table in tables for path in table):
        cells = tuple(table.get(path) for table in tables)
        if not any(cell and (cell.macs or cell.params) for cell in cells):
            continue  # containers, activations, pooling
        first = next(cell for cell in cells if cell)
        both = len(cells) > 1 and cells[0] and cells[0].macs
        kept = (cells[1].macs if cells[1] else 0) / cells[0].macs if both and cells[0] else None
        rows.append(LayerRow(path or "(root)", first.kind, cells, kept))
    return rows


def _ordered(record: RunRecord) -> list[ModelRecord]:
    """Parent, compressed, then whatever else there is: the order of columns and colours."""
    head = [model for model in pair(record) if model]
    return head + [model for model in record.models if model not in head]


def _layer_plot(record: RunRecord) -> dict[str, Any]:
    """The bars of the layers that compute; of a deep network only the costliest, in network order."""
    models = _ordered(record)
    rows = [row for row in layer_rows(record) if any(cell and cell.macs for cell in row.cells)]
    costly = sorted(rows, key=lambda row: -max(cell.macs for cell in row.cells if cell))[:MAX_BARS]
    shown = [row for row in rows if row in costly]
    if not shown:
        return {"models": models, "layer_plot": None, "bars_left_out": 0}
    series = {
        model.name: [(cell.macs if (cell := row.cells[i]) else 0) / 1e6 for row in shown] for i, model in enumerate(models)
    }
    alt = "Bar chart of MACs by layer. " + "; ".join(f"{name}: {fixed(sum(v), 2)} million in all" for name, v in series.items())
    plot = plots.layer_bars([row.path for row in shown], series, name="layers", x_label="MACs per input (million)", alt=alt)
    return {"models": models, "layer_plot": plot, "bars_left_out": len(rows) - len(shown)}


def _tradeoffs(record: RunRecord, latency: LatencyView | None) -> list[tuple[str, Markup]]:
    """(caption, plot): the metric over MACs, then over the median latency on each runtime."""
    share = record.metric in PROPORTIONS
    scale, y_label = (100.0, f"{record.metric} (%)") if share else (1.0, record.metric)
    scored = {m.name: s for m in _ordered(record) if (s := score(record, m))}
    series = {model.name: i for i, model in enumerate(_ordered(record))}

    def points(places: Sequence[tuple[str, str, float]]) -> list[plots.Point]:
        return [
            plots.Point(label, x, scale * scored[name].value, scale * (scored[name].se or 0.0), series[name])
            for name, label, x in places
            if name in scored
        ]

    drawn = [("MACs", "MACs per input (million)", points([(m.name, m.name, m.macs / 1e6) for m in _ordered(record)]))]
    for group in latency.headlines if latency else ():
        places = [(row.model, row.model, row.measurement.p50_ms) for row in group.pair]
        drawn.append((group.title, "median latency (ms)", points(places)))
    return [
        (
            caption,
            plots.tradeoff(
                dots, name=f"tradeoff-{i}", x_label=x_label, y_label=y_label, alt=_say(dots, caption, x_label, y_label)
            ),
        )
        for i, (caption, x_label, dots) in enumerate(drawn)
        if dots
    ]


def _say(points: Sequence[plots.Point], where: str, x_label: str, y_label: str) -> str:
    dots = "; ".join(f"{p.label} at {fixed(p.x, 2)}, {fixed(p.y, 2)}" for p in points)
    return f"Scatter plot ({where}) of {y_label} over {x_label}: {dots}."


def _step(step: StepRecord, index: int) -> StepView:
    elsewhere = (
        "history",
        *(SHOWN_ELSEWHERE if step.kind in (GATES, ROUTE) else ()),
        *(IN_LOTTERY if step.kind == LOTTERY else ()),
    )
    figures = {key: value for key, value in step.figures.items() if key not in elsewhere}
    long = {key: value for key, value in figures.items() if len(plain(value)) > 90}
    return StepView(
        step=step,
        config=tuple((key, plain(value)) for key, value in step.config.items() if key != "kind"),
        figures=tuple((key, _figure(value)) for key, value in figures.items() if key not in long),
        long=tuple((key, _listing(value)) for key, value in long.items()),
        curves=tuple(
            plots.curve(xs, ys, name=f"step-{index}-curve-{i}", y_label=label, alt=_say_curve(label, xs, ys))
            for i, (label, (xs, ys)) in enumerate(_curves(step.figures.get("history")).items())
        ),
        lottery=lottery_view(step, index),
    )


def _listing(value: Any) -> str:
    """A line an entry for a mapping, indented JSON for anything else."""
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {plain(item)}" for key, item in value.items())
    return json.dumps(value, indent=1, default=str)


def _figure(value: Any) -> str:
    return whole(value) if isinstance(value, int) and not isinstance(value, bool) else plain(value)


def _say_curve(label: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    return f"{label} by epoch: {plain(ys[0])} at epoch {plain(xs[0])}, {plain(ys[-1])} at epoch {plain(xs[-1])}."


def _curves(history: Any, *, most: int = 4) -> dict[str, tuple[list[float], list[float]]]:
    """Up to `most` finite numeric series of a training history (or of several, by name); {} for anything that isn't one."""
    if isinstance(history, Mapping) and "epochs" not in history:
        parts = {f"{part}: {label}": xy for part, one in history.items() for label, xy in _curves(one, most=most // 2).items()}
        return dict(list(parts.items())[:most])
    epochs = history.get("epochs") if isinstance(history, Mapping) else history
    if not isinstance(epochs, list) or len(epochs) < 2 or not all(isinstance(epoch, Mapping) for epoch in epochs):
        return {}
    series: dict[str, tuple[list[float], list[float]]] = {}
    for i, epoch in enumerate(epochs):
        nested = [
            (f"{key} {name}", v) for key, value in epoch.items() if isinstance(value, Mapping) for name, v in value.items()
        ]
        at = epoch.get("epoch", i + 1)
        for key, value in [*epoch.items(), *nested]:
            if key not in ("epoch", "seconds") and _is_number(value) and _is_number(at):
                xs, ys = series.setdefault(str(key), ([], []))
                xs.append(float(at))
                ys.append(float(value))
    drawable = [item for item in series.items() if len(item[1][0]) > 1]
    drawable.sort(key=lambda item: item[0] in ("lr", "learning_rate"))  # what was set comes after what was found
    return dict(drawable[:most])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
