"""Runs a recipe on a Bundle: every step a stage of its own, with its own Bundle, resumed where it was stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models import files, processes
from ..models.bundle import CODE, Bundle, Lineage, load_bundle, save_bundle
from ..models.errors import UserError
from ..models.progress import LogProgress, Progress
from .method import Context, MethodConfig, Result, methods
from .recipe import Recipe

if TYPE_CHECKING:
    from ..models.tasks.task import Task

STAGE = "stage.json"
KEPT = "kept"
"""What a step leaves beside its Bundle."""
TOOLS = ("torch", "torch-pruning", "accelerate", "numpy")


@dataclass(frozen=True)
class StepDone:
    """One finished step: its Bundle, its figures and notes, the seconds it took, and whether it was reused from before."""

    index: int
    config: MethodConfig
    bundle: Bundle
    figures: dict[str, Any]
    notes: tuple[str, ...]
    seconds: float
    reused: bool


def run_recipe(
    parent: Bundle,
    recipe: Recipe,
    task: Task | None,
    workdir: Path,
    *,
    progress: Progress | None = None,
    device: str = "auto",
    on_step: Callable[[StepDone], None] | None = None,
) -> list[StepDone]:
    """The recipe's steps applied one after the other, each saved as `workdir/<n>-<kind>/{bundle,stage.json}`.

    A step whose inputs and config are unchanged is reused; one that was killed resumes from its last checkpoint.
    Raises UserError when a step needs data and `task` is None, or when a step fails.
    """
    if task is None and recipe.needs_data:
        kinds = [s.kind for s in recipe.steps if methods.entry(s.kind).card.needs_data]
        raise UserError(f"the recipe's {kinds[0]!r} step needs data", hint="add --data fashion-mnist, digits, folder:PATH, …")
    done: list[StepDone] = []
    current = parent
    for index, config in enumerate(recipe.steps, 1):
        folder = workdir / f"{index:02d}-{config.kind}"
        made = tuple(step.bundle for step in done)
        before = [parent.hash, *(bundle.hash for bundle in made), *bundle_hashes(config), *file_hashes(config)]
        key = files.digest_of(
            [before, config.model_dump(mode="json"), recipe.seed, task.data_id if task else "", *_critical(task)]
        )
        step = _reuse(folder, key, index, config) or _run(
            parent,
            current,
            config,
            task,
            folder,
            key,
            index=index,
            steps=made,
            seed=recipe.seed,
            progress=progress or LogProgress(),
            device=device,
        )
        done.append(step)
        current = step.bundle
        if on_step:
            on_step(step)
    return done


def _critical(task: Task | None) -> list[list[str]]:
    """The task's critical classes, part of a step's inputs where there are some: they decide, but leave the samples as they are."""
    names = list(getattr(task, "critical", ()))
    return [names] if names else []


def bundle_hashes(config: MethodConfig) -> list[str]:
    """The hashes of the other Bundles that a step names. Raises UserError for a folder that holds none."""
    return [load_bundle(Path(folder).expanduser()).hash for folder in config.bundles()]


def file_hashes(config: MethodConfig) -> list[str]:
    """The hashes of the other files that a step names; a missing one is for the step to refuse."""
    paths = [Path(name).expanduser() for name in config.files()]
    return [files.sha256(path) if path.is_file() else "" for path in paths]


def _reuse(folder: Path, key: str, index: int, config: MethodConfig) -> StepDone | None:
    """The step as it was finished before with the same key, or None."""
    if not (folder / STAGE).exists():
        return None
    stage = files.read_json(folder / STAGE)
    if stage.get("key") != key:
        return None
    return StepDone(
        index, config, load_bundle(folder / "bundle"), stage["figures"], tuple(stage["notes"]), stage["seconds"], reused=True
    )


def _run(
    parent: Bundle,
    current: Bundle,
    config: MethodConfig,
    task: Task | None,
    folder: Path,
    key: str,
    *,
    index: int,
    steps: tuple[Bundle, ...],
    seed: int,
    progress: Progress,
    device: str,
) -> StepDone:
    work = folder / "work"
    if processes.is_main():
        if folder.exists() and (not (folder / "key").exists() or (folder / "key").read_text() != key):
            shutil.rmtree(folder)  # leftovers of another config or another parent
        work.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "key", key)
    processes.wait()
    started = time.monotonic()
    context = Context(
        workdir=work, parent=parent, seed=seed, device=device, progress=progress, steps=steps, folder=folder / KEPT
    )
    result = methods.get(config.kind).apply(current.module(), task, config, context)
    if processes.is_main():
        _save(current, config, task, folder, key, result, seed=seed, seconds=time.monotonic() - started)
    processes.wait()
    step = _reuse(folder, key, index, config)
    if step is None:
        raise RuntimeError(f"{folder} was written and can't be read back")
    return replace(step, reused=False)


def _save(
    current: Bundle,
    config: MethodConfig,
    task: Task | None,
    folder: Path,
    key: str,
    result: Result,
    *,
    seed: int,
    seconds: float,
) -> None:
    """The step's Bundle, then `stage.json`, then nothing of its scratch work."""
    lineage = Lineage(
        step=config.kind,
        parent=current.hash,
        config=config.model_dump(mode="json"),
        seed=seed,
        data_id=task.data_id if task else "",
        tool_versions=tool_versions(),
    )
    manifest = current.manifest.model_copy(
        update={**_structure(current, result), "metrics": {}, "lineage": (*current.manifest.lineage, lineage)}
    )
    code = current.folder / CODE if result.architecture is None else result.code
    save_bundle(folder / "bundle", result.module, manifest, code=code, force=True)
    files.write_json(
        folder / STAGE,
        {
            "key": key,
            "status": "done",
            "kind": config.kind,
            "config": config.model_dump(mode="json"),
            "figures": result.figures,
            "notes": list(result.notes),
            "seconds": seconds,
        },
    )
    shutil.rmtree(folder / "work", ignore_errors=True)


def _structure(current: Bundle, result: Result) -> dict[str, Any]:
    """The manifest's fields that say how the network is built and what goes in and out, where the step changed them."""
    contract: dict[str, Any] = {} if result.contract is None else {"contract": result.contract}
    if result.architecture is not None:
        plan = result.plan.model_dump(mode="json") if result.plan else {"edits": []}
        return {"architecture": result.architecture, "output": result.output, "plan": plan, **contract}
    if result.plan is None:
        return contract
    return {"plan": current.plan.then(result.plan).model_dump(mode="json"), **contract}


def tool_versions(names: tuple[str, ...] = TOOLS) -> dict[str, str]:
    """Installed versions of the named distributions, trimtab first; absent ones are left out."""
    found = {}
    for name in ("trimtab", *names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
