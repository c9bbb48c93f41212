"""The whole road: a Bundle in, a compressed Bundle, proven artifacts, measurements and a report out."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import ConsoleProgress, output
from .export.worker import Limits
from .export_text import say_artifact, say_reverted
from .exporting import Settings
from .models import files
from .models.errors import UserError, did_you_mean
from .pictures import has_pictures, pictures_of
from .pipeline import Run
from .profile_text import say_profile
from .record import FailedRecord, PictureRecord
from .steps_text import say_step

if TYPE_CHECKING:
    from torch import Tensor

    from .compress.recipe import Recipe
    from .models.bundle import Bundle
    from .models.contract import Contract
    from .models.tasks.task import Task
    from .record import ArtifactRecord, ModelRecord, RunRecord

RECORD, REPORT = "run.json", "report.html"


@dataclass(frozen=True)
class JobConfig:
    """What a whole run is asked to do. `pairs` are (format, precision); `runtimes` None means all that are installed.

    `limits`: converters run in processes of their own within these; None: in this one. `dims` are sizes of free dimensions, at which
    the network is counted and timed; those left out are the test samples' own."""

    title: str
    pairs: Sequence[tuple[str, str]]
    seed: int = 0
    max_drop: float | None = None
    limits: Limits | None = field(default_factory=Limits)
    threads: int = 1
    preset: str = "standard"
    budget_s: float | None = None
    runtimes: Sequence[str] | None = None
    device: str = "auto"
    command: str = ""
    notes: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)


def run_job(parent: Bundle, recipe: Recipe | None, task: Task, folder: Path, config: JobConfig) -> tuple[RunRecord, Path]:
    """The record of the run and the path of its report. Stages that are done already are reused. No recipe: the network as it is."""
    run, tool = Run(folder), _versions()
    networks, steps = _networks(run, parent, recipe, task, config, tool)
    dims = sample_dims(next(reversed(networks.values())).contract, task, config.dims)
    records, artifacts, failed = [], [], []
    for name, bundle in networks.items():
        measured = run.stage(
            f"evaluate-{name}", [bundle.hash, task.data_id, tool, *sized(dims)], _evaluator(name, bundle, task, config, dims)
        )
        records.append({**measured, "bundle": bundle.hash})
    for name, bundle in networks.items():
        made = run.stage(
            f"export-{name}",
            [bundle.hash, config.pairs, config.seed, task.data_id, tool, config.max_drop],
            _exporter(name, bundle, task, config),
        )
        failed += made["failed"]
        artifacts += [{**a, "folder": f"export-{name}/{a['folder']}"} for a in made["artifacts"]]
    accepted = [folder / a["folder"] for a in artifacts if a["status"] == "accepted"]
    shas = [a["artifact"]["sha256"] for a in artifacts]
    settings = [config.threads, config.preset, config.budget_s, list(config.runtimes or ()), config.seed, tool, *sized(dims)]
    profiled: dict[str, Any] = {"profile": None}
    if accepted:
        profiled = run.stage("profile", [shas, settings], lambda _: _profile(accepted, config, dims))
    pictures: list[dict[str, Any]] = []
    if has_pictures(task):
        last = next(reversed(networks.values()))
        drawn = run.stage("pictures", [last.hash, task.data_id, tool], lambda _: {"pictures": pictures_of(last, task)})
        pictures = drawn["pictures"]
    record = _record(run, task, config, records, artifacts, profiled, steps, tool)
    told = {"failed": tuple(FailedRecord(**entry) for entry in failed), "pictures": tuple(PictureRecord(**p) for p in pictures)}
    record = record.model_copy(update=told)
    return record, _write(record, folder)


def sample_dims(contract: Contract, task: Task, given: Mapping[str, int]) -> dict[str, int]:
    """A size for every free dimension but the batch: the one given, else that of the task's test samples.

    Raises UserError for a dimension that the network doesn't have.
    """
    free = [symbol for symbol in contract.symbols if symbol != "N"]
    for symbol in given:
        if symbol not in free:
            raise UserError(f"--dim {symbol}: the network has no free dimension {symbol!r}", hint=did_you_mean(symbol, free))
    if not set(free) - set(given):
        return dict(given)
    shape = task.inputs(task.samples("test").__getitems__([0])).shape
    own = {symbol: size for symbol, size in zip(contract.inputs[0].shape, shape, strict=True) if symbol in free}
    return {**{str(symbol): int(size) for symbol, size in own.items()}, **given}


