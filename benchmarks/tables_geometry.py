"""The tables of docs/analyze.md, from results/lottery/geometry*.json and page.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from trials import column, mean_error, paired, stored, verdict

NOT_RUN = "_not run_"
TOP = 6
"""Pairs of corruptions that the redundancy table names."""


def groups(trials: Mapping[str, object]) -> dict[str, list[str]]:
    """The arms whose figures are averaged within a seed: dense, pruned by what weights are worth, pruned at random."""
    pruned = [arm for arm in trials if arm != "dense"]
    worth = [arm for arm in pruned if not arm.startswith("random")]
    return {"dense": ["dense"], "magnitude, gradient": worth, "random": [arm for arm in pruned if arm not in worth]}


def by_seed(trials: Mapping, arms: Sequence[str], figure: str) -> list[float]:
    """A figure's mean over arms, seed by seed."""
    return [statistics.mean(values) for values in zip(*(column(trials, arm, figure) for arm in arms), strict=True)]


def corruptions_table() -> str:
    """Every kind of corruption with its levels, from the registry itself."""
    from trimtab.models.tasks.corruptions import corruption_records

    lines = ["| kind | family | what it does | severities 1–5 | in |", "|---|---|---|---|---|"]
    lines += [
        f"| `{card.name}` | {card.family} | {card.help} | {', '.join(f'{v:g}' for v in card.levels)} | {card.unit} |"
        for card in corruption_records()
    ]
    return "\n".join(lines)


