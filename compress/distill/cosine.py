"""The direction baseline of Wang et al.: the student's embedding turned towards the teacher's class mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .objectives import ObjectiveCard, TaughtTermConfig, register_objective
from .pairs import wide

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term


class CosineConfig(TaughtTermConfig):
    """1 − cos(student's embedding, teacher's class mean)."""

    kind: Literal["cosine"] = "cosine"
    projector: Literal["auto", "always", "never"] = Field(
        "auto",
        description="a layer from the student's to the teacher's embedding, in training only; auto = when the sizes differ",
    )


def cosine_loss(student: Tensor, directions: Tensor, targets: Tensor) -> Tensor:
    """1 − cos(s_i, e_c), c = targets[i], mean over the batch; student (N, d), unit directions (K, d), targets int64 (N,)."""
    from torch.nn import functional as F

    return 1 - F.cosine_similarity(wide(student), directions[targets], dim=1, eps=1e-8).mean()


@register_objective(
    "cosine",
    CosineConfig,
    ObjectiveCard(
        title="Cosine to the teacher's class mean",
        source="Wang et al.: Improving Knowledge Distillation via Regularizing Feature Norm and Direction, 2023 (baseline)",
        formula="1 − cos(student's embedding, teacher's mean embedding of the label's class), mean over the batch",
        needs_labels=True,
    ),
)
def build(config: CosineConfig, setup: Setup) -> Term:
    """The term on the student's embedding. Raises UserError when sizes differ without a projector or class means are undefined."""
    from .class_means import class_directions
    from .projector import EmbeddingProjector, wanted
    from .term import Term

    ours, theirs = setup.student_shape("embedding")[0], setup.teacher_shape("embedding", config.teacher)[0]
    project = wanted(config.projector, ours, theirs, kind=config.kind, what="embedding dimensions")
    directions = class_directions(setup, config.kind, config.teacher)
    return Term(
        loss=lambda s: cosine_loss(s.head if project else s.student["embedding"], directions, s.batch.targets),
        student=("embedding",),
        head=EmbeddingProjector(ours, theirs) if project else None,
    )
