"""The norm-and-direction term of Wang et al. (KD++, DKD++, DIST++ are a base term plus this one)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TaughtTermConfig, register_objective
from .pairs import wide

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term


class NDConfig(TaughtTermConfig):
    """Embeddings that point at the teacher's class mean and are at least as long as the teacher's."""

    kind: Literal["nd"] = "nd"
    projector: Literal["auto", "always", "never"] = Field(
        "auto",
        description="a layer from the student's to the teacher's embedding, in training only; auto = when the sizes differ",
    )


def nd_loss(student: Tensor, teacher: Tensor, directions: Tensor, targets: Tensor) -> Tensor:
    """1 − (s · e_c) / max(‖s‖, ‖t‖), mean over the batch.

    student s and teacher t (N, d), unit class directions e (K, d), targets int64 (N,). The teacher is detached, the maximum is
    not: below the teacher's norm the loss is linear in s (it grows and turns it), from there on it is exactly 1 − cos(s, e_c).
    """
    import torch

    s = wide(student)
    norm_s = torch.linalg.vector_norm(s, dim=1)
    norm_t = torch.linalg.vector_norm(wide(teacher.detach()), dim=1)
    longest = torch.maximum(norm_s, norm_t).clamp(min=1e-12)  # both may be dead behind a ReLU
    return (1 - (s * directions[targets]).sum(1) / longest).mean()


@register_objective(
    "nd",
    NDConfig,
    ObjectiveCard(
        title="Feature norm and direction",
        source="Wang et al.: Improving Knowledge Distillation via Regularizing Feature Norm and Direction, 2023",
        formula="1 − (s · e_c) / max(‖s‖, ‖t‖): s, t embeddings, e_c the unit class mean of the teacher; mean over the batch",
        needs_labels=True,
    ),
)
def build(config: NDConfig, setup: Setup) -> Term:
    """The term on both embeddings. Raises UserError when sizes differ without a projector or class means are undefined."""
    from .class_means import class_directions
    from .projector import EmbeddingProjector, wanted
    from .term import Need, Term

    ours, theirs = setup.student_shape("embedding")[0], setup.teacher_shape("embedding", config.teacher)[0]
    project = wanted(config.projector, ours, theirs, kind=config.kind, what="embedding dimensions")
    directions = class_directions(setup, config.kind, config.teacher)
    return Term(
        loss=lambda s: nd_loss(
            s.head if project else s.student["embedding"], s.teacher["embedding"], directions, s.batch.targets
        ),
        student=("embedding",),
        teachers=(Need(which=config.teacher, taps=("embedding",)),),
        head=EmbeddingProjector(ours, theirs) if project else None,
    )
