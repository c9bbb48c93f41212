"""`trimtab export`: a network to proven artifacts."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import output
from .options import Force, Jobs, Memory, NoIsolation, Out, Precision, Selection, Timeout, To, listed, selects

if TYPE_CHECKING:
    from .compress.apply import StepDone
    from .dynamic import Trial
    from .export.convert import Converted, Source
    from .exporting import Settings
    from .latency_target import Target
    from .max_drop import Reverted
    from .models.bundle import Bundle
    from .models.tasks.task import Task


@selects
def export(
    selection: Selection,
    network: Annotated[
        Path | None, typer.Argument(help="A Bundle's folder, a checkpoint with --model, or any .onnx file.")
    ] = None,
    to: To = "",
    out: Out = Path("artifacts"),
    precision: Precision = None,
    settings: Annotated[
        list[str],
        typer.Option("--set", help="Option of a format as FORMAT.NAME=VALUE (repeatable); `trimtab formats` lists them."),
    ] = [],
    calibrate: Annotated[
        int, typer.Option("--calibrate", min=16, help="Training samples that the ranges of int8 are taken from.")
    ] = 128,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            help="Points of the task's metric that an integer artifact may lose on validation data: the fewest layers are kept in "
            "float to meet it (0.5: half a point).",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Walk both programs layer by layer: where the artifact departs, and by how much.")
    ] = False,
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
    setup: Annotated[
        str | None,
        typer.Option(
            "--setup", help="Make the isolated environment of a converter instead: litert-torch, tensorflow, tflite-support."
        ),
    ] = None,
    jobs: Jobs = 2,
    timeout: Timeout = 900.0,
    memory: Memory = 0.0,
    no_isolation: NoIsolation = False,
    force: Force = False,
) -> int:
    """Write artifacts and prove each: fp32 must reach 90 dB SQNR against the network, fp16 45 dB, others 25 dB or the task's metric
    within a point, or it is rejected (exit 1). Converters run in processes of their own."""
    from .export.convert import ConversionError, Limits, plan_formats
    from .exporting import Settings, format_options
    from .max_drop import check_drop
    from .models.errors import UserError

    if setup is not None:
        return _set_up(setup, force=force)
    if network is None or not to:
        raise UserError("there is nothing to export", hint="trimtab export NETWORK --to onnx,tflite -o artifacts")
    formats = listed(to)
    pairs = plan_formats(formats, listed(precision) if precision else None)
    if max_drop is not None:
        check_drop(max_drop / 100, pairs)
    how = Settings(
        calibrate=calibrate,
        options=format_options(settings, formats),
        limits=None if no_isolation else Limits(timeout, memory, jobs),
        max_drop=None if max_drop is None else max_drop / 100,
        seed=selection.seed,
        force=force,
    )
    try:
        with ExitStack() as stack:
            made = _made(
                network,
                selection,
                pairs,
                out,
                how,
                stack,
                keep_features=keep_features,
                dynamic=dynamic,
                max_latency=max_latency,
                explain=explain,
            )
    except ConversionError as error:
        output.result(_results(error.made))
        raise
    output.result(_results(made))
    return 0 if all(c.ok for c in made) else 1


def _results(made: list[Converted]) -> list[dict[str, Any]]:
    return [{"folder": str(c.folder), **c.artifact.model_dump(mode="json")} for c in made]


def _made(
    network: Path,
    selection: Selection,
    pairs: list[tuple[str, str]],
    out: Path,
    how: Settings,
    stack: ExitStack,
    *,
    keep_features: int | None,
    dynamic: str | None,
    max_latency: float | None,
    explain: bool,
) -> list[Converted]:
    """The artifacts of what the user pointed at, said as they come."""
    from .dynamic import fastest, left_out
    from .exporting import bundle_source
    from .latency_target import export_within
    from .loading import open_network
    from .workflow import require_task, shortened

    if network.suffix == ".onnx":
        _refuse_on_file({"--keep-features": keep_features, "--dynamic": dynamic, "--max-latency": max_latency})
        return _exported(*_file(network, selection), pairs, out, how, explain=explain)
    bundle, task = open_network(network, stack, selection)
    label = network.stem if network.is_file() else bundle.folder.resolve().name
    origin = {}
    _check_form(bundle, dynamic, max_latency, [name for name, _ in pairs])
    if keep_features is not None:
        step = shortened(bundle, keep_features, task, stack, seed=how.seed)
        say_features(step)
        origin = {"parent_hash": bundle.hash, "keep_features": str(step.figures["k"])}
        bundle = step.bundle
    if dynamic == "auto":
        own = require_task(task, "--dynamic auto")
        for sentence in left_out(bundle, list(dict.fromkeys(name for name, _ in pairs))):
            output.say(sentence)
        return fastest(bundle, pairs, out, task=own, on_trial=say_trial, label=label, settings=how)
    if dynamic is not None:
        origin |= {"dynamic": dynamic, "parent_hash": bundle.hash}
        bundle = _in_form(bundle, dynamic, task, stack, seed=how.seed)
    if max_latency is not None:
        own = require_task(task, "--max-latency")
        return export_within(
            bundle,
            pairs,
            out,
            max_ms=max_latency,
            task=own,
            label=label,
            settings=how,
            origin=origin,
            on_artifact=say_artifact,
            on_found=say_target,
        )
    source = bundle_source(bundle, label=label, task=task, origin=origin, seed=how.seed, mode=dynamic or "")
    return _exported(source, task, pairs, out, how, explain=explain)


def _file(network: Path, selection: Selection) -> tuple[Source, Task | None]:
    """A user's `.onnx` file, and the task that --data names for it."""
    from .export.convert import file_source
    from .loading import fitted, open_task, own_size, task_name, task_options

    source = file_source(network)
    if not selection.data:
        return source, None
    options = task_options(selection, selection.size or own_size(source.contract))
    return source, fitted(source.contract, open_task(task_name(selection), options))


