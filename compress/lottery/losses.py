"""Losses that miss critical classes less: weighted cross-entropy and ranking hinges, as pure functions of tensors.

Source: Entezari, Saukh: Class-dependent Compression of Deep Neural Networks (SenSys-ML 2020), L = L_wCE + L_SHR; effective numbers
from Cui et al. (CVPR 2019); the ranking hinge and its bound on the AUC from Steck (ECML 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Rank = Literal["sorted", "pairwise", "hardest"]


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """γ_c = (1 − β) / (1 − β^{n_c}) for class counts (C,), float64, scaled so that the most frequent class has 1.

    β = 0: all 1; β → 1: inverse frequency. A class without samples has the weight of one sample.
    """
    n = counts.double().clamp(min=1)
    gamma = (1 - beta) / (1 - beta**n) if beta < 1 else 1 / n
    return gamma / gamma.min()


def weighted_cross_entropy(logits: Tensor, targets: Tensor, gamma: Tensor) -> Tensor:
    """−(1/N) Σ_i γ_{y_i} log p_{i, y_i} of logits (N, C), targets int64 (N,) and class weights (C,): a mean over samples.

    torch's own weighted mean divides by Σ γ instead, which makes the weights of a batch with one class alone vanish.
    """
    return F.cross_entropy(logits, targets, weight=gamma.to(logits), reduction="sum") / len(targets)


def log_odds(logits: Tensor, index: int) -> Tensor:
    """s (N,) = z_c − log Σ_{j≠c} e^{z_j}: the log-odds of one class against all others (with two classes z_1 − z_0)."""
    others = torch.cat((logits[:, :index], logits[:, index + 1 :]), dim=1)
    return logits[:, index] - others.logsumexp(1)


def rank_hinge(scores: Tensor, positive: Tensor, kind: Rank = "sorted") -> Tensor:
    """The squared hinge of a ranking, scalar: small when every positive scores above every negative by a margin of 1.

    `scores` (N,), `positive` bool (N,). 0 (with a gradient of 0) when the batch has one side only.

    "sorted": mean over samples of max(1 − y·(s − θ), 0)², y = ±1. The outputs are sorted ascending and θ is where positives should
    begin: halfway between the n⁻-th and the next. Subtracting it makes the printed term Σ max(1 − y_c r_c, 0)² depend on the order
    alone, as Steck's hinge rank loss does; the minus printed before the sum would maximise it and is taken for a slip.
    "pairwise": mean over (positive, negative) pairs of max(1 − (s⁺ − s⁻), 0)², the usual surrogate of 1 − AUC.
    "hardest": Σ over positives of min(s⁺ − max s⁻, 0)² / (n⁺ + 1): the released code's form (which multiplies it by 0).
    """
    up, down = scores[positive], scores[~positive]
    if not len(up) or not len(down):
        return scores.sum() * 0
    match kind:
        case "sorted":
            ordered = scores.sort().values
            boundary = (ordered[len(down) - 1] + ordered[len(down)]) / 2
            sign = torch.where(positive, 1.0, -1.0).to(scores)
            return (1 - sign * (scores - boundary)).clamp(min=0).square().mean()
        case "pairwise":
            return (1 - (up[:, None] - down[None, :])).clamp(min=0).square().mean()
        case "hardest":
            return (up - down.max()).clamp(max=0).square().sum() / (len(up) + 1)


def class_rank_loss(logits: Tensor, targets: Tensor, critical: Sequence[int], kind: Rank = "sorted") -> Tensor:
    """Σ over critical classes of their ranking hinge on log-odds, scalar, from logits (N, C) and targets int64 (N,)."""
    terms = [rank_hinge(log_odds(logits, index), targets == index, kind) for index in critical]
    return torch.stack(terms).sum()
