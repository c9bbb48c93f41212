"""Token features: the student's last tokens follow those of a teacher.

Hybrid Distill (Shi et al., ICLR 2024) takes them from a supervised or contrastive teacher's last layer. The distance (smooth L1 or
cosine, after a layer norm without parameters) and the linear projector are from memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ...models.errors import UserError
from .masking import kept_tokens, take_tokens
from .objectives import ObjectiveCard, TaughtTermConfig, register_objective

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Signals, Term

Distance = Literal["smooth-l1", "cosine"]


class TokensConfig(TaughtTermConfig):
    """Distance between the student's and the teacher's token features."""

    kind: Literal["tokens"] = "tokens"
    student_layer: str = Field(
        "norm", min_length=1, description="path of the module that returns the student's tokens (N, T, d)"
    )
    teacher_layer: str = Field("", description="the teacher's; empty = the same path")
    distance: Distance = Field("smooth-l1", description="smooth-l1 or cosine (1 − cos), between normalised features")
    beta: float = Field(1.0, gt=0, allow_inf_nan=False, description="smooth-l1: where it turns from square to straight")


def token_loss(student: Tensor, teacher: Tensor, *, distance: Distance = "smooth-l1", beta: float = 1.0) -> Tensor:
    """Mean over tokens of the distance between features (N, T, d), each normalised to mean 0 and variance 1 over d; float32.

    smooth-l1, x = difference: x²/(2·beta) below beta, |x| − beta/2 above, mean over d. cosine: 1 − cos.
    Raises ValueError when the shapes differ.
    """
    from torch.nn import functional as F

    if student.shape != teacher.shape:
        raise ValueError(f"student tokens {tuple(student.shape)}, teacher tokens {tuple(teacher.shape)}: not alike")
    width = student.shape[-1:]
    ours, theirs = F.layer_norm(student.float(), width), F.layer_norm(teacher.float(), width)
    if distance == "cosine":
        return 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()
    return F.smooth_l1_loss(ours, theirs, beta=beta)


def _shapes(config: TokensConfig, setup: Setup, teacher_layer: str) -> tuple[int, int]:
    """(student's width, teacher's width). Raises UserError when the two have no tokens in common."""
    ours, theirs = setup.student_shape(config.student_layer), setup.teacher_shape(teacher_layer, config.teacher)
    for path, whose, shape in ((config.student_layer, "student", ours), (teacher_layer, "teacher", theirs)):
        if len(shape) != 2:
            raise UserError(
                f"{path!r} of the {whose} returns {shape} for one image, not (tokens, features)",
                hint=f"name a layer of a transformer: {whose}_layer",
            )
    if ours[0] != theirs[0]:
        raise UserError(
            f"{config.student_layer!r} of the student has {ours[0]} tokens, {teacher_layer!r} of the teacher {theirs[0]}",
            hint="tokens are compared one by one: both need the same image size, patch size and extra tokens",
        )
    return ours[1], theirs[1]


@register_objective(
    "tokens",
    TokensConfig,
    ObjectiveCard(
        title="Token features",
        source="Hybrid Distill (Shi et al.), ICLR 2024; distance and projector from memory",
        formula="smooth L1 or 1 − cos between layer-normalised tokens of the last layer, mean over tokens",
    ),
)
def build(config: TokensConfig, setup: Setup) -> Term:
    """The term, with a linear projector when the widths differ; tokens that "token-masking" dropped are left out on both sides."""
    from torch import nn

    from .term import Need, Term

    tap, teacher_tap = config.student_layer, config.teacher_layer or config.student_layer
    width, teacher_width = _shapes(config, setup, teacher_tap)
    kept = kept_tokens(setup, tap)

    class Projector(nn.Module):
        """The student's tokens in the teacher's width."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(width, teacher_width)

        def forward(self, taps: dict[str, Tensor]) -> Tensor:
            """(N, T, teacher's d) from {tap: (N, T, d)}."""
            return self.linear(taps[tap])

    def loss(signals: Signals) -> Tensor:
        student = signals.student[tap] if signals.head is None else signals.head
        teacher, positions = signals.teacher[teacher_tap], kept()
        if positions is not None:
            teacher = take_tokens(teacher, positions)
        return token_loss(student, teacher, distance=config.distance, beta=config.beta)

    return Term(
        loss=loss,
        student=(tap,),
        teachers=(Need(which=config.teacher, taps=(teacher_tap,)),),
        head=None if width == teacher_width else Projector(),
    )
