"""What a round is judged by: the task's metrics, and how well its scores tell critical classes from the others."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ...models.errors import UserError
from ...models.tasks.critical import Critical, Rates, critical_classes, rates, threshold_for_fpr
from ...models.tasks.intervals import bootstrap, paired_difference
from ..evaluation import measured, targets_of
from ..runtime import Runtime

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
        return targets_of(self.task, split, limit=self.limit if split == "val" else 0)

    def positive(self, split: Split) -> np.ndarray:
        """bool (n,): whether a split's samples belong to critical classes."""
        return self._critical().positive(self.targets(split))

    def measure(self, module: nn.Module) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
        """(the task's metrics by split, decision scores (n,) by split; none without critical classes)."""
        metrics: dict[str, dict[str, float]] = {}
        scores: dict[str, np.ndarray] = {}
        for split in SPLITS:
            limit = self.limit if split == "val" else 0
            metrics[split], outputs = measured(module, self.task, split, runtime=self.runtime, limit=limit)
            if self.critical is not None:
                scores[split] = self.critical.score(outputs.numpy())
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
