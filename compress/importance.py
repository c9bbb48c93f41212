"""How much a channel matters: scores for every channel of a group, from Torch-Pruning's importances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..models.errors import UserError
from .groups import ChannelGroup

if TYPE_CHECKING:
    from ..models.tasks.task import Task

Criterion = Literal["l1", "l2", "bn-scale", "taylor", "random"]
Reduction = Literal["group", "first"]


def scorer(criterion: Criterion, reduction: Reduction) -> Any:
    """A Torch-Pruning importance. "group" averages over all coupled layers, "first" looks at the root layer alone.

    Scores are divided by their group's mean, so that groups are comparable.
    """
    how = "mean" if reduction == "group" else "first"
    match criterion:
        case "l1" | "l2":
            return tp.importance.GroupMagnitudeImportance(
                p=1 if criterion == "l1" else 2, group_reduction=how, normalizer="mean"
            )
        case "bn-scale":
            return tp.importance.BNScaleImportance(group_reduction="mean", normalizer="mean")
        case "taylor":
            return tp.importance.GroupTaylorImportance(group_reduction=how, normalizer="mean")
        case "random":
            return None


def score(group: ChannelGroup, importance: Any, generator: torch.Generator) -> Tensor:
    """Scores of shape (channels,), float32. `importance` None: random. Raises UserError when the criterion can't see this group."""
    if importance is None:
        return torch.rand(group.channels, generator=generator)
    scores = importance(group.handle)
    if scores is None or (isinstance(scores, list) and not scores):
        raise UserError(
            f"the criterion finds nothing to score in the channel group of {group.root} (bn-scale needs a BatchNorm)",
            hint='use importance = "l2"',
        )
    return scores.float().cpu()


def accumulate_gradients(module: nn.Module, task: Task, *, images: int, batch_size: int, seed: int) -> None:
    """None; leaves the task loss's gradients over `images` training samples in the parameters, for the Taylor criterion.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019).
    """
    samples = task.samples("train")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:images].tolist()
    module.zero_grad()
    module.eval()
    for start in range(0, len(order), batch_size):
        batch = samples.__getitems__(order[start : start + batch_size])
        task.loss(module(task.inputs(batch)), batch.targets).backward()
