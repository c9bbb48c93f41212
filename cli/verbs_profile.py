"""`trimtab profile`: latency on the user's devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import ConsoleProgress, output
from .options import Force, Selection, listed, selects

if TYPE_CHECKING:
    from .devices.measurement import ProfileResult
    from .devices.profile import Evaluation

OPS = 50


@selects
def profile(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders; the first of each runtime is the baseline.")],
    selection: Selection,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            help="Devices, comma-separated: local, browser, adb, ssh:user@host, qemu:cortex-a76, or names given by `trimtab devices add`.",
        ),
    ] = "local",
    runtimes: Annotated[
        str | None, typer.Option("--runtime", help="Runtimes, comma-separated. Default: all that fit and are installed.")
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option("--set", help="Option of a runtime as RUNTIME.NAME=VALUE (repeatable): openvino.precision=bf16."),
    ] = [],
    threads: Annotated[int, typer.Option("--threads", help="Threads per inference.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size of artifacts with a dynamic batch.")] = 1,
    dims: Annotated[list[str], typer.Option("--dim", help="Size of another symbolic dimension: H=224 (repeatable).")] = [],
    budget_s: Annotated[
        float | None, typer.Option("--budget", help="Seconds for all measurements. Default: the preset's.")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="How long and how exactly to measure: quick, standard, thorough, or mlperf (at least 1024 queries and 60 s each).",
        ),
    ] = "standard",
    affinity: Annotated[
        str | None, typer.Option("--cpu", help="Pin to these CPUs: 0 or 0,1. Default: the device's own.")
    ] = None,
    ops: Annotated[
        int, typer.Option("--ops", min=0, help="Inferences to profile operation by operation afterwards; 0: none.")
    ] = OPS,
    sustained_min: Annotated[
        float,
        typer.Option("--sustained", min=0, help="Minutes to run every artifact without a pause: does the device throttle?"),
    ] = 0,
    cool_down_s: Annotated[
        float | None,
        typer.Option(
            "--cool-down", min=0, help="Seconds to wait at most until the device is as cool as at the begin. Default: 60."
        ),
    ] = None,
    evaluate: Annotated[
        int | None,
        typer.Option("--evaluate", min=1, help="Run this many test samples of --data on the device, for the metric there."),
    ] = None,
    budget_instructions: Annotated[
        int | None,
        typer.Option(
            "--budget-instructions", min=1, help="Instructions that an artifact may take on an emulated core; else exit code 1."
        ),
    ] = None,
    lan: Annotated[
        bool, typer.Option("--lan", help="Browser: let devices on this network in, by the token in the QR code.")
    ] = False,
    https: Annotated[bool, typer.Option("--https", help="Browser: serve https with a certificate of your own making.")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the raw samples and conditions to this JSON file.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Write a report to this HTML file.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the figures to this CSV file, operations beside it.")] = None,
    force: Force = False,
) -> int:
    """Measured latency, with an A/A noise floor, randomised order and the conditions it was measured under."""
    from .devices.profile import profile as measure
    from .devices.records import over_budget
    from .loading import keywords
    from .models import files
    from .models.errors import UserError

    for path in (out, page, csv):
        if path:
            files.refuse_overwrite(path, force=force)
    if affinity and not all(cpu.isdigit() for cpu in listed(affinity)):
        raise UserError(f"--cpu {affinity!r} is not a list of CPU numbers", hint="--cpu 0, or --cpu 0,1")
    if budget_instructions and not any(name.startswith("qemu") for name in listed(on)):
        raise UserError("--budget-instructions counts on emulated cores only", hint="add --on qemu:cortex-a76")
    result = measure(
        artifacts,
        on=listed(on),
        runtimes=listed(runtimes) if runtimes else None,
        options=runtime_options(settings),
        threads=threads,
        dims={"N": batch, **keywords(dims, "--dim")} if batch != 1 or dims else None,
        budget_s=budget_s,
        seed=selection.seed,
        affinity=tuple(int(cpu) for cpu in listed(affinity)) if affinity else None,
        preset=preset,
        force=force,
        ops=ops,
        sustained_s=60 * sustained_min,
        cool_down_s=cool_down_s,
        evaluation=_evaluation(evaluate, artifacts, selection),
        settings={"browser": {**({"lan": True} if lan else {}), **({"https": True} if https else {})}},
        progress=ConsoleProgress(),
        say=output.say,
    )
    deliver(result, out=out, page=page, csv=csv)
    over = over_budget(result.counts, budget_instructions) if budget_instructions else []
    for count in over:
        output.say(
            f"over budget: {count.label} takes {count.instructions:,} instructions on {count.core}, {budget_instructions:,} are allowed"
        )
    output.result(result.model_dump(mode="json"))
    return 1 if over or any(entry.kind in ("wrong outputs", "lost", "device") for entry in result.skipped) else 0


def deliver(result: ProfileResult, *, out: Path | None, page: Path | None, csv: Path | None) -> None:
    """What was found: said, and written where the user wants it."""
    from .models import files
    from .profile_text import TOP, say_profile

    say_profile(result, top=TOP)
    if out:
        files.write_json(out, result.model_dump(mode="json"))
        output.say(f"raw samples: {out}")
    if csv:
        from .profile_export import write_csv, write_ops_csv

        write_csv(result, csv)
        output.say(f"figures: {csv}, operations: {write_ops_csv(result, csv.with_name(csv.stem + '-ops.csv'))}")
    if page:
        from .profile_page import write_profile_page

        output.say(f"report: {write_profile_page([result], page).resolve()}")


def runtime_options(settings: list[str]) -> dict[str, dict[str, str]]:
    """Runtime → its options, from RUNTIME.NAME=VALUE. Raises UserError."""
    from .models.errors import UserError

    found: dict[str, dict[str, str]] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        runtime, dot, option = name.partition(".")
        if not (equals and dot and option):
            raise UserError(f"--set {text!r} is not RUNTIME.NAME=VALUE", hint="--set openvino.precision=bf16")
        found.setdefault(runtime, {})[option] = value
    return found


def _evaluation(samples: int | None, artifacts: list[Path], selection: Selection) -> Evaluation | None:
    """What takes the task's metrics on the device, None when nobody asked. Raises UserError without data."""
    if samples is None:
        return None
    from .devices.profile import Evaluation
    from .loading import artifact_task
    from .models.errors import UserError
    from .scoring import device_score

    if selection.data is None:
        raise UserError("--evaluate needs data", hint="add --data fashion-mnist, digits, folder:PATH, …")
    task = artifact_task(artifacts[0], selection)
    return Evaluation(data=selection.data, samples=min(samples, len(task.samples("test"))), score=device_score(task, samples))
