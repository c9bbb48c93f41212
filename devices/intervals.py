"""Intervals of medians without any assumption about the distribution: latency samples are skewed and have heavy tails."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

FEWEST = 6
"""The fewest values for which a 95 % interval of a median exists: 2 · 0.5⁶ < 0.05 ≤ 2 · 0.5⁵."""


@functools.lru_cache(maxsize=4096)
def _rank(n: int, confidence: float) -> int:
    """The 1-based rank k whose order statistics x₍ₖ₎ and x₍ₙ₊₁₋ₖ₎ hold the median with at least `confidence`; 0 when none does."""
    return int(binom.ppf((1 - confidence) / 2, n, 0.5))


def median_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float] | None:
    """(low, high) around the median from order statistics (the sign test inverted), or None for too few values."""
    rank = _rank(len(values), confidence)
    if rank < 1:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return float(ordered[rank - 1]), float(ordered[-rank])


def sitting_medians(values: Sequence[float] | np.ndarray, sittings: Sequence[int] | None) -> np.ndarray:
    """The median of every sitting, whose lengths `sittings` lists in order; None: every value stands for itself."""
    array = np.asarray(values, dtype=np.float64)
    if sittings is None:
        return array
    if sum(sittings) != len(array) or min(sittings, default=1) < 1:
        raise ValueError(f"sittings of {list(sittings)} rounds do not make {len(array)} values")
    return np.array([np.median(part) for part in np.split(array, np.cumsum(sittings)[:-1])])


def relative_precision(values: Sequence[float] | np.ndarray, sittings: Sequence[int] | None = None) -> float | None:
    """How far the interval of the sittings' medians reaches from their median at most, relative to it; None for too few."""
    medians = sitting_medians(values, sittings)
    interval = median_interval(medians)
    if interval is None:
        return None
    middle = float(np.median(medians))
    return max(interval[1] - middle, middle - interval[0]) / middle if middle > 0 else None


@dataclass(frozen=True)
class Ratio:
    """The median of a/b with its interval (both ends None for too few sittings). Above 1: b took less time."""

    value: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width on the log scale (0.01 ≈ ±1 %)."""
        return None if self.low is None or self.high is None else (math.log(self.high) - math.log(self.low)) / 2

    @property
    def reach(self) -> float | None:
        """How far from 1 the interval reaches, as a fraction (0.01: somewhere up to 1 % away)."""
        if self.low is None or self.high is None:
            return None
        return math.expm1(max(abs(math.log(self.low)), abs(math.log(self.high))))


def paired_ratio(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, sittings: Sequence[int] | None = None
) -> Ratio:
    """exp of the median over sittings of the median over their rounds i of log(aᵢ / bᵢ), with its interval over the sittings.

    Rounds of one sitting share the same loaded models, and a model's luck with its place in memory (±1 % and more) stays with
    it; so the sittings are the independent repetitions, not the rounds (Kalibera and Jones, "Rigorous Benchmarking in
    Reasonable Time", 2013). `sittings=None` takes every round for itself. Raises ValueError for unequal or empty samples.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired samples must be as many on both sides and at least one, not {len(a)} and {len(b)}")
    logs = np.log(np.asarray(a, dtype=np.float64)) - np.log(np.asarray(b, dtype=np.float64))
    medians = sitting_medians(logs, sittings)
    interval = median_interval(medians)
    low, high = (None, None) if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
    return Ratio(math.exp(float(np.median(medians))), low, high)
