"""From scores to masks: which weights stay at a density, in every layer or across the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...models.errors import UserError
from .patterns import best_of_groups, block_scores, from_blocks
from .shape import Pattern

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Pruned:
    """New masks, every one inside the mask before it. `minimum`: layers that would have lost everything and kept their best;
    `whole`: layers whose shape does not take the pattern and stayed as they were."""

    masks: dict[str, Tensor]
    minimum: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


def prune(
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    density: float,
    scope: Scope = "layer",
    pattern: Pattern | None = None,
) -> Pruned:
    """Masks that keep the highest scores: `density` is the share of all weights, those pruned before included.

    `masks` (bool, True = kept) are the ones so far: a pruned weight never comes back. With scope "layer" every tensor keeps that
    share of its own weights, with "global" the network does. An N:M pattern keeps as many of every M as the density says.
    At least one weight (block) of every tensor stays. Raises UserError naming the layers whose scores are not finite.
    """
    pattern = pattern or Pattern()
    broken = [name for name, score in scores.items() if not bool(torch.isfinite(score).all())]
    if broken:
        raise UserError(
            f"scores with NaN or infinity: {', '.join(broken[:10])}", hint="the weights or gradients there are broken"
        )
    whole = tuple(name for name in scores if not pattern.fits(scores[name].shape))
    taking = {name: score for name, score in scores.items() if name not in whole}
    untouched = {name: masks[name].clone() for name in whole}
    if pattern.group:
        keep = max(1, round(density * pattern.group))
        made = {
            name: best_of_groups(score.masked_fill(~masks[name], -torch.inf), keep, pattern.group) & masks[name]
            for name, score in taking.items()
        }
        return Pruned(untouched | made, whole=whole)
    units = {name: _units(score, masks[name], pattern) for name, score in taking.items()}
    counts = _counts(units, density, scope)
    minimum = tuple(name for name, count in counts.items() if count == 0)
    made = {
        name: from_blocks(_best(unit, max(1, counts[name])), scores[name].shape, pattern) & masks[name]
        for name, unit in units.items()
    }
    return Pruned(untouched | made, minimum=minimum, whole=whole)


def _units(score: Tensor, mask: Tensor, pattern: Pattern) -> Tensor:
    """What is pruned together, with its score; -inf where nothing of it is left."""
    if pattern.rows * pattern.columns == 1:
        return score.masked_fill(~mask, -torch.inf)
    alive = block_scores(mask.float(), pattern) > 0
    return block_scores(score.masked_fill(~mask, 0), pattern).masked_fill(~alive, -torch.inf)


def _counts(units: Mapping[str, Tensor], density: float, scope: Scope) -> dict[str, int]:
    """How many units every tensor keeps."""
    alive = {name: int(torch.isfinite(unit).sum()) for name, unit in units.items()}
    if scope == "layer":
        return {name: min(alive[name], round(density * unit.numel())) for name, unit in units.items()}
    flat = np.concatenate([unit.reshape(-1).numpy() for unit in units.values()])
    wanted = min(sum(alive.values()), max(1, round(density * flat.size)))
    best = np.argpartition(flat, flat.size - wanted)[flat.size - wanted :]
    ends = np.cumsum([unit.numel() for unit in units.values()])
    owners = np.bincount(np.searchsorted(ends, best, side="right"), minlength=len(ends))
    return dict(zip(units, owners.tolist(), strict=True))


def _best(unit: Tensor, count: int) -> Tensor:
    """bool: the `count` highest of a tensor."""
    kept = torch.zeros(unit.numel(), dtype=torch.bool)
    flat = unit.reshape(-1).numpy()
    kept[torch.from_numpy(np.argpartition(flat, flat.size - count)[flat.size - count :])] = True
    return kept.reshape(unit.shape)


def densities(final: float, share: float, *, start: float = 1.0, one_shot: bool = False) -> tuple[float, ...]:
    """The density of every round, from `start` down to `final`: each prunes `share` of what is left, the last one less if need be."""
    if one_shot:
        return (start, final)
    found = [start]
    while found[-1] > final * (1 + 1e-9):
        after = found[-1] * (1 - share)
        found.append(final if after <= final * 1.15 else after)  # no extra round for a last sliver
    return tuple(found)


def group_densities(keep: int, group: int, share: float, *, one_shot: bool = False) -> tuple[float, ...]:
    """The same for an N:M pattern, in whole weights of a group: 2:4 from 4 to 2, 1:16 by 8, 4, 2 to 1."""
    if one_shot:
        return (1.0, keep / group)
    found = [group]
    while found[-1] > keep:
        found.append(max(keep, min(found[-1] - 1, round(found[-1] * (1 - share)))))
    return tuple(count / group for count in found)
