"""A look at a gated network at work: its masks, the ground truth beside them, and the task's metrics, over the samples of a split."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ...models.gates import gates_of
from ..evaluation import evaluate
from .gating import choosing, taping
from .ground_truth import Rule

if TYPE_CHECKING:
    from ...models.tasks.task import Split, Task
    from ..runtime import Runtime

MIN_SAMPLES = 32
"""Statistics of masks want at least so many samples."""
_CHUNK = 256


@dataclass(frozen=True)
class Observation:
    """What gates did for N samples: masks and truths bool (N, C) by path, the targets (N, …), the task's metrics of the outputs."""

    masks: Mapping[str, Tensor]
    truths: Mapping[str, Tensor]
    targets: Tensor
    metrics: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)


def observe(
    module: nn.Module,
    task: Task,
    rule: Rule,
    *,
    runtime: Runtime,
    split: Split = "val",
    limit: int = 0,
    follow_truth: bool = False,
) -> Observation:
    """The first `limit` (0: all) samples of a split through a gated `module` in eval mode.

    With `follow_truth` the network's masks are the ground truth of `rule` themselves (the frozen baseline of an estimate).
    Raises UserError when there are fewer than 32 samples, and when a gate is never reached.
    """
    gates = gates_of(module)
    available = len(task.samples(split))
    count = min(limit or available, available)
    if count < MIN_SAMPLES:
        raise UserError(
            f"mask statistics from {count} {split} samples say nothing: at least {MIN_SAMPLES} are wanted",
            hint="give more validation data, or raise the number of images to look at",
        )
    masks: dict[str, list[Tensor]] = {path: [] for path in gates}
    truths: dict[str, list[Tensor]] = {path: [] for path in gates}

    def keep(_module: nn.Module, _args: Any, _output: Any) -> None:
        for path, gate in gates.items():
            if gate.mask is None or gate.saliency is None:
                raise UserError(f"the gate of {path} is never reached", hint=f'add keep = ["{path}"] to the step')
            masks[path].append((gate.mask != 0).cpu())
            truths[path].append(masks[path][-1] if follow_truth else rule.mask(path, gate.saliency).cpu())

    hook = module.register_forward_hook(keep)
    try:
        with ExitStack() as stack:
            stack.enter_context(taping(gates))
            if follow_truth:
                stack.enter_context(choosing(gates, rule.mask))
            metrics = evaluate(module, task, split, runtime=runtime, limit=count)
    finally:
        hook.remove()
    return Observation(
        {path: torch.cat(parts)[:count] for path, parts in masks.items()},
        {path: torch.cat(parts)[:count] for path, parts in truths.items()},
        targets_of(task, split, count),
        metrics,
    )


def targets_of(task: Task, split: Split, count: int) -> Tensor:
    """The targets of the first `count` samples of a split."""
    samples = task.samples(split)
    parts = [samples.__getitems__(range(at, min(at + _CHUNK, count))).targets for at in range(0, count, _CHUNK)]
    return torch.cat(parts)
