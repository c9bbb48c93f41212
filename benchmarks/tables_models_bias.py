"""The tables of docs/bias-loss.md, from results/models/bias.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from trials import Difference, column, mean_error, paired, stored, verdict

NOT_RUN = "_not run_"
NETS = {"skip": "with skip blocks", "plain": "without, wider"}
TENTHS = range(1, 11)


def losses_table() -> str:
    """Every network and loss: test accuracy, the lowest and highest tenth of feature variance, and the mean weight."""
    result = stored("bias", folder="models")
    if result is None:
        return NOT_RUN
    trials, about = result["trials"], result["about"]
    seeds, training = _seeds(trials), about["training"]
    minutes = sum(f["cpu_seconds"] for arm in trials.values() for f in arm.values()) / 60
    lines = [
        f"{about['data']}, {training['epochs']:g} epochs of AdamW (lr {training['lr']}, batch {training['batch_size']}); mean ± s.e. "
        f"of {seeds} seeds; {minutes:.0f} CPU-minutes in all on {result['conditions']['cpu']}, "
        f"{result['conditions']['threads']} thread.",
        "",
        "| network | loss | accuracy % | lowest tenth | highest tenth | mean weight, first → last epoch |",
        "|---|---|---:|---:|---:|---:|",
    ]
    last = max(int(key.split()[-1]) for arm in trials.values() for f in arm.values() for key in f if key.startswith("weight"))
    for net, title in NETS.items():
        cost = about["costs"][net]
        for loss in about["losses"]:
            arm = f"{net}: {loss}"
            cells = [mean_error(_of(trials, arm, figure), 2) for figure in ("accuracy", "tenth 1", "tenth 10")]
            weighed = f"weight, epoch {last}" in next(iter(trials[arm].values()))
            means = [statistics.mean(_of(trials, arm, f"weight, epoch {at}")) for at in (1, last)] if weighed else []
            name = f"{title} ({cost['macs'] / 1e6:.2f} MMACs, {cost['params'] / 1e3:.1f} k params)"
            lines.append(f"| {name} | {loss} | " + " | ".join(cells) + f" | {' → '.join(f'{m:.3f}' for m in means) or '1'} |")
    return "\n".join(lines)


def tenths_table() -> str:
    """Accuracy by tenth of the last feature map's variance."""
    result = stored("bias", folder="models")
    if result is None:
        return NOT_RUN
    lines = [
        "Test accuracy in percent by tenth of the variance of the last feature map, lowest first; means over seeds.",
        "",
        "| network and loss | " + " | ".join(map(str, TENTHS)) + " |",
        "|---|" + "---:|" * len(TENTHS),
    ]
    for net, title in NETS.items():
        for loss in ("cross-entropy", "bias, local", "bias, global"):
            means = [statistics.mean(_of(result["trials"], f"{net}: {loss}", f"tenth {k}")) for k in TENTHS]
            lines.append(f"| {title}: {loss} | " + " | ".join(f"{m:.1f}" for m in means) + " |")
    return "\n".join(lines)


def verdicts_table() -> str:
    """What the paper claims, and the controls that it does not give, by paired tests over seeds."""
    result = stored("bias", folder="models")
    if result is None:
        return NOT_RUN
    trials = result["trials"]
    lines = ["| claim or control | network | points (mean ± s.e.) | p | seeds | verdict |", "|---|---|---:|---:|---:|---|"]

    def add(claim: str, where: str, found: Difference, *, control: bool = False) -> None:
        said = ("a difference" if found.sure else "no difference seen") if control and found.pairs >= 5 else verdict(found)
        mean = f"{found.mean:+.2f}".replace("-", "−")
        lines.append(
            f"| {claim} | {where} | {mean} ± {found.error:.2f} | {found.p:.3f} | {found.wins} of {found.pairs} | {said} |"
        )

    comparisons = (
        ("bias, local > cross-entropy", "cross-entropy", "bias, local", False),
        ("bias, global > cross-entropy", "cross-entropy", "bias, global", False),
        ("bias, global − the same weights shuffled", "bias, shuffled", "bias, global", True),
        ("bias, mean 1 − cross-entropy", "cross-entropy", "bias, mean 1", True),
        ("bias, shuffled − cross-entropy", "cross-entropy", "bias, shuffled", True),
    )
    for claim, a, b, control in comparisons:
        for net, title in NETS.items():
            found = paired(_of(trials, f"{net}: {a}", "accuracy"), _of(trials, f"{net}: {b}", "accuracy"))
            add(claim, title, found, control=control)
    plain, skip = (_of(trials, f"{net}: cross-entropy", "accuracy") for net in ("plain", "skip"))
    add("skip blocks > none, cross-entropy", "matched MACs", paired(plain, skip))
    for net, title in NETS.items():
        low, high = (_of(trials, f"{net}: cross-entropy", f"tenth {k}") for k in (1, 10))
        add("highest tenth of variance > lowest, cross-entropy", title, paired(low, high))
    return "\n".join(lines)


def _seeds(trials: dict[str, Any]) -> int:
    """The seeds that every arm has."""
    return min(len(arm) for arm in trials.values())


def _of(trials: dict[str, Any], arm: str, figure: str) -> list[float]:
    """One figure of an arm over the seeds that every arm has: an experiment under way has more of some."""
    return column(trials, arm, figure)[: _seeds(trials)]


TABLES: dict[str, Callable[[], str]] = {
    "bias-losses": losses_table,
    "bias-tenths": tenths_table,
    "bias-verdicts": verdicts_table,
}
