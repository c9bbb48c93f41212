"""The proof that a channel switched off by a mask is as good as gone: the network's output equals that of the sliced network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..groups import ChannelGroup, build_plan

TOLERANCE = 1e-4
"""Largest difference between masked and sliced, of the largest output."""


class Prover:
    """A copy of a network with random normalisations and random inputs, so that nothing holds by the accident of a zero or a one.

    `inputs` give the shapes; those of whole numbers are taken as they are.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], *, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.net = copy.deepcopy(module).eval()
        drawn = [_like(t, self.generator) for t in inputs]
        self.inputs = drawn
        _randomise(self.net, self.generator)
        try:
            self.net.double()
            self.inputs = [t.double() if t.is_floating_point() else t for t in drawn]
            self.dense = self._run(self.net)
        except RuntimeError:  # a network that makes float32 tensors of its own
            self.net.float()
            self.inputs = drawn
            self.dense = self._run(self.net)

    def removable(self, points: Sequence[str], group: ChannelGroup, root_of: Mapping[int, int]) -> bool:
        """Whether a mask over half of the channels at `points` gives the output of the network sliced by `group`.

        `root_of` maps the masked convolution's channels to the group's. False also when the channels are without any effect on
        the output, since nothing is proven then.
        """
        channels = len(root_of)
        off = torch.randperm(channels, generator=self.generator)[: max(1, channels // 2)]
        masked = self._masked(points, off, channels)
        removed = {root_of[int(channel)] for channel in off}
        try:
            sliced = self._run(build_plan([(group, removed)]).replay(copy.deepcopy(self.net)))
        except Exception:  # a cut of these very channels may break what the trial cut did not
            return False
        if sliced.shape != masked.shape:
            return False
        error, effect = _largest(masked - sliced), _largest(self.dense - masked)
        return error <= TOLERANCE * _largest(self.dense) and error <= 0.01 * effect and effect > 0

    def _masked(self, points: Sequence[str], off: Tensor, channels: int) -> Tensor:
        mask = torch.ones(channels).index_fill(0, off, 0.0)

        def close(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return output * mask.to(output.dtype)[:, None, None]

        hooks = [self.net.get_submodule(path).register_forward_hook(close) for path in points]
        try:
            return self._run(self.net)
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _run(self, net: nn.Module) -> Tensor:
        """All outputs as one vector."""
        leaves = [t for t in tree_leaves(net(*self.inputs)) if isinstance(t, Tensor) and t.is_floating_point()]
        return torch.cat([t.flatten() for t in leaves])


def _like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """None; draws scales, shifts and running statistics of all normalisations anew."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like) * 0.3

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator).to(like) + 0.5

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
                for name, draw in (("weight", uniform), ("running_var", uniform), ("bias", normal), ("running_mean", normal)):
                    tensor = getattr(layer, name, None)
                    if isinstance(tensor, Tensor):
                        tensor.copy_(draw(tensor))
