"""`trimtab train` and `trimtab compress`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import ConsoleProgress, output
from .loading import DEFAULT_TASK
from .options import DataArgs, Device, Force, ModelArgs, Out, Seed, Selection, Size, SkipBad, TaskName, selects
from .steps_text import say_step

if TYPE_CHECKING:
    from .compress.recipe import Recipe
    from .models.bundle import Bundle

Set = Annotated[
    list[str],
    typer.Option(
        "--set", help="Training parameter as key=value: epochs=15, lr=0.1, …; STEP.epochs=15 where there are several steps."
    ),
]

OutOfCompress = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Where the Bundle goes; never overwritten without --force. Not with --estimate."),
]
Objective = Annotated[
    str | None,
    typer.Option("--objective", help="Distil by this objective, without a recipe: kd, kd++, … (`trimtab recipes ls`)."),
]
Student = Annotated[
    str | None,
    typer.Option(
        "--student",
        help="Who learns: a zoo name, path/to/net.py:factory, a Bundle's folder (goes on from its weights), or parent (the "
        "same network, fresh weights).",
    ),
]
StudentArgs = Annotated[
    list[str], typer.Option("--student-arg", help="Argument of the student's factory as key=value (repeatable).")
]
TeacherName = Annotated[
    str | None, typer.Option("--teacher", help="Who teaches: a Bundle's folder, or ema. Default: the checkpoint itself.")
]
DistilSet = Annotated[
    list[str], typer.Option("--set", help="Parameter of the distillation as key=value: epochs=30, lr=0.1, label_weight=1, …")
]


def train(
    model: Annotated[str, typer.Argument(help="A zoo name (`trimtab models ls`), or path/to/net.py:factory.")],
    data: Annotated[str, typer.Option("--data", help="fashion-mnist, digits, folder:PATH, npz:PATH, …")],
    out: Out,
    task_name: TaskName = None,
    settings: Set = [],
    model_args: ModelArgs = [],
    data_args: DataArgs = [],
    size: Size = None,
    seed: Seed = 0,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="ISP networks: learn from RAW files and unrelated pictures, without pairs.")
    ] = False,
    force: Force = False,
) -> None:
    """Train a network from scratch, as a Bundle: by its own method where it brings one, else with the task's loss."""
    from .loading import keywords, open_task, task_options
    from .training import card_of, stepped_keywords, stock_name, training_recipe
    from .workflow import train_baseline

    model = stock_name(model)
    card = card_of(model)
    chosen = Selection(task=task_name, data=data, data_args=data_args, size=size, seed=seed, skip_bad=skip_bad)
    recipe = training_recipe(card, stepped_keywords(settings, "--set"), unpaired=unpaired, seed=seed)
    name = task_name or (card.task if card else DEFAULT_TASK)
    own = dict(card.task_options) if card and name == card.task else {}
    task = open_task(name, {**own, **task_options(chosen, size)})
    bundle = train_baseline(
        model,
        task,
        out,
        recipe=recipe,
        kwargs=keywords(model_args, "--model-arg"),
        progress=ConsoleProgress(),
        force=force,
        device=device,
        on_step=say_step,
    )
    _finish(bundle, [])


@selects
def compress(
    checkpoint: Annotated[Path, typer.Argument(help="A Bundle's folder, or a .safetensors/.pt checkpoint with --model.")],
    selection: Selection,
    out: OutOfCompress = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A recipe file, or the name of a shipped one.")] = None,
    objective: Objective = None,
    student: Student = None,
    student_args: StudentArgs = [],
    teacher: TeacherName = None,
    settings: DistilSet = [],
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Train nothing: the MACs that gates (the step ftwt) would save, over r from 0.5 to 1."),
    ] = False,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Apply a recipe to a trained network, or distil it into a student: the result is a smaller Bundle."""
    from .loading import keywords, open_network
    from .models.errors import UserError
    from .workflow import compress as run
    from .workflow import require_task, student_of_code

    kwargs = keywords(student_args, "--student-arg")
    if estimate:
        given = {"-o": out, "--objective": objective, "--student": student, "--teacher": teacher, "--set": settings}
        _estimate(checkpoint, selection, recipe, device=device, given={flag for flag, value in given.items() if value})
        return
    if out is None:
        raise UserError("nothing says where the compressed network goes", hint="add -o small.bundle")
    plan = _plan(
        recipe, objective, student=student, kwargs=kwargs, teacher=teacher, settings=settings, selection=selection, out=out
    )
    with ExitStack() as stack:
        bundle, task = open_network(checkpoint, stack, selection)
        if student and ".py:" in student:
            own = require_task(task, "distilling")
            student_of_code(student, own, out, kwargs=kwargs, seed=selection.seed, force=force)
        result = run(bundle, plan, task, out, progress=ConsoleProgress(), force=force, device=device, on_step=say_step)
    _finish(result, [])


def _estimate(checkpoint: Path, selection: Selection, recipe: Path | None, *, device: str, given: set[str]) -> None:
    """`--estimate`. Raises UserError when options that ask for training go with it, and without data."""
    from .estimate import estimate_gates, say_estimate
    from .loading import open_network
    from .models.errors import UserError
    from .recipes import find_recipe
    from .workflow import require_task

    if given:
        raise UserError(
            f"{min(given)} says nothing with --estimate, which trains and writes nothing",
            hint="leave it out; --json has all figures",
        )
    plan = find_recipe(recipe) if recipe else None
    with ExitStack() as stack:
        bundle, task = open_network(checkpoint, stack, selection)
        own = require_task(task, "--estimate")
        found = estimate_gates(bundle, own, plan, seed=selection.seed, device=device)
    say_estimate(found, own.metric)
    output.result(found.as_dict())


def _plan(
    recipe: Path | None,
    objective: str | None,
    *,
    student: str | None,
    kwargs: dict[str, Any],
    teacher: str | None,
    settings: list[str],
    selection: Selection,
    out: Path,
) -> Recipe:
    """What to do: the recipe that was named, or one made of --objective and what goes with it.

    Raises UserError unless exactly one of the two is given, and when an option goes with the other one.
    """
    from .loading import keywords
    from .models.errors import UserError
    from .recipes import distil_recipe, find_recipe, teaches_itself
    from .workflow import student_model

    if (recipe is None) == (objective is None):
        what = "--recipe and --objective both say what to do" if recipe else "nothing says what to do to the network"
        raise UserError(what, hint="give one: --recipe half (`trimtab recipes ls`), or --objective kd++ --student resnet20")
    if objective is None:
        given = {"--student": student, "--student-arg": kwargs, "--teacher": teacher, "--set": settings}
        if extra := [flag for flag, value in given.items() if value]:
            raise UserError(f"{extra[0]} goes with --objective, not with --recipe", hint=f"write it into the recipe: {recipe}")
        return find_recipe(recipe or Path())
    of_code = student is not None and ".py:" in student
    plan = distil_recipe(
        objective,
        student=student_model(student, out) if student else None,
        student_args={} if of_code else kwargs,
        teacher=teacher,
        settings=keywords(settings, "--set"),
        seed=selection.seed,
    )
    if teaches_itself(plan):
        output.say("no --student: the network is taught by itself as it was (self-distillation); it stays as large as it is")
    return plan


def _finish(bundle: Bundle, notes: list[str]) -> None:
    for note in notes:
        output.say(note)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in bundle.manifest.metrics.items())
    output.say(f"Bundle: {bundle.folder}" + (f"  (test {shown})" if shown else ""))
    output.result({"bundle": str(bundle.folder), "hash": bundle.hash, "metrics": bundle.manifest.metrics})
