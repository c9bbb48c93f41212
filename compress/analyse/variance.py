"""Accuracy by the variance of a feature map: whether samples that a network sees little in are the ones it gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ..bias_loss import check_classes, feature_variance
from ..distill.taps import LOGITS, Taps
from ..evaluation import measured, targets_of
from ..feature_map import feature_map
from ..runtime import home_of

if TYPE_CHECKING:
    from ...models.tasks.task import Split, Task
    from ..runtime import Runtime

TENTHS = 10


@dataclass(frozen=True)
class VarianceGroup:
    """Samples of neighbouring variance: the least and the largest, how many they are, and the share of them that is classified right."""

    low: float
    high: float
    count: int
    accuracy: float

    def as_dict(self) -> dict[str, float | int]:
        """JSON-able."""
        return asdict(self)


def grouped(
    variance: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, groups: int = TENTHS
) -> list[VarianceGroup]:
    """The samples in order of their variance, cut into `groups` parts of equal size (to one sample), lowest first.

    `variance` (n,) and `right` (n,) belong to the same samples; equal variances keep the samples' order. With fewer samples than
    groups there are as many groups as samples. Raises ValueError when the lengths differ or there is no sample.
    """
    values, correct = np.asarray(variance, np.float64), np.asarray(right, bool)
    if values.shape != correct.shape or values.ndim != 1 or not len(values) or groups < 1:
        raise ValueError(f"{values.shape} variances and {correct.shape} answers cannot be put into {groups} groups")
    order = np.argsort(values, kind="stable")
    parts = np.array_split(order, min(groups, len(values)))
    return [
        VarianceGroup(float(values[part[0]]), float(values[part[-1]]), len(part), float(correct[part].mean())) for part in parts
    ]


class _Watched(nn.Module):
    """A network whose feature variances are kept, sample by sample, as it is evaluated."""

    def __init__(self, network: nn.Module, path: str) -> None:
        super().__init__()
        self.network, self.path = network, path
        self.taps = Taps(network, (LOGITS, path), whose="network")
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        with self.taps.recording():
            values = self.taps.take(self.network(inputs))
        self.seen.append(feature_variance(values[self.path]).cpu())
        return values[LOGITS]


def variance_groups(
    module: nn.Module,
    task: Task,
    split: Split = "test",
    *,
    runtime: Runtime,
    features: str = "",
    limit: int = 0,
    groups: int = TENTHS,
) -> list[VarianceGroup]:
    """Accuracy by feature variance over the first `limit` (0: all) samples of a split, from the lowest tenth to the highest.

    The variance is the one that the bias loss weighs by: unbiased, over the flattened output of the module `features` ("": the last
    feature map). The module is run in eval mode and float32 and comes back as it was. Raises UserError for a task without
    classes, an empty split and a module without such a map.
    """
    check_classes(task, "accuracy by feature variance")
    samples = task.samples(split)
    if len(samples) == 0:
        raise UserError(f"the {split} split of {task.data!r} is empty", hint="check the data set's path and how it is split")
    example = task.inputs(samples.__getitems__([0])).to(home_of(module))
    watched = _Watched(module, feature_map(module, example, features, key="features"))
    try:
        _, outputs = measured(watched, task, split, runtime=runtime, limit=limit)
    finally:
        watched.taps.remove()
    right = outputs.argmax(1).numpy() == targets_of(task, split, limit=limit)
    return grouped(torch.cat(watched.seen).numpy(), right, groups)
