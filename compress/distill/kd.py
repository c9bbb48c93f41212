"""The distillation term of Hinton, Vinyals and Dean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .objectives import ObjectiveCard, objectives

if TYPE_CHECKING:
    from torch import Tensor


@objectives.register(
    "kd",
    ObjectiveCard(
        title="Knowledge distillation",
        source="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, §2",
        formula="T² · KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch",
    ),
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