def survival_table() -> str:
    """Clean margin against clean confidence: AUCs for survival, their difference, its verdict."""
    result = stored("geometry")
    if result is None:
        return NOT_RUN
    trials, about = result["trials"], result["about"]
    parts = groups(trials)
    seeds = min(len(trials[arm]) for arm in trials)
    lines = [
        f"{about['data']}; {about['network']}; severities {' and '.join(map(str, about['severities']))}; {seeds} seeds. In each cell "
        "margin's AUC, margin − confidence in hundredths (mean ± s.e.), and whether margin is the better (paired t-test over seeds, 5 %; "
        f"of {15 * len(parts)} such tests about {15 * len(parts) * 0.05:.0f} come out by chance).",
        "",
        "| corruption | " + " | ".join(parts) + " |",
        "|---|" + "---|" * len(parts),
    ]
    for kind in (*about["corruptions"], "all"):
        cells = []
        for arms in parts.values():
            margin, confidence = (by_seed(trials, arms, f"{score} {kind}") for score in ("margin", "confidence"))
            gap = paired(confidence, margin)
            cells.append(f"{statistics.mean(margin):.3f}; {gap.text(2, scale=100)}; {verdict(gap)}")
        lines.append(f"| {kind if kind != 'all' else '**all together**'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def models_table() -> str:
    """What pruning did: accuracies, the angle, and what each clean figure tells of survival under all corruptions."""
    result = stored("geometry")
    if result is None:
        return NOT_RUN
    trials = result["trials"]
    columns = {
        "accuracy": ("clean %", 1),
        "corrupted": ("corrupted %", 1),
        "angle_mean": ("angle, °", 1),
        "angle_sd": ("its s.d., °", 1),
        "margin all": ("AUC margin", 3),
        "confidence all": ("AUC confidence", 3),
        "norm all": ("AUC norm", 3),
        "angle all": ("AUC angle", 3),
    }
    lines = [
        "| pruned | " + " | ".join(label for label, _ in columns.values()) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for arm in trials:
        cells = [mean_error(column(trials, arm, figure), digits) for figure, (_, digits) in columns.items()]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def redundancy_table() -> str:
    """Correlations of margin shifts within families and between them, and the most alike pairs."""
    result = stored("geometry")
    if result is None:
        return NOT_RUN
    trials, families = result["trials"], result["about"]["corruptions"]
    pairs = {
        (a, b): column(trials, "dense", f"r {a} {b}")
        for a in families
        for b in families
        if f"r {a} {b}" in trials["dense"]["0"]
    }
    lines = ["| pairs of corruptions | r of the margin's shift |", "|---|---:|"]
    seeds = range(len(next(iter(pairs.values()))))

    def per_seed(chosen: Sequence[tuple[str, str]]) -> list[float]:
        return [statistics.mean(pairs[pair][seed] for pair in chosen) for seed in seeds]

    within = [pair for pair in pairs if families[pair[0]] == families[pair[1]]]
    between = [pair for pair in pairs if pair not in within]
    gap = paired(per_seed(between), per_seed(within))
    lines += [
        f"| one family ({len(within)} pairs) | {mean_error(per_seed(within), 2)} |",
        f"| two families ({len(between)} pairs) | {mean_error(per_seed(between), 2)} |",
        f"| difference: alike within a family? {verdict(gap)} | {gap.mean:+.2f} ± {gap.error:.2f} |",
    ]
    arms = list(trials)
    inside, outside = (by_seed(trials, arms, f"{name} given clean") for name in ("within", "between"))
    gap = paired(outside, inside)
    lines += [
        f"| control, the clean margin's share taken out: one family | {mean_error(inside, 2)} |",
        f"| … two families | {mean_error(outside, 2)} |",
        f"| … difference: {verdict(gap)} | {gap.mean:+.2f} ± {gap.error:.2f} |",
    ]
    for family in dict.fromkeys(families.values()):
        own = [pair for pair in within if families[pair[0]] == family]
        lines.append(f"| within {family} ({len(own)} pair{'s' if len(own) > 1 else ''}) | {mean_error(per_seed(own), 2)} |")
    top = sorted(pairs, key=lambda pair: -statistics.mean(pairs[pair]))[:TOP]
    lines += [
        f"| most alike: {a} and {b} ({families[a]}{'' if families[a] == families[b] else ', ' + families[b]}) "
        f"| {mean_error(pairs[a, b], 2)} |"
        for a, b in top
    ]
    return "\n".join(lines)


def speed_table() -> str:
    """Seconds of an analysis, and of making the corruptions."""
    result = stored("geometry-speed")
    if result is None:
        return NOT_RUN
    making = result["corrupt_10k_seconds"]
    slow = sorted(making, key=lambda kind: -making[kind])[:2]
    return "\n".join(
        [
            "| what | seconds |",
            "|---|---:|",
            f"| {result['about']} | {' and '.join(f'{s:.0f}' for s in result['seconds'])} (two runs) |",
            f"| 10 000 images of 28×28 corrupted, mean over {len(making)} kinds | {statistics.mean(making.values()):.2f} |",
            *(f"| … the slowest: {kind} | {making[kind]:.2f} |" for kind in slow),
        ]
    )


def page_table() -> str:
    """What the page of an analysis costs, from results/lottery/page.json."""
    result = stored("page")
    if result is None:
        return NOT_RUN
    rows = [
        ("page built, seconds (median)", f"{result['build_seconds_median']:.1f}"),
        ("its size, MB", f"{result['bytes'] / 1e6:.1f}"),
        ("… of which samples, packed", f"{result['bytes_of_samples'] / 1e6:.1f}"),
        ("… pictures", f"{result['bytes_of_pictures'] / 1e6:.1f}"),
        ("… figures", f"{result['bytes_of_figures'] / 1e6:.2f}"),
    ]
    if result["shown_seconds"]:
        rows.append(
            ("all views shown by headless Chromium, seconds (median)", f"{statistics.median(result['shown_seconds']):.1f}")
        )
    lines = [
        f"`python benchmarks/lottery_page.py`: {result['about']}, so that the size is an upper estimate.",
        "",
        "| what | |",
        "|---|---:|",
    ]
    return "\n".join([*lines, *(f"| {what} | {value} |" for what, value in rows)])


TABLES: dict[str, Callable[[], str]] = {
    "corruptions": corruptions_table,
    "geometry-survival": survival_table,
    "geometry-models": models_table,
    "geometry-redundancy": redundancy_table,
    "geometry-speed": speed_table,
    "page-cost": page_table,
}
