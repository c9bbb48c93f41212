"""KD-Loss: a tough and a tolerant teacher shape the gradients of landmark regression, and never become its target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ...models.errors import UserError
from .objectives import ObjectiveCard, TaughtTermConfig, register_objective

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term

SOURCE = "Fard and Mahoor: Facial Landmark Points Detection Using Knowledge Distillation-Based Neural Networks, 2022"
KNEE = 0.5
"""Where the figure's main loss turns from |Δ| to Δ² + 1/4: value and slope are those of both there."""


class LandmarkMainConfig(TaughtTermConfig):
    """The main loss of KD-Loss: linear near the ground truth, quadratic far from it."""

    kind: Literal["landmark-main"] = "landmark-main"
    form: Literal["released", "figure"] = Field(
        "released",
        description='"released": linear up to the (tolerant) teacher\'s own error; "figure": linear up to 0.5, without a teacher',
    )

    @model_validator(mode="after")
    def _no_idle_teacher(self) -> LandmarkMainConfig:
        if self.form == "figure" and self.teacher:
            raise ValueError(f'form = "figure" follows no teacher: leave out teacher = {self.teacher!r}')
        return self


class AssistiveConfig(TaughtTermConfig):
    """An assistive loss of KD-Loss. Defaults are the paper's figure (α 1, α′ 0.5, β 0.4, linear ramp).

    The released code has ramp = "step" with α 1.9, α′ 0.45, β 0.15 for the tough teacher (trained on the true points) and 1.8,
    0.4, 0.15 for the tolerant one (trained on soft landmarks). The whole of KD-Loss is 2·main(tolerant) + assistive(tough) +
    assistive(tolerant).
    """

    kind: Literal["assistive"] = "assistive"
    alpha: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="slope toward the ground truth where the student is worse than the teacher"
    )
    alpha_neg: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="the same where the student is better than the teacher"
    )
    beta: float = Field(
        0.4, ge=0, le=1, description="fraction of the teacher's error below which the slope fades (linear) or is none (step)"
    )
    ramp: Literal["linear", "step"] = Field(
        "linear",
        description='within beta: "linear" falls to 0 at the ground truth (the paper), "step" is 0 (the released code)',
    )
    shuffle: bool = Field(
        False, description="a control: every sample gets the teacher error of another one of its batch, drawn anew each step"
    )


def main_loss(outputs: Tensor, targets: Tensor, teacher_error: Tensor | None = None) -> Tensor:
    """Mean over samples and coordinates of k|Δ| where |Δ| ≤ δ, else Δ² + kδ − δ², for Δ = outputs − targets, each (N, 2L).

    With `teacher_error` δ ≥ 0 (N, 2L): k = 3, as released. Without: k = 1, δ = ½, as plotted in the paper: |Δ|, then Δ² + ¼.

    Both forms are continuous at |Δ| = δ, where either side is kδ. The slope passes from k to 2δ: without a step in the figure's
    form (k = 2δ), but in the released one from 3 down to 2δ, and coordinates are fractions of the picture, so δ is a few
    hundredths. There a student that is worse than the tolerant teacher is pulled by 2|Δ| ≪ 3, far more weakly than one that is
    better: the loss is not convex, and its long reach is that of a plain squared error.
    """
    import torch

    distance = (outputs.float() - targets.float()).abs()
    k, knee = (1.0, torch.full_like(distance, KNEE)) if teacher_error is None else (3.0, teacher_error.float())
    return torch.where(distance <= knee, k * distance, distance.square() + k * knee - knee.square()).mean()


def assistive_loss(
    outputs: Tensor,
    targets: Tensor,
    teacher_error: Tensor,
    *,
    alpha: float,
    alpha_neg: float,
    beta: float,
    ramp: Literal["linear", "step"] = "linear",
) -> Tensor:
    """mean(w · | |Δ| − δ |) over samples and coordinates: Δ = outputs − targets, δ = |teacher − targets|, all (N, 2L).

    w = α where |Δ| > δ; −α′ where βδ ≤ |Δ| ≤ δ; below βδ it is 0 ("step") or rises linearly from −α′ to 0 at Δ = 0 ("linear").
    w is a constant to the gradient. So the slope toward the ground truth is +α outside of the teacher's error, +α′ inside (there
    −α′·(δ − |Δ|) grows with |Δ|: a pull, in spite of its sign), and none, or one that fades to none, very near. Through a
    differentiated linear ramp the loss would push away from the ground truth below δ/2. The value itself may be negative, and in
    the "step" form it jumps at βδ; only its slopes mean anything.
    """
    import torch

    distance = (outputs.float() - targets.float()).abs()
    error = teacher_error.float()
    with torch.no_grad():
        inner = beta * error
        near = -alpha_neg * distance / inner.clamp_min(torch.finfo(distance.dtype).tiny) if ramp == "linear" else 0.0
        inside = torch.where(distance < inner, near, -alpha_neg)
        weight = torch.where(distance > error, alpha, inside)
    return (weight * (distance - error).abs()).mean()