def sized(dims: Mapping[str, int]) -> list[list[object]]:
    """What a stage's identity says of sizes: nothing where none is free."""
    return [[symbol, size] for symbol, size in sorted(dims.items())]


def _networks(
    run: Run, parent: Bundle, recipe: Recipe | None, task: Task, config: JobConfig, tool: dict[str, str]
) -> tuple[dict[str, Bundle], list[dict[str, Any]]]:
    """The run's networks by name, and what the steps reported that made the last one."""
    from .compress.apply import bundle_hashes, file_hashes
    from .models.bundle import load_bundle
    from .workflow import steps_of

    if recipe is None:
        return {"network": parent}, steps_of(parent)
    named = [digest for step in recipe.steps for digest in (*bundle_hashes(step), *file_hashes(step))]
    inputs = [parent.hash, named, recipe.digest, task.data_id, tool]
    compressed = run.stage("compress", inputs, lambda work: _compress(parent, recipe, task, work, config))
    return {"parent": parent, "compressed": load_bundle(run.folder / "compress" / "bundle")}, compressed["steps"]


def _compress(parent: Bundle, recipe: Recipe, task: Task, work: Path, config: JobConfig) -> dict[str, Any]:
    from .compress.apply import run_recipe
    from .workflow import install, step_record

    steps = run_recipe(parent, recipe, task, work, progress=ConsoleProgress(), device=config.device, on_step=say_step)
    install(steps[-1].bundle, work / "bundle", metrics={}, task=task)
    return {"files": ["bundle/bundle.json", "bundle/weights.safetensors"], "steps": [step_record(step) for step in steps]}


def _evaluator(
    name: str, bundle: Bundle, task: Task, config: JobConfig, dims: Mapping[str, int]
) -> Callable[[Path], dict[str, Any]]:
    def work(_: Path) -> dict[str, Any]:
        return model_record(name, bundle, task, device=config.device, dims=dims).model_dump(mode="json")

    return work


def model_record(
    name: str, bundle: Bundle, task: Task, *, device: str = "auto", dims: Mapping[str, int] | None = None
) -> ModelRecord:
    """A network's cost at batch 1 and `dims`, layer by layer, and its test metrics."""
    import torch

    from .compress.cost import count
    from .record import LayerRecord, ModelRecord
    from .workflow import evaluate_module

    sizes = {**bundle.contract.example_dims(), **(dims or {})}
    inputs = [torch.from_numpy(v) for v in bundle.contract.random_inputs(sizes, seed=0).values()]
    cost = count(bundle.module(), inputs)
    macs, worst = expected_cost(bundle, inputs, task) or (cost.macs, None)
    metrics = evaluate_module(bundle, task, device=device)
    output.say(
        f"  {name}: "
        + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items())
        + f", {macs / 1e6:.2f} MMACs"
        + (f" expected ({worst / 1e6:.2f} at most)" if worst else "")
        + f", {cost.params:,} params"
    )
    return ModelRecord(
        name=name,
        architecture=bundle.manifest.architecture.name,
        bundle=bundle.hash,
        macs=macs,
        macs_worst=worst,
        params=cost.params,
        weight_bytes=cost.weight_bytes,
        activation_peak_bytes=cost.activation_peak_bytes,
        metrics=metrics,
        layers=tuple(LayerRecord(**vars(layer)) for layer in cost.layers),
    )


