"""docs/lottery-curves.svg from results/lottery/: AUC and misses at equal false alarms by the share of weights left."""

from __future__ import annotations

import statistics

import matplotlib as mpl
from tables_lottery import ARMS, EXPERIMENTS, finished, rounds_of
from trials import RESULTS, column

COLOURS = {"plain": "#777777", "rank": "#1f77b4", "gamma-then-rank": "#111111", "strong-gamma": "#2ca02c"}


def main() -> None:
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "trimtab", "font.size": 9})
    from matplotlib.figure import Figure

    there = {name: done[1] for name in EXPERIMENTS if (done := finished(name))}
    figure = Figure(figsize=(9, 2.6 * len(there)), layout="constrained")
    grid = figure.subplots(len(there), 2, squeeze=False)
    for row, (name, trials) in zip(grid, there.items(), strict=True):
        for axes, (key, label) in zip(row, (("auc", "AUC"), ("fnr_at", "missed at 10 % false alarms")), strict=True):
            for arm, text in ARMS.items():
                numbers = rounds_of(trials, arm)
                shares = [100 * statistics.mean(column(trials, arm, f"{n}_density")) for n in numbers]
                values = [column(trials, arm, f"{n}_{key}") for n in numbers]
                errors = [statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0 for v in values]
                means = [statistics.mean(v) for v in values]
                axes.errorbar(
                    shares, means, errors, color=COLOURS[arm], label=text, marker="o", markersize=3, capsize=2, linewidth=1.3
                )
            axes.set(xscale="log", xlabel="% of the weights left", ylabel=label, title=EXPERIMENTS[name])
            axes.invert_xaxis()
            axes.set_xticks(shares, [f"{s:.3g}" for s in shares])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    grid[0][0].legend(fontsize=8)
    figure.savefig(RESULTS.parent.parent / "docs" / "lottery-curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
