"""One-way gradient alignment: a second loss may help the first, never pull against it.

Source: Yang et al., "Dual-Head Knowledge Distillation" (KDD 2025), after Yu et al., "Gradient Surgery for Multi-Task Learning" (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class AlignedLoss(NamedTuple):
    """A loss in two parts: where their gradients conflict, the secondary's loses its part against the primary's."""

    primary: Tensor
    secondary: Tensor


def aligned_backward(loss: AlignedLoss, parameters: Sequence[nn.Parameter], backward: Callable[..., None]) -> Tensor:
    """κ, a scalar; the gradients of `parameters`, as one vector, become p + (s + κ·p) with κ = max(0, −⟨s, p⟩) / ‖p‖².

    s + κ·p is the secondary's gradient s without its part against the primary's p, which itself is never altered. A parameter
    that one loss does not reach counts as zero there. Costs a second backward pass. κ does not depend on a common factor, so a
    loss scaler may be in between.
    """
    backward(loss.primary, retain_graph=True)
    first = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    backward(loss.secondary)
    second = [p.grad for p in parameters]
    zero = torch.zeros((), device=loss.primary.device)
    both = ((a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)
    dot = sum(((a.float() * b.float()).sum() for a, b in both), zero)
    norm = sum((a.float().square().sum() for a in first if a is not None), zero)
    kappa = torch.where(norm > 0, (-dot).clamp(min=0) / norm.clamp(min=torch.finfo(torch.float32).tiny), zero)
    for p, a, b in zip(parameters, first, second, strict=True):
        if a is not None:
            scaled = a * (1 + kappa).to(a.dtype)
            p.grad = scaled if b is None else b + scaled
    return kappa