def expected_cost(bundle: Bundle, inputs: list[Tensor], task: Task) -> tuple[int, int] | None:
    """(mean MACs over test samples, MACs of the dearest way) of a network that adapts to its input; None for any other.

    Gated networks are counted by their masks, as the papers do, although a masked one computes everything.
    """
    from .compress.routing.cost import expected_macs
    from .models.routed import RoutedNet

    if not (bundle.plan.gates or bundle.plan.routes):
        return None
    samples = task.samples("test")
    parts = (
        task.inputs(samples.__getitems__(range(i, min(i + 256, len(samples))))) for i in range(0, min(2048, len(samples)), 256)
    )
    net = bundle.module().eval()
    if isinstance(net, RoutedNet):
        found = expected_macs(net, parts)
        return round(found.mean), found.worst
    import torch

    from .compress.dynamic.accounting import MacModel
    from .models.gates import gates_of

    model, total, seen = MacModel.of(net, inputs), 0.0, 0
    with torch.inference_mode():
        for part in parts:
            net(part)
            masks = {path: gate.mask for path, gate in gates_of(net).items() if gate.mask is not None}
            total, seen = total + float(model.per_sample(masks).sum()), seen + len(part)
    return round(total / seen), model.dense + model.gate_macs


def _exporter(name: str, bundle: Bundle, task: Task, config: JobConfig) -> Callable[[Path], dict[str, Any]]:
    settings = Settings(limits=config.limits, max_drop=config.max_drop, seed=config.seed, force=True)

    def work(folder: Path) -> dict[str, Any]:
        from .export.convert import ConversionError
        from .exporting import bundle_source, export_source

        source = bundle_source(bundle, label=name, task=task, seed=config.seed)
        failures = {}
        try:
            made = export_source(
                source, config.pairs, folder, task=task, settings=settings, on_artifact=say_artifact, on_reverted=say_reverted
            )
        except ConversionError as error:  # the others are there, and the report says which are not
            made, failures = error.made, error.failures
            for pair, reason in failures.items():
                output.say(f"{' '.join(pair)}: not written: {reason}")
        return {
            "files": [c.folder.name for c in made],
            "failed": [
                {"model": name, "format": pair[0], "precision": pair[1], "reason": str(reason)}
                for pair, reason in failures.items()
            ],
            "artifacts": [
                {
                    "model": name,
                    "folder": c.folder.name,
                    "status": "accepted" if c.ok else "rejected",
                    "artifact": c.artifact.model_dump(mode="json"),
                }
                for c in made
            ],
        }

    return work


def _profile(folders: list[Path], config: JobConfig, dims: Mapping[str, int]) -> dict[str, Any]:
    from .devices.profile import profile

    result = profile(
        folders,
        runtimes=config.runtimes,
        dims=dims or None,
        threads=config.threads,
        seed=config.seed,
        preset=config.preset,
        budget_s=config.budget_s,
        progress=ConsoleProgress(),
    )
    say_profile(result)
    return {"profile": result.model_dump(mode="json")}


def _versions() -> dict[str, str]:
    from .compress.apply import tool_versions

    return tool_versions(
        (
            "torch",
            "torch-pruning",
            "accelerate",
            "numpy",
            "onnx",
            "onnxruntime",
            "onnxslim",
            "ai-edge-litert",
            "coremltools",
            "openvino",
        )
    )


def _record(
    run: Run,
    task: Task,
    config: JobConfig,
    models: list[dict[str, Any]],
    artifacts: list[dict[str, Any]],
    profiled: dict[str, Any],
    steps: list[dict[str, Any]],
    tool: dict[str, str],
) -> RunRecord:
    """The run as data; everything in it was returned by a stage."""
    from .record import RunRecord

    return RunRecord.model_validate(
        {
            "title": config.title,
            "created": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": config.command,
            "seed": config.seed,
            "task": task.name,
            "data": task.data,
            "data_id": task.data_id,
            "metric": task.metric,
            "test_samples": len(task.samples("test")),
            "models": models,
            "steps": steps,
            "artifacts": artifacts,
            "profile": profiled["profile"],
            "stages": run.stages,
            "versions": tool,
            "host": {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()},
            "notes": config.notes,
        }
    )


def _write(record: RunRecord, folder: Path) -> Path:
    from .report import write_report

    files.write_json(folder / RECORD, record.model_dump(mode="json"))
    return write_report(record, folder / REPORT)


def rejected(record: RunRecord) -> list[ArtifactRecord]:
    """The artifacts that failed their parity gate."""
    return [a for a in record.artifacts if a.status == "rejected"]
