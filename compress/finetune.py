"""The recipe step "finetune": training with the task's own loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..models.errors import UserError
from .method import Context, MethodCard, MethodConfig, Result, register_method
from .trainconfig import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from ..models.tasks.task import Task


class FinetuneConfig(TrainConfig, MethodConfig):
    """Training with the task's loss."""

    kind: Literal["finetune"] = "finetune"


@register_method(
    "finetune",
    FinetuneConfig,
    MethodCard(
        title="Fine-tune with the task's loss",
        source="the baseline every method is measured against",
        needs_data=True,
        needs_labels=True,
        changes_structure=False,
        trains=True,
    ),
)
def finetune(module: nn.Module, task: Task | None, config: FinetuneConfig, context: Context) -> Result:
    """The module after training, with its history and its validation metrics before and after."""
    if task is None:
        raise UserError(
            "finetune needs data, and this run has none", hint="add --data fashion-mnist, folder:PATH, … or take the step out"
        )
    from .train import TrainBatch, evaluate, fit, runtime_for

    runtime = runtime_for(config, context)

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Any, dict[str, Any]]:
        return task.loss(network(batch.inputs), batch.targets), {}

    before = evaluate(module, task, "val", runtime=runtime, limit=config.max_eval)
    history = fit(module, task, config, objective=objective, context=context, label="finetune", runtime=runtime)
    figures = {"val_before": before, "val_after": history.val, "history": history.as_dict()}
    return Result(module, figures=figures, notes=history.notes)
