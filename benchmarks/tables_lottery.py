"""The tables of docs/lottery.md and the README's solar cells, from results/lottery/."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from trials import column, mean_error, paired, stored, verdict

EXPERIMENTS = {
    "fashion_alexnet_like": "shirts, AlexNet-like",
    "fashion_mobilenet_like": "shirts, MobileNet-like",
    "elpv_alexnet_like": "solar cells, AlexNet-like",
}
ARMS = {
    "plain": "plain (γ = 1, λ = 0)",
    "rank": "rank (γ = 1, λ = 5)",
    "gamma-then-rank": "γ = 1 then 5, λ = 5",
    "strong-gamma": "γ = 10, λ = 5",
}
ONE_SHOT = {"snip": "SNIP, one shot", "random": "random, one shot"}
NOT_RUN = "_not run_"
Trials = Mapping[str, Mapping[str, Mapping[str, float]]]


def finished(name: str) -> tuple[dict, Trials] | None:
    """(what an experiment was about, its trials of seeds that every arm has run); None while there is no such seed."""
    record = stored(name)
    if record is None or not {*ARMS, *ONE_SHOT} <= set(record["trials"]):
        return None
    trials = whole_seeds(record["trials"])
    return (record["about"], trials) if trials["plain"] else None


def whole_seeds(trials: Trials) -> Trials:
    """The trials of seeds that every arm has run."""
    common = set.intersection(*(set(of_arm) for of_arm in trials.values()))
    return {arm: {seed: figures for seed, figures in of_arm.items() if seed in common} for arm, of_arm in trials.items()}


def rounds_of(trials: Trials, arm: str) -> list[int]:
    """The numbers of an arm's rounds."""
    figures = next(iter(trials[arm].values()))
    return sorted(int(key.split("_")[0]) for key in figures if key.endswith("_density"))


def shown(trials: Trials) -> list[int]:
    """Four rounds of the iterative arms: the first, the last, two between."""
    numbers = rounds_of(trials, "plain")
    return numbers if len(numbers) <= 4 else [numbers[0], numbers[2], numbers[4], numbers[-1]]


