"""The surgery that leaves a classifier its first k features: cut where they are made when that changes nothing else."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.bundle import bare
from ..models.errors import UserError
from ..models.surgery import Edit, SurgeryPlan
from .groups import ChannelGroup, Member, analyse, build_plan

EXACT = 1e-9
"""Largest difference from the masked network, relative to its largest output, both in float64: rounding is about 1e-15."""


def plan_prefix(module: nn.Module, inputs: Sequence[Tensor], *, path: str, k: int) -> tuple[SurgeryPlan, tuple[str, ...]]:
    """(the plan, what to say about it): `path` (in the user's own module) keeps its first k inputs. `module` is not changed.

    Where the layers that make the features feed the classifier alone, they lose the channels of the others; that is proven on a
    copy against the network with those features set to 0. Else the classifier just stops reading at k.
    """
    layer = _linear(bare(module), path)
    name = next(name for name, m in module.named_modules() if m is layer)
    width = layer.in_features
    if k == width:
        return SurgeryPlan(), (f"all {width} features are kept: nothing was cut",)
    plain = _prefix(name, width, k)
    try:
        cut = _cut_producers(module, inputs, name, k)
    except UserError as error:
        return plain, (f"{path} reads its first {k} inputs; what makes the others stays: {error.what}",)
    if not cut.edits:
        return plain, (f"{path} reads its first {k} inputs; what makes the others stays, since it feeds other layers too",)
    left = next(len(e.kept) for e in cut.edits if e.path == name and e.side == "in")
    plan = cut.then(_prefix(name, left, k))
    if not _same_as_masked(module, inputs, name, plan, k):
        return plain, (
            f"{path} reads its first {k} inputs; what makes the others stays: cutting it would change the first ones",
        )
    makers = sorted({e.path for e in cut.edits if e.side == "out" and _makes(module.get_submodule(e.path))})
    return plan, (f"the layers that made the other features were cut with the classifier: {', '.join(makers)}",)


def _prefix(name: str, width: int, k: int) -> SurgeryPlan:
    """The edit that stops at k, where there is more."""
    edit = Edit(path=name, side="prefix", size=width, kept=tuple(range(k)))
    return SurgeryPlan(edits=(edit,) if k < width else ())


def _makes(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)


def _cut_producers(module: nn.Module, inputs: Sequence[Tensor], name: str, k: int) -> SurgeryPlan:
    """Every channel that leads to no feature before k removed, in the groups that feed the classifier alone; empty if none can be."""
    cuts = []
    for group in analyse(copy.deepcopy(module), inputs).groups:
        reads = [m for m in group.members if m.path == name and m.side == "in"]
        if reads and group.blocks == 1 and not any(_reads_it_too(module, m, name) for m in group.members):
            wanted = {root for m in reads for own, root in zip(m.own, m.root, strict=True) if own < k}
            removed = _all_roots(group) - (wanted or {0})  # a layer of no channels there can't be
            if removed:
                cuts.append((group, removed))
    return build_plan(cuts)


def _all_roots(group: ChannelGroup) -> set[int]:
    return set(range(group.channels))


def _reads_it_too(module: nn.Module, member: Member, name: str) -> bool:
    """Whether this member mixes the group's channels into something else than the classifier's logits."""
    if member.side != "in" or member.path == name or member.kind == "Parameter":
        return False
    layer = module.get_submodule(member.path)
    depthwise = isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == layer.in_channels == layer.out_channels
    return _makes(layer) and not depthwise


def _linear(module: nn.Module, path: str) -> nn.Linear:
    layer = module.get_submodule(path)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{path} is a {type(layer).__name__}, not a linear layer")
    return layer


@torch.no_grad()
def _same_as_masked(module: nn.Module, inputs: Sequence[Tensor], name: str, plan: SurgeryPlan, k: int) -> bool:
    """Whether the cut network computes what the whole one does with all features from k on set to 0: float64, random inputs."""
    masked, cut = (copy.deepcopy(module).double().eval() for _ in range(2))
    _linear(masked, name).weight[:, k:] = 0
    plan.replay(cut)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        probe = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in inputs]
        wanted, got = masked(*probe), cut(*probe)
        if (wanted - got).abs().max() > EXACT * max(1.0, float(wanted.abs().max())):
            return False
    return True
