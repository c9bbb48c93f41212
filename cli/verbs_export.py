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
    """The task's test metrics: a Bundle in torch, an artifact in its own runtime."""
    from .export.artifact import MANIFEST
    from .loading import artifact_task, open_network
    from .models.errors import UserError
    from .workflow import evaluate_artifact, evaluate_module, require_task

    if (target / MANIFEST).exists():
        if selection.data is None:
            raise UserError("evaluating an artifact needs data", hint="add --data fashion-mnist, digits, folder:PATH, …")
        metrics = evaluate_artifact(target, artifact_task(target, selection), limit=limit)
    else:
        with ExitStack() as stack:
            bundle, own = open_network(target, stack, selection)
            metrics = evaluate_module(bundle, require_task(own, "evaluate"), limit=limit)
    output.table("", ("metric", ">value"), [(name, f"{value:.4f}") for name, value in metrics.items()])
    output.result(metrics)
