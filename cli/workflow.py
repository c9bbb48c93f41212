"""What the verbs do, free of the command line: train, compress, evaluate, export, and put a Bundle in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models import files, processes
from .models.bundle import MANIFEST, Bundle, Manifest, load_bundle, save_bundle
from .models.errors import UserError
from .models.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from .compress.apply import StepDone
    from .compress.recipe import Recipe
    from .export.convert import Converted, Source
    from .models.contract import Contract
    from .models.tasks.task import Task

WORK, STUDENT = ".work", "student"


def train_baseline(
    model: str,
    task: Task,
    out: Path,
    *,
    config: dict[str, Any],
    kwargs: dict[str, Any],
    seed: int,
    progress: Progress,
    force: bool = False,
    device: str = "auto",
) -> Bundle:
    """A Bundle in `out`, trained from scratch with the task's loss; a killed run resumes. Its test metrics are in the manifest."""
    from .compress.recipe import parse_recipe
    from .loading import task_ref

    recipe = parse_recipe({"format": 1, "seed": seed, "step": [{"kind": "finetune", **config}]}, origin="train", name="train")
    files.refuse_overwrite_unless(out, force=force, allow=(WORK,))
    bundle = untrained(model, task, out / WORK / "untrained", kwargs=kwargs, seed=seed, reference=task_ref(task))
    return compress(bundle, recipe, task, out, progress=progress, force=True, device=device)


def untrained(model: str, task: Task, folder: Path, *, kwargs: dict[str, Any], seed: int, reference: Any) -> Bundle:
    """A freshly initialised network as a Bundle: the start of a training run, and the same at every resume."""
    import torch

    from .models.architectures import architectures, stock_arguments
    from .models.source import parse

    architecture = parse(model, {**stock_arguments(task.contract), **kwargs} if model in architectures else kwargs)
    torch.manual_seed(seed)
    module = architecture.build()
    if processes.is_main():
        save_bundle(folder, module, Manifest(architecture=architecture, contract=task.contract, task=reference), force=True)
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
    """The recipe's result as a Bundle in `out`, with its test metrics. Steps are kept in `out/.work` until it is there."""
    from .compress.apply import run_recipe

    files.refuse_overwrite_unless(out, force=force, allow=(WORK,))
    work = out / WORK
    steps = run_recipe(parent, recipe, task, work, progress=progress, device=device, on_step=on_step)
    metrics = evaluate_module(steps[-1].bundle, task) if task else {}
    return install(steps[-1].bundle, out, metrics=metrics, task=task)


def install(bundle: Bundle, out: Path, *, metrics: dict[str, float], task: Task | None) -> Bundle:
    """A copy of `bundle` in `out` with its metrics and its task written in; it replaces all that was there."""
    from .loading import task_ref

    manifest = bundle.manifest.model_copy(update={"metrics": metrics, "task": task_ref(task) if task else bundle.manifest.task})
    if processes.is_main():
        with files.new_folder(out, force=True) as temp:
            for path in bundle.folder.iterdir():
                shutil.copyfile(path, temp / path.name)
            files.write_json(temp / MANIFEST, manifest.model_dump(mode="json"))
    processes.wait()
    return load_bundle(out)


def evaluate_module(bundle: Bundle, task: Task, *, limit: int | None = None, device: str = "auto") -> dict[str, float]:
    """The task's test metrics of a Bundle's module."""
    from .compress.train import Runtime, evaluate

    return evaluate(bundle.module(), task, "test", runtime=Runtime(device, amp="off"), limit=limit or 0)


def evaluate_artifact(folder: Path, task: Task, *, limit: int | None = None) -> dict[str, float]:
    """The task's test metrics of an artifact in its own runtime, whatever batch size it takes, its settings at their defaults."""
    import numpy as np
    import torch

    from .export.artifact import load_artifact
    from .export.exporter import exporters
    from .export.parity import run_in_layout

    artifact = load_artifact(folder)
    runner = exporters.get(artifact.format).runner(artifact.path(folder), artifact.contract)
    contract = artifact.contract
    original = channels_first(contract)
    name, result = original.inputs[0].name, original.outputs[0].name
    batch = contract.inputs[0].shape[0]
    settings = original.defaults()

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        parts = inputs.split(batch if isinstance(batch, int) else len(inputs))
        return torch.from_numpy(
            np.concatenate(
                [
                    run_in_layout(runner, {name: part.numpy(), **settings}, module=original, artifact=contract)[result]
                    for part in parts
                ]
            )
        )

    return task.evaluate(predict, "test", limit=limit)


