"""The distillation term of Huang et al.: correlations between classes and within them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TaughtTermConfig, register_objective
from .pairs import paired

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term


class DISTConfig(TaughtTermConfig):
    """beta · inter-class + gamma · intra-class Pearson distance of softened probabilities."""

    kind: Literal["dist"] = "dist"
    beta: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the relation between the classes of one sample")
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the relation between the samples of one class")
    temperature: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="softening of both distributions, in units of logits"
    )


def pearson_distance(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 − Pearson correlation of `a` and `b` along `dim`, mean over the rest; 1 where either hardly varies (norm below 1e-8)."""
    from torch.nn import functional as F

    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return 1 - F.cosine_similarity(a, b, dim=dim, eps=1e-8).mean()


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """τ² · (beta · inter + gamma · intra) of softmax(logits/τ), logits (N, K): inter along a sample's classes, intra along a
    class's samples. A batch of one has no intra-class relation: that part is then the constant 1. Raises ValueError when the
    shapes differ."""
    student, teacher = paired(student_logits, teacher_logits)
    student, teacher = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    inter, intra = pearson_distance(student, teacher, dim=1), pearson_distance(student, teacher, dim=0)
    return temperature**2 * (beta * inter + gamma * intra)


@register_objective(
    "dist",
    DISTConfig,
    ObjectiveCard(
        title="Relations between and within classes",
        source="Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, eq. 8-10",
        formula="τ² · (beta · (1 − Pearson along classes) + gamma · (1 − Pearson along the batch)) of softmax(logits/τ)",
    ),
)
def build(config: DISTConfig, setup: Setup) -> Term:
    """The term on both networks' logits."""
    from .term import Need, Term

    return Term(
        loss=lambda s: dist_loss(
            s.student["logits"],
            s.teacher["logits"],
            temperature=config.temperature,
            beta=config.beta,
            gamma=config.gamma,
        ),
        teachers=(Need(which=config.teacher),),
    )
