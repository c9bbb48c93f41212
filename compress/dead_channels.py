"""Which channels of a network with zero weights do nothing, and what must be added elsewhere when they go.

A channel of a group can go when every layer that reads it either has zero weights for it, or is fed zeros by it, or is fed another
constant that can be folded into its bias. A constant is proven by the weights (see `input_dependence`) and its value observed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .constant_folding import EXACT, PADDED, Place
from .groups import ChannelGroup, Member, build_plan
from .input_dependence import LAYERS, Fed, deviation, outputs_of

NO_PLACE = "what reads it can't take it (a layer without bias, grouped or transposed)"


@dataclass(frozen=True)
class Dead:
    """The channels of one group that can go, by reason (counts), and what to fold: constants (input channels,) by reader.

    `stuck`: channels that carry a constant which cannot be folded, by reason. `spared`: the channel that stays though it is dead too.
    """

    group: ChannelGroup
    removed: frozenset[int]
    unread: int
    silent: int
    folded: int
    folds: Mapping[str, Tensor]
    stuck: Mapping[str, int]
    spared: bool


def incoming(layer: Any) -> Tensor:
    """(output channels, weights of each) of a convolution or linear layer."""
    w = layer.weight.detach()
    if not getattr(layer, "transposed", False):
        return w.flatten(1)
    g = layer.groups
    return w.reshape(g, w.shape[0] // g, w.shape[1], -1).permute(0, 2, 1, 3).reshape(layer.out_channels, -1)


def outgoing(layer: Any) -> Tensor:
    """(input channels, weights that read each) of a convolution or linear layer."""
    w = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return w.T
    if layer.transposed:
        return w.flatten(1)
    g = layer.groups
    return w.reshape(g, w.shape[0] // g, w.shape[1], -1).permute(0, 2, 1, 3).reshape(layer.in_channels, -1)


def _depthwise(layer: Any) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def readers(module: nn.Module, group: ChannelGroup) -> list[Member]:
    """The layers that mix the group's channels into others. Depthwise ones are links of the group, not readers."""
    return [m for m in _layers(module, group, "in") if not _depthwise(module.get_submodule(m.path))]


def makers(module: nn.Module, group: ChannelGroup) -> list[Member]:
    """The layers whose output channels the group's are, depthwise ones too."""
    return _layers(module, group, "out")


def _layers(module: nn.Module, group: ChannelGroup, side: str) -> list[Member]:
    return [
        m
        for m in group.members
        if m.side == side and m.kind != "Parameter" and isinstance(module.get_submodule(m.path), LAYERS)
    ]


def per_root(group: ChannelGroup, member: Member, own: Tensor) -> Tensor:
    """(channels,) the sum over a member's own channels, of values (size,), that belong to each of the group's."""
    total = torch.zeros(group.channels, dtype=torch.float64)
    return total.index_add_(0, torch.tensor(member.root), own.double()[torch.tensor(member.own)])


