"""What the losses on pairs of tensors share: precision, shapes, and whether there are classes at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...models.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup


def wide(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 where they are."""
    return values.float() if values.element_size() < 4 else values


def paired(student: Tensor, teacher: Tensor, what: str = "logits") -> tuple[Tensor, Tensor]:
    """(student, teacher), both at least float32. Raises ValueError when the shapes differ."""
    if student.shape != teacher.shape:
        raise ValueError(f"student {what} {tuple(student.shape)}, teacher {what} {tuple(teacher.shape)}: not alike")
    return wide(student), wide(teacher)


def class_names(setup: Setup, kind: str) -> tuple[str, ...]:
    """The names of the task's classes. Raises UserError when its targets are not classes."""
    names = tuple(setup.task.contract.classes or ())
    if len(names) < 2:
        task = setup.task
        raise UserError(
            f"the term {kind!r} needs class labels, and task {task.name!r} on {task.data!r} has {len(names)} classes",
            hint='take a term that needs none: "hints" follows features, "logit-mse" outputs',
        )
    return names
