"""`trimtab evaluate` and `trimtab profile`."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import ConsoleProgress, output
from .options import Force, Limit, Seed, Selection, listed, selects

if TYPE_CHECKING:
    from .devices.measurement import Measurement, ProfileResult


@selects
def evaluate(
    target: Annotated[Path, typer.Argument(help="A Bundle's folder, an artifact's folder, or a checkpoint with --model.")],
    selection: Selection,
    limit: Limit = None,
) -> None:
    """The task's test metrics: a Bundle in torch, an artifact in its own runtime."""
    from .export.artifact import MANIFEST, load_artifact
    from .loading import fitted, open_network, open_task, own_size, task_name, task_options
    from .models.errors import UserError
    from .scoring import channels_first
    from .workflow import evaluate_artifact, evaluate_module, require_task

    if (target / MANIFEST).exists():
        if selection.data is None:
            raise UserError("evaluating an artifact needs data", hint="add --data fashion-mnist, digits, folder:PATH, …")
        contract = channels_first(load_artifact(target).contract)
        options = task_options(selection, selection.size or own_size(contract))
        task = fitted(contract, open_task(task_name(selection), options))
        metrics = evaluate_artifact(target, task, limit=limit)
    else:
        with ExitStack() as stack:
            bundle, own = open_network(target, stack, selection)
            metrics = evaluate_module(bundle, require_task(own, "evaluate"), limit=limit)
    output.table("", ("metric", ">value"), [(name, f"{value:.4f}") for name, value in metrics.items()])
    output.result(metrics)


def profile(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders; the first of each runtime is the baseline.")],
    on: Annotated[str, typer.Option("--on", help="The device: local.")] = "local",
    runtimes: Annotated[
        str | None, typer.Option("--runtime", help="Runtimes, comma-separated. Default: all that fit and are installed.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="Threads per inference.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size of artifacts with a dynamic batch.")] = 1,
    dims: Annotated[list[str], typer.Option("--dim", help="Size of another symbolic dimension: H=224 (repeatable).")] = [],
    budget_s: Annotated[
        float | None, typer.Option("--budget", help="Seconds for all measurements. Default: the preset's.")
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="How long and how exactly to measure.")] = "standard",
    affinity: Annotated[str | None, typer.Option("--cpu", help="Pin to these CPUs: 0 or 0,1.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the raw samples and conditions to this JSON file.")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Measured latency, with an A/A noise floor, randomised order and the conditions it was measured under."""
    from .devices.profile import profile as measure
    from .loading import keywords
    from .models import files
    from .models.errors import UserError

    if out:
        files.refuse_overwrite(out, force=force)
    sizes = {"N": batch, **keywords(dims, "--dim")} if batch != 1 or dims else None
    if affinity and not all(cpu.isdigit() for cpu in listed(affinity)):
        raise UserError(f"--cpu {affinity!r} is not a list of CPU numbers", hint="--cpu 0, or --cpu 0,1")
    pinned = tuple(int(cpu) for cpu in listed(affinity)) if affinity else None
    result = measure(
        artifacts,
        on=on,
        runtimes=listed(runtimes) if runtimes else None,
        threads=threads,
        dims=sizes,
        budget_s=budget_s,
        seed=seed,
        affinity=pinned,
        preset=preset,
        force=force,
        progress=ConsoleProgress(),
    )
    say_profile(result)
    if out:
        files.write_json(out, result.model_dump(mode="json"))
        output.say(f"raw samples: {out}")
    output.result(result.model_dump(mode="json"))


def input_spread(m: Measurement) -> str:
    """How the latency of an adaptive network is spread over its inputs, in words."""
    p50, p99 = m.input_percentile_ms(50), m.input_percentile_ms(99)
    return f"over {len(m.inputs_ns)} real inputs, one by one: median {p50:.3f} ms, p99 {p99:.3f} ms; the times above are their mean"


def say_profile(result: ProfileResult) -> None:
    """Latencies and comparisons as tables, then what was left out and why."""
    narrow = shutil.get_terminal_size((100, 24)).columns < 80
    rows: list[tuple[Any, ...]] = []
    for m in result.measurements:
        row = (m.runtime, m.label, f"{m.p50_ms:.3f}", f"{m.p90_ms:.3f}", f"{m.p99_ms:.3f}", len(m.samples_ns))
        rows.append(row[:5] if narrow else row)
    columns = ("runtime", "artifact", ">p50 ms", ">p90 ms", ">p99 ms", ">samples")
    output.table("", columns[:5] if narrow else columns, rows)
    for m in result.measurements:
        if m.inputs_ns:
            output.say(f"{m.label} on {m.runtime}: {input_spread(m)}")
    for c in result.comparisons:
        interval = f" [{c.low:.2f}, {c.high:.2f}]" if c.low is not None and c.high is not None else ""
        floor = f"noise floor {c.noise_floor:.1%}" if c.noise_floor is not None else "no noise floor"
        verdict = "" if c.significant else "  (not significant)"
        output.say(f"{c.runtime}: {c.b} is {c.speedup:.2f}×{interval} as fast as {c.a}, {c.rounds} rounds, {floor}{verdict}")
    for s in result.skipped:
        output.say(f"not measured: {s.label}{f' on {s.runtime}' if s.runtime else ''}: {s.reason}")
    for warning in result.warnings:
        output.say(f"warning: {warning}")
