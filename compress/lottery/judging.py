"""What a round is judged by: the task's metrics, and how well its scores tell critical classes from the others."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ...models.tasks.critical import Critical, Rates, critical_classes, rates, threshold_for_fpr
from ...models.tasks.intervals import bootstrap, paired_difference
from ..runtime import Runtime, home_of

if TYPE_CHECKING:
    from ...models.tasks.task import Split, Task

SPLITS: tuple[Split, ...] = ("val", "test")
"""Decisions are made on the first; the second is only reported."""


class Judge:
    """Measures networks on a task. `names` are the critical classes, empty for none.

    Raises UserError for names that are no classes of the task, a task without classes, and a critical class (or all others)
    missing from a split.
    """

    def __init__(self, task: Task, names: tuple[str, ...], runtime: Runtime, *, limit: int = 0) -> None:
        self.task, self.runtime, self.limit = task, runtime, limit
        self.names = names or tuple(getattr(task, "critical", ()))
        self.critical: Critical | None = None
        if self.names:
            if not task.contract.classes:
                raise UserError(
                    f"critical = {list(self.names)} wants a task with classes, and {task.name!r} has none",
                    hint="leave critical out: plain lottery works on every task",
                )
            self.critical = critical_classes(self.names, task.contract.classes)
            for split in ("train", *SPLITS):
                self._present(split)

    def _present(self, split: Split) -> None:
        """None. Raises UserError when a critical class, or everything else, has no sample in a split."""
        targets = self.targets(split)
        critical = self._critical()
        missing = [name for name, index in zip(critical.names, critical.indices, strict=True) if not (targets == index).any()]
        if critical.positive(targets).all():
            missing = [name for name in critical.classes if name not in critical.names]
        if missing:
            raise UserError(
                f"class {missing[0]!r} is absent from the {split} split of {self.task.data!r} ({len(targets)} samples): "
                "missed positives and false alarms can't be counted there",
                hint="raise val_fraction or max_eval, or add samples of that class",
            )

    def _critical(self) -> Critical:
        if self.critical is None:
            raise RuntimeError("there are no critical classes")
        return self.critical

    def targets(self, split: Split) -> np.ndarray:
        """int64 (n,): the classes of a split's samples, those that are measured."""
        samples = self.task.samples(split)
        own = getattr(samples, "targets", None)
        count = min(len(samples), self.limit) if self.limit and split == "val" else len(samples)
        if own is None:
            own = torch.cat([samples.__getitems__(range(i, min(i + 256, count))).targets for i in range(0, count, 256)])
        return np.asarray(own)[:count]

    def positive(self, split: Split) -> np.ndarray:
        """bool (n,): whether a split's samples belong to critical classes."""
        return self._critical().positive(self.targets(split))

    def measure(self, module: nn.Module) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
        """(the task's metrics by split, decision scores (n,) by split; none without critical classes)."""
        metrics: dict[str, dict[str, float]] = {}
        scores: dict[str, np.ndarray] = {}
        for split in SPLITS:
            metrics[split], logits = outputs_of(
                module, self.task, split, self.runtime, limit=self.limit if split == "val" else 0
            )
            if self.critical is not None:
                scores[split] = self.critical.score(logits)
        return metrics, scores

    def threshold(self, scores: dict[str, np.ndarray], max_fpr: float) -> float:
        """The lowest threshold whose false-positive rate on validation is at most `max_fpr`."""
        return threshold_for_fpr(scores["val"], self.positive("val"), max_fpr)

    def rates(self, scores: dict[str, np.ndarray], split: Split, threshold: float = 0.0) -> Rates:
        """Rates on a split at a threshold (0: the network's argmax)."""
        return rates(scores[split], self.positive(split), threshold)

    def report(self, scores: dict[str, np.ndarray], max_fpr: float, *, seed: int) -> dict[str, Any]:
        """Rates at argmax and at the operating point by split, and 95 % bootstrap intervals on the test split."""
        threshold = self.threshold(scores, max_fpr)
        return {
            "threshold": threshold,
            "argmax": {split: asdict(self.rates(scores, split)) for split in SPLITS},
            "operating_point": {split: asdict(self.rates(scores, split, threshold)) for split in SPLITS},
            "interval": bootstrap(scores["test"], self.positive("test"), threshold, seed=seed),
        }

    def compare(
        self, control: dict[str, np.ndarray], scores: dict[str, np.ndarray], max_fpr: float, *, seed: int
    ) -> dict[str, Any]:
        """Difference to the control on the test split, both at their own thresholds for the same rate: (value, low, high)."""
        return paired_difference(
            control["test"],
            self.threshold(control, max_fpr),
            scores["test"],
            self.threshold(scores, max_fpr),
            self.positive("test"),
            seed=seed,
        )


def outputs_of(
    module: nn.Module, task: Task, split: Split, runtime: Runtime, *, limit: int = 0
) -> tuple[dict[str, float], np.ndarray]:
    """(the task's metrics, outputs (n, …) float32) over the first `limit` (0: all) samples of a split, in one pass, in eval mode."""
    home, modes = home_of(module), [(part, part.training) for part in module.modules()]
    seen: list[Tensor] = []

    def predict(inputs: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(runtime.device.type, enabled=False):
            found = module(runtime.layout(inputs.to(runtime.device)))
        seen.append(found.float().cpu())
        return found

    runtime.place(module).eval()
    try:
        metrics = task.evaluate(predict, split, limit=limit or None)
    finally:
        module.to(home)
        for part, training in modes:
            part.training = training
    return metrics, torch.cat(seen).numpy()
