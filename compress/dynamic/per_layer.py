"""A level for each layer, from a target for the whole network: what a layer saves is bought where it costs the least loss."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from .estimate import CLOSE, Estimator, Point, refuse_unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

STEPS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.55, 0.4, 0.25, 0.1)
"""The levels that a layer may take, the mildest first."""
IMAGES = 256
"""Samples of a sensitivity measurement: there are (layers × levels) of them."""


@dataclass(frozen=True)
class Move:
    """One layer's step to the next stricter level: what it saves and what it costs, alone, all other layers at r = 1."""

    conv: str
    level: float
    saved: float
    loss: float

    @property
    def price(self) -> float:
        """Loss per share of the network's MACs; free where nothing is lost."""
        return max(self.loss, 0.0) / max(self.saved, 1e-9)


def allocate(estimator: Estimator, target: float, *, steps: Sequence[float] = STEPS) -> tuple[dict[str, float], Point]:
    """(a level per layer, the measurement of them all together) whose MAC reduction is nearest to `target`.

    Each layer alone is masked at every level; the moves of all layers are then taken from the cheapest on (loss per MAC), a layer's
    own in order. How far along that list to go is measured with all layers masked, since savings compound and later layers see
    what earlier ones let through. Raises UserError when the strictest levels everywhere don't reach the target.
    """
    order = _ordered([_moves(estimator, path, steps) for path in estimator.gates])
    seen: dict[int, Point] = {}

    def measure(taken: int) -> Point:
        if taken not in seen:
            seen[taken] = estimator.summary(float(taken), estimator.look(_levels(estimator, order[:taken])))
        return seen[taken]

    low, high = 0, len(order)
    ends = {f"level {steps[0]:g} in every layer": measure(low), f"level {steps[-1]:g} in every layer": measure(high)}
    refuse_unreachable(target, {name: point.mac_reduction for name, point in ends.items()})
    while high - low > 1 and abs(measure(high).mac_reduction - target) > CLOSE:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle).mac_reduction < target else (low, middle)
    best = min(seen, key=lambda taken: abs(seen[taken].mac_reduction - target))
    return _levels(estimator, order[:best]), seen[best]


def _levels(estimator: Estimator, taken: Sequence[Move]) -> dict[str, float]:
    return dict.fromkeys(estimator.gates, 1.0) | {move.conv: move.level for move in taken}


def _moves(estimator: Estimator, conv: str, steps: Sequence[float]) -> list[Move]:
    """The steps of one layer, each with what it adds to the one before."""
    found = []
    points = []
    for level in steps:
        seen = estimator.look(dict.fromkeys(estimator.gates, 1.0) | {conv: level}, images=IMAGES)
        points.append(estimator.summary(level, seen))
    for before, after in pairwise(points):
        loss = after.metrics["loss"] - before.metrics["loss"]
        found.append(Move(conv, after.level, after.mac_reduction - before.mac_reduction, loss))
    return found


def _ordered(layers: Sequence[Sequence[Move]]) -> list[Move]:
    """All moves, the cheapest of those that are next in their layer first."""
    left = [list(moves) for moves in layers]
    order: list[Move] = []
    while any(left):
        cheapest = min((moves for moves in left if moves), key=lambda moves: moves[0].price)
        order.append(cheapest.pop(0))
    return order
