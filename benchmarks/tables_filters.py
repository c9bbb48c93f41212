"""The tables of docs/filters.md, from results/lottery/filters.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from trials import column, paired, stored, verdict

LAYERS = (1, 2, 3, 4)
NOT_RUN = "_not run_"
WIDE, NARROW, MUCH, LITTLE = 48, 8, 3000, 300


def shown(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard error over seeds."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{error}".replace("-", "−")


def quality_table() -> str:
    """Every arm: accuracy, H/T_H by layer, and the shares of layers called random-like and redundant."""
    result = stored("filters")
    if result is None:
        return NOT_RUN
    trials, about = result["trials"], result["about"]
    seen = about["training"]
    arms = [arm for arm in trials if not arm.startswith("shift")]
    lines = [
        f"{about['data']}; {about['network']}; {seen['images seen']:,} images seen ({seen['images seen, under-trained']} "
        f"by the under-trained). Mean ± s.e. of {about['seeds']} seeds; layer 1 of width 8 has too few kernels for a verdict.",
        "",
        "| network | accuracy % | " + " | ".join(f"H/T layer {k}" for k in LAYERS) + " | random-like | redundant |",
        "|---|---:|" + "---:|" * len(LAYERS) + "---:|---:|",
    ]
    for arm in arms:
        cells = [
            shown(column(trials, arm, f"ratio {k}")) if f"ratio {k}" in next(iter(trials[arm].values())) else "" for k in LAYERS
        ]
        shares = [f"{100 * statistics.mean(column(trials, arm, v)):.0f} %" for v in ("random-like", "redundant")]
        lines.append(f"| {arm} | {shown(column(trials, arm, 'accuracy'), 1)} | " + " | ".join([*cells, *shares]) + " |")
    return "\n".join(lines)


def shift_table() -> str:
    """D between networks, as a whole and by layer, beside what chance gives."""
    result = stored("filters")
    if result is None:
        return NOT_RUN
    trials = result["trials"]
    lines = [
        f"D ({result['about']['shifts']}), in brackets by chance; layers have 24, 576, 1152 and 2304 kernels.",
        "",
        "| between | all layers | " + " | ".join(f"layer {k}" for k in LAYERS) + " |",
        "|---|---:|" + "---:|" * len(LAYERS),
    ]
    for arm in trials:
        if arm.startswith("shift"):
            cells = [_with_chance(trials, arm, suffix) for suffix in ("", *(f" {k}" for k in LAYERS))]
            lines.append(f"| {arm.removeprefix('shift, ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_chance(trials: Mapping, arm: str, suffix: str) -> str:
    return f"{shown(column(trials, arm, f'D{suffix}'))} ({statistics.mean(column(trials, arm, f'chance{suffix}')):.3f})"


def verdict_table() -> str:
    """The paper's claims, by paired tests over seeds."""
    result = stored("filters")
    if result is None:
        return NOT_RUN
    trials = result["trials"]

    def ratio(width: int, data: int) -> list[float]:
        return column(trials, f"trained, width {width}, {data} images", "ratio 4")

    def excess(arm: str, layer: int) -> list[float]:
        pairs = zip(column(trials, arm, f"D {layer}"), column(trials, arm, f"chance {layer}"), strict=True)
        return [found - by_chance for found, by_chance in pairs]

    seeds, apart, random = (
        "shift, two seeds",
        "shift, under- to well-trained",
        "shift, random to well-trained",
    )
    claims = [
        (f"wider ({WIDE} for {NARROW}, {MUCH} images): lower H/T in the last layer", ratio(WIDE, MUCH), ratio(NARROW, MUCH)),
        (
            f"wider ({WIDE} for {NARROW}, {LITTLE} images): lower H/T in the last layer",
            ratio(WIDE, LITTLE),
            ratio(NARROW, LITTLE),
        ),
        *(
            (f"less data ({LITTLE} for {MUCH}, width {w}): lower H/T in the last layer", ratio(w, LITTLE), ratio(w, MUCH))
            for w in (NARROW, 24, WIDE)
        ),
        ("two seeds lie nearer than under- and well-trained", column(trials, seeds, "D"), column(trials, apart, "D")),
        ("two seeds lie nearer than random and well-trained", column(trials, seeds, "D"), column(trials, random, "D")),
        ("under- to well-trained: D above chance grows from layer 2 to 4", excess(apart, 2), excess(apart, 4)),
        ("two seeds: D above chance grows from layer 2 to 4", excess(seeds, 2), excess(seeds, 4)),
    ]
    lines = ["| claim | difference (mean ± s.e.) | p | seeds | verdict |", "|---|---:|---:|---:|---|"]
    for words, small, large in claims:
        found = paired(small, large)
        lines.append(
            f"| {words} | {found.mean:+.3f} ± {found.error:.3f} | {found.p:.3f} | {found.wins} of {found.pairs} | {verdict(found)} |"
        )
    return "\n".join([*lines[:2], *(line.replace("| -", "| −") for line in lines[2:])])


TABLES: dict[str, Callable[[], str]] = {
    "filters-quality": quality_table,
    "filters-shift": shift_table,
    "filters-verdicts": verdict_table,
}
