"""The pieces of EfficientAD's training loss, as functions of tensors. Source: Batzner, Heckler, König, WACV 2024, sections 3.2 and 3.3."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEW = 30
"""Fewer hard elements than this make a mean that a handful of values decide."""


def hard_count(elements: int, p_hard: float) -> int:
    """How many of `elements` values lie at or above their `p_hard` quantile, no two being equal."""
    return elements - math.ceil(p_hard * (elements - 1))


def upper_quantile(values: Tensor, p: float) -> Tensor:
    """The `p` quantile of every row of (N, K), as (N, 1): linear between neighbours, as NumPy has it, and exact for any K.

    Only the K − ⌊p(K − 1)⌋ largest values are sorted; `torch.quantile` sorts all, and refuses more than 2²⁴.
    """
    elements = values.shape[1]
    place = p * (elements - 1)
    above = hard_count(elements, p)
    largest = values.topk(min(above + 1, elements), dim=1).values
    high = largest[:, above - 1 : above]
    if place == math.ceil(place):
        return high
    low = largest[:, above : above + 1]
    return torch.minimum(low + (high - low) * (place - math.floor(place)), high)  # rounding must not lift it above `high`


def hard_loss(distance: Tensor, p_hard: float) -> Tensor:
    """The mean, over images, of the mean of each image's elements that reach its own `p_hard` quantile; all of them at 0.

    `distance` (N, C, h, w): squared differences. The threshold is held fixed (no gradient). Source: L_hard, equation 2.
    """
    if p_hard <= 0:
        return distance.mean()
    flat = distance.flatten(1)
    hard = flat >= upper_quantile(flat.detach(), p_hard)
    return ((flat * hard).sum(1) / hard.sum(1)).mean()


def penalty_loss(guessed: Tensor) -> Tensor:
    """The mean square of what the student's first half says of pictures that have nothing to do with the task. Source: equation 3."""
    return guessed.square().mean()


def changed(images: Tensor) -> Tensor:
    """Each picture with its brightness, its contrast or its saturation (equally often) multiplied by λ ~ U(0.8, 1.2).

    (N, 3, H, W) in 0…1 → the same. Draws from torch's default generator. Brightness: λx. Contrast: around the picture's mean grey.
    Saturation: around each pixel's grey (0.299 R + 0.587 G + 0.114 B). All are cut off at 0 and 1. Source: section 3.3, I'.
    """
    count = len(images)
    drawn = torch.rand(2, count, 1, 1, 1).to(images.device)
    kind, factor = drawn[0] * 3, 0.8 + 0.4 * drawn[1]
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    grey = (images * weights).sum(1, keepdim=True)
    around = torch.where(kind < 1, torch.zeros_like(grey), torch.where(kind < 2, grey.mean((2, 3), keepdim=True), grey))
    return (factor * images + (1 - factor) * around).clamp(0, 1)
