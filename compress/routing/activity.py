"""What the channels of a network do for its inputs: the share of the activation mass that each carries, sample by sample.

A channel is seen where its consumers read it: behind activations and additions. Its response is its largest absolute value over
space, as in Elkerdawy et al., "Fire Together Wire Together" (CVPR 2022), §3.2; its share is of the responses of its group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...models.edits import submodule
from ...models.gates import Gate, gates_of
from ..dynamic.ground_truth import mass_mask
from ..groups import ChannelGroup, Member
from ..runtime import Runtime, home_of

if TYPE_CHECKING:
    from ...models.tasks.task import Split, Task

BATCH = 256


class Watch:
    """Hooks on a network that see, at every pass, what the channels of each group do."""

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        self.groups = groups
        self.gates = gates_of(module)
        self._seen: dict[str, Tensor] = {}
        self._readers = [_readers(group) for group in groups]
        paths = {(m.path, m.side) for readers in self._readers for m in readers}
        self._handles = [
            submodule(module, path).register_forward_pre_hook(self._before(path))
            if side == "in"
            else submodule(module, path).register_forward_hook(self._after(path))
            for path, side in sorted(paths)
        ]

    def _before(self, path: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            self._note(path, layer, args[0])

        return hook

    def _after(self, path: str) -> Any:
        def hook(layer: nn.Module, _args: Any, output: Any) -> None:
            self._note(path, layer, output)

        return hook

    def _note(self, path: str, layer: nn.Module, value: Any) -> None:
        if isinstance(value, Tensor):
            last = isinstance(layer, nn.Linear | nn.LayerNorm)
            rest = tuple(range(1, value.ndim - 1)) if last else tuple(range(2, value.ndim))
            self._seen[path] = value.detach().abs().amax(rest).float() if rest else value.detach().abs().float()

    def shares(self) -> list[Tensor]:
        """Of the last pass, per group: (N, channels) float32, rows that sum to 1; uniform where nothing could be seen."""
        found = []
        for group, readers in zip(self.groups, self._readers, strict=True):
            parts = [_by_root(group, m, self._seen[m.path]) for m in readers if m.path in self._seen]
            mass = torch.stack([p / p.sum(1, keepdim=True).clamp_min(1e-12) for p in parts]).mean(0) if parts else None
            if mass is None:
                count = len(next(iter(self._seen.values()))) if self._seen else 1
                mass = torch.full((count, group.channels), 1 / group.channels)
            found.append(mass.cpu())
        return found

    def masks(self) -> list[Tensor | None]:
        """Of the last pass, per group: how many of its gated layers have a channel on, as a share (N, channels); None without gates."""
        found: list[Tensor | None] = []
        for group in self.groups:
            parts = [
                _by_root(group, m, gate.mask.detach().float())
                for m in group.members
                if m.side == "out" and (gate := self._gate(m)) is not None and gate.mask is not None
            ]
            found.append(torch.stack(parts).mean(0).cpu() if parts else None)
        return found

    def _gate(self, member: Member) -> Gate | None:
        return self.gates.get(member.path)

    def remove(self) -> None:
        """None; the network has no hooks of ours any more, and its gates have forgotten what they saw."""
        for handle in self._handles:
            handle.remove()
        for gate in self.gates.values():
            gate.logits = gate.mask = gate.saliency = None


def _readers(group: ChannelGroup) -> list[Member]:
    """The layers that read the group's channels; those that make them when no layer does."""
    reading = [m for m in group.members if m.side == "in" and m.kind.startswith(("Conv", "Linear", "LazyConv"))]
    return reading or [m for m in group.members if m.side == "out" and m.kind != "Parameter"]


def _by_root(group: ChannelGroup, member: Member, value: Tensor) -> Tensor:
    """A layer's values (N, its channels) as the group's (N, channels): the largest, where several belong to one."""
    own = torch.tensor(member.own, device=value.device)
    root = torch.tensor(member.root, device=value.device).expand(len(value), -1)
    into = torch.zeros(len(value), group.channels, device=value.device)
    return into.scatter_reduce(1, root, value.index_select(1, own), "amax")


