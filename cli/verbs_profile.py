"""`trimtab profile`: latency on the user's devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import ConsoleProgress, output
from .options import Force, Selection, listed, selects
from .profile_options import (
    OPS,
    Batch,
    BudgetInstructions,
    BudgetS,
    CoolDown,
    Cpus,
    Csv,
    Dims,
    Evaluate,
    Https,
    Lan,
    On,
    Ops,
    Page,
    Preset,
    Runtimes,
    RuntimeSettings,
    SamplesOut,
    SustainedMin,
    Threads,
)

if TYPE_CHECKING:
    from .devices.measurement import ProfileResult
    from .devices.profile import Evaluation


@selects
def profile(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders; the first of each runtime is the baseline.")],
    selection: Selection,
    on: On = "local",
    runtimes: Runtimes = None,
    settings: RuntimeSettings = [],
    threads: Threads = 1,
    batch: Batch = 1,
    dims: Dims = [],
    budget_s: BudgetS = None,
    preset: Preset = "standard",
    affinity: Cpus = None,
    ops: Ops = OPS,
    sustained_min: SustainedMin = 0,
    cool_down_s: CoolDown = None,
    evaluate: Evaluate = None,
    budget_instructions: BudgetInstructions = None,
    lan: Lan = False,
    https: Https = False,
    out: SamplesOut = None,
    page: Page = None,
    csv: Csv = None,
    force: Force = False,
) -> int:
    """Measured latency, with an A/A noise floor, randomised order and the conditions it was measured under."""
    from .devices.profile import profile as measure
    from .devices.records import over_budget
    from .loading import keywords
    from .models import files
    from .models.errors import UserError

    for path in (out, page, csv, csv and ops_csv(csv)):
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
        output.say(f"figures: {csv}, operations: {write_ops_csv(result, ops_csv(csv))}")
    if page:
        from .profile_page import write_profile_page

        output.say(f"report: {write_profile_page([result], page).resolve()}")


def ops_csv(csv: Path) -> Path:
    """Where the operations go, beside the figures in `csv`."""
    return csv.with_name(f"{csv.stem}-ops.csv")


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
