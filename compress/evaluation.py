"""A task's metrics of a module, measured the same way everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..models.outputs import first_tensor
from .runtime import Runtime, home_of

if TYPE_CHECKING:
    from ..models.tasks.task import Split, Task


def evaluate(
    module: nn.Module, task: Task, split: Split = "val", *, runtime: Runtime, limit: int = 0, batch_size: int = 256
) -> dict[str, float]:
    """The task's metrics over the first `limit` (0: all) samples, in eval mode and float32 whatever the training precision.

    The module comes back on the device it was on, every submodule in the mode it had. With several processes all must call it
    (torchmetrics waits for all of them), each measures everything, and all get the main process's figures.
    """
    return runtime.from_main(measured(module, task, split, runtime=runtime, limit=limit, batch_size=batch_size)[0])


def measured(
    module: nn.Module, task: Task, split: Split = "val", *, runtime: Runtime, limit: int = 0, batch_size: int = 256
) -> tuple[dict[str, float], Tensor]:
    """(the metrics, the outputs float32 (n, …) on the CPU) of this process, from the one pass that `evaluate` makes."""
    home = home_of(module)
    modes = [(part, part.training) for part in module.modules()]
    seen: list[Tensor] = []
    runtime.place(module)

    def predict(inputs: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(runtime.device.type, enabled=False):
            outputs = first_tensor(module(runtime.layout(inputs.to(runtime.device))))
        seen.append(outputs.float().cpu())
        return outputs

    module.eval()
    try:
        metrics = task.evaluate(predict, split, limit=limit or None, batch_size=batch_size)
        return metrics, torch.cat(seen)
    finally:
        module.to(home)
        for part, training in modes:
            part.training = training


def targets_of(task: Task, split: Split, *, limit: int = 0) -> np.ndarray:
    """The targets of the first `limit` (0: all) samples of a split, without reading a pixel where the samples allow it."""
    samples = task.samples(split)
    count = min(limit or len(samples), len(samples))
    own = getattr(samples, "targets", None)
    if own is not None:
        return np.asarray(own)[:count]
    return np.concatenate([samples.__getitems__(range(i, min(i + 256, count))).targets.numpy() for i in range(0, count, 256)])
