"""Feature hints: a layer of the student towards a layer of the teacher (FitNets; with a hard quantile, EfficientAD's student)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ...models.errors import UserError
from .objectives import ObjectiveCard, TaughtTermConfig, register_objective
from .pairs import paired

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Term


class HintsConfig(TaughtTermConfig):
    """Mean squared difference of two layers' outputs."""

    kind: Literal["hints"] = "hints"
    student_layer: str = Field(
        "", description='path of the student\'s module (`trimtab inspect` lists them); "PATH:in" = its input'
    )
    teacher_layer: str = Field("", description='path of the teacher\'s module; "PATH:in" = its input')
    projector: Literal["auto", "always", "never"] = Field(
        "auto",
        description="a 1×1 convolution (maps) or linear layer (vectors, tokens) behind the student's layer, in training only; "
        "auto = when the channels differ",
    )
    normalise: Literal["none", "channel"] = Field(
        "none",
        description="channel: the teacher's features minus their mean, over their deviation, per channel on the training split",
    )
    hard_quantile: float = Field(
        0.0, ge=0, lt=1, allow_inf_nan=False, description="only squared differences from this quantile of the batch's up count"
    )

    @model_validator(mode="after")
    def _named(self) -> HintsConfig:
        missing = [key for key in ("student_layer", "teacher_layer") if not getattr(self, key)]
        if missing:
            raise ValueError(
                f'{" and ".join(missing)} must name a module, as in {missing[0]} = "layer2" (trimtab inspect lists them)'
            )
        return self


def alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both, with maps (N, C, H, W) of different size averaged down to the smaller height and width (adaptive average pooling)."""
    from torch.nn import functional as F

    if student.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def hard_mean(values: Tensor, quantile: float) -> Tensor:
    """The mean of the elements at or above the `quantile` (0 ≤ q < 1) of all, at least one. Any number of elements.

    The elements at or above the interpolated quantile are those at or above the next one in order, so one order statistic is
    enough (torch.quantile stops at 2²⁴ elements). What is not a number counts as large, so it shows in the result.
    """
    import torch

    if quantile == 0:
        return values.mean()
    flat = values.flatten()
    rank = math.ceil(round(quantile * (flat.numel() - 1), 6))  # rounded: 0.07 · 100 is 7.000000000000001
    threshold = flat.detach().kthvalue(rank + 1).values
    hard = ~(flat < threshold)
    return torch.where(hard, flat, 0).sum() / hard.sum()


def hint_loss(student: Tensor, teacher: Tensor, *, hard_quantile: float = 0.0) -> Tensor:
    """The mean of (s − t)² over all elements, or over those from `hard_quantile` up; (N, C, H, W), (N, C) or (N, T, C).

    Maps of different size are averaged down to the smaller one. Raises ValueError when channels or tokens differ.
    Source: Romero et al. 2015, eq. 3; Batzner et al. 2024, L_hard.
    """
    student, teacher = paired(*alike(student, teacher.detach()), what="features")
    return hard_mean((student - teacher).square(), hard_quantile)


@register_objective(
    "hints",
    HintsConfig,
    ObjectiveCard(
        title="Feature hints",
        source="Romero et al.: FitNets, ICLR 2015; Batzner, Heckler, König: EfficientAD, WACV 2024 (hard_quantile = 0.999)",
        formula="mean (projector(student's layer) − teacher's layer)², or of the hardest part of the differences",
    ),
)
def build(config: HintsConfig, setup: Setup) -> Term:
    """The term on one layer of each. Raises UserError for a path that is not there and for features that can't be compared."""
    from .projector import Regressor, wanted
    from .term import Need, Term

    ours, theirs = setup.student_shape(config.student_layer), setup.teacher_shape(config.teacher_layer, config.teacher)
    _check(config, ours, theirs)
    axis = _channel_axis(ours)
    project = wanted(config.projector, ours[axis], theirs[axis], kind=config.kind, what="channels")
    shift, scale = _statistics(config, setup, theirs)
    tap = config.student_layer
    return Term(
        loss=lambda s: hint_loss(
            s.head if project else s.student[tap],
            (s.teacher[config.teacher_layer] - shift) * scale,
            hard_quantile=config.hard_quantile,
        ),
        student=(tap,),
        teachers=(Need(which=config.teacher, taps=(config.teacher_layer,)),),
        head=Regressor(tap, ours[axis], theirs[axis], spatial=len(ours) == 3) if project else None,
    )


def _channel_axis(shape: tuple[int, ...]) -> int:
    """Where the channels are in a shape without its batch: first in maps (C, H, W), last in vectors (C,) and tokens (T, C)."""
    return 0 if len(shape) == 3 else len(shape) - 1


def _check(config: HintsConfig, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    both = f"{config.student_layer!r} of the student gives {ours}, {config.teacher_layer!r} of the teacher {theirs}"
    if len(ours) != len(theirs) or len(ours) not in (1, 2, 3):
        raise UserError(
            f"hints can't compare these layers: {both}",
            hint="choose two layers that both give maps (C, H, W), both tokens (T, C) or both vectors (C,)",
        )
    if len(ours) == 2 and ours[0] != theirs[0]:
        raise UserError(
            f"hints can't compare {ours[0]} tokens with {theirs[0]}: {both}", hint="choose layers of equal token count"
        )


def _statistics(config: HintsConfig, setup: Setup, shape: tuple[int, ...]) -> tuple[Tensor | float, Tensor | float]:
    """(shift, scale) of the teacher's features; scale 1 for a channel that never varies."""
    import torch

    if config.normalise == "none":
        return 0.0, 1.0
    values = setup.training_signal(config.teacher_layer, config.teacher)
    axis = 1 + _channel_axis(shape)
    rest = tuple(i for i in range(values.ndim) if i != axis)
    variance, mean = torch.var_mean(values, dim=rest, correction=0, keepdim=True)
    return mean, torch.where(variance > 0, variance, torch.ones_like(variance)).rsqrt()
