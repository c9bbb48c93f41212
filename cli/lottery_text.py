"""The rounds of a lottery in words, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .console import output

Figures = Mapping[str, Any]


def summary_of_rounds(figures: Figures) -> str:
    """What the lottery came to, on one line."""
    chosen = figures["rounds"][figures["chosen"]]
    ends = f"{chosen['kept']:,} of {chosen['weights']:,} weights ({figures['density']:.2%}), round {figures['chosen']}"
    if not figures["critical"]:
        return ends
    point = chosen["critical"]["operating_point"]["test"]
    return f"{ends}; misses {point['fnr']:.2%} at {point['fpr']:.2%} false alarms (test)"


def say_rounds(figures: Figures) -> None:
    """Every round on a line; with critical classes, rates on the test split at the operating point that validation chose."""
    rows = [_critical_row(r) if figures["critical"] else _plain_row(r) for r in figures["rounds"]]
    mark = figures["chosen"]
    rows = [(f"{i}{'*' if i == mark else ''}", *row) for i, row in enumerate(rows)]
    if not figures["critical"]:
        names = tuple(f">{name}" for name in figures["rounds"][0]["metrics"]["val"])
        output.table("rounds (validation)", ("round", ">weights", *names), rows)
        return
    columns = ("round", ">weights", ">missed", ">control", ">false al.", ">AUC", ">control", ">AUC difference")
    output.table(f"rounds (test), {', '.join(figures['critical'])} critical", columns, rows)
    output.say(
        f"* the Bundle. Thresholds allow {figures['max_fpr']:.2%} false alarms on validation, for each network on its own"
    )
    if said := verdict(figures):
        output.say(said)


def verdict(figures: Figures) -> str:
    """Whether the class-dependent losses did more than move the threshold, for the round that was chosen; empty without a control."""
    gap = figures["rounds"][figures["chosen"]].get("difference")
    if gap is None:
        return ""
    value, low, high = gap["auc"]
    said = "no difference beyond chance" if low <= 0 <= high else ("better" if value > 0 else "worse")
    return f"Against the control, plain lottery pruning with its threshold moved: AUC {value:+.3f} ({low:+.3f} to {high:+.3f}), {said}."


def _plain_row(row: Figures) -> tuple[str, ...]:
    return (f"{row['density']:.2%}", *(f"{value:.4f}" for value in row["metrics"]["val"].values()))


def _critical_row(row: Figures) -> tuple[str, ...]:
    own, control = row["critical"]["operating_point"]["test"], None
    if "control" in row:
        control = row["control"]["operating_point"]["test"]
    gap = f"{row['difference']['auc'][0]:+.3f}" if control else "–"
    return (
        f"{row['density']:.2%}",
        f"{own['missed']}/{own['positives']}",
        f"{control['missed']}/{control['positives']}" if control else "–",
        f"{own['fpr']:.1%}",
        f"{own['auc']:.3f}",
        f"{control['auc']:.3f}" if control else "–",
        gap,
    )
