"""The ratio of two sets of latencies that nothing pairs: two runs at different times."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from .intervals import Ratio


@functools.lru_cache(maxsize=256)
def mann_whitney_ways(n: int, m: int) -> tuple[int, ...]:
    """How many of the orders of n + m values without ties give U = 0, 1, …, n·m: the Gaussian binomial's coefficients."""
    ways = [0] * (n * m + 1)
    ways[0] = 1
    for i in range(1, n + 1):
        for u in range(n * m, m + i - 1, -1):  # times 1 − q^(m+i)
            ways[u] -= ways[u - m - i]
        for u in range(i, n * m + 1):  # over 1 − q^i
            ways[u] += ways[u - i]
    return tuple(ways)


def rank_of(n: int, m: int, confidence: float = 0.95) -> int:
    """The 1-based rank k whose ordered differences d₍ₖ₎ and d₍ₙₘ₊₁₋ₖ₎ hold the shift with at least `confidence`; 0 when none does."""
    ways = mann_whitney_ways(n, m)
    allowed, rank, below = (1 - confidence) / 2 * sum(ways), 0, 0
    for count in ways:
        below += count
        if below > allowed:
            break
        rank += 1
    return rank


def unpaired_ratio(new: Sequence[float] | np.ndarray, old: Sequence[float] | np.ndarray) -> Ratio:
    """new / old: exp of the Hodges-Lehmann shift of the logarithms, with its exact 95 % interval (None for too few values).

    The shift is the median of all differences log newᵢ − log oldⱼ; the interval is that of the Mann-Whitney test inverted
    (Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", §4.3). It assumes that the two sets differ by a factor and
    nothing else, and no distribution. 4 values on either side are the fewest that have an interval. Raises ValueError for none.
    """
    if len(new) == 0 or len(old) == 0:
        raise ValueError("a ratio needs at least one value on either side")
    logs = np.log(np.asarray(new, dtype=np.float64))[:, None] - np.log(np.asarray(old, dtype=np.float64))[None, :]
    differences = np.sort(logs, axis=None)
    rank = rank_of(len(new), len(old))
    value = math.exp(float(np.median(differences)))
    if rank < 1:
        return Ratio(value, None, None)
    return Ratio(value, math.exp(float(differences[rank - 1])), math.exp(float(differences[-rank])))
