"""`trimtab export`, `trimtab evaluate` and `trimtab profile`."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import ConsoleProgress, output
from .options import Force, Limit, Out, Precision, Seed, Selection, To, listed, selects

if TYPE_CHECKING:
    from .compress.apply import StepDone
    from .devices.measurement import Measurement, ProfileResult
    from .dynamic import Trial
    from .export.convert import Converted
    from .latency_target import Target
    from .models.bundle import Bundle
    from .models.tasks.task import Task


@selects
def export(
    network: Annotated[Path, typer.Argument(help="A Bundle's folder, a checkpoint with --model, or any .onnx file.")],
    selection: Selection,
    to: To,
    out: Out,
    precision: Precision = None,
    keep_features: Annotated[
        int | None,
        typer.Option(
            "--keep-features",
            min=0,
            help="Keep the first K features before the classifier, of a network trained with nested dropout; 0: as few as the "
            "validation data allows.",
        ),
    ] = None,
    dynamic: Annotated[
        str | None,
        typer.Option(
            "--dynamic",
            help="The form of a network with gates or branches: masked, gathered, static, routed, or auto (measured here). "
            "Default: as it is.",
        ),
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            "--max-latency",
            help="Milliseconds that a routed network may take on average: its branches are timed here, and the thresholds "
            "that are most accurate within it become the artifact's.",
        ),
    ] = None,
    calibrate: Annotated[
        int, typer.Option("--calibrate", min=16, help="Training samples that the ranges of int8 are taken from.")
    ] = 128,
    force: Force = False,
) -> int:
    """Write artifacts and prove each: fp32 must reach 90 dB SQNR against the network, fp16 45 dB, int8 25 dB, or it is rejected (exit 1)."""
    from .dynamic import fastest, left_out
    from .export.convert import convert, file_source, plan_formats
    from .latency_target import export_within
    from .loading import open_network
    from .workflow import export_bundle, require_task, shortened

    pairs = plan_formats(listed(to), listed(precision) if precision else None)
    if network.suffix == ".onnx":
        _refuse_on_file({"--keep-features": keep_features, "--dynamic": dynamic, "--max-latency": max_latency})
        made = convert(file_source(network), pairs, out, seed=selection.seed, force=force, on_artifact=say_artifact)
    else:
        with ExitStack() as stack:
            bundle, task = open_network(network, stack, selection)
            label = network.stem if network.is_file() else bundle.folder.resolve().name
            origin = {}
            _check_form(bundle, dynamic, max_latency, [name for name, _ in pairs])
            if keep_features is not None:
                step = shortened(bundle, keep_features, task, stack, seed=selection.seed)
                say_features(step)
                origin = {"parent_hash": bundle.hash, "keep_features": str(step.figures["k"])}
                bundle = step.bundle
            settled: dict[str, Any] = {"label": label, "seed": selection.seed, "force": force}
            if dynamic == "auto":
                own = require_task(task, "--dynamic auto")
                for sentence in left_out(bundle, list(dict.fromkeys(name for name, _ in pairs))):
                    output.say(sentence)
                made = fastest(bundle, pairs, out, task=own, on_trial=say_trial, **settled)
            else:
                if dynamic is not None:
                    origin |= {"dynamic": dynamic, "parent_hash": bundle.hash}
                    bundle = _in_form(bundle, dynamic, task, stack, seed=selection.seed)
                settled |= {"origin": origin, "on_artifact": say_artifact}
                if max_latency is not None:
                    own = require_task(task, "--max-latency")
                    made = export_within(bundle, pairs, out, max_ms=max_latency, task=own, on_found=say_target, **settled)
                else:
                    made = export_bundle(bundle, pairs, out, task=task, mode=dynamic or "", calibrate=calibrate, **settled)
    output.result([{"folder": str(c.folder), **c.artifact.model_dump(mode="json")} for c in made])
    return 0 if all(c.ok for c in made) else 1


def _refuse_on_file(options: dict[str, Any]) -> None:
    """None, when no option was given that only a Bundle's network has a use for. Raises UserError."""
    from .models.errors import UserError

    if given := [flag for flag, value in options.items() if value is not None]:
        raise UserError(f"{given[0]} wants a Bundle's network, and this is an ONNX file", hint="export the Bundle instead")


def _check_form(bundle: Bundle, mode: str | None, max_latency: float | None, formats: list[str]) -> None:
    """None, when the form and the latency that were asked for can be written to all formats. Raises UserError."""
    from .dynamic import check_mode
    from .latency_target import check_target

    if mode is not None:
        check_mode(mode, bundle, formats)
    if max_latency is not None:
        check_target(max_latency, bundle, mode, formats)


def _in_form(bundle: Bundle, mode: str, task: Task | None, stack: ExitStack, *, seed: int) -> Bundle:
    """`bundle` in the form of `mode`, with what its making has to say."""
    from .dynamic import formed

    form = formed(bundle, mode, task, stack, seed=seed)
    for note in form.step.notes if form.step else ():
        output.say(f"   {note}")
    return form.bundle


def say_features(step: StepDone) -> None:
    """How many features were kept, what that does to accuracy and cost, and how they were cut."""
    f = step.figures
    accuracy = ""
    if "val_after" in f:
        before, after = f["val_before"]["accuracy"], f["val_after"]["accuracy"]
        accuracy = f", validation accuracy {before:.4f} → {after:.4f}"
    output.say(
        f"{f['k']} of {f['features']} features kept{accuracy}, MACs {f['macs_before'] / 1e6:.2f} → {f['macs_after'] / 1e6:.2f} M, "
        f"params {f['params_before']:,} → {f['params_after']:,}"
    )
    for note in step.notes:
        output.say(f"   {note}")


def say_target(found: Target) -> None:
    """What each way takes here, and the thresholds that keep the mean within the target."""
    ways = ", ".join(f"{ms:.3f}" for ms in found.paths_ms)
    shares = ", ".join(f"{share:.0%}" for share in found.shares)
    output.say(
        f"{found.format} {found.precision} on {found.runtime}: the ways to branches 1 to {len(found.paths_ms)} take {ways} ms; "
        f"within {found.max_ms:g} ms: thresholds {', '.join(f'{t:.4f}' for t in found.thresholds)}, branches answer {shares}, "
        f"{found.expected_ms:.3f} ms expected, validation accuracy {found.accuracy:.4f} (largest branch {found.reference:.4f})"
    )


def say_trial(trial: Trial) -> None:
    """One form of `--dynamic auto`: what it cost here, or why it is out."""
    a = trial.made.artifact
    found = f"{trial.latency_ms:.3f} ms" if trial.latency_ms is not None else f"not measured: {trial.reason}"
    output.say(f"{a.format} {a.precision} {trial.mode}: {found}, validation {trial.metric:.4f}")


def say_artifact(made: Converted) -> None:
    """One artifact and its verdict, on one line; its warnings below."""
    a, p = made.artifact, made.artifact.parity
    agreement = f", top-1 agreement {p.top1_agreement:.1%}" if p.top1_agreement is not None else ""
    verdict = "proven" if made.ok else "REJECTED"
    output.say(
        f"{a.format} {a.precision}: {verdict}, SQNR {p.sqnr_db:.1f} dB (gate {p.gate_db:g}){agreement}, {p.inputs} inputs, "
        f"{a.size_bytes / 1e6:.2f} MB → {made.folder}"
    )
    if p.reason:
        output.say(f"   {p.reason}")
    for warning in a.warnings:
        output.say(f"   warning: {warning}")


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
    from .workflow import channels_first, evaluate_artifact, evaluate_module, require_task

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
