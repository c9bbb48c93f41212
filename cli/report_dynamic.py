"""The report's part on networks that adapt to their input: gates and how much they look at it, branches and their calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from . import plots
from .record import RunRecord, StepRecord
from .report_text import fixed, percent, si, whole

GATES, ROUTE = "ftwt", "route"
SHOWN_ELSEWHERE = ("diversity", "estimate", "realised", "gates", "ungated", "branches", "calibration", "signals", "shares")
"""Figures of these steps that this part shows, and the list of all figures therefore does not."""
MAX_CLASSES = 40
"""A heat map of more classes has cells too small to read."""

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class GateLayer:
    """One gate over the validation samples; shares are 0 … 1, `class_bits` None where targets are no classes."""

    path: str
    filters: int
    keep: float
    truth_keep: float
    distinct: int
    entropy_bits: float
    class_bits: float | None
    agreement: float
    beyond_constant: float
    headroom: float
    verdict: str


@dataclass(frozen=True)
class GatesView:
    """A step that trained gates."""

    index: int
    facts: Facts
    layers: tuple[GateLayer, ...]
    collapsed: tuple[str, ...]
    samples: int
    curve: Markup | None
    keeps: Markup
    classes: Markup | None
    classes_left_out: int
    ungated: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BranchView:
    """One branch: its MACs alone and with the way to it as shares of the dense network's, its own metric, its share of the samples."""

    number: int
    mac_ratio: float
    path_ratio: float
    params: int
    value: float | None
    share: float
    signals: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class RouteView:
    """A step that made branches."""

    index: int
    facts: Facts
    branches: tuple[BranchView, ...]
    curve: Markup | None


def dynamic_views(record: RunRecord) -> dict[str, Any]:
    """The template's variables: `gates` and `routes`, a view for each such step, numbered as the steps are."""
    names = record_classes(record)
    return {
        "gates": [
            gates_view(s, i, names) for i, s in enumerate(record.steps, 1) if s.kind == GATES and "diversity" in s.figures
        ],
        "routes": [
            route_view(s, i, record.metric)
            for i, s in enumerate(record.steps, 1)
            if s.kind == ROUTE and "branches" in s.figures
        ],
    }


def record_classes(record: RunRecord) -> tuple[str, ...]:
    """The names of the classes, as the artifacts' contracts have them."""
    return next((a.artifact.contract.classes for a in record.artifacts if a.artifact.contract.classes), ())


def gates_view(step: StepRecord, index: int, names: Sequence[str]) -> GatesView:
    """What a step with gates found out about its masks."""
    figures = step.figures
    varied, estimated, realised = figures["diversity"], figures["estimate"], figures["realised"]
    kept = varied["kept_per_sample"]
    facts = (
        ("MACs saved, estimated", percent(estimated["mac_reduction"], 1)),
        ("MACs saved, realised", f"{percent(realised['mac_reduction'], 1)} (gates counted: {percent(realised['gate_share'])})"),
        ("MACs of a sample", f"mean {si(realised['macs_mean'])}, p99 {si(realised['macs_quantiles']['p99'])}"),
        ("Different masks", f"{whole(varied['distinct'])} for {whole(varied['samples'])} samples"),
        ("Gates that look at their input", f"{varied['dynamic_layers']} of {varied['gates']}"),
        ("Beyond a constant mask", f"{fixed(100 * varied['beyond_constant'], 1)} points of agreement with the ground truth"),
        (
            "Filters on, of " + whole(varied["filters"]),
            f"median {whole(kept['p50'])}, 5–95 % {whole(kept['p5'])}–{whole(kept['p95'])}",
        ),
    )
    layers = tuple(_gate_layer(path, layer) for path, layer in varied["layers"].items())
    classes = varied["classes"] or []
    return GatesView(
        index=index,
        facts=facts,
        layers=layers,
        collapsed=tuple(layer.path for layer in layers if layer.verdict != "dynamic"),
        samples=varied["samples"],
        curve=_estimate_curve(estimated, index),
        keeps=_keep_map(varied, index),
        classes=_class_map(classes, names, index) if 1 < len(classes) <= MAX_CLASSES else None,
        classes_left_out=len(classes) if len(classes) > MAX_CLASSES else 0,
        ungated=tuple((layer["path"], layer["reason"]) for layer in figures["ungated"]),
    )


