"""Nested dropout: features in the order of their use, so that a prefix of them is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TermConfig, register_objective

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .term import Setup, Term


class NestedDropoutConfig(TermConfig):
    """The task's loss on the first k features, k drawn anew for each step. It takes the label loss's place: label_weight = 0."""

    kind: Literal["nested-dropout"] = "nested-dropout"
    sigma: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="k is drawn with p(k) ∝ exp(−((k−mu)/sigma)²), k = 1…D; 10 was published for 10 classes, 100 for more",
    )
    mu: float = Field(0.0, allow_inf_nan=False, description="the most probable k (0: the first feature is kept most often)")


def feature_counts(width: int, sigma: float, mu: float) -> Tensor:
    """p(k) ∝ exp(−((k−mu)/sigma)²) for k = 1…width, float64 (width,). The exponent has no ½, as published."""
    import torch

    k = torch.arange(1, width + 1, dtype=torch.float64)
    return torch.softmax(-(((k - mu) / sigma) ** 2), dim=0)


def keep_first(features: Tensor, k: int) -> Tensor:
    """`features` (N, D) with all but the first k set to 0; the others are not rescaled."""
    from torch.nn import functional as F

    return F.pad(features[:, :k], (0, features.shape[1] - k))


def linear_classifier(setup: Setup, kind: str) -> nn.Linear:
    """The student's last layer. Raises UserError when it is not a linear layer."""
    from torch import nn

    from ...models.errors import UserError

    layer = setup.classifier()
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f"{kind} works on the inputs of a linear classifier; the student's last layer is a {type(layer).__name__}",
            hint="end the network with global pooling and a Linear, or leave this term out",
        )
    return layer


@register_objective(
    "nested-dropout",
    NestedDropoutConfig,
    ObjectiveCard(
        title="Nested dropout",
        source="Chen et al.: Compressing Features for Learning with Noisy Labels, 2022; Rippel et al. 2014",
        formula="the task's loss of the logits of the first k features, one k ~ exp(−((k−μ)/σ)²) per step",
        needs_labels=True,
    ),
)
def build(config: NestedDropoutConfig, setup: Setup) -> Term:
    """The term on the embedding, through the student's own classifier.

    k comes from torch's default CPU generator, which the engine seeds for each step, so that a resumed run draws the same.
    Published with a classifier without bias; with one, the bias is what k = 0 would answer, and nothing else changes.
    Raises UserError for a classifier that is not linear.
    """
    import torch

    from .term import Signals, Term

    classifier = linear_classifier(setup, config.kind)
    p = feature_counts(classifier.in_features, config.sigma, config.mu)

    def loss(s: Signals) -> Tensor:
        k = int(torch.multinomial(p, 1)) + 1
        return setup.task.loss(classifier(keep_first(s.student["embedding"], k)).float(), s.batch.targets)

    return Term(loss=loss, student=("embedding",))
