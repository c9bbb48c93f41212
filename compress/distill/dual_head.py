"""Dual-head distillation of Yang et al.: the teacher's logits get a head of their own beside the classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .binary_kl import LOSSES, SOURCE
from .objectives import ObjectiveCard, TaughtTermConfig, register_objective

if TYPE_CHECKING:
    from .term import Setup, Term


class DualHeadConfig(TaughtTermConfig):
    """An auxiliary head on the embedding follows the teacher; the student's own classifier hears the labels alone.

    The paper's α and its schedule are `weight`, `warmup` and `until` (ImageNet: weight 0.1, until 0.5).
    """

    kind: Literal["dual-head"] = "dual-head"
    head: Literal["linear", "nonlinear"] = Field(
        "linear", description="the auxiliary head; nonlinear (200 hidden units) for students built unlike their teacher"
    )
    loss: Literal["binary-kl-norm", "binary-kl"] = Field(
        "binary-kl-norm", description="what pulls the head to the teacher's logits"
    )
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="softening τ, in units of logits")
    align: bool = Field(
        True, description="take from this term's gradient what pulls against the rest of the loss (a second backward pass)"
    )


@register_objective(
    "dual-head",
    DualHeadConfig,
    ObjectiveCard(
        title="Dual-head distillation",
        source=SOURCE,
        formula="τ² Σ_k log cosh((head_k − teacher_k)/(2τ)), mean over the batch; the gradient is aligned with the label loss's",
    ),
)
def build(config: DualHeadConfig, setup: Setup) -> Term:
    """The term on an auxiliary head and the teacher's logits. Raises UserError when the teacher's output is not (N, K)."""
    from .auxiliary import auxiliary_head
    from .term import Need, Term

    shape = setup.teacher_shape("logits", config.teacher)
    head = auxiliary_head(config.head, setup.student_shape("embedding")[0], shape)
    loss = LOSSES[config.loss]
    return Term(
        loss=lambda s: loss(s.head, s.teacher["logits"], config.temperature),
        student=("embedding",),
        teachers=(Need(which=config.teacher),),
        head=head,
        aligned=config.align,
    )
