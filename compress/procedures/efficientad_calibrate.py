"""What EfficientAD measures outside its training: the teacher's channels, and where the maps of normal pictures lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...models.errors import UserError

if TYPE_CHECKING:
    from ...models.tasks.task import Split, Task
    from ..runtime import Runtime

Q_A, Q_B = 0.9, 0.995
"""The quantiles of the published normalisation (section 3.4)."""
BATCH = 16
Rule = Literal["quantile", "gaussian"]


def batches_of(task: Task, split: Split, *, runtime: Runtime, limit: int = 0, batch: int = BATCH) -> Iterator[Tensor]:
    """A split's pictures on the device, (≤ batch, 3, H, W) at a time, the first `limit` (0: all). Raises UserError for an empty split."""
    samples = task.samples(split)
    count = min(limit or len(samples), len(samples))
    if count == 0:
        raise UserError(
            f"the {split} split of {task.data!r} is empty", hint="EfficientAD needs normal pictures in train and in val"
        )
    for start in range(0, count, batch):
        raw = samples.__getitems__(range(start, min(start + batch, count))).to(runtime.device)
        yield runtime.layout(task.inputs(raw))


@torch.no_grad()
def channel_statistics(maps: Callable[[Tensor], Tensor], pictures: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation), each float32 (1, C, 1, 1), over all places of `maps(picture)` (N, C, h, w).

    Sums in float64 around the first batch's mean. Raises UserError when no channel varies; a channel that does not vary gets the
    smallest deviation of those that do, so that it stays near 0 after standardisation.
    """
    first: Tensor | None = None
    total = square = torch.zeros(0)
    count = 0
    for images in pictures:
        found = maps(images).double().transpose(0, 1).flatten(1)  # (C, N·h·w)
        if first is None:
            first = found.mean(1, keepdim=True)
            total = square = torch.zeros_like(first)
        found = found - first
        total, square = total + found.sum(1, keepdim=True), square + found.square().sum(1, keepdim=True)
        count += found.shape[1]
    if first is None:
        raise UserError("there are no training pictures to take the features' statistics from", hint="check the training split")
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    varies = std > 1e-6 * std.max()
    if not bool(std.max() > 1e-9):
        raise UserError(
            "the features are the same at every place of every training picture",
            hint="pictures of one colour teach nothing; check the data, and that the backbone or teacher is trained",
        )
    std = torch.where(varies, std, std[varies].min())
    return (mean + first).float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


@torch.no_grad()
def map_values(net: Any, task: Task, split: Split, *, runtime: Runtime, limit: int = 0) -> list[np.ndarray]:
    """[M_ST, M_AE] (the latter where there is an autoencoder): float32 (n,) of every place of every map without its border."""
    found: list[list[np.ndarray]] = [[], []]
    for images in batches_of(task, split, runtime=runtime, limit=limit):
        for kept, maps in zip(found, net.raw_maps(images), strict=True):
            if maps is not None:
                kept.append(maps.float().flatten().cpu().numpy())
    return [np.concatenate(kept) for kept in found if kept]


def anchors(values: np.ndarray, rule: Rule, *, name: str) -> tuple[float, float]:
    """The two values that become 0 and 0.1: the 0.9 and 0.995 quantiles, or the mean and the mean plus a tenth of the deviation.

    "gaussian" thereby makes maps of mean 0 and variance 1, the paper's ablation. Raises UserError where the two can't be told apart.
    """
    if not np.isfinite(values).all():
        raise UserError(
            f"the map {name} of the validation pictures is not finite", hint="train with a lower lr; was the teacher trained?"
        )
    wide = values.astype(np.float64)
    low, high = np.quantile(wide, [Q_A, Q_B]) if rule == "quantile" else (wide.mean(), wide.mean() + 0.1 * wide.std())
    if not high - low > 1e-6 * abs(high):
        raise UserError(
            f"the map {name} is the same at nearly every place of the validation pictures ({low:.3g} and {high:.3g}): nothing to scale it by",
            hint="are they pictures of one colour, or copies of one picture? Give normal pictures that differ, as later ones will",
        )
    return float(low), float(high)
