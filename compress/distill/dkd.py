"""The distillation term of Zhao et al.: the target class and the others apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TaughtTermConfig, register_objective
from .pairs import class_names, paired

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term


class DKDConfig(TaughtTermConfig):
    """alpha · TCKD + beta · NCKD."""

    kind: Literal["dkd"] = "dkd"
    alpha: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="weight of TCKD: how sure the teacher is of the label (target or not)"
    )
    beta: float = Field(
        8.0, ge=0, allow_inf_nan=False, description="weight of NCKD: how the teacher ranks the classes that are not the label"
    )
    temperature: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="softening of both distributions, in units of logits"
    )


def dkd_parts(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD), each (N,), in nats, without the factor T²; logits (N, K), targets int64 (N,).

    With p the teacher's probability of the target: TCKD = KL(Bern(p_t) ‖ Bern(p_s)), NCKD = KL of the distributions over the
    other classes, and KD = TCKD + (1 − p_t) · NCKD (eq. 7). All from logits, never from probabilities near 0 or 1.
    """
    student, teacher = paired(student_logits, teacher_logits)
    student, teacher = student / temperature, teacher / temperature
    s_target, s_other, s_rest = _log_split(student, targets)
    t_target, t_other, t_rest = _log_split(teacher, targets)
    tckd = t_target.exp() * (t_target - s_target) + t_other.exp() * (t_other - s_other)
    return tckd, (t_rest.exp() * (t_rest - s_rest)).sum(1)


def _log_split(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log p (N,) of the target, log(1 − p) (N,), log-probabilities (N, K) among the others, 0 at the target)."""
    import torch

    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    others = logits.masked_fill(is_target, -float("inf"))
    rest, whole = others.logsumexp(1), logits.logsumexp(1)
    log_target = logits.gather(1, targets[:, None]).squeeze(1) - whole
    # 0 in both networks at the target adds nothing to the sum; −∞ would be a nan there, in value and gradient
    return log_target, rest - whole, (logits - rest[:, None]).masked_fill(is_target, 0)


def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, temperature: float, alpha: float, beta: float
) -> Tensor:
    """T² · (alpha · TCKD + beta · NCKD), mean over the batch; logits (N, K), targets int64 (N,).

    Raises ValueError when the shapes differ.
    """
    tckd, nckd = dkd_parts(student_logits, teacher_logits, targets, temperature=temperature)
    return temperature**2 * (alpha * tckd + beta * nckd).mean()


@register_objective(
    "dkd",
    DKDConfig,
    ObjectiveCard(
        title="Decoupled knowledge distillation",
        source="Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022, eq. 8",
        formula="T² · (alpha · KL over (target, not target) + beta · KL among the other classes), mean over the batch",
        needs_labels=True,
    ),
)
def build(config: DKDConfig, setup: Setup) -> Term:
    """The term on both networks' logits and the labels. Raises UserError when the task has no classes."""
    from .term import Need, Term

    class_names(setup, config.kind)
    return Term(
        loss=lambda s: dkd_loss(
            s.student["logits"],
            s.teacher["logits"],
            s.batch.targets,
            temperature=config.temperature,
            alpha=config.alpha,
            beta=config.beta,
        ),
        teachers=(Need(which=config.teacher),),
    )
