"""The task's metric through an artifact's own runtime, beside the network's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .models.contract import Contract
from .models.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .export.artifact import Artifact, MetricGate
    from .export.convert import Score, Source
    from .export.exporter import Runner
    from .models.tasks.task import Split, Task

ALLOWED = 0.01
"""One point: what a reduced precision may lose of the metric when its SQNR is below the gate."""
BATCHES = (64, 8, 2, 1)
"""Batches that are tried where the batch is free: formats that must say a bound take as many."""
SAMPLES = 2000
"""Test samples that the metric is taken over when it has to decide."""


def channels_first(contract: Contract) -> Contract:
    """The contract with its images as NCHW, as torch and the tasks have them."""
    return contract.model_copy(
        update={
            "inputs": tuple(s.as_layout("NCHW") for s in contract.inputs),
            "outputs": tuple(s.as_layout("NCHW") for s in contract.outputs),
        }
    )


def predictor(runner: Runner, contract: Contract, *, module: Contract | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Network inputs (N, C, H, W) → outputs through an artifact, in batches that it takes, its settings at their defaults.

    `module`: the contract of the network that it was made from; without, the artifact's own in NCHW.
    """
    import numpy as np
    import torch

    from .export.parity import run_in_layout

    original = module or channels_first(contract)
    name, result = original.inputs[0].name, original.outputs[0].name
    fixed = contract.inputs[0].shape[0]
    settings = original.defaults()
    sizes = [fixed] if isinstance(fixed, int) else list(BATCHES)

    def run(inputs: torch.Tensor) -> torch.Tensor:
        found = [
            run_in_layout(runner, {name: part.numpy(), **settings}, module=original, artifact=contract)[result]
            for part in inputs.split(sizes[0])
        ]
        return torch.from_numpy(np.concatenate(found))

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        while True:
            try:
                return run(inputs)
            except UserError:
                if len(sizes) == 1:
                    raise
                del sizes[0]  # a free batch has a bound in some formats

    return predict


def device_score(task: Task, limit: int) -> Callable[[Artifact, Runner], dict[str, float]]:
    """The task's test metrics over the first `limit` samples, of an artifact through whatever runs it: a device takes any batch."""
    import torch

    from .export.parity import run_in_layout

    def found(artifact: Artifact, run: Runner) -> dict[str, float]:
        original = channels_first(artifact.contract)
        name, result, settings = original.inputs[0].name, original.outputs[0].name, original.defaults()

        def predict(inputs: torch.Tensor) -> torch.Tensor:
            given = {name: inputs.numpy(), **settings}
            return torch.from_numpy(run_in_layout(run, given, module=original, artifact=artifact.contract)[result])

        return task.evaluate(predict, "test", limit=limit)

    return found


def score(source: Source, task: Task, *, split: Split = "test", limit: int = SAMPLES, allowed: float = ALLOWED) -> Score:
    """The metric of artifacts of `source` over the first `limit` samples of a split; the network's own is taken once, when first asked."""
    from .export.artifact import MetricGate
    from .models.tasks.task import tasks

    sign = 1 if tasks.entry(task.name).card.higher_is_better else -1
    samples = min(limit, len(task.samples(split)))
    own: list[float] = []

    def found(runner: Runner, contract: Contract) -> MetricGate:
        if not own:
            own.append(_metric(task, _plain(source.reference), source.contract, source.contract, split, samples))
        value = _metric(task, runner, contract, source.contract, split, samples)
        return MetricGate(
            name=task.metric,
            samples=samples,
            reference=own[0],
            artifact=value,
            drop=sign * (own[0] - value),
            allowed=allowed,
        )

    return found


def _plain(reference: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]) -> Runner:
    return lambda inputs: dict(reference(inputs))


def _metric(task: Task, runner: Runner, contract: Contract, module: Contract, split: Split, limit: int) -> float:
    return task.evaluate(predictor(runner, contract, module=module), split, limit=limit)[task.metric]