def experiment_table(name: str) -> str:
    """Every scenario at four densities: AUC, misses at the common false-alarm rate, and what argmax does."""
    done = finished(name)
    if done is None:
        return NOT_RUN
    about, trials = done
    numbers = shown(trials)
    some = next(iter(trials["plain"].values()))
    head = [f"{100 * some[f'{n}_density']:.3g} %" for n in numbers]
    rows = [
        f"| {len(trials['plain'])} seeds | figure | " + " | ".join(head) + " |",
        "|---|---|" + "---:|" * len(numbers),
    ]
    for key, label, digits, scale in (
        ("auc", "AUC", 3, 1.0),
        ("fnr_at", f"missed at {100 * about['max_fpr']:.0f} % false alarms, %", 1, 100.0),
    ):
        for arm, text in {**ARMS, **ONE_SHOT}.items():
            own = rounds_of(trials, arm)
            places = numbers if arm in ARMS else [own[0], *([None] * (len(numbers) - 2)), own[-1]]
            cells = ["–" if n is None else mean_error(column(trials, arm, f"{n}_{key}"), digits, scale) for n in places]
            rows.append(f"| {text} | {label} | " + " | ".join(cells) + " |")
    for arm, text in ARMS.items():
        cells = [
            f"{100 * statistics.mean(column(trials, arm, f'{n}_fnr')):.0f} / {100 * statistics.mean(column(trials, arm, f'{n}_fpr')):.0f}"
            for n in numbers
        ]
        rows.append(f"| {text} | at argmax: missed / false alarms, % | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def over_rounds(trials: Trials, arm: str, figure: str) -> list[float]:
    """A figure's mean over the pruned rounds, seed by seed."""
    columns = [column(trials, arm, f"{n}_{figure}") for n in rounds_of(trials, arm)[1:]]
    return [statistics.mean(values) for values in zip(*columns, strict=True)]


def verdict_table() -> str:
    """What became of the paper's claims, experiment by experiment."""
    rows = [
        "| experiment | misses at argmax, γ then rank over plain | … its false alarms "
        "| misses at equal false alarms, plain − γ then rank | AUC, γ then rank − plain | AUC, rank − plain "
        "| AUC lost by the sparsest plain round |",
        "|---|---:|---:|---|---|---|---:|",
    ]
    for name, label in EXPERIMENTS.items():
        done = finished(name)
        if done is None:
            rows.append(f"| {label} | {NOT_RUN} | | | | | |")
            continue
        trials = done[1]
        plain, black = (statistics.mean(over_rounds(trials, arm, "fnr")) for arm in ("plain", "gamma-then-rank"))
        alarms = [statistics.mean(over_rounds(trials, arm, "fpr")) for arm in ("plain", "gamma-then-rank")]
        dense, last = (column(trials, "plain", f"{n}_auc") for n in (0, rounds_of(trials, "plain")[-1]))
        cells = [
            f"{100 * (black / plain - 1):+.0f} %".replace("-", "−"),
            f"{100 * alarms[0]:.0f} → {100 * alarms[1]:.0f} %",
            said(over_rounds(trials, "gamma-then-rank", "fnr_at"), over_rounds(trials, "plain", "fnr_at"), 100, "points"),
            said(over_rounds(trials, "plain", "auc"), over_rounds(trials, "gamma-then-rank", "auc")),
            said(over_rounds(trials, "plain", "auc"), over_rounds(trials, "rank", "auc")),
            mean_error([a - b for a, b in zip(dense, last, strict=True)], 3),
        ]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def said(a: Sequence[float], b: Sequence[float], scale: float = 1.0, unit: str = "") -> str:
    """The paired difference b − a and its verdict."""
    gap = paired(a, b)
    return f"{gap.text(1 if scale > 1 else 3, scale)} {unit}".strip() + f": {verdict(gap)}"


def speed_table() -> str:
    """Masking a large network, and a training step under masks."""
    record = stored("speed")
    if record is None:
        return NOT_RUN
    rows = ["| what | measured | goal |", "|---|---:|---:|"]
    for scope in ("layer", "global"):
        part = record["masking"][scope]
        label = f"ResNet-50 ({part['weights'] / 1e6:.1f} M weights) scored and masked, scope {scope}"
        rows.append(f"| {label} | {part['median_s']:.2f} s | ≤ {record['masking']['goal_s']:.0f} s |")
    step = record["step"]
    masked, again = (step[key]["wall"] for key in ("masked_over_dense", "dense_again_over_dense"))
    quartiles = f"{masked['quartile_low']:.2f}–{masked['quartile_high']:.2f}"
    rows.append(
        f"| training step of ResNet-20, masked over dense | {masked['median']:.3f} ({quartiles}); A/A {again['median']:.3f} "
        f"| ≤ {step['goal_masked_over_dense']} |"
    )
    return "\n".join(rows)


def solar_table() -> str:
    """The solar-cell job: before and after."""
    record = stored("solar")
    if record is None:
        return NOT_RUN
    dense, small = record["rates"]["dense"], record["rates"]["small"]
    gap = record["rates"]["difference"]

    def rate(of: Mapping, key: str) -> str:
        low, high = of["interval"][key]
        return f"{100 * of[key]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    def change(key: str) -> str:
        value, low, high = gap[key]
        return f"{100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")

    size = record["bytes"]
    rows = [
        "| | dense, TFLite fp32 | small, TFLite int8 | change |",
        "|---|---:|---:|---:|",
        f"| defective cells missed, of {dense['positives']} | {rate(dense, 'fnr')} | {rate(small, 'fnr')} | {change('fnr')} |",
        f"| false alarms, of {dense['negatives']} | {rate(dense, 'fpr')} | {rate(small, 'fpr')} | {change('fpr')} |",
        f"| AUC | {dense['auc']:.3f} | {small['auc']:.3f} | {gap['auc'][0]:+.3f} ({gap['auc'][1]:+.3f} to {gap['auc'][2]:+.3f}) |".replace(
            "-0.", "−0."
        ),
        f"| file | {size['dense'] / 1e3:,.0f} kB | {size['small'] / 1e3:,.0f} kB | 1/{size['dense'] / size['small']:.1f} |",
    ]
    rows += [
        f"| LiteRT, 1 thread | | | speed-up {pair['speedup']:.2f}× ({pair['low']:.2f}–{pair['high']:.2f}) |"
        for pair in record["profile"]
    ]
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    **{f"lottery-{name.replace('_', '-')}": (lambda name=name: experiment_table(name)) for name in EXPERIMENTS},
    "lottery-verdicts": verdict_table,
    "lottery-speed": speed_table,
    "lottery-solar": solar_table,
}