def _gate_layer(path: str, layer: Mapping[str, Any]) -> GateLayer:
    return GateLayer(path=path, **{name: layer[name] for name in GateLayer.__dataclass_fields__ if name != "path"})


def _estimate_curve(estimated: Mapping[str, Any], index: int) -> Markup | None:
    """MACs saved over r as they were estimated, where more than one r was looked at."""
    points = [(point["level"], 100 * point["mac_reduction"]) for point in estimated["curve"]]
    level = estimated.get("level")
    if len(points) < 2 or not isinstance(level, int | float):
        return None
    chosen = (float(level), 100 * float(estimated["mac_reduction"]))
    return plots.relation(
        points,
        marked=chosen,
        name=f"estimate-{index}",
        x_label="level r",
        y_label="MACs saved (%)",
        alt=f"Line plot of MACs saved over r; chosen: {fixed(chosen[1], 1)} % at r = {fixed(chosen[0], 3)}.",
    )


def _keep_map(varied: Mapping[str, Any], index: int) -> Markup:
    """For every layer how many samples keep 0–10 %, … 90–100 % of its filters."""
    layers = varied["layers"]
    rows = [[count / varied["samples"] for count in layer["histogram"]] for layer in layers.values()]
    columns = [str(10 * i) for i in range(len(rows[0]))]
    return plots.heat(
        rows,
        rows=list(layers),
        columns=columns,
        name=f"keeps-{index}",
        x_label="filters on, from … % (tenths)",
        alt="Heat map: for every gate, the share of samples that keep each tenth of its filters.",
    )


def _class_map(classes: Sequence[Sequence[float | None]], names: Sequence[str], index: int) -> Markup:
    labels = list(names) if len(names) == len(classes) else [str(i) for i in range(len(classes))]
    apart = [v for i, row in enumerate(classes) for j, v in enumerate(row) if i != j and v is not None]
    spread = f" between {fixed(min(apart), 2)} and {fixed(max(apart), 2)}" if apart else ""
    return plots.heat(
        classes,
        rows=labels,
        columns=labels,
        name=f"classes-{index}",
        x_label="how alike two classes' masks are (%)",
        alt=f"Heat map of the agreement of masks between classes;{spread} off the diagonal.",
        numbers=len(classes) <= 10,
        stretch=True,
    )


def route_view(step: StepRecord, index: int, metric: str) -> RouteView:
    """What a step with branches found out: every branch alone, and the thresholds between them."""
    figures = step.figures
    signals: Mapping[str, Sequence[float | None]] = figures.get("signals") or {}
    branches = tuple(
        BranchView(
            number=i + 1,
            mac_ratio=branch["mac_ratio"],
            path_ratio=branch["path_ratio"],
            params=branch["params"],
            value=branch["val"].get(metric),
            share=figures["shares"][i],
            signals=tuple((name, areas[i]) for name, areas in signals.items() if i < len(areas)),
        )
        for i, branch in enumerate(figures["branches"])
    )
    facts: Facts = (
        ("Rule", f"{figures['rule']}, branches by {figures['by']}"),
        ("MACs of a sample", f"expected {si(figures['macs_after'])}, at most {si(figures['macs_worst'])}"),
        ("Thresholds", ", ".join(fixed(t, 4) for t in figures["thresholds"]) or "none: the router picks the likeliest"),
        ("Computed once for all", ", ".join(figures["shared"]) or "nothing"),
    )
    return RouteView(index, facts, branches, _calibration_curve(figures.get("calibration"), index))


def _calibration_curve(found: Mapping[str, Any] | None, index: int) -> Markup | None:
    """Accuracy over expected MACs along all thresholds that were considered, with the point that was taken."""
    if not found or len(found["curve"]) < 2:
        return None
    points = [(100 * at["mac_ratio"], 100 * at["accuracy"]) for at in found["curve"]]
    chosen = (100 * found["chosen"]["mac_ratio"], 100 * found["chosen"]["accuracy"])
    return plots.relation(
        points,
        marked=chosen,
        name=f"calibration-{index}",
        x_label="expected MACs (% of the dense network's)",
        y_label="accuracy (%)",
        alt=f"Line plot of accuracy over expected MACs on {found['samples']} validation samples; chosen: "
        f"{fixed(chosen[1], 2)} % at {fixed(chosen[0], 1)} %.",
    )
