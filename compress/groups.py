"""Which channels of a network can be removed together: Torch-Pruning's dependency graph, read into plain data.

Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023), through the Torch-Pruning library.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..models.errors import UserError
from ..models.surgery import Edit, Side, SurgeryPlan


@dataclass(frozen=True)
class Member:
    """One dimension of one module that a group cuts: `own[i]` goes when the group's channel `root[i]` goes."""

    path: str
    kind: str
    side: Side
    size: int
    own: tuple[int, ...]
    root: tuple[int, ...]
    dim: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that live and die together across several layers.

    `blocks` is the number of equal blocks (groups of a grouped convolution or GroupNorm, …) that must lose the same positions.
    """

    root: str
    channels: int
    blocks: int
    members: tuple[Member, ...]
    handle: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class Fixed:
    """A layer whose output channels can't be removed, and why."""

    path: str
    kind: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Analysis:
    """All channel groups of a network, and the layers that can't be cut."""

    groups: tuple[ChannelGroup, ...]
    fixed: tuple[Fixed, ...]


_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


def analyse(module: nn.Module, inputs: Sequence[Tensor], *, keep: Iterable[str] = ()) -> Analysis:
    """The channel groups of `module`, each proven by a trial cut, and the layers that stay as they are with the reason.

    `keep` names modules the user wants untouched (a name covers everything below it).
    Raises UserError when the network can't be traced.
    """
    keep = tuple(keep)
    names = {m: name for name, m in module.named_modules()}
    for name in keep:
        if not any(n == name or n.startswith(f"{name}.") for n in names.values()):
            raise UserError(f"keep names {name!r}, which the network lacks", hint="`trimtab inspect` lists the names")
    graph = _trace(module, inputs)
    groups: list[ChannelGroup] = []
    fixed: dict[str, Fixed] = {}
    for handle in graph.get_all_groups(root_module_types=list(_ROOTS)):
        group = _read(graph, handle, names)
        reason = _refusal(group, keep) or _trial(module, inputs, group)
        if reason:
            fixed.update({m.path: Fixed(m.path, m.kind, m.size, reason) for m in _producers(group)})
        else:
            groups.append(group)
    covered = {m.path for group in groups for m in _producers(group)}
    for layer, name in names.items():
        if isinstance(layer, _ROOTS) and name not in covered and name not in fixed:
            channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            fixed[name] = Fixed(name, type(layer).__name__, channels, "it is not on a traced path from input to output")
    return Analysis(tuple(groups), tuple(fixed.values()))


def _trace(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    training = module.training
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(module, example_inputs=tuple(inputs), verbose=False)
    except Exception as error:
        raise UserError(
            f"the network can't be traced for pruning: {type(error).__name__}: {error}",
            hint="run it in eval mode on an input of the contract's shape; it must be differentiable",
        ) from error
    finally:
        module.train(training)


def _read(graph: Any, handle: Any, names: dict[nn.Module, str]) -> ChannelGroup:
    """Torch-Pruning's group as plain data."""
    members, blocks = [], 1
    for item in handle:
        dep, target = item.dep, item.dep.target.module
        if not isinstance(target, nn.Module | nn.Parameter) or type(target).__module__.startswith("torch_pruning"):
            continue  # concat, split, add …: index plumbing without weights
        out = graph.is_out_channel_pruning_fn(dep.handler)
        if isinstance(target, nn.Parameter):
            path, dim = graph._param_to_name[target], dep.target.pruning_dim
            side: Side = "param"
            size = target.shape[dim]
        else:
            pruner = graph.get_pruner_of_module(target)
            path, dim = names[target], 0
            side = "out" if out else "in"
            size = (pruner.get_out_channels if out else pruner.get_in_channels)(target)
            blocks = math.lcm(blocks, _blocks(target))
        members.append(Member(path, type(target).__name__, side, size, tuple(item.idxs), tuple(item.root_idxs), dim))
    return ChannelGroup(root=members[0].path, channels=members[0].size, blocks=blocks, members=tuple(members), handle=handle)


def _blocks(layer: nn.Module) -> int:
    if isinstance(layer, nn.modules.conv._ConvNd):
        return 1 if layer.groups == layer.in_channels == layer.out_channels else layer.groups
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else 1


def _producers(group: ChannelGroup) -> list[Member]:
    return [m for m in group.members if m.side == "out" and m.kind.startswith(("Conv", "Linear", "LazyConv"))]


def _refusal(group: ChannelGroup, keep: tuple[str, ...]) -> str:
    """Why this group can't be cut at all, or ""."""
    for member in group.members:
        for name in keep:
            if member.side != "in" and (member.path == name or member.path.startswith(f"{name}.")):
                return f"the recipe keeps {name}"
        if member.kind != "Parameter" and not member.kind.startswith(_KINDS):
            return f"it is tied to {member.path}, a {member.kind}, which can't be cut"
        if any(r is None for r in member.root):
            return f"its channels reach {member.path} mixed with others"
        if group.blocks > 1 and member.side == "in" and len(member.own) != member.size:
            return f"its channels are only a part of what {member.path} (grouped) takes in"
    if group.channels % group.blocks or group.channels // group.blocks < 2:
        return f"{group.channels} channels in {group.blocks} blocks leave nothing to remove evenly"
    return ""


_KINDS = (
    "Conv",
    "LazyConv",
    "Linear",
    "NonDynamicallyQuantizableLinear",
    "BatchNorm",
    "SyncBatchNorm",
    "InstanceNorm",
    "GroupNorm",
    "LayerNorm",
    "PReLU",
)


def _trial(module: nn.Module, inputs: Sequence[Tensor], group: ChannelGroup) -> str:
    """Cuts one position (in every block) out of a copy and runs it: why that fails, or ""."""
    per_block = group.channels // group.blocks
    removed = {b * per_block for b in range(group.blocks)}
    try:
        with torch.no_grad():
            module.eval()
            before = module(*inputs)
            after = build_plan([(group, removed)]).replay(copy.deepcopy(module))(*inputs)
    except (UserError, RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        return f"cutting it breaks the forward pass ({(str(error).splitlines() or [''])[0][:120]})"
    if getattr(before, "shape", None) != getattr(after, "shape", None):
        return "its channels are the network's output"
    return ""


def build_plan(cuts: Iterable[tuple[ChannelGroup, set[int]]]) -> SurgeryPlan:
    """The surgery that removes the given root channels of every group; cuts of one dimension by several groups are merged."""
    removed: dict[tuple[str, Side, int, int], set[int]] = {}
    for group, roots in cuts:
        for m in group.members:
            gone = {own for own, root in zip(m.own, m.root, strict=True) if root in roots}
            if gone:
                removed.setdefault((m.path, m.side, m.dim, m.size), set()).update(gone)
    return SurgeryPlan(
        edits=tuple(
            Edit(path=path, side=side, dim=dim, size=size, kept=tuple(i for i in range(size) if i not in gone))
            for (path, side, dim, size), gone in removed.items()
        )
    )
