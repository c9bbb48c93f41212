"""The recipe step "distill": a student learns from teachers and labels, by a sum of registered terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from ...models.errors import UserError
from ..method import Context, MethodCard, MethodConfig, Result, register_method
from ..trainconfig import TrainConfig
from .objectives import TermConfig, parse_term
from .presets import expand

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from ...models.tasks.task import Task
    from ..loop import Objective, TrainBatch
    from .setup import RunSetup
    from .term import Term


class DistillConfig(TrainConfig, MethodConfig):
    """Distillation: L = label_weight · task loss + Σ weight · term, each with its own schedule."""

    kind: Literal["distill"] = "distill"
    version: int = 2
    objective: str = Field("kd", description="a named sum of terms (`trimtab recipes ls` shows them), or one term's kind")
    objectives: tuple[SerializeAsAny[TermConfig], ...] = Field(
        (),
        description='terms of your own instead: [{kind = "kd", weight = 1.0, temperature = 4.0}, {kind = "nd", weight = 2.0}]',
    )
    label_weight: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of the task's own loss; left out: the objective's, or 1 with terms"
    )
    teacher: str = Field(
        "parent",
        min_length=1,
        description='"parent" = the Bundle that entered the recipe, "step:2" = what step 2 made, "ema" = the student\'s moving '
        "average, or a Bundle's folder",
    )
    classifier: str = Field("", description="path of the student's last layer, whose input is the embedding; empty = found")
    teacher_classifier: str = Field("", description="the same of the teacher")
    ema_decay: float = Field(0.999, gt=0, lt=1, description='decay per step of the moving average, with teacher = "ema"')
    cache_teacher: bool = Field(
        False,
        description="compute the teacher's signals once, on un-augmented images, instead of at every step on the student's view",
    )
    cache_dtype: Literal["float32", "float16"] = Field(
        "float32", description="how cached signals are stored; float16 halves the files"
    )
    cache_folder: str = Field(
        "", description="a folder that keeps the teacher's signals for other runs; empty = with the step, gone when it is done"
    )

    @field_validator("objectives", mode="before")
    @classmethod
    def _terms(cls, tables: Any) -> Any:
        if not isinstance(tables, list | tuple):
            raise ValueError("a list of tables is wanted")
        return tuple(parse_term(table) for table in tables)

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str) -> str:
        expand(name)
        return name

    @model_validator(mode="after")
    def _one_way(self) -> DistillConfig:
        if self.objectives and self.objective != "kd":
            raise ValueError(f"objective {self.objective!r} and objectives are two ways to say the same: leave one out")
        label_weight, terms = self.terms()
        if not label_weight and not any(term.weight for term in terms):
            raise ValueError("label_weight and every term's weight are 0: there is nothing to learn from")
        return self

    def terms(self) -> tuple[float, tuple[TermConfig, ...]]:
        """(the label's weight, the terms)."""
        weight, terms = (1.0, self.objectives) if self.objectives else expand(self.objective)
        return weight if self.label_weight is None else self.label_weight, terms

    def bundles(self) -> tuple[str, ...]:
        """The folders of the teachers that are named by one."""
        named = [self.teacher, *(getattr(term, "teacher", "") for term in self.terms()[1])]
        return tuple(dict.fromkeys(n for n in named if n not in ("", "parent", "ema") and not n.startswith("step:")))

    def files(self) -> tuple[str, ...]:
        """The files that terms read."""
        return tuple(dict.fromkeys(name for term in self.terms()[1] for name in term.files()))

    def identity(self) -> dict[str, Any]:
        """What decides the run's result: all but how it is carried out, and where signals are kept."""
        return {name: value for name, value in super().identity().items() if name != "cache_folder"}


@register_method(
    "distill",
    DistillConfig,
    MethodCard(
        title="Distil a teacher into the network",
        source="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, and its successors",
        needs_data=True,
        needs_labels=True,
        changes_structure=False,
        trains=True,
    ),
)
def distill(module: nn.Module, task: Task | None, config: DistillConfig, context: Context) -> Result:
    """The module after distillation, with its history and the validation metrics of teachers and student.

    With `cache_teacher` the teacher judges each training image as stored while the student may see it augmented; without, both
    see the same augmented view. What terms train beside the student (projectors, heads) ends with the run.
    Raises UserError when teacher, terms and task do not fit together.
    """
    if task is None:
        raise UserError(
            "distill needs data, and this run has none", hint="add --data fashion-mnist, folder:PATH, … or take the step out"
        )
    from ..train import evaluate, fit, runtime_for
    from .pupil import Pupil, averaged, student_taps
    from .setup import EMA, RunSetup
    from .taps import EMBEDDING, Taps

    runtime = runtime_for(config, context)
    home = _home(module)
    runtime.place(module)
    setup = RunSetup(module, task, config, context, runtime)
    label_weight, configs = config.terms()
    terms = build_terms(configs, setup)
    if any(term.aligned for term in terms) and runtime.accelerator.num_processes > 1:
        raise UserError("gradient alignment runs in one process", hint="set align = false on the term, or start one process")
    follows_itself = any((need.which or config.teacher) == EMA for term in terms for need in term.teachers)
    average = averaged(module, config.ema_decay) if follows_itself else None  # before there are hooks to copy
    sources = setup.sources(terms, average)
    before = evaluate(module, task, "val", runtime=runtime, limit=config.max_eval)
    names = student_taps(terms)
    taps = Taps(module, names, whose="student", classifier=setup.classifier_path() if EMBEDDING in names else "")
    handles = [handle for term in terms if term.hooks for handle in term.hooks(module)]
    pupil = Pupil(module, terms, taps, average=average)
    objective = composite(terms, configs, sources, task=task, config=config, label_weight=label_weight)
    try:
        history = fit(
            pupil,
            task,
            config,
            objective=objective,
            context=context,
            label="distill",
            identity={"teachers": setup.hashes(), "terms": [term.identity for term in terms]},
            runtime=runtime,
        )
    finally:
        taps.remove()
        for handle in handles:
            handle.remove()
        module.to(home)
    notes = [*setup.notes, *(note for term in terms for note in term.notes)]
    if config.cache_teacher:
        view = "an augmented view of them" if config.augment else "the same"
        notes.append(f"the teacher's signals were computed once, on un-augmented training images; the student saw {view}")
    figures = {
        "teacher_val": setup.figures.get(config.teacher, {}),
        "teachers_val": setup.figures,
        "val_before": before,
        "val_after": history.val,
        "teacher_cache": setup.cache,
        "history": history.as_dict(),
    }
    return Result(module.eval(), figures=figures, notes=(*dict.fromkeys(filter(None, notes)), *history.notes))


def _home(module: nn.Module) -> Any:
    from ..runtime import home_of

    return home_of(module)


def build_terms(configs: Sequence[TermConfig], setup: RunSetup) -> list[Term]:
    """The terms, their heads initialised by the run's seed and their place in the list alone."""
    import torch

    from ..sampling import derived_seed
    from .objectives import objectives

    built = []
    for index, config in enumerate(configs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(setup.seed, "term", index))
            built.append(objectives.get(config.kind).build(config, setup))
    return built


def composite(
    terms: Sequence[Term],
    configs: Sequence[TermConfig],
    sources: Mapping[str, Callable[[TrainBatch], Mapping[str, Tensor]]],
    *,
    task: Task,
    config: DistillConfig,
    label_weight: float,
) -> Objective:
    """label_weight · task loss + Σ weight(progress) · term; aligned terms come as a loss of their own."""
    import torch

    from ..alignment import AlignedLoss
    from .term import Signals

    names = _part_names(configs)

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Any, dict[str, Any]]:
        taught = {which: source(batch) for which, source in sources.items()}
        seen = network(batch.inputs)
        zero = torch.zeros((), device=batch.inputs.device)
        main, aligned, parts = zero, zero, {}
        if label_weight:
            parts["label"] = task.loss(seen["taps"]["logits"], batch.targets)
            main = label_weight * parts["label"]
        for index, (name, term, settings) in enumerate(zip(names, terms, configs, strict=True)):
            weight = settings.weight_at(batch.epoch / config.epochs)
            teachers = {need.role: taught[need.which or config.teacher] for need in term.teachers}
            parts[name] = term.loss(Signals(batch, seen["taps"], teachers, seen["heads"].get(str(index))))
            if term.aligned and weight:
                aligned = aligned + weight * parts[name]
            else:  # at weight 0 too: in a run of several processes every parameter takes part in every step
                main = main + weight * parts[name]
        both = main.requires_grad and aligned.requires_grad  # with nothing to be aligned to, a sum like any other
        return (AlignedLoss(main, aligned) if both else main + aligned), parts

    return objective


def _part_names(configs: Sequence[TermConfig]) -> list[str]:
    """The terms' kinds, numbered where one comes twice."""
    names: list[str] = []
    for config in configs:
        count = sum(name.split("-#")[0] == config.kind for name in names)
        names.append(f"{config.kind}-#{count + 1}" if count else config.kind)
    return names
