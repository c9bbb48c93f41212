"""The table of docs/anomaly-baselines.md, from results/models/anomaly_features_{mono,poly}.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from trials import column, stored

NOT_RUN = "_not run_"
CELLS = ("mono", "poly")
DEFAULTS = ("gaussian", "per position", "bank")
"""What a network does unless told otherwise; everything else is an ablation."""


def features_table() -> str:
    """Test AUROC of every arm on both kinds of cells, with the seeds' range and the first seed's interval over test cells."""
    found = {cells: result for cells in CELLS if (result := stored(f"anomaly_features_{cells}", folder="models"))}
    if len(found) < len(CELLS):
        return NOT_RUN
    first = found[CELLS[0]]
    seeds = min(len(trials) for result in found.values() for trials in result["trials"].values())
    lines = [
        f"Test AUROC, mean (least–most) of {seeds} seeds, and the 95 % bootstrap interval over test cells of seed 0. "
        f"{first['about']['backbone']}. **Defaults** in bold.",
        "",
        "| fitted | mono | poly |",
        "|---|---:|---:|",
    ]
    for arm in first["trials"]:
        name = f"**{arm}**" if arm in DEFAULTS else arm
        lines.append(f"| {name} | " + " | ".join(_cell(found[cells]["trials"], arm) for cells in CELLS) + " |")
    return "\n".join(lines)


def _cell(trials: dict[str, dict[str, dict[str, float]]], arm: str) -> str:
    values = column(trials, arm, "auroc")
    low, high = (column(trials, arm, f"auroc_{end}")[0] for end in ("low", "high"))
    return f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f}), [{low:.3f}, {high:.3f}]"


TABLES: dict[str, Callable[[], str]] = {"anomaly-features": features_table}
