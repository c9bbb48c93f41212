"""Error rates of critical classes in `trimtab evaluate`, with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .console import output

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .models.tasks.task import Split, Task

FIGURES = ("fnr", "fpr", "auc")


class Recorded:
    """A task that keeps the outputs of its last evaluation in `logits` and is otherwise the task itself."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._kept: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    @property
    def logits(self) -> np.ndarray:
        """float32 (n, classes), in the order of the split."""
        import numpy as np

        return np.concatenate(self._kept)

    def evaluate(
        self, predict: Callable[[Tensor], Tensor], split: Split = "test", *, limit: int | None = None, batch_size: int = 256
    ) -> dict[str, float]:
        """The task's own metrics of `predict`."""
        self._kept = []

        def kept(inputs: Tensor) -> Tensor:
            found = predict(inputs)
            self._kept.append(found.detach().float().cpu().numpy())
            return found

        return self._task.evaluate(kept, split, limit=limit, batch_size=batch_size)


def evaluated(task: Task, run: Callable[[Task], dict[str, float]]) -> tuple[dict[str, float], dict[str, Any]]:
    """(the metrics that `run` takes of the task's test split, what is to be said of its critical classes: {} without any)."""
    if not getattr(task, "critical", ()):
        return run(task), {}
    recorded = Recorded(task)
    metrics = run(recorded)
    return metrics, critical_report(recorded.logits, task)


def critical_report(logits: np.ndarray, task: Task) -> dict[str, Any]:
    """Counts and 95 % intervals of deciding by argmax on the first samples of the test split, one row of logits each."""
    from .models.tasks.critical import critical_classes, rates
    from .models.tasks.intervals import bootstrap, exact_limit

    critical = critical_classes(getattr(task, "critical", ()), task.contract.classes)
    score = critical.score(logits)
    positive = critical.positive(getattr(task.samples("test"), "targets")[: len(logits)])  # noqa: B009 (not in the protocol)
    found = rates(score, positive)
    return {
        "classes": list(critical.names),
        "positives": found.positives,
        "missed": found.missed,
        "negatives": found.negatives,
        "false_alarms": found.false_alarms,
        "accuracy": found.accuracy,
        "interval": {name: list(span) for name, span in bootstrap(score, positive, 0.0).items()},
        "fnr_exact": list(exact_limit(found.missed, found.positives)),
    }


def say_metrics(metrics: Mapping[str, float], report: Mapping[str, Any]) -> None:
    """The metrics as a table; with critical classes also their intervals, and the counts in words."""
    if not report:
        output.table("", ("metric", ">value"), [(name, f"{value:.4f}") for name, value in metrics.items()])
        return
    spans = report["interval"]
    shown = {name: f"{spans[name][0]:.4f} … {spans[name][1]:.4f}" for name in FIGURES}
    rows = [(name, f"{value:.4f}", shown.get(name, "")) for name, value in metrics.items()]
    output.table("", ("metric", ">value", "95 % interval"), rows)
    names = ", ".join(repr(name) for name in report["classes"])
    output.say(
        f"critical {names}: {report['missed']} of {report['positives']} missed, {report['false_alarms']} of "
        f"{report['negatives']} others are false alarms (by argmax; intervals by bootstrap over the samples)"
    )
    if report["missed"] == 0:
        high = report["fnr_exact"][1]
        output.say(f"no miss among {report['positives']} still allows an FNR of up to {high:.4f} (95 %, exact binomial)")
