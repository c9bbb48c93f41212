"""The tables and verdicts of docs/distillation.md, from results/distill/."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trials import RESULTS as ALL
from trials import Difference, column, paired, verdict

from trimtab.compress.distill.objectives import objectives
from trimtab.compress.distill.presets import presets

RESULTS = ALL / "distill"


@dataclass(frozen=True)
class Check:
    """A claim, and what it says of the figures: each comparison is (arm that is lower, arm that is higher, figure)."""

    claim: str
    results: tuple[str, ...]
    comparisons: tuple[tuple[str, str, str], ...]


CHECKS = (
    Check("KD + ND > KD", ("kd-2k", "kd-10k", "kd-54k"), (("KD", "KD + ND", "accuracy"),)),
    Check("KD + ND > KD + cosine", ("kd-2k", "kd-10k", "kd-54k"), (("KD + cosine", "KD + ND", "accuracy"),)),
    Check("ND raises the embedding's norm", ("kd-2k", "kd-10k", "kd-54k"), (("KD", "KD + ND", "norm"),)),
    Check("single head: CE + BinaryKL-Norm < CE", ("dual-head",), (("CE + BinaryKL-Norm, one head", "CE", "accuracy"),)),
    Check("two heads > one head", ("dual-head",), (("CE + BinaryKL-Norm, one head", "dual, linear", "accuracy"),)),
    Check("KD + ND > KD on solar cells", ("elpv",), (("KD", "KD + ND", "auroc"),)),
    Check("KD > labels alone on solar cells", ("elpv",), (("CE", "KD", "auroc"),)),
    Check(
        "a larger teacher does not hurt KD + ND (ResNet-44 ≥ ResNet-8)",
        ("teachers",),
        (("KD + ND ← resnet8", "KD + ND ← resnet44", "accuracy"),),
    ),
    Check(
        "aspects > shuffled aspects", ("aspects-200", "aspects-1000"), (("CE + shuffled aspects", "CE + aspects", "accuracy"),)
    ),
    Check("aspects > label smoothing", ("aspects-200", "aspects-1000"), (("label smoothing 0.1", "CE + aspects", "accuracy"),)),
    Check("nested dropout with 8 of 128 features > CE with all", ("nested-dropout",), ()),
    Check(
        "landmarks, released form: main alone has a larger error than the full loss",
        ("landmarks",),
        (("full, released form", "main, released form", "nme"),),
    ),
    Check(
        "landmarks, released form: L2 has a larger error than main alone",
        ("landmarks",),
        (("main, released form", "L2", "nme"),),
    ),
    Check(
        "landmarks, figure's form: main alone has a larger error than the full loss",
        ("landmarks",),
        (("full, figure's form", "main, figure's form", "nme"),),
    ),
    Check(
        "landmarks, figure's form: L2 has a larger error than main alone",
        ("landmarks",),
        (("main, figure's form", "L2", "nme"),),
    ),
    Check(
        "landmarks: shuffled teachers have a larger error than the right ones",
        ("landmarks",),
        (("full, figure's form", "full, figure's form, shuffled teachers", "nme"),),
    ),
    Check("faces: the mean face has a larger error than the student (L1)", ("faces",), (("L1", "mean face", "nme"),)),
    Check("hybrid > features alone (linear probe)", ("hybrid",), (("features", "hybrid", "probe"),)),
    Check("hybrid > relations alone (linear probe)", ("hybrid",), (("relations", "hybrid", "probe"),)),
    Check(
        "hybrid's attention is more spread over heads than the features'",
        ("hybrid",),
        (("features", "hybrid", "distance_spread_px"),),
    ),
)


def load(name: str) -> dict | None:
    """A result file, or None when the experiment has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def arm_table(name: str) -> str:
    """One experiment: its setting, and every arm's figures over seeds."""
    result = load(name)
    if result is None:
        return "_not run_"
    trials = result["trials"]
    figures = [f for f in next(iter(next(iter(trials.values())).values())) if f != "seconds"]
    about = result["about"]
    lines = [about["data"] + (f"; teacher: {about['teacher']}" if "teacher" in about else "") + ".", ""]
    lines += ["| arm | seeds | " + " | ".join(figures) + " |", "|---|---:|" + "---:|" * len(figures)]
    for arm in trials:
        cells = [shown(column(trials, arm, f), 2 if statistics.mean(column(trials, arm, f)) >= 2 else 4) for f in figures]
        lines.append(f"| {arm} | {len(trials[arm])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(check: Check, name: str) -> list[Difference]:
    """The claim's comparisons in one result file, over the seeds that both arms have."""
    result = load(name)
    if result is None:
        return []
    trials, found = result["trials"], []
    for low, high, figure in check.comparisons:
        seeds = sorted(set(trials.get(low, {})) & set(trials.get(high, {})), key=int)
        if seeds:
            found.append(paired([trials[low][s][figure] for s in seeds], [trials[high][s][figure] for s in seeds]))
    return found


def nested_difference() -> list[Difference]:
    """Nested dropout with 8 features against CE with all 128."""
    result = load("nested-dropout")
    if result is None:
        return []
    return [paired(column(result["trials"], "CE", "k=128"), column(result["trials"], "nested dropout", "k=8"))]


def verdict_table() -> str:
    """Every claim with its paired difference and verdict, per data set."""
    lines = ["| claim | experiment | paired difference | p | seeds won | verdict |", "|---|---|---:|---:|---:|---|"]
    for check in CHECKS:
        for name in check.results:
            found = differences(check, name) or (nested_difference() if not check.comparisons else [])
            if not found:
                lines.append(f"| {check.claim} | {name} | | | | not run |")
                continue
            for d in found:
                digits = 2 if abs(d.mean) >= 0.1 else 4
                lines.append(
                    f"| {check.claim} | {name} | {signed(d.mean, digits)} ± {d.error:.{digits}f} | {d.p:.3f} | {d.wins}/{d.pairs} "
                    f"| **{verdict(d)}** |"
                )
    return "\n".join(lines)


def speed_table() -> str:
    """Cached against live teachers, and every objective's step against KD's."""
    path = RESULTS / "speed.json"
    if not path.exists():
        return "_not run_"
    result = json.loads(path.read_text())

    def cell(ratio: dict) -> str:
        return f"{ratio['wall']['median']:.3f} | {ratio['wall']['quartile_low']:.3f}–{ratio['wall']['quartile_high']:.3f}"

    lines = ["| step | ratio, median | quartiles | goal |", "|---|---:|---:|---:|"]
    lines.append(
        f"| cached over live teacher (ResNet-56 → ResNet-20) | {cell(result['cached']['cached_over_uncached'])} | ≤ 0.6 |"
    )
    for name, ratio in result["overhead"]["over_kd"].items():
        if name != "kd":
            label = "A/A: kd over kd" if name == "kd again" else f"{name} over kd"
            lines.append(f"| {label} | {cell(ratio)} | {'' if name == 'kd again' else '≤ 1.10'} |")
    return "\n".join(lines)


def preset_table() -> str:
    """Every named objective: what it adds up."""
    lines = ["| objective | what | label | terms | source |", "|---|---|---:|---|---|"]
    for name, preset in presets.items():
        terms = ", ".join(
            f"{t.get('weight', 1.0):g} · {t['kind']}"
            + "".join(
                f", {k} {v:g}" if isinstance(v, float) else f", {k} {v}" for k, v in t.items() if k not in ("kind", "weight")
            )
            for t in preset.terms
        )
        lines.append(f"| `{name}` | {preset.title} | {preset.label_weight:g} | {terms} | {preset.source} |")
    return "\n".join(lines)


def objective_table() -> str:
    """Every registered term, from its card."""
    lines = ["| kind | what | formula | source |", "|---|---|---|---|"]
    for entry in objectives:
        card = entry.card
        lines.append(
            "| " + " | ".join(t.replace("|", "\\|") for t in (f"`{entry.name}`", card.title, card.formula, card.source)) + " |"
        )
    return "\n".join(lines)


def tables() -> dict[str, Callable[[], str]]:
    """Every table by the name of its place in the page."""
    names = [path.stem for path in sorted(RESULTS.glob("*.json")) if path.stem != "speed"]
    made: dict[str, Callable[[], str]] = {f"distill-{name}": lambda name=name: arm_table(name) for name in names}
    made |= {"presets": preset_table, "objectives": objective_table}
    return made | {"distill-verdicts": verdict_table, "distill-speed": speed_table}