def positions_of(task: Task, limit: int, seed: int, *, split: Split = "train") -> list[int]:
    """The positions of at most `limit` (0: all) samples of a split, as a training run with that limit would choose them."""
    from ..sampling import chosen_positions

    return chosen_positions(len(task.samples(split)), limit, seed).tolist()


def batches(task: Task, positions: Sequence[int], *, split: Split = "train") -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(positions, inputs (n, C, H, W), targets) of these samples, un-augmented, in batches."""
    samples = task.samples(split)
    for at in range(0, len(positions), BATCH):
        where = list(positions[at : at + BATCH])
        batch = samples.__getitems__(where)
        yield where, task.inputs(batch), batch.targets


@contextmanager
def looking(module: nn.Module, runtime: Runtime) -> Iterator[nn.Module]:
    """Inside, `module` is on the run's device, in eval mode and without gradients; afterwards it is as it was."""
    home, modes = home_of(module), [(part, part.training) for part in module.modules()]
    runtime.place(module).eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        module.to(home).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
        for part, training in modes:
            part.training = training


class Activity:
    """What channel groups did for N samples: `shares` and `masks` per group, each (N, channels), and the samples' targets.

    `masks` are the predicted ones where the group is gated, else the ground truth of the criterion: the channels that carry the
    share `mass` of the activation mass.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[ChannelGroup],
        task: Task,
        positions: Sequence[int],
        *,
        runtime: Runtime,
        mass: float,
        split: Split = "train",
    ) -> None:
        self.groups = groups
        shares: list[list[Tensor]] = [[] for _ in groups]
        masks: list[list[Tensor]] = [[] for _ in groups]
        targets = []
        watch = Watch(module, groups)
        self.gated = [any(m.side == "out" and m.path in watch.gates for m in group.members) for group in groups]
        try:
            with looking(module, runtime):
                for _, inputs, wanted in batches(task, positions, split=split):
                    module(runtime.layout(inputs.to(runtime.device)))
                    targets.append(wanted)
                    for i, (share, mask) in enumerate(zip(watch.shares(), watch.masks(), strict=True)):
                        shares[i].append(share)
                        masks[i].append(mass_mask(share, mass) if mask is None else mask >= 0.5)
        finally:
            watch.remove()
        self.shares = [torch.cat(parts) for parts in shares]
        self.masks = [torch.cat(parts) for parts in masks]
        self.targets = torch.cat(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def scores(self, rows: Tensor | None = None) -> list[Tensor]:
        """How much each channel matters to the samples `rows` (None: all), per group, float32 (channels,) with mean 1.

        The mean share of the activation mass; in a gated group how often a channel is on, and the mass among equals.
        """
        found = []
        for gated, share, mask in zip(self.gated, self.shares, self.masks, strict=True):
            mean = (share if rows is None else share[rows]).double().mean(0)
            score = mean / mean.mean().clamp_min(1e-12)
            often = (mask if rows is None else mask[rows]).double().mean(0)
            if gated and float(often.sum()):
                score = 0.99 * often / often.mean() + 0.01 * score
            found.append(score.float())
        return found

    def majority(self, rows: Tensor) -> list[Tensor]:
        """The same for the samples of one cluster, by its mask: how often a channel is on, and the mass among equals."""
        found = []
        for share, mask in zip(self.shares, self.masks, strict=True):
            often, mean = mask[rows].double().mean(0), share[rows].double().mean(0)
            score = 0.99 * often / often.mean().clamp_min(1e-12) + 0.01 * mean / mean.mean().clamp_min(1e-12)
            found.append(score.float())
        return found

    def pattern(self) -> Tensor:
        """All masks of a sample side by side, float32 (N, Σ channels)."""
        return torch.cat(self.masks, dim=1).float()

    def demand(self) -> Tensor:
        """The share of the channels that each sample needs by the mass criterion, float32 (N,): the paper's k, over all layers."""
        return self.pattern().mean(1)
