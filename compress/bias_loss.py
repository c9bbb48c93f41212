"""Bias loss: cross-entropy whose samples are weighted by the variance of their last feature map (Abrahamyan et al. 2021).

Source: Abrahamyan, Ziatchin, Chen, Deligiannis: Bias Loss for Mobile Neural Networks, ICCV 2021, and its released code.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..models.errors import UserError
from .distill.taps import LOGITS, Taps

Normalisation = Literal["local", "global"]
Control = Literal["none", "mean1", "shuffled"]
ALPHA = BETA = 0.3
FLAT = 1e-6
"""A batch whose variances differ by less than this share of the largest counts as one of equal variances: float32 rounds so."""
HIGHEST = 10.0
"""The largest normalised variance. By the running minimum it has no bound, and exp of it would overflow; 10 weighs 19.8."""


def feature_variance(features: Tensor) -> Tensor:
    """The unbiased variance of each sample's features, float32 (N,), detached; features (N, …) with at least two values each.

    Raises ValueError for fewer.
    """
    flat = features.detach().float().flatten(1)
    if flat.shape[1] < 2:
        raise ValueError(f"features {tuple(features.shape)} have one value a sample, and one has no variance")
    return flat.var(1, correction=1)


def normalised(variance: Tensor, *, smallest: Tensor | None = None) -> Tensor:
    """(v − m) / (max − min) over the batch, (N,); m is the batch's minimum ("local": 0…1) or `smallest` ("global": 0 and more).

    Two guards are ours: where all variances are equal (max = min, a batch of one too) it is 0 for all of them, so that every
    sample has the same weight 1 − β; and nothing exceeds 10.
    """
    low, high = variance.min(), variance.max()
    spread = high - low
    flat = spread <= FLAT * high
    found = (variance - (low if smallest is None else smallest)) / torch.where(flat, 1.0, spread)
    return torch.where(flat, 0.0, found).clamp(0.0, HIGHEST)


def sample_weights(variance: Tensor, *, alpha: float = ALPHA, beta: float = BETA) -> Tensor:
    """z(v) = exp(αv) − β of normalised variances (N,): 0.7 at v = 0 and 1.05 at v = 1 with the published α = β = 0.3."""
    return torch.exp(alpha * variance) - beta


def controlled(weights: Tensor, control: Control) -> Tensor:
    """The weights (N,), or what a control experiment takes in their place.

    "mean1" divides by their mean over the batch: the same preferences at plain cross-entropy's step size. "shuffled" deals the same
    weights out to other samples: the same step size and spread without their meaning. It draws from torch's default
    generator on the CPU, which the engine seeds for each step.
    """
    if control == "mean1":
        return weights / weights.mean()
    if control == "shuffled":
        return weights[torch.randperm(len(weights)).to(weights.device)]
    return weights


def bias_loss(logits: Tensor, targets: Tensor, weights: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """mean_i z_i · CE_i in nats; logits (N, K), targets int64 (N,), weights (N,) without gradient."""
    from torch.nn import functional as F

    losses = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
    return (weights.detach() * losses).mean()


def check_classes(task: Any, what: str) -> None:
    """None, when the task has classes, whose cross-entropy can be weighted. Raises UserError that names the task otherwise."""
    if len(task.contract.classes) < 2 or task.metric != "accuracy":
        raise UserError(
            f"{what} weighs the cross-entropy of classes; task {task.name!r} on {task.data!r} has "
            f"{len(task.contract.classes)} and is judged by {task.metric!r}",
            hint="train it with its own loss",
        )


class SampleWeights(nn.Module):
    """The weights of a batch from its features, (N,) from (N, …), with the running minimum of all variances seen in training.

    The minimum is a buffer, so that a checkpoint keeps it. It starts at the largest float32 (the released code: 10⁵, which is
    the same until all variances exceed it) and is brought up to date before it is used; with several processes each has its
    share of the batch, and the main process's minimum counts.
    """

    smallest: Tensor

    def __init__(
        self, normalisation: Normalisation = "global", *, alpha: float = ALPHA, beta: float = BETA, control: Control = "none"
    ) -> None:
        super().__init__()
        for value, known in ((normalisation, get_args(Normalisation)), (control, get_args(Control))):
            if value not in known:
                raise ValueError(f"{value!r} is none of {', '.join(known)}")
        self.normalisation, self.alpha, self.beta, self.control = normalisation, alpha, beta, control
        self.register_buffer("smallest", torch.tensor(torch.finfo(torch.float32).max))

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """See the class. Call it once a training step."""
        variance = feature_variance(features)
        self.smallest.copy_(torch.minimum(self.smallest, variance.min()))
        smallest = self.smallest if self.normalisation == "global" else None
        return controlled(
            sample_weights(normalised(variance, smallest=smallest), alpha=self.alpha, beta=self.beta), self.control
        )


class Biased(nn.Module):
    """A network as the engine trains it with the bias loss.

    Training: {"outputs": the network's, "weights": (N,)}. Eval: the network's output alone. The features are what the module at `path`
    returns; `close` takes the hook away again.
    """

    def __init__(self, network: nn.Module, path: str, weights: SampleWeights) -> None:
        super().__init__()
        self.network, self.weights, self.path = network, weights, path
        self._taps = Taps(network, (LOGITS, path), whose="network")

    def forward(self, inputs: Tensor) -> Any:
        """See the class."""
        if not self.training:
            return self.network(inputs)
        with self._taps.recording():
            seen = self._taps.take(self.network(inputs))
        return {"outputs": seen[LOGITS], "weights": self.weights(seen[self.path])}

    def close(self) -> None:
        """None; the network has no hook of ours any more."""
        self._taps.remove()
