"""The teacher: a frozen network that takes the student's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError
from ..runtime import Runtime
from .taps import Taps

if TYPE_CHECKING:
    from ...models.bundle import Bundle
    from ...models.tasks.task import Task
    from ..method import Context


def find_teacher(name: str, context: Context) -> Bundle:
    """The Bundle named by a step's `teacher`: "parent" = the one that entered the recipe, "step:2" = what its second step made,
    else a Bundle's folder."""
    if name.startswith("step:"):
        return _made_by(name, context)
    if name != "parent":
        from ...models.bundle import load_bundle

        return load_bundle(Path(name).expanduser())
    if context.parent is None:
        raise UserError(
            "distill's teacher is 'parent', and this run has no parent Bundle", hint='set teacher = "PATH/TO/BUNDLE"'
        )
    return context.parent


def _made_by(name: str, context: Context) -> Bundle:
    number, made = name.removeprefix("step:"), context.steps
    if not number.isdigit() or not 1 <= int(number) <= len(made):
        there = f"step:1 … step:{len(made)}" if made else "there is no step before this one"
        raise UserError(f"distill's teacher is {name!r}, and no such step has been made", hint=f"steps count from 1: {there}")
    return made[int(number) - 1]


class Teacher(nn.Module):
    """A network behind the student's input: x ↦ network(x · scale + shift). Frozen, always in eval mode.

    Student and teacher may normalise pixels differently: x = (v − m_s)/s_s for the one is (g·v + o − m_t)/s_t for the other,
    where v ↦ g·v + o maps the student's value range onto the teacher's. Both steps together are one affine map per channel.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, *, theirs: Contract, ours: Contract, classifier: str = "") -> None:
        super().__init__()
        self.classifier = classifier
        self.network = network.requires_grad_(False)
        scale, shift = input_map(ours.inputs[0], theirs.inputs[0])
        self.same = bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))
        self.train(False)

    @property
    def input_map(self) -> list[list[float]]:
        """[scale, shift] per channel, JSON-able."""
        return [self.scale.flatten().tolist(), self.shift.flatten().tolist()]

    def train(self, mode: bool = True) -> Teacher:
        """The teacher, in eval mode whatever is asked: its running statistics are not the student's business."""
        return super().train(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, K) of inputs (N, C, H, W) normalised for the student."""
        return self.network(inputs if self.same else inputs * self.scale + self.shift)

    def tapped(self, taps: Sequence[str]) -> TappedTeacher:
        """The teacher as a function of the student's inputs to these signals."""
        return TappedTeacher(self, taps)


class TappedTeacher:
    """(inputs (N, C, H, W) normalised for the student, runtime) → a frozen network's signals by tap."""

    def __init__(
        self, network: nn.Module, taps: Sequence[str], *, inner: nn.Module | None = None, classifier: str = ""
    ) -> None:
        if isinstance(network, Teacher):
            inner, classifier = network.network, network.classifier
        self.network = network
        self.taps = Taps(inner or network, taps, whose="teacher", classifier=classifier)

    def __call__(self, inputs: Tensor, runtime: Runtime) -> dict[str, Tensor]:
        """The signals, float32 without gradient, computed in the run's precision."""
        with torch.no_grad(), runtime.autocast(), self.taps.recording():
            return {tap: value.float() for tap, value in self.taps.take(self.network(inputs)).items()}

    def remove(self) -> None:
        """None; the network has no hooks of ours any more."""
        self.taps.remove()


def input_map(ours: TensorSpec, theirs: TensorSpec) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (C,) or (1,), that turn an input normalised by `ours` into one normalised by `theirs`.

    Exactly 1 and 0 when the two agree. Raises UserError when layout, channels or a fixed size differ.
    """
    _check_shapes(ours, theirs)
    mean_s, std_s = (torch.tensor(v or d, dtype=torch.float64) for v, d in ((ours.mean, (0.0,)), (ours.std, (1.0,))))
    mean_t, std_t = (torch.tensor(v or d, dtype=torch.float64) for v, d in ((theirs.mean, (0.0,)), (theirs.std, (1.0,))))
    gain, offset = 1.0, 0.0
    if ours.value_range and theirs.value_range:
        (low_s, high_s), (low_t, high_t) = ours.value_range, theirs.value_range
        gain = (high_t - low_t) / (high_s - low_s)
        offset = low_t - gain * low_s
    scale = gain * std_s / std_t
    shift = (gain * mean_s + offset - mean_t) / std_t
    return scale.float(), shift.float()


def _check_shapes(ours: TensorSpec, theirs: TensorSpec) -> None:
    hint = "choose a teacher trained on the same kind of image, or train one for this task"
    if ours.layout != theirs.layout:
        raise UserError(f"the teacher's input layout is {theirs.layout}, the task's {ours.layout}", hint=hint)
    for axis, (mine, its) in enumerate(zip(ours.shape[1:], theirs.shape[1:], strict=True), start=1):
        if isinstance(mine, int) and isinstance(its, int) and mine != its:
            what = "channels" if axis == ours.channel_axis else "pixels a side"
            raise UserError(f"the teacher takes {its} {what}, the task delivers {mine}", hint=hint)


def check_classes(theirs: Contract, ours: Contract) -> str:
    """A note when the class names differ ("" when they agree).

    Raises UserError when the number of classes differs, or when the same names come in another order: logit k would teach
    class j.
    """
    if theirs.classes and ours.classes and len(theirs.classes) != len(ours.classes):
        raise UserError(
            f"the teacher has {len(theirs.classes)} classes, the task has {len(ours.classes)}",
            hint="a teacher must have been trained on the student's classes",
        )
    if theirs.classes == ours.classes or not theirs.classes or not ours.classes:
        return ""
    if set(theirs.classes) == set(ours.classes):
        raise UserError(
            "the teacher knows the task's classes in another order: logit k would teach the wrong class",
            hint="open the task with the class order that the teacher was trained with",
        )
    return (
        f"class names differ (teacher {theirs.classes[0]!r} …, task {ours.classes[0]!r} …); they are taken as the same classes"
    )


def chance_note(metrics: Mapping[str, float], task: Task, samples: int) -> str:
    """A warning with the numbers when the teacher's accuracy is within two standard errors of guessing, else ""."""
    classes = len(task.contract.classes)
    if task.metric != "accuracy" or classes < 2:
        return ""
    chance = 1 / classes
    margin = 2 * math.sqrt(chance * (1 - chance) / samples)
    if metrics["accuracy"] > chance + margin:
        return ""
    return (
        f"the teacher is not better than chance: accuracy {metrics['accuracy']:.3f} on {samples} validation images, "
        f"chance {chance:.3f} ± {margin:.3f} (two standard errors)"
    )
