"""The logit-level terms of Yang et al., on the student's own logits: what their dual head is compared with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TaughtTermConfig, register_objective
from .pairs import paired

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term

SOURCE = "Yang et al.: Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head, KDD 2025"


class _BinaryConfig(TaughtTermConfig):
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="softening τ, in units of logits")
    align: bool = Field(
        False, description="take from this term's gradient what pulls against the rest of the loss (a second backward pass)"
    )


class BinaryKLConfig(_BinaryConfig):
    """One-against-all KL: every class is a coin of its own."""

    kind: Literal["binary-kl"] = "binary-kl"


class BinaryKLNormConfig(_BinaryConfig):
    """BinaryKL-Norm: a smooth L1 regression of the logits."""

    kind: Literal["binary-kl-norm"] = "binary-kl-norm"


def log_cosh(x: Tensor) -> Tensor:
    """log cosh x, by elements, for any size of x: |x| + softplus(−2|x|) − log 2. Its gradient is tanh x."""
    from torch.nn import functional as F

    size = x.abs()
    return size + F.softplus(-2 * size) - math.log(2)


def binary_kl_norm_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """τ² Σ_k KL(Bern(½) ‖ Bern(σ((z_k − v_k)/τ))) = τ² Σ_k log cosh((z_k − v_k)/(2τ)), mean over the batch.

    Student z and teacher v (N, K). Gradient (τ/2)·tanh((z − v)/(2τ))/N: (z − v)²/8 near zero, τ|z − v|/2 far away.
    Raises ValueError when the shapes differ.
    """
    student, teacher = paired(student_logits, teacher_logits)
    return temperature**2 * log_cosh((student - teacher) / (2 * temperature)).sum(1).mean()


def binary_kl_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """τ² Σ_k KL(Bern(σ(v_k/τ)) ‖ Bern(σ(z_k/τ))), mean over the batch; student z and teacher v (N, K).

    Gradient τ·(σ(z/τ) − σ(v/τ))/N. From log-sigmoids, so nothing has to be clamped. Raises ValueError when the shapes differ.
    """
    from torch.nn import functional as F

    student, teacher = paired(student_logits, teacher_logits)
    z, v = student / temperature, teacher / temperature
    yes = v.sigmoid() * (F.logsigmoid(v) - F.logsigmoid(z))
    no = (-v).sigmoid() * (F.logsigmoid(-v) - F.logsigmoid(-z))
    return temperature**2 * (yes + no).sum(1).mean()


LOSSES = {"binary-kl-norm": binary_kl_norm_loss, "binary-kl": binary_kl_loss}


@register_objective(
    "binary-kl",
    BinaryKLConfig,
    ObjectiveCard(
        title="One-against-all KL, on the student's own logits",
        source=SOURCE,
        formula="τ² Σ_k KL(Bern(σ(teacher_k/τ)) ‖ Bern(σ(student_k/τ))), mean over the batch",
    ),
)
@register_objective(
    "binary-kl-norm",
    BinaryKLNormConfig,
    ObjectiveCard(
        title="BinaryKL-Norm, on the student's own logits",
        source=SOURCE,
        formula="τ² Σ_k log cosh((student_k − teacher_k)/(2τ)), mean over the batch",
    ),
)
def build(config: BinaryKLConfig | BinaryKLNormConfig, setup: Setup) -> Term:
    """The term on both networks' logits."""
    from .term import Need, Term

    loss = LOSSES[config.kind]
    return Term(
        loss=lambda s: loss(s.student["logits"], s.teacher["logits"], config.temperature),
        teachers=(Need(which=config.teacher),),
        aligned=config.align,
    )
