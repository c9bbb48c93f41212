"""How many channels each group loses so that the network meets its target: an exact cost model and a greedy walk over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..models.errors import UserError
from .cost import Cost
from .groups import ChannelGroup

Target = Literal["macs", "params"]
Scope = Literal["global", "layer"]


@dataclass
class _Layer:
    """A layer's base cost and the shares of its inputs and outputs that are left."""

    base: float
    sizes: dict[str, int]
    removed: dict[str, int] = field(default_factory=lambda: {"out": 0, "in": 0})

    @property
    def cost(self) -> float:
        left = self.base
        for side, size in self.sizes.items():
            left *= 1 - self.removed[side] / size
        return left


class CostModel:
    """Predicts the network's MACs or params after cuts: each layer scales with its kept inputs times its kept outputs."""

    def __init__(self, module: nn.Module, cost: Cost, target: Target) -> None:
        self.total = float(cost.macs if target == "macs" else cost.params)
        self._layers: dict[str, _Layer] = {}
        for layer in cost.layers:
            if sizes := _sides(module.get_submodule(layer.path)):
                base = layer.macs if target == "macs" else layer.params
                self._layers[layer.path] = _Layer(float(base), sizes)

    def remove(self, group: ChannelGroup, channels: int) -> float:
        """The total after `channels` more root channels of `group` are gone; negative `channels` puts them back."""
        for member in group.members:
            layer = self._layers.get(member.path)
            if layer is None or member.side not in layer.sizes:
                continue
            self.total -= layer.cost
            layer.removed[member.side] += channels * len(member.own) // group.channels
            self.total += layer.cost
        return self.total


def _sides(layer: nn.Module) -> dict[str, int]:
    """The dimensions a layer's cost is proportional to. A depthwise convolution has one: its channels."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
            return {"out": layer.out_channels}
        return {"out": layer.out_channels, "in": layer.in_channels}
    if isinstance(layer, nn.Linear):
        return {"out": layer.out_features, "in": layer.in_features}
    return {"out": layer.num_features} if isinstance(layer, nn.modules.batchnorm._BatchNorm) else {}


@dataclass(frozen=True)
class _Chunk:
    """Consecutive channels of one group, weakest first: the unit of removal."""

    group: int
    order: int
    channels: int
    key: float


def positions(group: ChannelGroup, scores: Tensor) -> list[int]:
    """Positions inside one block of the group, weakest first; blocks share positions, so their scores are averaged."""
    return torch.argsort(scores.view(group.blocks, -1).mean(0), stable=True).tolist()


def choose(
    module: nn.Module,
    cost: Cost,
    scored: Sequence[tuple[ChannelGroup, Tensor]],
    *,
    target: Target,
    ratio: float,
    tolerance: float,
    round_to: int,
    max_ratio: float,
    scope: Scope,
) -> list[tuple[ChannelGroup, set[int]]]:
    """The root channels to remove from every group, so that the cost is `ratio` of the dense one, within `tolerance` below it
    (or above it, where the grid of `round_to` leaves nothing just below).

    Weakest chunks go first: by score across the network (`scope="global"`; scores are comparable, mean 1 a group), or by rank
    so that every group loses the same share (`"layer"`). A chunk rounds the kept channels to a multiple of `round_to`.
    Raises UserError with the nearest reachable ratio when the target can't be met.
    """
    dense = float(cost.macs if target == "macs" else cost.params)
    model = CostModel(module, cost, target)
    chunks = [c for i, (group, scores) in enumerate(scored) for c in _chunks(i, group, scores, round_to, max_ratio, scope)]
    taken: dict[int, int] = {}
    goal, floor = ratio * dense, (ratio - tolerance) * dense
    full: set[int] = set()
    for chunk in sorted(chunks, key=lambda c: (c.key, c.group, c.order)):
        if model.total <= goal:
            break
        if chunk.group in full:
            continue
        group = scored[chunk.group][0]
        if model.remove(group, chunk.channels) < floor:
            model.remove(group, -chunk.channels)  # overshoots: a smaller one elsewhere may fit
            full.add(chunk.group)
        else:
            taken[chunk.group] = taken.get(chunk.group, 0) + chunk.channels
    if model.total > (ratio + tolerance) * dense:
        raise UserError(
            f"{target} ratio {ratio:g} can't be reached within {tolerance:.0%}: the nearest is {model.total / dense:.3f} "
            f"with round_to={round_to} and max_ratio={max_ratio:g}",
            hint="raise the ratio, lower round_to, or raise max_ratio",
        )
    return [(scored[i][0], _roots(scored[i][0], scored[i][1], n)) for i, n in sorted(taken.items())]


def _chunks(index: int, group: ChannelGroup, scores: Tensor, round_to: int, max_ratio: float, scope: Scope) -> list[_Chunk]:
    """The removable chunks of a group in the order they would go."""
    unit = math.lcm(round_to, group.blocks)
    least = max(unit, math.ceil(group.channels * (1 - max_ratio) / unit) * unit)
    ranked = positions(group, scores)
    by_position = scores.view(group.blocks, -1).mean(0)
    chunks: list[_Chunk] = []
    left, order, worst = group.channels, 0, -math.inf
    while left > least:
        size = left % unit or unit
        gone = (group.channels - left) // group.blocks
        taken = ranked[gone : gone + size // group.blocks]
        score = float(by_position[taken].mean())
        worst = max(worst, score)  # a later chunk of a group is never weaker than an earlier one
        key = worst if scope == "global" else (group.channels - left + size) / group.channels
        chunks.append(_Chunk(index, order, size, key))
        left, order = left - size, order + 1
    return chunks


def _roots(group: ChannelGroup, scores: Tensor, channels: int) -> set[int]:
    per_block = group.channels // group.blocks
    gone = positions(group, scores)[: channels // group.blocks]
    return {block * per_block + position for block in range(group.blocks) for position in gone}
