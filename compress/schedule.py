"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .trainconfig import TrainConfig


@dataclass(frozen=True)
class Plan:
    """The steps of a run: `per_epoch` steps of `batch` images (the ragged rest of an epoch is left out), `total` in all."""

    samples: int
    batch: int
    per_epoch: int
    total: int

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that step belongs to."""
        return step // self.per_epoch

    def epochs_done(self, step: int) -> float:
        """Epochs completed after `step` steps, as a fraction."""
        return step / self.per_epoch


def plan_run(config: TrainConfig, samples: int) -> Plan:
    """The plan of a run over `samples` images: at least one step; a data set smaller than the batch is one batch."""
    batch = min(config.batch_size, samples)
    per_epoch = samples // batch
    return Plan(samples, batch, per_epoch, max(1, round(config.epochs * per_epoch)))


def learning_rate(config: TrainConfig, plan: Plan, step: int) -> float:
    """The learning rate of `step` (0 … total − 1).

    Warm-up is linear and reaches the peak at its end; cosine (Loshchilov & Hutter 2017, without restarts) then falls to 0
    over the remaining steps; multistep multiplies by `gamma` at each milestone (fractions of the whole run).
    """
    warmup = round(config.warmup_epochs * plan.per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, plan.total - warmup)))
    if config.schedule == "multistep":
        return config.lr * config.gamma ** sum(step >= m * plan.total for m in config.milestones)
    return config.lr
