"""The recipe step "distill": a student learns from a frozen teacher and the labels."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ...models.errors import UserError
from ..method import Context, MethodCard, MethodConfig, Result, register_method
from ..trainconfig import TrainConfig
from .objectives import objectives

if TYPE_CHECKING:
    from torch import nn

    from ...models.tasks.task import Task
    from ..runtime import Runtime
    from ..train import Objective
    from .cache import LogitTable
    from .teacher import Teacher

log = logging.getLogger("trimtab")


class DistillConfig(TrainConfig, MethodConfig):
    """Distillation: L = (1 − alpha) · task loss + alpha · objective(student, teacher, temperature)."""

    kind: Literal["distill"] = "distill"
    objective: str = Field("kd", description="what pulls the student towards the teacher: a registered distillation objective")
    temperature: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="softening of both distributions, in units of logits"
    )
    alpha: float = Field(0.9, ge=0, le=1, description="weight of the objective; the task's own loss gets 1 − alpha")
    teacher: str = Field(
        "parent", min_length=1, description='"parent" = the Bundle that entered the recipe, or a Bundle\'s folder'
    )
    cache_teacher: bool = Field(
        False,
        description="compute the teacher's logits once, on un-augmented images, instead of at every step on the student's view",
    )
    cache_dtype: Literal["float32", "float16"] = Field(
        "float32", description="how cached logits are stored; float16 halves the file"
    )

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            objectives.get(name)
        except UserError as error:
            raise ValueError(str(error)) from None
        return name


@register_method(
    "distill",
    DistillConfig,
    MethodCard(
        title="Distil a teacher into the network",
        source="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015",
        needs_data=True,
        needs_labels=True,
        changes_structure=False,
        trains=True,
    ),
)
def distill(module: nn.Module, task: Task | None, config: DistillConfig, context: Context) -> Result:
    """The module after distillation, with its history and the validation metrics of teacher and student.

    With `cache_teacher` the teacher judges each training image as stored while the student may see it augmented; without, both
    see the same augmented view. Raises UserError when teacher and task do not fit together.
    """
    if task is None:
        raise UserError(
            "distill needs data, and this run has none", hint="add --data fashion-mnist, folder:PATH, … or take the step out"
        )
    from ..train import evaluate, fit, runtime_for
    from .teacher import Teacher, chance_note, check_classes, find_teacher

    bundle = find_teacher(config.teacher, context)
    notes = [check_classes(bundle.contract, task.contract)]
    runtime = runtime_for(config, context)
    teacher = Teacher(bundle.module(), theirs=bundle.contract, ours=task.contract)
    runtime.place(teacher)
    _check_outputs(teacher, task, runtime)
    metrics = [evaluate(net, task, "val", runtime=runtime, limit=config.max_eval) for net in (teacher, module)]
    seen = min(config.max_eval or len(task.samples("val")), len(task.samples("val")))
    if warning := chance_note(metrics[0], task, seen):
        log.warning("%s", warning)
        notes.append(warning)
    table, cache = None, "off"
    if config.cache_teacher:
        table, cache, said = _table(teacher, bundle.hash, task, config, context=context, runtime=runtime)
        notes += said
    objective = mixed_objective(task, config, teacher=teacher, table=table, runtime=runtime)
    identity = {"teacher": bundle.hash}
    history = fit(
        module, task, config, objective=objective, context=context, label="distill", identity=identity, runtime=runtime
    )
    figures = {
        "teacher_val": metrics[0],
        "val_before": metrics[1],
        "val_after": history.val,
        "teacher_cache": cache,
        "history": history.as_dict(),
    }
    return Result(module, figures=figures, notes=(*filter(None, notes), *history.notes))


def _check_outputs(teacher: Teacher, task: Task, runtime: Runtime) -> None:
    """None, when one training image gives one logit per class. Raises UserError otherwise, and for an empty split."""
    samples = task.samples("train")
    if len(samples) == 0:
        raise UserError(f"the training split of {task.data!r} is empty", hint="check the data set's path and how it is split")
    raw = samples.__getitems__([0]).to(runtime.device)
    shape = tuple(teacher.logits(runtime.layout(task.inputs(raw)), runtime).shape)
    if task.contract.classes and shape != (1, len(task.contract.classes)):
        raise UserError(
            f"the teacher's output for one image has shape {shape}, the task has {len(task.contract.classes)} classes",
            hint="a teacher must have been trained on the student's classes",
        )


def _table(
    teacher: Teacher, key_of_teacher: str, task: Task, config: DistillConfig, *, context: Context, runtime: Runtime
) -> tuple[LogitTable, str, list[str]]:
    """(the table, "made" or "hit", notes)."""
    from ..sampling import chosen_positions
    from .cache import cache_key, cached_logits

    positions = chosen_positions(len(task.samples("train")), config.max_train, context.seed)
    key = cache_key(key_of_teacher, task, positions, input_map=teacher.input_map, dtype=config.cache_dtype, runtime=runtime)
    table, hit, why = cached_logits(
        context.workdir, key, teacher=teacher, task=task, positions=positions, runtime=runtime, progress=context.progress
    )
    view = "an augmented view of them" if config.augment else "the same"
    note = f"teacher logits were computed once, on un-augmented training images; the student saw {view}"
    return table, "hit" if hit else "made", [why, note]


def mixed_objective(
    task: Task, config: DistillConfig, *, teacher: Teacher, table: LogitTable | None, runtime: Runtime
) -> Objective:
    """(1 − alpha) · task loss + alpha · the registered objective, towards the table's logits or the live teacher's."""
    loss = objectives.get(config.objective)

    def objective(network: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        logits = teacher.logits(batch.inputs, runtime) if table is None else table(batch.index)
        student = network(batch.inputs)
        hard, soft = task.loss(student, batch.targets), loss(student, logits, config.temperature)
        return (1 - config.alpha) * hard + config.alpha * soft, {"ce": hard, config.objective: soft}

    return objective
