"""`trimtab evaluate`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from .console import output
from .options import Limit, Selection, selects


@selects
def evaluate(
    target: Annotated[Path, typer.Argument(help="A Bundle's folder, an artifact's folder, or a checkpoint with --model.")],
    selection: Selection,
    limit: Limit = None,
) -> None:
    """The task's test metrics: a Bundle in torch, an artifact in its own runtime. With critical classes (--data-arg critical=NAME)
    also their misses and false alarms, with intervals."""
    from .critical_text import evaluated, say_metrics
    from .export.artifact import MANIFEST
    from .loading import artifact_task, open_network
    from .models.errors import UserError
    from .workflow import evaluate_artifact, evaluate_module, require_task

    if (target / MANIFEST).exists():
        if selection.data is None:
            raise UserError("evaluating an artifact needs data", hint="add --data fashion-mnist, digits, folder:PATH, …")
        task = artifact_task(target, selection)
        metrics, critical = evaluated(task, lambda task: evaluate_artifact(target, task, limit=limit))
    else:
        with ExitStack() as stack:
            bundle, own = open_network(target, stack, selection)
            task = require_task(own, "evaluate")
            metrics, critical = evaluated(task, lambda task: evaluate_module(bundle, task, limit=limit))
    say_metrics(metrics, critical)
    output.result({**metrics, "critical": critical} if critical else metrics)
