"""Thresholds from validation data: the curve of accuracy against expected cost, and the point on it that meets a target.

A cost is anything that adds up over samples: MACs while training, milliseconds where a device was timed.

For each sample the scores of all branches but the last and whether each branch is right are known; thresholds decide which branch
answers (the first whose score reaches its own). With two branches the curve is exact: every threshold that makes a difference.
With more, equal thresholds for all branches give a family to start from; from there each threshold in turn is set to the best
value for a given price, exactly, until none moves, and the price runs from nothing to more than any accuracy is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...models.errors import UserError

MIN_SAMPLES = 32
"""Thresholds are calibrated on at least so many validation samples."""
NEVER = 1.01
"""A threshold above every score: a probability may round to 1."""
FAMILY = 129
PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 30.0, 40)])
"""What the dense network's cost is worth, in accuracy."""
_SWEEPS = 20


@dataclass(frozen=True)
class Observed:
    """What calibration knows: scores float32 (N, K−1), `right` (N, K) in 0…1, the cost of the way to each branch (K,), and the dense cost.

    Raises UserError when there are fewer than 32 samples.
    """

    scores: np.ndarray
    right: np.ndarray
    paths: np.ndarray
    dense: float

    def __post_init__(self) -> None:
        if len(self.scores) < MIN_SAMPLES:
            raise UserError(
                f"thresholds from {len(self.scores)} validation samples would be chance: at least {MIN_SAMPLES} are wanted",
                hint="give more validation data (val_fraction of the task)",
            )
        if self.right.shape != (len(self.scores), self.scores.shape[1] + 1) or len(self.paths) != self.right.shape[1]:
            raise ValueError(f"scores {self.scores.shape}, right {self.right.shape} and {len(self.paths)} paths do not fit")

    @property
    def reference(self) -> float:
        """The accuracy of the largest branch alone."""
        return float(self.right[:, -1].mean())


@dataclass(frozen=True)
class Point:
    """Thresholds (K−1,) and what they give: accuracy, mean cost, its ratio to the dense network's, share of samples per branch.

    `error` is the standard error of the difference in accuracy to the largest branch, over the samples.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    cost_ratio: float
    shares: tuple[float, ...]
    error: float = field(compare=False)


@dataclass(frozen=True)
class Curve:
    """Points in rising order of cost, none with a cheaper one at least as accurate; `reference`: the largest branch's accuracy."""

    points: tuple[Point, ...]
    reference: float
    samples: int