def share_left(module: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels,) the share of the incoming weights of every channel, over all its makers, that are not 0."""
    left, total = torch.zeros(group.channels, dtype=torch.float64), torch.zeros(group.channels, dtype=torch.float64)
    for m in makers(module, group):
        weights = incoming(module.get_submodule(m.path))
        left += per_root(group, m, (weights != 0).sum(1))
        total += per_root(group, m, torch.full((len(weights),), weights.shape[1]))
    return left / total.clamp(min=1)


def dead(
    module: nn.Module, group: ChannelGroup, fed: Mapping[str, Fed], where: Mapping[str, Place], *, approximate: bool
) -> Dead | None:
    """What can go of one group; None when nothing can be said, as no layer reads it. `approximate` folds at padded edges too."""
    reading = readers(module, group)
    if not reading:
        return None
    unmade = share_left(module, group) == 0
    gone, unread, silent = (torch.ones(group.channels, dtype=torch.bool) for _ in range(3))
    blocked: dict[str, Tensor] = {}
    for m in reading:
        zero, still, free = _fed(module, group, m, fed.get(m.path), unmade)
        place = where.get(m.path)
        why = NO_PLACE if place is None else place.why_not
        foldable = place is not None and (not place.why_not or (approximate and place.why_not == PADDED))
        unread &= zero
        silent &= zero | still
        gone &= zero | still | (free & foldable)
        if not foldable:
            blocked[why] = blocked.get(why, torch.zeros_like(gone)) | (free & ~zero & ~still)
    gone = _whole_positions(group, gone)
    spared = bool(gone.all())
    if spared:  # a layer of no channels there can't be
        gone[:: group.channels // group.blocks] = False
    folds: dict[str, Tensor] = {}
    for m in reading:
        if m.path in where and bool((c := _constants(module, m, gone, fed.get(m.path))).any()):
            folds[m.path] = folds[m.path] + c if m.path in folds else c
    return Dead(
        group,
        frozenset(gone.nonzero().flatten().tolist()),
        unread=int((gone & unread).sum()),
        silent=int((gone & silent & ~unread).sum()),
        folded=int((gone & ~silent).sum()),
        folds=folds,
        stuck={why: int((channels & ~gone).sum()) for why, channels in blocked.items() if bool((channels & ~gone).any())},
        spared=spared,
    )


def _fed(
    module: nn.Module, group: ChannelGroup, reader: Member, fed: Fed | None, unmade: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Per channel of the group, of one reader: its weights are 0; it is fed 0 always; it is fed constants always."""
    zero = per_root(group, reader, (outgoing(module.get_submodule(reader.path)) != 0).any(1)) == 0
    if fed is None:
        return zero, torch.zeros_like(zero), torch.zeros_like(zero)
    proven = unmade | (per_root(group, reader, fed.dependent) == 0)
    constant = proven & (per_root(group, reader, ~fed.constant) == 0)
    return zero, constant & (per_root(group, reader, (fed.low != 0) | (fed.high != 0)) == 0), constant


def _whole_positions(group: ChannelGroup, gone: Tensor) -> Tensor:
    """`gone` where a position is so in all of the group's blocks: they must lose the same ones."""
    return gone.view(group.blocks, -1).all(0).repeat(group.blocks)


def _constants(module: nn.Module, reader: Member, gone: Tensor, fed: Fed | None) -> Tensor:
    """(input channels,) what a reader takes in from the channels that go; 0 elsewhere, and where its weights are 0."""
    found = torch.zeros(reader.size, dtype=torch.float64)
    if fed is not None:
        own = torch.tensor(reader.own)[gone[torch.tensor(reader.root)]]
        taken = (outgoing(module.get_submodule(reader.path)) != 0).any(1)[own]
        found[own] = torch.where(taken, (fed.low[own] + fed.high[own]) / 2, 0.0)
    return found


@torch.no_grad()
def silence(module: nn.Module, group: ChannelGroup, roots: Sequence[int]) -> None:
    """None; in `module` the incoming weights of these channels are 0."""
    _clear(module, group, makers(module, group), roots, incoming_side=True)


@torch.no_grad()
def read_elsewhere(module: nn.Module, group: ChannelGroup, probes: Sequence[Sequence[Tensor]]) -> bool:
    """Whether something else than the group's readers looks at its channels (a mean over channels, a product, a norm over them).

    Found by experiment: the liveliest channel, once its readers have no weights for it, must go without any change.
    """
    per_block = group.channels // group.blocks
    first = int(share_left(module, group).view(group.blocks, -1).sum(0).argmax())
    roots = [block * per_block + first for block in range(group.blocks)]
    unread = copy.deepcopy(module)
    _clear(unread, group, readers(unread, group), roots, incoming_side=False)
    wanted = outputs_of(unread, probes)
    return deviation(wanted, outputs_of(build_plan([(group, set(roots))]).replay(unread), probes)) > EXACT


def _clear(module: nn.Module, group: ChannelGroup, members: list[Member], roots: Sequence[int], *, incoming_side: bool) -> None:
    """The weights of these channels set to 0 in every member."""
    wanted = set(roots)
    for m in members:
        layer: Any = module.get_submodule(m.path)
        own = [o for o, r in zip(m.own, m.root, strict=True) if r in wanted]
        transposed, g = getattr(layer, "transposed", False), getattr(layer, "groups", 1)
        if incoming_side != transposed:  # these channels are the weight's first dimension
            layer.weight[own] = 0.0
            continue
        inner, rows = layer.weight.shape[1], layer.weight.shape[0] // g
        for o in own:  # the second dimension counts within a group of a grouped layer
            layer.weight[o // inner * rows : (o // inner + 1) * rows, o % inner] = 0.0
