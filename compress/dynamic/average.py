"""The cuts of an average mask: which channels a gated network computes when it may choose but once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ...models.gates import GateSpec, detach_gates, gates_of
from ...models.surgery import SurgeryPlan
from ..groups import ChannelGroup, analyse, build_plan

Rule = Literal["mean-k", "half"]


@dataclass(frozen=True)
class Averaged:
    """What is to be cut: the plan, the channels each gated convolution keeps of its own, and which layers stay wider, with the reason."""

    plan: SurgeryPlan
    kept: dict[str, tuple[int, ...]]
    wider: dict[str, str] = field(default_factory=dict)


def static_network(
    module: nn.Module,
    means: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    *,
    rule: Rule = "mean-k",
    round_to: int = 1,
    unsliced: Literal["zero", "leave"] = "zero",
) -> tuple[nn.Module, Averaged]:
    """`module` without its gates, cut in place to the average mask, and what was done. `means`: (C,) by the convolution's path.

    A channel that is off and can't be cut, since other layers share it, is set to zero, or left as it is without the gate.
    """
    specs = {path: gate.spec for path, gate in gates_of(module).items()}
    detach_gates(module)
    done = average_plan(module, means, inputs, rule=rule, round_to=round_to)
    if unsliced == "zero":
        silence(module, done.kept, specs)
    return done.plan.replay(module), done


def average_plan(
    module: nn.Module, means: Mapping[str, Tensor], inputs: Sequence[Tensor], *, rule: Rule = "mean-k", round_to: int = 1
) -> Averaged:
    """The cuts of the average mask: of every gated convolution the channels with the highest mean.

    Channels that several layers make together (a residual stream) are cut where each of these layers is gated and has them off.
    `module` may have its gates on. Raises UserError when `means` don't fit the network.
    """
    dense = detach_gates(copy.deepcopy(module))
    for path, mean in means.items():
        layer = dict(dense.named_modules()).get(path)
        width = getattr(layer, "out_channels", 0)
        if mean.shape != (width,):
            raise UserError(
                f"the mean mask of {path!r} has shape {tuple(mean.shape)}, its layer makes {width} channels",
                hint="average the masks of this very network",
            )
    kept = {path: top(mean, count_kept(mean, rule=rule, round_to=round_to)) for path, mean in means.items()}
    analysis = analyse(dense, inputs)
    wider = dict.fromkeys(means, "it passes on the channels of the layer before it")
    wider |= {fixed.path: fixed.reason for fixed in analysis.fixed if fixed.path in means}
    cuts = []
    for group in analysis.groups:
        makers = _makers(dense, group)
        gated = {path: means[path] for path in makers if path in means}
        if free := [path for path in makers if path not in means]:
            wider |= dict.fromkeys(gated, f"{free[0]}, which has no gate, makes the same channels")
        elif gated:
            stay = _stay(group, gated, kept, round_to=round_to)
            cuts.append((group, set(range(group.channels)) - stay))
            for path in gated:
                own = _own(group, path, stay)
                others = ", ".join(other for other in gated if other != path)
                wider[path] = (
                    f"{len(own)} of its channels stay: it shares them with {others}" if len(own) > len(kept[path]) else ""
                )
                if not others:
                    kept[path], wider[path] = own, ""
    return Averaged(build_plan(cuts), kept, {path: reason for path, reason in wider.items() if reason})


def _own(group: ChannelGroup, path: str, stay: set[int]) -> tuple[int, ...]:
    """The channels of one of a group's layers, for the group's."""
    member = next(m for m in group.members if m.path == path and m.side == "out")
    return tuple(sorted(own for own, root in zip(member.own, member.root, strict=True) if root in stay))


def count_kept(mean: Tensor, *, rule: Rule, round_to: int) -> int:
    """How many channels stay: the rounded average number, or those on for half of the inputs; at least 1, a multiple of `round_to`
    where the layer is wide enough."""
    wanted = float(mean.sum()) if rule == "mean-k" else float((mean >= 0.5).sum())
    return _on_grid(wanted, len(mean), round_to)


def _on_grid(wanted: float, channels: int, step: int) -> int:
    """The multiple of `step` nearest to `wanted`, at least one step, at most all."""
    return min(channels, max(1, int(wanted / step + 0.5)) * step)


def top(mean: Tensor, count: int) -> tuple[int, ...]:
    """The `count` channels with the highest mean, in ascending order; of equal ones the first."""
    return tuple(sorted(mean.sort(descending=True, stable=True).indices[:count].tolist()))


def _makers(module: nn.Module, group: ChannelGroup) -> list[str]:
    """The layers that make a group's channels; depthwise ones only pass them on."""
    names = [m.path for m in group.members if m.side == "out" and m.kind.startswith(("Conv", "Linear", "LazyConv"))]
    layers = {name: module.get_submodule(name) for name in dict.fromkeys(names)}
    return [n for n, m in layers.items() if getattr(m, "groups", 1) == 1 or m.groups != m.in_channels]


def _stay(group: ChannelGroup, means: Mapping[str, Tensor], kept: Mapping[str, tuple[int, ...]], *, round_to: int) -> set[int]:
    """The group's channels that stay: those that some of its layers keeps, on the grid, and equally many in each block."""
    score, stay = torch.zeros(group.channels, dtype=torch.float64), set()
    for member in group.members:
        if member.path not in means or member.side != "out":
            continue
        for own, root in zip(member.own, member.root, strict=True):
            score[root] = max(float(score[root]), float(means[member.path][own]))
            if own in kept[member.path]:
                stay.add(root)
    if len(means) == 1 and group.blocks == 1:
        return stay
    for root in stay:
        score[root] += 1  # before all that no layer keeps
    per_block = group.channels // group.blocks
    count = -(-len(stay) // group.blocks)
    if group.blocks == 1:
        count = min(per_block, -(-count // round_to) * round_to)
    positions = top(score.view(group.blocks, per_block).mean(0), count)
    return {block * per_block + position for block in range(group.blocks) for position in positions}


def silence(module: nn.Module, kept: Mapping[str, tuple[int, ...]], specs: Mapping[str, GateSpec]) -> None:
    """None; the channels that a gated layer does not keep are set to zero where its mask was applied. Before the cut."""
    with torch.no_grad():
        for path, spec in specs.items():
            off = [c for c in range(spec.channels) if c not in kept[path]]
            for name in dict.fromkeys((path, *spec.points)):
                layer = module.get_submodule(name)
                for tensor in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
                    if isinstance(tensor, torch.Tensor) and tensor.shape[:1] == (spec.channels,):
                        tensor[off] = 0
