"""Models that are looked at side by side on one task: opened, checked, and shown the same pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ...models.errors import UserError
from ..cost import count
from ..distill.taps import evaluating
from .analysis_record import ModelRow
from .geometry import Geometry, Head

if TYPE_CHECKING:
    from ...models.bundle import Bundle
    from ...models.tasks.task import RawBatch, Task
    from ..runtime import Runtime


class Observed:
    """One model on the runtime's device, its classifier found, with the task normalised as the model wants it."""

    def __init__(self, name: str, bundle: Bundle, task: Task, runtime: Runtime) -> None:
        self.name, self.hash, self.runtime = name, bundle.hash, runtime
        self.task = _normalised(task, bundle)
        module = bundle.module().eval()
        parameters = {id(p): p for p in module.parameters()}.values()
        self.params = sum(p.numel() for p in parameters)
        self.nonzero = sum(int(p.count_nonzero()) for p in parameters)
        self.module = runtime.place(module)
        example = self._inputs(task.samples("test").__getitems__([0]))
        self.head = Head(self.module, example, name=name)
        if self.head.layer.out_features != len(task.contract.classes):
            raise UserError(
                f"{name} answers with {self.head.layer.out_features} numbers, {task.data} has {len(task.contract.classes)} classes",
                hint="analyse it on the data it was trained on",
            )
        with evaluating(self.module):
            self.macs = count(self.module, [example]).macs

    def _inputs(self, raw: RawBatch) -> torch.Tensor:
        return self.runtime.layout(self.task.inputs(raw.to(self.runtime.device)))

    def look(self, raw: RawBatch) -> Geometry:
        """The geometry of a batch of stored pixels."""
        return self.head.look(self._inputs(raw), raw.targets)

    def row(self, accuracy: float) -> ModelRow:
        """What the record says of the model."""
        return {
            "name": self.name,
            "hash": self.hash,
            "accuracy": accuracy,
            "params": self.params,
            "nonzero": self.nonzero,
            "macs": self.macs,
        }


def check_models(bundles: Sequence[tuple[str, Bundle]], task: Task) -> None:
    """None, when these models can be held against each other on the task.

    Raises UserError for no models, a name given twice, a task without classes, and a model of other classes or another input,
    naming it.
    """
    if not bundles:
        raise UserError("there is no model to analyse", hint="name one or more Bundles")
    names = [name for name, _ in bundles]
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise UserError(f"two models are called {twice[0]!r}", hint="give each a name of its own")
    if task.metric != "accuracy" or not task.contract.classes:
        raise UserError(
            f"the geometry needs a task with classes; {task.name!r} is judged by {task.metric}", hint="analyse classifiers"
        )
    for name, bundle in bundles:
        _check_classes(name, bundle, task)
        _check_input(name, bundle, task)


def _check_classes(name: str, bundle: Bundle, task: Task) -> None:
    theirs, ours = bundle.contract.classes, task.contract.classes
    if not theirs or theirs == ours:  # without names, the number of outputs is checked when the network is opened
        return
    if len(theirs) != len(ours):
        what = f"{name} has {len(theirs)} classes, {task.data} has {len(ours)}"
    elif set(theirs) == set(ours):
        what = f"{name} knows the classes of {task.data} in another order"
    else:
        wrong, right = next((a, b) for a, b in zip(theirs, ours, strict=True) if a != b)
        what = f"{name} calls a class {wrong!r} where {task.data} says {right!r}"
    raise UserError(what, hint="all models of an analysis need the task's classes: leave this one out, or choose its own data")


def _check_input(name: str, bundle: Bundle, task: Task) -> None:
    theirs, ours = bundle.contract.inputs[0], task.contract.inputs[0]
    if theirs.layout != ours.layout:
        raise UserError(f"{name} takes images as {theirs.layout}, the task delivers {ours.layout}", hint="leave this model out")
    wanted, given = theirs.shape[1:], ours.shape[1:]
    if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(wanted, given, strict=True)):
        shown = ["×".join(map(str, shape)) for shape in (wanted, given)]
        raise UserError(
            f"{name} takes images of {shown[0]} (C×H×W), {task.data} delivers {shown[1]}",
            hint="all models must see the same pixels: open the data at their size, and leave out models of another",
        )


def _normalised(task: Task, bundle: Bundle) -> Task:
    theirs, ours = bundle.contract.inputs[0], task.contract.inputs[0]
    if theirs.mean and (theirs.mean, theirs.std) != (ours.mean, ours.std):
        return task.normalised_by(theirs.mean, theirs.std)
    return task
