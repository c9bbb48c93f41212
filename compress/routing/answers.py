"""What every branch of a routed network says about the samples of a split, and what the router says: the facts that calibration
and router training start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ...models.routed import RoutedNet, confidence
from ..evaluation import evaluate
from ..runtime import Runtime
from .activity import batches, looking
from .calibration import Observed

if TYPE_CHECKING:
    from ...models.tasks.task import Split, Task


@dataclass(frozen=True)
class Answers:
    """Over N samples: `confidence` float32 (N, K) and `label` int64 (N, K) of the branches, the router's scores (N, …) or None,
    the parent's labels (N,) or None, and the targets (N,)."""

    confidence: Tensor
    label: Tensor
    routed: Tensor | None
    parent: Tensor | None
    targets: Tensor

    @property
    def right(self) -> Tensor:
        """Whether each branch gives the true class, bool (N, K)."""
        return self.label == self.targets[:, None]

    @property
    def suffices(self) -> Tensor:
        """Whether each branch but the last is good enough, bool (N, K−1): it is right, or says what the parent says."""
        good = self.right if self.parent is None else self.right | (self.label == self.parent[:, None])
        return good[:, :-1]

    def observed(self, paths: Sequence[float], dense: float) -> Observed:
        """What thresholds are calibrated on, `paths` being what the way to each branch costs. Raises UserError for too few samples."""
        scores = self.routed if self.routed is not None else self.confidence[:, :-1]
        return Observed(scores.numpy(), self.right.numpy(), np.asarray(paths, dtype=np.float64), float(dense))


@dataclass
class _Columns:
    confidence: list[Tensor] = field(default_factory=list)
    label: list[Tensor] = field(default_factory=list)
    routed: list[Tensor] = field(default_factory=list)
    parent: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)


def answers(
    net: RoutedNet,
    task: Task,
    positions: Sequence[int],
    *,
    runtime: Runtime,
    split: Split,
    parent: nn.Module | None = None,
) -> Answers:
    """Every branch's answer to these samples, one pass over each; for a network that classifies. `parent` is on the run's device."""
    seen = _Columns()
    with looking(net, runtime):
        for _, raw, targets in batches(task, positions, split=split):
            inputs = runtime.layout(raw.to(runtime.device))
            logits = [branch(inputs) for branch in net.branches]
            seen.confidence.append(torch.stack([confidence(each) for each in logits], 1).cpu())
            seen.label.append(torch.stack([each.argmax(1) for each in logits], 1).cpu())
            if net.router is not None:
                seen.routed.append(net.router(net.router_input(inputs)).float().cpu())
            if parent is not None:
                seen.parent.append(parent(inputs).argmax(1).cpu())
            seen.targets.append(targets)
    return Answers(
        torch.cat(seen.confidence),
        torch.cat(seen.label),
        torch.cat(seen.routed) if seen.routed else None,
        torch.cat(seen.parent) if seen.parent else None,
        torch.cat(seen.targets),
    )


def validation_answers(net: RoutedNet, task: Task, *, runtime: Runtime) -> Answers:
    """Every branch's answer to all validation samples."""
    return answers(net, task, range(len(task.samples("val"))), runtime=runtime, split="val")


def branch_metrics(
    net: RoutedNet, task: Task, *, runtime: Runtime, limit: int = 0, which: Sequence[int] | None = None
) -> list[dict[str, float]]:
    """The task's metrics of every branch (or of those in `which`) alone on the validation samples."""
    chosen = range(len(net.branches)) if which is None else which
    with looking(net, runtime):  # as a whole: a nested branch's weights lie in the largest
        return [evaluate(net.branches[i], task, "val", runtime=runtime, limit=limit) for i in chosen]