def taken(scores: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """The branch that answers each sample, int64 (N,): the first whose score reaches its threshold, else the last."""
    short = scores < np.asarray(thresholds, dtype=np.float32)
    return np.cumprod(short, axis=1).sum(1)


def point(observed: Observed, thresholds: Sequence[float]) -> Point:
    """What these thresholds give on the observed samples."""
    branch = taken(observed.scores, thresholds)
    rows = np.arange(len(branch))
    answers = observed.right[rows, branch]
    gap = answers - observed.right[:, -1].astype(float)
    cost = float(observed.paths[branch].mean())
    shares = np.bincount(branch, minlength=len(observed.paths)) / len(branch)
    return Point(
        tuple(float(np.float32(t)) for t in thresholds),
        float(answers.mean()),
        cost,
        cost / observed.dense,
        tuple(shares.tolist()),
        float(gap.std() / np.sqrt(len(gap))),
    )


def curve(observed: Observed) -> Curve:
    """The trade-off between accuracy and cost that thresholds can make on the observed samples."""
    gates = observed.scores.shape[1]
    if gates == 1:
        values, accuracy, cost = _cuts(observed, (NEVER,), 0)
        order = np.lexsort((-accuracy, cost))
        best = np.maximum.accumulate(accuracy[order])
        rising = np.concatenate([[True], best[1:] > best[:-1]])
        return _front(observed, [(float(t),) for t in values[order][rising]])
    family = [(t,) * gates for t in _levels(observed.scores)]
    found = dict.fromkeys(family)
    known = [point(observed, t) for t in family]
    for price in PRICES:
        start = known[int(np.argmax([_worth(at, price) for at in known]))]
        found[_climb(observed, start.thresholds, price)] = None
    return _front(observed, list(found))


def _levels(scores: np.ndarray) -> list[float]:
    """Thresholds common to all branches: quantiles of all scores, and the two ends."""
    inner = np.quantile(scores, np.linspace(0, 1, FAMILY), method="lower")
    return [0.0, *np.unique(inner).astype(float).tolist(), NEVER]


def _worth(at: Point, price: float) -> float:
    return at.accuracy - price * at.cost_ratio


def _climb(observed: Observed, start: tuple[float, ...], price: float) -> tuple[float, ...]:
    """Thresholds of which none can be moved alone for a gain at this price."""
    now, best = start, _worth(point(observed, start), price)
    for _ in range(_SWEEPS):
        before = now
        for i in range(len(now)):
            values, accuracy, cost = _cuts(observed, now, i)
            worth = accuracy - price * cost / observed.dense
            at = int(worth.argmax())
            if worth[at] > best + 1e-12:
                best, now = float(worth[at]), (*now[:i], float(values[at]), *now[i + 1 :])
        if now == before:
            break
    return now


def _cuts(observed: Observed, thresholds: Sequence[float], i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All thresholds of branch i that make a difference, with the accuracy and the mean cost of each, the others being as they are.

    They lie half-way between neighbouring scores, so that rounding elsewhere decides as here.
    """
    limits = np.asarray(thresholds, dtype=np.float32)
    reach = (observed.scores[:, :i] < limits[:i]).all(1)
    later = np.cumprod(observed.scores[:, i + 1 :] < limits[i + 1 :], axis=1).sum(1) + i + 1
    rows = np.arange(len(later))
    go_right, go_cost = observed.right[rows, later].astype(float), observed.paths[later].astype(float)
    earlier = taken(observed.scores[:, :i], limits[:i])
    fixed_right = observed.right[rows, earlier][~reach].sum()
    fixed_cost = observed.paths[earlier][~reach].sum()
    score = observed.scores[reach, i]
    order = np.argsort(-score, kind="stable")
    score = score[order]
    gain = (observed.right[reach, i] - go_right[reach])[order]
    saved = (observed.paths[i] - go_cost[reach])[order]
    right = fixed_right + go_right[reach].sum() + np.concatenate([[0.0], gain.cumsum()])
    cost = fixed_cost + go_cost[reach].sum() + np.concatenate([[0.0], saved.cumsum()])
    values = np.concatenate([[NEVER], _between(score[:-1], score[1:]), [0.0]]) if len(score) else np.array([NEVER])
    distinct = np.concatenate([[True], score[:-1] > score[1:], [True]]) if len(score) else np.array([True])
    count = len(observed.scores)
    return values[distinct], right[distinct] / count, cost[distinct] / count


def _between(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """float32 values that `high` reaches and `low` does not, half-way where float32 can."""
    middle = ((high.astype(np.float64) + low) / 2).astype(np.float32)
    return np.where(middle > low, middle, high).astype(np.float64)


def _front(observed: Observed, candidates: Sequence[tuple[float, ...]]) -> Curve:
    """The curve through the candidates that no cheaper one matches."""
    points = sorted((point(observed, t) for t in candidates), key=lambda p: (p.cost, -p.accuracy))
    front: list[Point] = []
    for at in points:
        if not front or at.accuracy > front[-1].accuracy:
            front.append(at)
    return Curve(tuple(front), observed.reference, len(observed.scores))


def within(found: Curve, ratio: float) -> Point | None:
    """The most accurate point that costs at most `ratio` of the dense network, None where all cost more."""
    return next((p for p in reversed(found.points) if p.cost_ratio <= ratio), None)


def thresholds_for(
    found: Curve,
    *,
    target_accuracy: float | None = None,
    max_accuracy_drop: float | None = None,
    target_mac_ratio: float | None = None,
) -> Point:
    """The cheapest point as accurate as wanted (in itself, or at most so far below the largest branch), or the most accurate one within
    a MAC ratio. Exactly one target is given; accuracies and drops are shares of 1.

    Raises UserError naming the nearest reachable value when there is none.
    """
    given = [t for t in (target_accuracy, max_accuracy_drop, target_mac_ratio) if t is not None]
    if len(given) != 1:
        raise ValueError("one of target_accuracy, max_accuracy_drop and target_mac_ratio is wanted")
    if target_mac_ratio is not None:
        best = within(found, target_mac_ratio)
        if best is None:
            raise UserError(
                f"an expected MAC ratio of {target_mac_ratio:g} can't be reached: the least is {found.points[0].cost_ratio:.4f}, "
                "with the smallest branch for every sample",
                hint=f"target_mac_ratio = {np.ceil(found.points[0].cost_ratio * 100) / 100:g} or more, or a smaller first ratio",
            )
        return best
    wanted = target_accuracy if target_accuracy is not None else found.reference - (max_accuracy_drop or 0.0)
    top = found.points[-1]
    if top.accuracy < wanted - 1e-12:
        raise UserError(
            f"an accuracy of {wanted:.4f} can't be reached: the highest on {found.samples} validation samples is {top.accuracy:.4f}",
            hint=f"target {top.accuracy:.4f} or less, train longer, or make the largest branch larger",
        )
    return next(p for p in found.points if p.accuracy >= wanted - 1e-12)
