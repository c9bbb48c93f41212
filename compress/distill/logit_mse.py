"""Logit regression: the student's outputs towards the teacher's, squared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TaughtTermConfig, register_objective
from .pairs import paired

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term


class LogitMSEConfig(TaughtTermConfig):
    """Mean squared difference of the logits."""

    kind: Literal["logit-mse"] = "logit-mse"
    centre: bool = Field(
        False, description="subtract each sample's mean logit first: softmax does not see it, so the student need not match it"
    )


def logit_mse_loss(student_logits: Tensor, teacher_logits: Tensor, *, centre: bool = False) -> Tensor:
    """Mean over batch and outputs of (s − t)²; (N, …) alike. `centre` leaves out each sample's common shift (over dimension 1).

    Raises ValueError when the shapes differ.
    """
    student, teacher = paired(student_logits, teacher_logits)
    difference = student - teacher
    if centre:
        difference = difference - difference.mean(1, keepdim=True)
    return difference.square().mean()


@register_objective(
    "logit-mse",
    LogitMSEConfig,
    ObjectiveCard(
        title="Logit regression",
        source="Ba, Caruana: Do Deep Nets Really Need to be Deep?, NeurIPS 2014, §2.2",
        formula="mean (student − teacher)² of the logits",
    ),
)
def build(config: LogitMSEConfig, setup: Setup) -> Term:
    """The term on both networks' outputs."""
    from .term import Need, Term

    return Term(
        loss=lambda s: logit_mse_loss(s.student["logits"], s.teacher["logits"], centre=config.centre),
        teachers=(Need(which=config.teacher),),
    )
