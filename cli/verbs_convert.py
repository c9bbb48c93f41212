"""`trimtab export`: a network to proven artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import output
from .export_options import (
    Calibrate,
    Dynamic,
    Explain,
    Fix,
    Free,
    KeepFeatures,
    MaxDrop,
    MaxLatency,
    Route,
    Settings_,
    Setup,
)
from .export_text import say_artifact, say_features, say_reverted, say_target, say_trial
from .options import Force, Jobs, Memory, NoIsolation, Out, Precision, Selection, Timeout, To, listed, selects

if TYPE_CHECKING:
    from .export.convert import Converted, Source
    from .exporting import Settings
    from .models.bundle import Bundle
    from .models.tasks.task import Task


@dataclass(frozen=True)
class Form:
    """What only a network that is a torch module can be asked for: an ONNX file is exported as it is."""

    keep_features: int | None = None
    dynamic: str | None = None
    max_latency: float | None = None
    free: Sequence[str] = ()
    fix: Mapping[str, Any] = field(default_factory=dict)

    def refuse(self) -> None:
        """None, when nothing was asked for. Raises UserError that names the option."""
        from .models.errors import UserError

        for each in fields(self):
            if getattr(self, each.name) != getattr(Form(), each.name):
                flag = "--" + each.name.replace("_", "-")
                raise UserError(f"{flag} wants a Bundle's network, and this is an ONNX file", hint="export the Bundle instead")


@selects
def export(
    selection: Selection,
    network: Annotated[
        Path | None, typer.Argument(help="A Bundle's folder, a checkpoint with --model, or any .onnx file.")
    ] = None,
    to: To = "",
    out: Out = Path("artifacts"),
    precision: Precision = None,
    settings: Settings_ = [],
    free: Free = None,
    fix: Fix = [],
    calibrate: Calibrate = 128,
    max_drop: MaxDrop = None,
    explain: Explain = False,
    keep_features: KeepFeatures = None,
    dynamic: Dynamic = None,
    max_latency: MaxLatency = None,
    route: Route = None,
    setup: Setup = None,
    jobs: Jobs = 2,
    timeout: Timeout = 900.0,
    memory: Memory = 0.0,
    no_isolation: NoIsolation = False,
    force: Force = False,
) -> int:
    """Write artifacts and prove each: fp32 must reach 90 dB SQNR against the network, fp16 45 dB, others 25 dB or the task's metric
    within a point, or it is rejected (exit 1). Converters run in processes of their own."""
    from .export.convert import ConversionError, Limits, check_packages, plan_formats
    from .exporting import Settings, format_options
    from .loading import keywords
    from .max_drop import check_drop
    from .models.errors import UserError

    if setup is not None:
        return _set_up(setup, force=force)
    if network is None or not to:
        raise UserError("there is nothing to export", hint="trimtab export NETWORK --to onnx,tflite -o artifacts")
    formats = listed(to)
    pairs = plan_formats(formats, listed(precision) if precision else None)
    check_packages(formats)
    if max_drop is not None:
        check_drop(max_drop / 100, pairs)
    if route is not None:
        settings = [*settings, f"tflite.route={route}"]
    how = Settings(
        calibrate=calibrate,
        options=format_options(settings, formats),
        limits=None if no_isolation else Limits(timeout, memory, jobs),
        max_drop=None if max_drop is None else max_drop / 100,
        seed=selection.seed,
        force=force,
    )
    form = Form(keep_features, dynamic, max_latency, tuple(listed(free or "")), keywords(fix, "--fix"))
    try:
        with ExitStack() as stack:
            made = _made(network, selection, pairs, out, how, form, stack, explain=explain)
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
    form: Form,
    stack: ExitStack,
    *,
    explain: bool,
) -> list[Converted]:
    """The artifacts of what the user pointed at, said as they come."""
    from .dims import with_dims
    from .dynamic import fastest, left_out
    from .exporting import bundle_source
    from .latency_target import export_within
    from .loading import open_network
    from .workflow import require_task, shortened

    if network.suffix == ".onnx":
        form.refuse()
        return _exported(*_file(network, selection), pairs, out, how, explain=explain)
    bundle, task = open_network(network, stack, selection)
    label = network.stem if network.is_file() else bundle.folder.resolve().name
    origin = {}
    _check_form(bundle, form.dynamic, form.max_latency, [name for name, _ in pairs])
    if form.keep_features is not None:
        step = shortened(bundle, form.keep_features, task, stack, seed=how.seed)
        say_features(step)
        origin = {"parent_hash": bundle.hash, "keep_features": str(step.figures["k"])}
        bundle = step.bundle
    if form.dynamic == "auto":
        own = require_task(task, "--dynamic auto")
        for sentence in left_out(bundle, list(dict.fromkeys(name for name, _ in pairs))):
            output.say(sentence)
        return fastest(bundle, pairs, out, task=own, on_trial=say_trial, label=label, settings=how)
    if form.dynamic is not None:
        origin |= {"dynamic": form.dynamic, "parent_hash": bundle.hash}
        bundle = _in_form(bundle, form.dynamic, task, stack, seed=how.seed)
    if form.max_latency is not None:
        own = require_task(task, "--max-latency")
        return export_within(
            bundle,
            pairs,
            out,
            max_ms=form.max_latency,
            task=own,
            label=label,
            settings=how,
            origin=origin,
            on_artifact=say_artifact,
            on_found=say_target,
        )
    contract = with_dims(bundle.contract, free=form.free, fix=form.fix, module=bundle.module)
    source = bundle_source(
        bundle, label=label, task=task, contract=contract, origin=origin, seed=how.seed, mode=form.dynamic or ""
    )
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
    """The artifacts, explained where that was asked; failures reduced to their smallest piece."""
    from .explaining import explain_all, reproduce
    from .export.convert import ConversionError
    from .exporting import calibration_samples, export_source

    def after(made: Sequence[Converted], failures: Mapping[tuple[str, str], Any]) -> None:
        rejected = [each for each in made if not each.ok]
        if failures or rejected:
            calibration = calibration_samples(task, pairs, how.calibrate)
            reproduce(source, failures, rejected, out, task=task, calibration=calibration, settings=how)
        if explain:
            explain_all(source, made, task=task, settings=how)

    try:
        made = export_source(source, pairs, out, task=task, settings=how, on_artifact=say_artifact, on_reverted=say_reverted)
    except ConversionError as error:
        after(error.made, error.failures)
        raise
    after(made, {})
    return made


def _set_up(route: str, *, force: bool) -> int:
    """0, when the converter's environment is ready."""
    from .export.routes.environment import setup

    place = setup(route, log=output.say, force=force)
    output.say(f"{route} is ready: {place}")
    output.result({"route": route, "place": str(place)})
    return 0


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
