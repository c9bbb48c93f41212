"""Runs that are told in steps rather than in passes over the data."""

from __future__ import annotations

from typing import TypeVar

from ..schedule import plan_run
from ..trainconfig import TrainConfig

T = TypeVar("T", bound=TrainConfig)


def over(config: T, samples: int) -> tuple[T, int]:
    """(the config whose `epochs` amount to its `iterations`, where it says some; the steps of the run) for this many samples."""
    steps = int(getattr(config, "iterations", 0))
    samples = min(samples, config.max_train or samples)
    if not steps or samples == 0:
        return config, plan_run(config, samples).total if samples else 0
    per_epoch = plan_run(config, samples).per_epoch
    run = config.model_copy(update={"epochs": steps / per_epoch})
    return run, plan_run(run, samples).total