def _exported(
    source: Source, task: Task | None, pairs: list[tuple[str, str]], out: Path, how: Settings, *, explain: bool
) -> list[Converted]:
    from .exporting import export_source

    made = export_source(source, pairs, out, task=task, settings=how, on_artifact=say_artifact, on_reverted=say_reverted)
    if explain:
        from .explaining import explain_all

        explain_all(source, made, task=task)
    return made


def _set_up(route: str, *, force: bool) -> int:
    """0, when the converter's environment is ready."""
    from .export.routes.environment import setup

    place = setup(route, log=output.say, force=force)
    output.say(f"{route} is ready: {place}")
    output.result({"route": route, "place": str(place)})
    return 0


def say_reverted(found: Reverted) -> None:
    """What was kept in float, in the order of sensitivity, and its price."""
    r = found.record
    first = r.trials[0]
    name = f"{found.format} {found.precision}"
    if not found.keep:
        output.say(
            f"{name}: every layer in integers loses {100 * first.drop:.2f} points on validation ({100 * r.max_drop:g} allowed)"
        )
        return
    kept = [each for each in r.ranking if each.node in found.keep]
    last = next(trial for trial in reversed(r.trials) if set(trial.kept) == found.keep)
    output.say(
        f"{name}: {len(kept)} of {len(r.ranking)} layers in float bring the loss on validation from {100 * first.drop:.2f} to "
        f"{100 * last.drop:.2f} points ({100 * r.max_drop:g} allowed, {len(r.trials)} tries)"
    )
    for each in kept:
        output.say(f"   {each.op} {each.node}: {each.sqnr_db:.1f} dB when it alone is in integers")
    if r.latency is not None and r.over_fp32 is not None:
        output.say(f"   price on {r.runtime}: {r.latency:.2f}× the time of all integers, {r.over_fp32:.2f}× as fast as fp32")


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
