"""Accuracy-controlled quantisation: the fewest layers to keep in float so that an integer artifact loses no more than it may."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..models.errors import UserError
from .artifact import RevertTrial

PUT_BACK = 12
"""How many layers are tried as integers again after the search: each costs an export and an evaluation."""


def fewest_in_float(
    ranked: Sequence[str], trial: Callable[[frozenset[str]], RevertTrial], *, max_drop: float
) -> tuple[frozenset[str], list[RevertTrial]]:
    """(layers to keep in float, everything that was tried), for layers `ranked` from the most sensitive on.

    The shortest head of the ranking that is good enough is found by doubling and bisection, which takes losses to shrink as layers
    are added; then its layers are put back to integers one by one, the least sensitive first, as long as the loss stays within.
    Raises UserError when even all of them in float lose more than `max_drop`.
    """
    tried: list[RevertTrial] = []

    def enough(count: int) -> bool:
        tried.append(trial(frozenset(ranked[:count])))
        return tried[-1].drop <= max_drop

    if enough(0):
        return frozenset(), tried
    low, high = 0, 1
    while high < len(ranked) and not enough(high):
        low, high = high, 2 * high
    if high >= len(ranked):
        high = len(ranked)
        if not enough(high):
            raise UserError(
                f"with all {len(ranked)} layers in float the artifact still loses {tried[-1].drop:.4f} of the metric, {max_drop:g} "
                "is allowed",
                hint="the loss is not the layers' (doors, or the format itself): allow more, or export fp32",
                exit_code=1,
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    kept = list(ranked[:high])
    for layer in reversed(ranked[: high - 1][-PUT_BACK:]):  # without the last one the loss was too great: that was tried
        without = frozenset(kept) - {layer}
        tried.append(trial(without))
        if tried[-1].drop <= max_drop:
            kept.remove(layer)
    return frozenset(kept), tried
