"""A task's metrics of a module, measured the same way everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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
    home = home_of(module)
    modes = [(part, part.training) for part in module.modules()]
    runtime.place(module)

    def predict(inputs: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(runtime.device.type, enabled=False):
            return module(runtime.layout(inputs.to(runtime.device)))

    module.eval()
    try:
        return runtime.from_main(task.evaluate(predict, split, limit=limit or None, batch_size=batch_size))
    finally:
        module.to(home)
        for part, training in modes:
            part.training = training
