"""Training under weight masks: pruned weights get no gradient, so neither they nor their optimiser state ever move from 0."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from ..models.masks import masked_parameters, masks_of, pack_masks


class Masking:
    """The masks of a network on the device it trains on. Made after the network was placed there."""

    def __init__(self, module: nn.Module) -> None:
        self._pairs: list[tuple[nn.Parameter, Tensor]] = [
            (parameter, torch.empty_like(parameter, requires_grad=False).copy_(mask))  # the parameter's memory order
            for parameter, mask in masked_parameters(module)
            if parameter.requires_grad
        ]

    @torch.no_grad()
    def gradients(self) -> None:
        """None; every pruned weight's gradient is 0.

        SGD's momentum and Adam's moments start at 0 and are sums of gradients, weight decay is proportional to the weight: with no
        gradient a pruned weight stays exactly 0 and its state too.
        """
        reached = [(parameter.grad, factor) for parameter, factor in self._pairs if parameter.grad is not None]
        if reached:
            gradients, factors = zip(*reached, strict=True)
            torch._foreach_mul_(gradients, factors)


def masks_digest(module: nn.Module) -> str:
    """A digest over the masks' names and bits; empty when nothing is masked."""
    masks = masks_of(module)
    return hashlib.sha256(pack_masks(masks)).hexdigest() if masks else ""
