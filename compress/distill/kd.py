"""The distillation term of Hinton, Vinyals and Dean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TaughtTermConfig, register_objective

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term


class KDConfig(TaughtTermConfig):
    """T² · KL(teacher ‖ student) of softened distributions."""

    kind: Literal["kd"] = "kd"
    temperature: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="softening of both distributions, in units of logits"
    )


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(t/T) ‖ softmax(s/T)) in nats, summed over classes, mean over the batch; logits (N, K).

    The factor T² keeps the gradient's size when T changes (§2). Computed in float32 from log-probabilities.
    Raises ValueError when the shapes differ.
    """
    from torch.nn import functional as F

    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)}: not alike"
        )
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@register_objective(
    "kd",
    KDConfig,
    ObjectiveCard(
        title="Knowledge distillation",
        source="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, §2",
        formula="T² · KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch",
    ),
)
def build(config: KDConfig, setup: Setup) -> Term:
    """The term on both networks' logits."""
    from .term import Need, Term

    return Term(
        loss=lambda s: kd_loss(s.student["logits"], s.teacher["logits"], config.temperature),
        teachers=(Need(which=config.teacher),),
    )
