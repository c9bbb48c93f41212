"""What every accuracy experiment is made of: trials that are kept as they finish, paired differences, verdicts.

A claim is a file of results/<folder>/: {"command", "conditions", "about", "trials": {arm: {seed: figures}}}. A trial that is in the file is
not run again, so a stopped experiment goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from trimtab.compress.apply import tool_versions
from trimtab.devices.conditions import cpu_model
from trimtab.models import files

RESULTS = Path(__file__).parent / "results"
Trial = Callable[[str, int], dict[str, float]]
"""(arm, seed) → figures."""


@dataclass
class Claim:
    """An experiment under way: its arms, and the file that holds what is done."""

    name: str
    about: dict[str, Any]
    folder: str = "distill"
    trials: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The result file."""
        return RESULTS / self.folder / f"{self.name}.json"

    def run(self, arms: Sequence[str], seeds: int, trial: Trial) -> None:
        """Every arm with every seed, arm by arm within a seed, each saved when it is done."""
        if self.path.exists():
            old = json.loads(self.path.read_text())
            if old["about"] == json.loads(json.dumps(self.about)):
                self.trials = old["trials"]
            else:
                print(f"{self.name}: another setting than the file's; all trials are run again", flush=True)
        for seed in range(seeds):
            for arm in arms:
                if str(seed) in self.trials.setdefault(arm, {}):
                    continue
                started = time.perf_counter()
                figures = trial(arm, seed)
                figures["seconds"] = round(time.perf_counter() - started, 2)
                self.trials[arm][str(seed)] = figures
                shown = "  ".join(f"{k} {v:.4f}" for k, v in figures.items())
                print(f"{self.name} seed {seed} {arm:<28} {shown}", flush=True)
                self.save()

    def save(self) -> None:
        """None; the file holds all trials so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(
            self.path,
            {
                "command": " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
                "conditions": {
                    "cpu": str(cpu_model().value),
                    "cores": os.cpu_count(),
                    "threads": torch.get_num_threads(),
                    "python": platform.python_version(),
                    "versions": tool_versions(("torch", "accelerate", "numpy", "scikit-learn", "torchmetrics")),
                },
                "about": self.about,
                "trials": self.trials,
            },
        )


@dataclass(frozen=True)
class Difference:
    """b − a over paired seeds: mean, standard error, two-sided p of the paired t-test, and how often b was the larger."""

    mean: float
    error: float
    p: float
    wins: int
    pairs: int

    @property
    def sure(self) -> bool:
        """Whether the paired test excludes 0 at 5 %."""
        return self.p < 0.05

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Mean ± standard error with its sign, as it is printed."""
        return f"{scale * self.mean:+.{digits}f} ± {scale * self.error:.{digits}f}".replace("-", "−")


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The paired difference b − a. Equal in every pair: p = 1."""
    gaps = [y - x for x, y in zip(a, b, strict=True)]
    spread = statistics.stdev(gaps) if len(gaps) > 1 else 0.0
    p = float(stats.ttest_rel(b, a).pvalue) if spread else float(not any(gaps))
    return Difference(statistics.mean(gaps), spread / len(gaps) ** 0.5, p, sum(g > 0 for g in gaps), len(gaps))


def verdict(d: Difference) -> str:
    """ "reproduced": the claimed sign, beyond doubt; "directional": the sign, by more than a standard error; else what was seen."""
    if d.pairs < 5:
        return "too few seeds"
    if abs(d.mean) <= d.error:
        return "no difference seen"
    if d.mean > 0:
        return "reproduced" if d.sure else "directional"
    return "not reproduced: the opposite" if d.sure else "not reproduced"


def column(trials: Mapping[str, Mapping[str, Mapping[str, float]]], arm: str, figure: str) -> list[float]:
    """One figure of an arm, by seed."""
    return [trials[arm][seed][figure] for seed in sorted(trials[arm], key=int)]


def stored(name: str, folder: str = "lottery") -> dict[str, Any] | None:
    """A result file, or None when the experiment has not been run."""
    path = RESULTS / folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def mean_error(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """Mean ± standard error over seeds, as it is printed."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * error:.{digits}f}".replace("-", "−")
