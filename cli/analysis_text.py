"""An analysis in words, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .console import output
from .report_text import NONE, fixed, percent, signed, significant

CLASSES_SHOWN = 5


def say_analysis(info: Mapping[str, Any]) -> None:
    """The models, what foretells survival, and the classes that were hit hardest."""
    severities = ", ".join(map(str, info["severities"]))
    title = f"{info['samples']:,} test samples, {len(info['corruptions'])} corruptions at severities {severities}"
    columns = ("model", ">weights ≠ 0", ">clean", ">corrupted", "worst corruption", ">there")
    output.table(title, columns, [_model_row(info, m) for m in range(len(info["models"]))])
    output.say()
    pooled = [row for row in info["survival"] if row["corruption"] == "all"]
    foretells = ("survival", ">AUC margin", ">confidence", ">difference", ">95 % interval")
    output.table("what foretells who stays right, all corruptions together", foretells, [_survival_row(row) for row in pooled])
    for row in pooled:
        if row["reason"]:
            output.say(f"{row['model']}: {row['reason']}")
    output.say()
    say_worst_classes(info["worst_classes"][:CLASSES_SHOWN])


def say_worst_classes(falls: Sequence[Mapping[str, Any]]) -> None:
    """The largest falls of a class's accuracy."""
    if not falls:
        output.say("no class lost accuracy")
        return
    rows = [
        (fall["name"], fall["model"], fall["benchmark"], percent(fall["before"], 1), percent(fall["after"], 1), fall["n"])
        for fall in falls
    ]
    against = falls[0]["against"]
    output.table(f"classes hit hardest, against {against}", ("class", "model", "on", ">before", ">after", ">samples"), rows)


def mean_corrupted(info: Mapping[str, Any], model: int) -> float:
    """The accuracy of a model, a mean over corruptions and severities."""
    cells = [value for row in info["accuracy"][model] for value in row]
    return sum(cells) / len(cells)


def _model_row(info: Mapping[str, Any], model: int) -> tuple[str, ...]:
    row, kinds = info["models"][model], info["corruptions"]
    means = [sum(cells) / len(cells) for cells in info["accuracy"][model]]
    worst = min(range(len(kinds)), key=means.__getitem__)
    return (
        row["name"],
        f"{row['nonzero']:,}",
        percent(info["clean_accuracy"][model], 1),
        percent(mean_corrupted(info, model), 1),
        kinds[worst]["name"],
        percent(means[worst], 1),
    )


def _survival_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["auc_margin"] is None:
        return (row["model"], *[NONE] * 4)
    between = NONE if row["low"] is None else f"{signed(row['low'], 3)} … {signed(row['high'], 3)}"
    return row["model"], fixed(row["auc_margin"], 3), fixed(row["auc_confidence"], 3), signed(row["difference"], 3), between


def say_page(size: int, path: str) -> None:
    """Where the page is."""
    output.say()
    output.say(f"page ({significant(size / 1e6, 2)} MB): {path}")