def channels_first(contract: Contract) -> Contract:
    """The contract with its images as NCHW, as torch and the tasks have them."""
    return contract.model_copy(
        update={
            "inputs": tuple(s.as_layout("NCHW") for s in contract.inputs),
            "outputs": tuple(s.as_layout("NCHW") for s in contract.outputs),
        }
    )


def export_bundle(
    bundle: Bundle,
    pairs: Sequence[tuple[str, str]],
    out: Path,
    *,
    task: Task | None,
    label: str,
    origin: Mapping[str, str] | None = None,
    seed: int = 0,
    force: bool = False,
    mode: str = "",
    thresholds: Sequence[float] = (),
    facts: Mapping[str, Any] | None = None,
    calibrate: int = 128,
    on_artifact: Callable[[Converted], None] | None = None,
) -> list[Converted]:
    """One verified artifact per (format, precision) of a Bundle, judged on the task's test samples when there is a task.

    `origin` is noted in the artifacts beside the Bundle's hash. `mode` "gathered" writes a gated network in that form; a routed
    Bundle becomes control flow, with `thresholds` in place of its own, if given, and `facts` beside what else is said of them.
    Integer ranges are taken from the first `calibrate` training samples.
    """
    import torch

    from .export.convert import convert, module_source

    noted = {"bundle_hash": bundle.hash, **(origin or {})}
    module = bundle.module()
    make: Callable[..., Source] = module_source
    if bundle.plan.routes:
        from .export.dynamic.routed import routed_source as make

        if thresholds:
            buffers = dict(module.named_buffers())
            buffers["thresholds"].copy_(torch.tensor(thresholds))
    elif mode == "gathered":
        from .export.dynamic.gathered import gathered_source

        make = partial(gathered_source, keep=_shares(module, task, seed)) if task else gathered_source
    source = make(module, bundle.contract, label=label, origin=noted, seed=seed)
    if facts:
        source = replace(source, dynamic={**source.dynamic, **facts})
    return convert(
        source,
        pairs,
        out,
        real=real_samples(task),
        calibration=calibration_samples(task, pairs, calibrate),
        seed=seed,
        force=force,
        on_artifact=on_artifact,
    )


def _shares(module: nn.Module, task: Task, seed: int, images: int = 512) -> dict[str, float]:
    """How many of every gate's channels are on, as a mean share over training images: it tells where gathering pays."""
    from .compress.dynamic.static import mean_masks
    from .compress.train import Runtime

    means = mean_masks(module, task, images=images, seed=seed, runtime=Runtime("auto", amp="off"))
    return {path: float(mean.mean()) for path, mean in means.items()}


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


def real_samples(task: Task | None, count: int = 64) -> np.ndarray | None:
    """The first `count` test samples as network inputs (N, C, H, W), or None without a task or with fewer than eight."""
    if task is None:
        return None
    samples = task.samples("test")
    if len(samples) < 8:
        return None
    return task.inputs(samples.__getitems__(range(min(count, len(samples))))).numpy()


def calibration_samples(task: Task | None, pairs: Sequence[tuple[str, str]], count: int) -> np.ndarray | None:
    """`count` training samples as network inputs (N, C, H, W), spread over the split; None where no pair wants them, or no task is."""
    import numpy as np

    from .export.exporter import exporters

    if task is None or not any(precision in exporters.entry(name).card.calibrated for name, precision in pairs):
        return None
    samples = task.samples("train")
    picked = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return task.inputs(samples.__getitems__(picked.tolist())).numpy()


def require_task(task: Task | None, verb: str) -> Task:
    """The task. Raises UserError when there is none."""
    if task is None:
        raise UserError(
            f"{verb} needs data, and the Bundle names none", hint="add --data fashion-mnist, digits, folder:PATH, npz:PATH, …"
        )
    return task
