"""The recipe step "finetune": training with the task's own loss, or with the bias loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..models.errors import UserError
from .method import Context, MethodCard, MethodConfig, Result, register_method
from .trainconfig import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ..models.tasks.task import Task
    from .bias_loss import Biased
    from .runtime import Runtime
    from .train import TrainBatch


class FinetuneConfig(TrainConfig, MethodConfig):
    """Training with the task's loss, or with the bias loss."""

    kind: Literal["finetune"] = "finetune"
    loss: Literal["task", "bias"] = Field(
        "task", description='"bias" weighs each sample\'s cross-entropy by the variance of its last feature map (classifiers)'
    )
    bias_normalisation: Literal["local", "global"] = Field(
        "global", description="variances are measured from the batch's minimum (local) or the least since training started"
    )
    bias_alpha: float = Field(0.3, ge=0, le=3, description="weight = exp(alpha · normalised variance) − beta")
    bias_beta: float = Field(0.3, ge=0, lt=1, description="see bias_alpha; the least weight is 1 − beta")
    bias_control: Literal["none", "mean1", "shuffled"] = Field(
        "none", description="for experiments: weights scaled to a batch mean of 1, or dealt out to other samples"
    )
    bias_features: str = Field("", description="path of the module whose output's variance counts; empty = the last map, found")

    @model_validator(mode="after")
    def _no_idle_bias(self) -> FinetuneConfig:
        idle = [name for name in sorted(self.model_fields_set) if name.startswith("bias_")]
        changed = [name for name in idle if getattr(self, name) != type(self).model_fields[name].default]
        if self.loss == "task" and changed:
            raise ValueError(f'{changed[0]} counts with loss = "bias" alone: set it, or leave {changed[0]} out')
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; those of a loss that is not used are left out, so that finished steps keep their keys."""
        values: dict[str, Any] = handler(self)
        if self.loss == "task":
            return {name: value for name, value in values.items() if name != "loss" and not name.startswith("bias_")}
        return values


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
    """The module after training, with its history and its validation metrics before and after.

    With the bias loss also "features", the module whose variance counted, and "variance_deciles": validation accuracy by it.
    Raises UserError without data, and for the bias loss where there are no classes or no feature map.
    """
    if task is None:
        raise UserError(
            "finetune needs data, and this run has none", hint="add --data fashion-mnist, folder:PATH, … or take the step out"
        )
    from .train import evaluate, fit, runtime_for

    runtime = runtime_for(config, context)
    biased = _biased(module, task, config) if config.loss == "bias" else None
    try:
        before = evaluate(module, task, "val", runtime=runtime, limit=config.max_eval)
        objective = _plain(task) if biased is None else _weighted(task)
        trained = biased or module
        history = fit(trained, task, config, objective=objective, context=context, label="finetune", runtime=runtime)
    finally:
        if biased is not None:
            biased.close()
    figures: dict[str, Any] = {"val_before": before, "val_after": history.val, "history": history.as_dict()}
    if biased is not None:
        figures |= {"features": biased.path, "variance_deciles": _deciles(module, task, config, runtime, biased.path)}
    return Result(module, figures=figures, notes=history.notes)


def _plain(task: Task) -> Callable[[nn.Module, TrainBatch], tuple[Any, dict[str, Any]]]:
    return lambda network, batch: (task.loss(network(batch.inputs), batch.targets), {})


def _weighted(task: Task) -> Callable[[nn.Module, TrainBatch], tuple[Any, dict[str, Any]]]:
    """The bias loss; plain cross-entropy and the weights' mean are kept beside it."""
    from .bias_loss import bias_loss

    smoothing = getattr(task, "label_smoothing", 0.0)

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Any, dict[str, Any]]:
        seen = network(batch.inputs)
        loss = bias_loss(seen["outputs"], batch.targets, seen["weights"], label_smoothing=smoothing)
        return loss, {"task": task.loss(seen["outputs"].detach(), batch.targets), "weight": seen["weights"].mean()}

    return objective


def _biased(module: nn.Module, task: Task, config: FinetuneConfig) -> Biased:
    """The module with what weighs its samples. Raises UserError where there are no classes, no samples or no feature map."""
    from .bias_loss import Biased, SampleWeights, check_classes
    from .feature_map import feature_map
    from .runtime import home_of

    check_classes(task, 'loss = "bias"')
    samples = task.samples("train")
    if len(samples) == 0:
        raise UserError(f"the training split of {task.data!r} is empty", hint="check the data set's path and how it is split")
    example = task.inputs(samples.__getitems__([0])).to(home_of(module))
    path = feature_map(module, example, config.bias_features, key="bias_features")
    weights = SampleWeights(
        config.bias_normalisation, alpha=config.bias_alpha, beta=config.bias_beta, control=config.bias_control
    )
    return Biased(module, path, weights)


def _deciles(
    module: nn.Module, task: Task, config: FinetuneConfig, runtime: Runtime, path: str
) -> list[dict[str, float | int]]:
    from .analyse.variance import variance_groups

    groups = variance_groups(module, task, "val", runtime=runtime, features=path, limit=config.max_eval)
    return runtime.from_main([group.as_dict() for group in groups])