def shuffled(errors: Tensor) -> Tensor:
    """`errors` (N, …) in a random order of the samples.

    The order comes from a generator of its own, seeded by torch's global one (which the engine seeds anew at every step) without
    drawing from it: the run's dropout is that of the run without shuffling, and a resumed run repeats itself.
    """
    import torch

    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    return errors[torch.randperm(len(errors), generator=generator).to(errors.device)]


@register_objective(
    "landmark-main",
    LandmarkMainConfig,
    ObjectiveCard(
        title="Main loss of KD-Loss for landmarks",
        source=SOURCE,
        formula="mean of 3|Δ| up to the teacher's error δ, Δ² + 3δ − δ² beyond (figure: |Δ| up to ½, Δ² + ¼ beyond)",
        needs_labels=True,
    ),
)
def build_main(config: LandmarkMainConfig, setup: Setup) -> Term:
    """The main loss on the student's output and, in the released form, its teacher's. Raises UserError where outputs are no points."""
    from .term import Need, Term

    if config.form == "figure":
        _check(config.kind, setup, teacher=None)
        return Term(loss=lambda s: main_loss(s.student["logits"], s.batch.targets))
    _check(config.kind, setup, teacher=config.teacher)
    return Term(
        loss=lambda s: main_loss(s.student["logits"], s.batch.targets, (s.teacher["logits"] - s.batch.targets).abs()),
        teachers=(Need(which=config.teacher),),
        same_view=True,
    )


@register_objective(
    "assistive",
    AssistiveConfig,
    ObjectiveCard(
        title="Assistive loss of KD-Loss for landmarks",
        source=SOURCE,
        formula="mean of w·| |Δ| − δ |, δ the teacher's error: w = α outside of it, −α′ inside, fading below βδ",
        needs_labels=True,
    ),
)
def build_assistive(config: AssistiveConfig, setup: Setup) -> Term:
    """The assistive loss on the student's and its teacher's output. Raises UserError where outputs are no points."""
    from .term import Need, Signals, Term

    _check(config.kind, setup, teacher=config.teacher)

    def loss(signals: Signals) -> Tensor:
        error = (signals.teacher["logits"] - signals.batch.targets).abs()
        return assistive_loss(
            signals.student["logits"],
            signals.batch.targets,
            shuffled(error) if config.shuffle else error,
            alpha=config.alpha,
            alpha_neg=config.alpha_neg,
            beta=config.beta,
            ramp=config.ramp,
        )

    notes = (f"{config.kind}: teacher errors are shuffled between samples (a control)",) if config.shuffle else ()
    return Term(loss=loss, teachers=(Need(which=config.teacher),), same_view=True, notes=notes)


def _check(kind: str, setup: Setup, *, teacher: str | None) -> None:
    """None, when student and teacher give the task's coordinates. Raises UserError with both shapes otherwise."""
    contract = setup.task.contract
    if contract.classes:
        raise UserError(
            f"{kind} compares coordinates, and the task {setup.task.name!r} has {len(contract.classes)} classes",
            hint='it is for the task "landmarks"; kd, dkd or dist follow a classifier',
        )
    wanted = tuple(contract.outputs[0].shape[1:])
    shapes = {"student": setup.student_shape("logits")}
    if teacher is not None:
        shapes["teacher"] = setup.teacher_shape("logits", teacher)
    for whose, shape in shapes.items():
        if tuple(shape) != wanted:
            raise UserError(
                f"{kind}: the {whose}'s output for one picture has shape {tuple(shape)}, the task's points {wanted}",
                hint=f"build the {whose} with num_classes={wanted[0]}: x and y of every point",
            )
