"""The report's part on a lottery: every round in a table, what it cost in two plots, and the control beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, NullFormatter

from . import plots
from .lottery_text import verdict
from .record import StepRecord
from .report_text import percent, whole

LOTTERY = "lottery"
SHOWN_ELSEWHERE = ("rounds",)


@dataclass(frozen=True)
class LotteryView:
    """A lottery's rounds: a table with its columns, plots, and the sentence on the control."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: int
    curves: tuple[Markup, ...]
    said: str


def lottery_view(step: StepRecord, index: int) -> LotteryView | None:
    """The view of a step that ran rounds; None for another one."""
    if step.kind != LOTTERY or not step.figures.get("rounds"):
        return None
    figures = step.figures
    rounds = figures["rounds"]
    name = f"step-{index}-lottery"
    if not figures["critical"]:
        metrics = tuple(rounds[0]["metrics"]["val"])
        rows = tuple((*_weights(r), *(f"{r['metrics']['val'][m]:.4f}" for m in metrics)) for r in rounds)
        first = metrics[0]
        lines = {first: [r["metrics"]["val"][first] for r in rounds]}
        return LotteryView(
            ("Round", "Weights", "Kept", *metrics), rows, figures["chosen"], (_plot(rounds, lines, first, name),), ""
        )
    controlled = "control" in rounds[0]
    return LotteryView(
        (
            "Round",
            "Weights",
            "Kept",
            "Missed",
            "False alarms",
            "AUC",
            *(("Control missed", "Control AUC") if controlled else ()),
        ),
        tuple(_critical_row(r) for r in rounds),
        figures["chosen"],
        tuple(_critical_plots(rounds, name)),
        verdict(figures),
    )


def _weights(row: dict[str, Any]) -> tuple[str, str, str]:
    return str(row["round"]), percent(row["density"], 2), whole(row["kept"])


def _critical_row(row: dict[str, Any]) -> tuple[str, ...]:
    own = row["critical"]["operating_point"]["test"]
    low, high = row["critical"]["interval"]["fnr"]
    cells = (
        *_weights(row),
        f"{own['missed']} of {own['positives']} ({percent(low)} to {percent(high)})",
        percent(own["fpr"], 1),
        f"{own['auc']:.3f}",
    )
    if "control" not in row:
        return cells
    control = row["control"]["operating_point"]["test"]
    return (*cells, f"{control['missed']} of {control['positives']}", f"{control['auc']:.3f}")


def _critical_plots(rounds: Sequence[dict[str, Any]], name: str) -> list[Markup]:
    arms = {"with its losses": "critical"} | ({"control, threshold moved": "control"} if "control" in rounds[0] else {})
    found = []
    for key, label in (("fnr", "positives missed"), ("auc", "AUC")):
        lines = {arm: [r[part]["operating_point"]["test"][key] for r in rounds] for arm, part in arms.items()}
        bands = {arm: [r[part]["interval"][key] for r in rounds] for arm, part in arms.items()}
        found.append(_plot(rounds, lines, label, f"{name}-{key}", bands=bands))
    return found


def _plot(
    rounds: Sequence[dict[str, Any]],
    lines: dict[str, list[float]],
    label: str,
    name: str,
    *,
    bands: dict[str, list[tuple[float, float]]] | None = None,
) -> Markup:
    """Curves over the share of weights that is left, the dense network on the left."""
    shares = [100 * r["density"] for r in rounds]
    alt = f"{label} by share of weights left: " + "; ".join(
        f"{arm} {values[0]:.3f} at {shares[0]:.3g} %, {values[-1]:.3f} at {shares[-1]:.3g} %" for arm, values in lines.items()
    )
    with plots.drawing(2.4) as figure:
        axes = figure.add_subplot()
        for i, (arm, values) in enumerate(lines.items()):
            axes.plot(shares, values, color=plots.SERIES[i], linewidth=1.6, marker="os"[i % 2], markersize=3.5, label=arm)
            if bands:
                low, high = ([bound[side] for bound in bands[arm]] for side in (0, 1))
                axes.fill_between(shares, low, high, color=plots.SERIES[i], alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set(xlabel="% of the weights left", ylabel=label)
        axes.set_xticks(shares)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
        plots.even_ticks(axes.yaxis, 4)
        axes.grid(visible=True, axis="y")
        axes.margins(x=0.04, y=0.12)
        if len(lines) > 1:
            axes.legend(loc="best")
        return plots.svg(figure, name=name, alt=alt)
