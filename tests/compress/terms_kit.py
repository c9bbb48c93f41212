"""Terms of a distillation run in a test: their inputs by hand, and whole runs on the toy task."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from training_kit import CLASSES, FakeBundle, make_context, make_net, make_task, train

from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.distill.objectives import parse_term
from trimtab.compress.distill.term import Signals
from trimtab.compress.runtime import Runtime
from trimtab.compress.train import TrainConfig

CONFIG = DistillConfig(epochs=2, batch_size=16, lr=0.05, amp="off", checkpoint_s=1000)


def wide_net(*, channels: int = 12, classes: int = CLASSES, seed: int = 3, side: int = 4) -> nn.Module:
    """A teacher with named layers, more channels than the student's 8, and maps of `side` × `side` pixels at "2"."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, stride=8 // (2 * side) or 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(channels * 4, classes),
        )


def taught(folder, net=None, task=None, epochs=5):
    """(the task, a teacher trained on it)."""
    task = task or make_task()
    config = TrainConfig(epochs=epochs, batch_size=16, lr=0.05, amp="off", augment=False)
    net, _ = train(folder, config, net=net or make_net(seed=3), task=task)
    return task, net


def distilled(folder, task, teacher, terms, *, student=None, device="cpu", seed=0, **more):
    """(the student after a run, its Result)."""
    student = student or make_net(dropout=0.0)
    config = DistillConfig(**{**CONFIG.model_dump(exclude={"objectives"}), "objectives": tuple(terms), **more})
    context = make_context(folder, parent=FakeBundle(task.contract, teacher), seed=seed)
    if device != "cpu":
        context = context.__class__(**{**context.__dict__, "device": device})
    result = distill(student, task, config, context)
    return student, result


class FakeSetup:
    """What a term may ask, answered from tensors: `shapes` of the student, `signals` of the teacher by tap."""

    seed = 0

    def __init__(self, *, student=None, signals=None, targets=None, classes=("a", "b", "c")):
        self.shapes, self.signals, self.targets = student or {}, signals or {}, targets
        self.task = SimpleNamespace(name="toy", data="made up", contract=SimpleNamespace(classes=classes))
        self.runtime = Runtime("cpu")

    def student_shape(self, tap):
        return self.shapes[tap]

    def teacher_shape(self, tap, which=""):
        return tuple(self.signals[tap].shape[1:])

    def training_signal(self, tap, which=""):
        return self.signals[tap]

    def training_targets(self):
        return self.targets

    def positions(self):
        return torch.arange(len(self.targets))


def term_of(table, setup):
    """The term that a recipe's table makes."""
    from trimtab.compress.distill.objectives import objectives

    config = parse_term(table)
    return objectives.get(config.kind).build(config, setup)


def signals(student, teacher, *, targets=None, head=None):
    return Signals(SimpleNamespace(targets=targets), student, {"teacher": teacher}, head)
