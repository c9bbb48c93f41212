"""Which filters of a layer fire for an input: the masks that gates learn to predict.

Source: Elkerdawy et al., "Fire Together Wire Together" (CVPR 2022), §3.2, and the authors' released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Criterion = Literal["mass", "uniform"]
SLACK = 1e-5
"""Added to the threshold on the cumulative mass, so that rounding does not cost a filter; a filter with less mass is dead."""


def mass_mask(saliency: Tensor, r: float) -> Tensor:
    """The filters that carry the share r of a layer's activation mass, bool (N, C), for saliency ≥ 0 of shape (N, C).

    Shares a_c / Σa are added up from the largest on; filters stay while the sum is at most r + 1e-5. The largest always stays, and
    it alone where nothing fires. r = 1 keeps every filter with a share above 1e-5: dead ones alone are dropped.
    Raises ValueError for r outside (0, 1].
    """
    if not 0 < r <= 1:
        raise ValueError(f"r = {r} must be above 0 and at most 1")
    mass = saliency.float() if saliency.device.type == "mps" else saliency.double()  # Apple's GPUs have no float64
    total = mass.sum(1, keepdim=True)
    share = mass / total.clamp_min(torch.finfo(mass.dtype).tiny)
    ordered, order = share.sort(dim=1, descending=True, stable=True)
    stays = ordered > SLACK if r == 1 else (ordered.cumsum(1) <= r + SLACK) & (total > 0)
    stays[:, 0] = True  # one filter may hold more than r, or nothing fires at all
    return torch.zeros_like(stays).scatter(1, order, stays)


def uniform_mask(saliency: Tensor, keep: float) -> Tensor:
    """The largest round(keep · C) filters of every input, at least one, bool (N, C). Raises ValueError for keep outside (0, 1]."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep = {keep} must be above 0 and at most 1")
    count = max(1, int(keep * saliency.shape[1] + 0.5))
    order = saliency.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(saliency, dtype=torch.bool).scatter(1, order, value=True)


@dataclass(frozen=True)
class Rule:
    """How saliency becomes a mask: the criterion and its level (r, or the share kept), one for all layers or one for each."""

    level: float | Mapping[str, float]
    criterion: Criterion = "mass"

    def level_of(self, conv: str) -> float:
        """The level at one convolution."""
        return self.level if isinstance(self.level, float | int) else self.level[conv]

    def mask(self, conv: str, saliency: Tensor) -> Tensor:
        """The ground-truth mask, bool (N, C), of one convolution's saliency (N, C)."""
        make = mass_mask if self.criterion == "mass" else uniform_mask
        return make(saliency, self.level_of(conv))
