"""What the verbs do, free of the command line: train, compress, evaluate, export, and put a Bundle in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models import files, processes
from .models.bundle import MANIFEST, Bundle, Manifest, load_bundle, save_bundle
from .models.errors import UserError
from .models.progress import Progress

if TYPE_CHECKING:
    from .compress.apply import StepDone
    from .compress.recipe import Recipe
    from .models.tasks.task import Task

WORK, STUDENT = ".work", "student"
STEPS = "steps.json"
"""What the steps reported that made a Bundle, beside it: losses, the frozen networks they looked through, how they chose."""


def train_baseline(
    model: str,
    task: Task,
    out: Path,
    *,
    recipe: Recipe,
    kwargs: dict[str, Any],
    progress: Progress,
    force: bool = False,
    device: str = "auto",
    on_step: Callable[[StepDone], None] | None = None,
) -> Bundle:
    """A Bundle in `out`, trained from scratch by the recipe; a killed run resumes. Its test metrics are in the manifest."""
    from .loading import task_ref

    files.refuse_overwrite_unless(out, force=force, allow=(WORK,))
    bundle = untrained(model, task, out / WORK / "untrained", kwargs=kwargs, seed=recipe.seed, reference=task_ref(task))
    return compress(bundle, recipe, task, out, progress=progress, force=True, device=device, on_step=on_step)


def untrained(model: str, task: Task, folder: Path, *, kwargs: dict[str, Any], seed: int, reference: Any) -> Bundle:
    """A freshly initialised network as a Bundle: the start of a training run, and the same at every resume."""
    import torch

    from .loading import measured_outputs
    from .models.architectures import architectures, stock_arguments
    from .models.source import parse

    architecture = parse(model, {**stock_arguments(task.contract, model), **kwargs} if model in architectures else kwargs)
    torch.manual_seed(seed)
    module = architecture.build()
    if processes.is_main():
        contract = measured_outputs(module, task.contract)
        save_bundle(folder, module, Manifest(architecture=architecture, contract=contract, task=reference), force=True)
    processes.wait()
    return load_bundle(folder)


def student_model(text: str, out: Path) -> str:
    """`--student` as a recipe says it: a zoo name or "parent" as it is, a Bundle's folder as its whole path, and for code
    (`file.py:factory`) the folder where `student_of_code` puts the untrained network. Raises UserError for a file alone."""
    if ".py:" in text:
        return str((out / WORK / STUDENT).resolve())
    if text.endswith(".py"):
        raise UserError(
            f"--student {text} names a file but no factory", hint=f"--student {text}:NAME, NAME what returns the module"
        )
    from .models.architectures import architectures

    folder = Path(text).expanduser()
    return str(folder.resolve()) if text not in architectures and (folder / MANIFEST).exists() else text


def student_of_code(text: str, task: Task, out: Path, *, kwargs: dict[str, Any], seed: int, force: bool) -> Bundle:
    """The network that the user's `file.py:factory` makes, untrained, as a Bundle in `out`'s work folder."""
    from .loading import task_ref

    files.refuse_overwrite_unless(out, force=force, allow=(WORK,))
    try:
        return untrained(text, task, out / WORK / STUDENT, kwargs=kwargs, seed=seed, reference=task_ref(task))
    except UserError as error:  # the same words as for --model and --model-arg
        what, hint = (part.replace("--model", "--student") for part in (error.what, error.hint))
        raise UserError(what, hint=hint) from error


def compress(
    parent: Bundle,
    recipe: Recipe,
    task: Task | None,
    out: Path,
    *,
    progress: Progress,
    force: bool = False,
    device: str = "auto",
    on_step: Callable[[StepDone], None] | None = None,
) -> Bundle:
    """The recipe's result as a Bundle in `out`, with its test metrics. Steps are kept in `out/.work` until it is there.

    What steps leave beside their Bundles (the rounds of a lottery) comes to lie in `out/STEP`, such as `out/01-lottery/rounds`.
    """
    from .compress.apply import KEPT, run_recipe
    from .loading import fitted

    files.refuse_overwrite_unless(out, force=force, allow=(WORK,))
    work = out / WORK
    steps = run_recipe(parent, recipe, task, work, progress=progress, device=device, on_step=on_step)
    metrics = evaluate_module(steps[-1].bundle, fitted(steps[-1].bundle.contract, task)) if task else {}
    kept = {folder.parent.name: folder for folder in sorted(work.glob(f"*/{KEPT}"))}
    told = [*steps_of(parent), *map(step_record, steps)]
    return install(steps[-1].bundle, out, metrics=metrics, task=task, kept=kept, told=told)


def step_record(step: StepDone) -> dict[str, Any]:
    """A finished step as data: its kind, full config, figures, notes and seconds."""
    return {
        "kind": step.config.kind,
        "config": step.config.model_dump(mode="json"),
        "figures": step.figures,
        "notes": list(step.notes),
        "seconds": step.seconds,
    }


def steps_of(bundle: Bundle) -> list[dict[str, Any]]:
    """What was reported by the steps that made the Bundle, first to last; empty where nothing was kept."""
    path = bundle.folder / STEPS
    return files.read_json(path) if path.is_file() else []


def install(
    bundle: Bundle,
    out: Path,
    *,
    metrics: dict[str, float],
    task: Task | None,
    kept: Mapping[str, Path] | None = None,
    told: Sequence[Mapping[str, Any]] = (),
) -> Bundle:
    """A copy of `bundle` in `out` with its metrics and its task written in; it replaces all that was there. `kept`: folders that
    come along, by their new name. `told`: what the steps that made it reported (`steps_of` reads it back)."""
    from .loading import task_ref

    manifest = bundle.manifest.model_copy(update={"metrics": metrics, "task": task_ref(task) if task else bundle.manifest.task})
    if processes.is_main():
        with files.new_folder(out, force=True) as temp:
            for path in bundle.folder.iterdir():
                shutil.copyfile(path, temp / path.name)
            for name, folder in (kept or {}).items():
                shutil.copytree(folder, temp / name)
            files.write_json(temp / MANIFEST, manifest.model_dump(mode="json"))
            if told:
                files.write_json(temp / STEPS, list(told))
    processes.wait()
    return load_bundle(out)


def evaluate_module(bundle: Bundle, task: Task, *, limit: int | None = None, device: str = "auto") -> dict[str, float]:
    """The task's test metrics of a Bundle's module."""
    from .compress.train import Runtime, evaluate

    return evaluate(bundle.module(), task, "test", runtime=Runtime(device, amp="off"), limit=limit or 0)


def evaluate_artifact(folder: Path, task: Task, *, limit: int | None = None) -> dict[str, float]:
    """The task's test metrics of an artifact in its own runtime, whatever batch size it takes, its settings at their defaults."""
    from .export.artifact import load_artifact
    from .export.exporter import exporters
    from .scoring import predictor

    artifact = load_artifact(folder)
    runner = exporters.get(artifact.format).runner(artifact.path(folder), artifact.contract)
    return task.evaluate(predictor(runner, artifact.contract), "test", limit=limit)


def shortened(bundle: Bundle, k: int, task: Task | None, stack: ExitStack, *, seed: int = 0) -> StepDone:
    """The recipe step "keep-features" done to `bundle`; its result lies in a temp folder that `stack` removes."""
    import tempfile

    from .compress.apply import run_recipe
    from .compress.recipe import parse_recipe

    step = {"kind": "keep-features", "k": k}
    recipe = parse_recipe({"format": 1, "seed": seed, "step": [step]}, origin="--keep-features")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-")))
    (done,) = run_recipe(bundle, recipe, task, folder)
    return done


def require_task(task: Task | None, verb: str) -> Task:
    """The task. Raises UserError when there is none."""
    if task is None:
        raise UserError(
            f"{verb} needs data, and the Bundle names none", hint="add --data fashion-mnist, digits, folder:PATH, npz:PATH, …"
        )
    return task
