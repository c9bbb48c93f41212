"""Branches in training: all of them together on one batch, taught by labels and by the dense parent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.edits import submodule
from ...models.routed import RoutedNet
from ..distill.kd import kd_loss
from ..runtime import Runtime
from .activity import batches, looking

if TYPE_CHECKING:
    from ...models.tasks.task import Task
    from ..loop import Objective, TrainBatch


class Branches(nn.Module):
    """The branches of a routed network that learn, all at once: an input ↦ the answers of each.

    What is frozen stays in eval mode. Smaller branches that borrow the largest one's weights (nested) teach these too.
    """

    def __init__(self, net: RoutedNet, learning: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.learning = tuple(learning)

    def train(self, mode: bool = True) -> Branches:
        """The branches, those that learn in this mode."""
        super().train(mode)
        for part in frozen_parts(self.net, self.learning):
            part.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The learning branches' answers for (N, C, H, W), each (N, …)."""
        return tuple(self.net.branches[i](x) for i in self.learning)


def frozen_parts(net: RoutedNet, learning: Sequence[int]) -> list[nn.Module]:
    """The branches that do not learn, what others share with them, and the router."""
    parts: list[nn.Module] = [branch for i, branch in enumerate(net.branches) if i not in learning]
    if len(net.branches) - 1 not in learning:
        parts += [submodule(net.branches[-1], path) for path in net.spec.shared]
    return parts if net.router is None else [*parts, net.router]


@contextmanager
def frozen(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, no weight of `parts` takes part in training."""
    before = [(p, p.requires_grad) for part in parts for p in part.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, learns in reversed(before):
            parameter.requires_grad_(learns)


def taught_by(
    teacher: nn.Module | None, task: Task, runtime: Runtime, *, weight: float, temperature: float, classes: bool, common: bool
) -> Objective:
    """The objective of `Branches`: per branch label loss + weight · distillation from `teacher` (None: labels alone).

    Branches with weights of their own learn by the sum, each as if it were alone; with weights in common by the mean.
    """

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Any, dict[str, Any]]:
        answers = network(batch.inputs)
        scale = 1.0 if common else float(len(answers))
        label = torch.stack([task.loss(answer, batch.targets) for answer in answers]).mean()
        if teacher is None or not weight:
            return scale * label, {"label": label}
        wanted = judged(teacher, batch.inputs, runtime)
        taught = torch.stack([imitation(answer, wanted, temperature=temperature, classes=classes) for answer in answers]).mean()
        return scale * (label + weight * taught), {"label": label, "teacher": taught}

    return objective


def judged(teacher: nn.Module, inputs: Tensor, runtime: Runtime) -> Tensor:
    """What the teacher says, float32 without gradient."""
    with torch.no_grad(), runtime.autocast():
        return teacher(inputs).float()


def imitation(answer: Tensor, wanted: Tensor, *, temperature: float, classes: bool) -> Tensor:
    """How far an answer is from the teacher's: softened KL divergence of logits, mean squared error where there are no classes."""
    return kd_loss(answer, wanted, temperature) if classes else F.mse_loss(answer.float(), wanted)


def recalibrate(
    net: RoutedNet, which: Sequence[int], task: Task, positions: Sequence[int], *, runtime: Runtime, seed: int
) -> None:
    """None; measures the batch-norm statistics of these branches anew on training samples, so that cut ones start well.

    Statistics are averaged over all batches. What branches share keeps its own.
    """
    norms = [
        (part, part.momentum)
        for i in which
        for part in net.branches[i].modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]
    kept = {id(part) for path in net.spec.shared for part in submodule(net.branches[-1], path).modules()}
    norms = [(part, momentum) for part, momentum in norms if id(part) not in kept]
    if not norms:
        return
    with looking(net, runtime), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for part, _ in norms:
            part.reset_running_stats()
            part.momentum = None
            part.train()
        for _, inputs, _ in batches(task, positions):
            if len(inputs) > 1:
                placed = runtime.layout(inputs.to(runtime.device))
                for i in which:
                    net.branches[i](placed)
    for part, momentum in norms:
        part.momentum = momentum
