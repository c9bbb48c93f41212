"""The tables of docs/anomaly.md, from results/models/anomaly_{mono,poly,scenes,speed}.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from trials import column, paired, stored

NOT_RUN = "_not run_"
KINDS = {"mono": "ELPV mono", "poly": "ELPV poly", "scenes": "scenes"}
WHOLE = "EfficientAD"
NAMES = {
    WHOLE: "**EfficientAD**",
    "gaussian scale": "… maps scaled by mean and deviation, not by quantiles",
    "student's map alone": "… the student's map alone (autoencoder taken out after training)",
    "no autoencoder": "… trained without the autoencoder",
    "no hard loss": "… the student's loss over all elements (p_hard = 0)",
    "no penalty": "… no penalty pictures",
    "Gaussian-AD": "Gaussian-AD",
    "kNN bank": "memory bank",
    "kNN bank, teacher": "… on the features of EfficientAD's teacher, without a student",
}
LOGICAL = (WHOLE, "student's map alone", "no autoencoder", "Gaussian-AD", "kNN bank")


def auroc_table() -> str:
    """Test AUROC of every arm by kind of data, with the seeds' range and the first seed's interval, and the gap to EfficientAD."""
    found = _found()
    if found is None:
        return NOT_RUN
    seeds = min(len(trials) for result in found.values() for trials in result["trials"].values())
    lines = [
        f"Test AUROC: mean (least–most) of {seeds} seeds, [95 % bootstrap interval over test pictures of seed 0]; in italics the paired gap to "
        f"EfficientAD (mean ± s.e.). {found['mono']['about']['scaled'].capitalize()}.",
        "",
        "| | " + " | ".join(KINDS.values()) + " |",
        "|---|" + "---:|" * len(KINDS),
    ]
    for arm, name in NAMES.items():
        lines.append(f"| {name} | " + " | ".join(_cell(found[kind]["trials"], arm) for kind in KINDS) + " |")
    return "\n".join(lines)


def logical_table() -> str:
    """Structural and logical anomalies of the drawn scenes."""
    result = stored("anomaly_scenes", folder="models")
    if result is None:
        return NOT_RUN
    figures = {"auroc_structural": "structural", "auroc_logical": "logical", "pixel_auroc": "pixel AUROC", "au_pro": "AU-PRO"}
    lines = ["| scenes, mean of seeds | " + " | ".join(figures.values()) + " |", "|---|" + "---:|" * len(figures)]
    for arm in LOGICAL:
        has = [figure in result["trials"][arm]["0"] for figure in figures]  # Gaussian-AD's map is one number
        cells = [
            f"{statistics.mean(column(result['trials'], arm, f)):.3f}" if there else "–"
            for f, there in zip(figures, has, strict=True)
        ]
        lines.append(f"| {NAMES[arm]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_table() -> str:
    """Latency as a ratio to the memory bank's, size and memory, by runtime."""
    result = stored("anomaly_speed", folder="models")
    if result is None:
        return NOT_RUN
    runtimes = result["runtimes"]
    floors = ", ".join(f"{name} {100 * found['noise_floor']:.1f} %" for name, found in runtimes.items())
    loads = [load for found in runtimes.values() for load in found["load_average"] if load is not None]
    lines = [
        "How many times as fast as the memory bank at 224×224 (of 1,000 patches), one thread, interleaved in random order, "
        f"± half of the 95 % interval, relative; A/A: {floors}; the load average was {min(loads):.1f} to {max(loads):.1f} on two cores.",
        "",
        "| network, side | MMACs | " + " | ".join(f"{name} | memory, MB" for name in runtimes) + " |",
        "|---|---:|" + "---:|---:|" * len(runtimes),
    ]
    for name, cost in result["costs"].items():
        cells = []
        for found in runtimes.values():
            row = found["rows"][name]
            width = row["half_width"]  # on the log scale; 0 for the first, which is its own measure
            sure = f" ± {100 * width:.0f} %" if width else ""
            cells += [f"{row['ratio']:.3g}×{sure}", f"{row['memory_bytes'] / 1e6:.0f}"]
        lines.append(f"| {name} | {cost['macs'] / 1e6:,.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _found() -> dict[str, Any] | None:
    found = {kind: stored(f"anomaly_{kind}", folder="models") for kind in KINDS}
    return None if None in found.values() else found


def _cell(trials: dict[str, dict[str, dict[str, float]]], arm: str) -> str:
    if arm not in trials:
        return "–"
    values = column(trials, arm, "auroc")
    low, high = (column(trials, arm, f"auroc_{end}")[0] for end in ("low", "high"))
    text = f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f}), [{low:.3f}, {high:.3f}]"
    if arm == WHOLE:
        return text
    gap = paired(column(trials, WHOLE, "auroc"), values)
    return f"{text} *{gap.text(3)}*"


TABLES: dict[str, Callable[[], str]] = {
    "anomaly-auroc": auroc_table,
    "anomaly-logical": logical_table,
    "anomaly-speed": speed_table,
}
