"""`trimtab train` and `trimtab compress`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import ConsoleProgress, output
from .options import DataArgs, Device, Force, ModelArgs, Out, Seed, Selection, Size, SkipBad, selects

if TYPE_CHECKING:
    from .compress.apply import StepDone
    from .models.bundle import Bundle

Set = Annotated[list[str], typer.Option("--set", help="Training parameter as key=value: epochs=15, lr=0.1, batch_size=128, …")]


def train(
    model: Annotated[str, typer.Argument(help="A zoo name (`trimtab models ls`), or path/to/net.py:factory.")],
    data: Annotated[str, typer.Option("--data", help="fashion-mnist, digits, folder:PATH, npz:PATH, …")],
    out: Out,
    settings: Set = [],
    model_args: ModelArgs = [],
    data_args: DataArgs = [],
    size: Size = None,
    seed: Seed = 0,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Train a network from scratch: the baseline, as a Bundle."""
    from .loading import keywords, open_task, task_options
    from .workflow import train_baseline

    chosen = Selection(data=data, data_args=data_args, size=size, seed=seed, skip_bad=skip_bad)
    task = open_task("classification", task_options(chosen, size))
    bundle = train_baseline(
        model,
        task,
        out,
        config=keywords(settings, "--set"),
        kwargs=keywords(model_args, "--model-arg"),
        seed=seed,
        progress=ConsoleProgress(),
        force=force,
        device=device,
    )
    _finish(bundle, [])


@selects
def compress(
    checkpoint: Annotated[Path, typer.Argument(help="A Bundle's folder, or a .safetensors/.pt checkpoint with --model.")],
    selection: Selection,
    recipe: Annotated[Path, typer.Option("--recipe", help="A recipe file, or the name of a shipped one.")],
    out: Out,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Apply a recipe to a trained network; the result is a smaller Bundle."""
    from .loading import open_network
    from .recipes import find_recipe
    from .workflow import compress as run

    plan = find_recipe(recipe)
    with ExitStack() as stack:
        bundle, task = open_network(checkpoint, stack, selection)
        result = run(bundle, plan, task, out, progress=ConsoleProgress(), force=force, device=device, on_step=say_step)
    _finish(result, [])


def say_step(step: StepDone) -> None:
    """One finished step, in words."""
    reused = "  (as before)" if step.reused else ""
    output.say(f"{step.index}. {step.config.kind}: {summary(step)}  {step.seconds:.1f} s{reused}")
    for note in step.notes:
        output.say(f"   {note}")
    if fixed := step.figures.get("fixed"):
        output.say("   left whole:")
        for layer in fixed:
            output.say(f"     {layer['path']} ({layer['channels']}): {layer['reason']}")


def summary(step: StepDone) -> str:
    """The figures of a step that matter most, on one line."""
    figures = step.figures
    if "mac_ratio" in figures:
        return (
            f"MACs {figures['macs_before'] / 1e6:.2f} → {figures['macs_after'] / 1e6:.2f} M ({figures['mac_ratio']:.3f}), "
            f"params {figures['params_before']:,} → {figures['params_after']:,} ({figures['param_ratio']:.3f})"
        )
    if val := figures.get("val_after"):
        before: dict[str, Any] = figures.get("val_before") or {}
        return ", ".join(
            f"{name} {before[name]:.4f} → {value:.4f}" if name in before else f"{name} {value:.4f}"
            for name, value in val.items()
        )
    return ""


def _finish(bundle: Bundle, notes: list[str]) -> None:
    for note in notes:
        output.say(note)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in bundle.manifest.metrics.items())
    output.say(f"Bundle: {bundle.folder}" + (f"  (test {shown})" if shown else ""))
    output.result({"bundle": str(bundle.folder), "hash": bundle.hash, "metrics": bundle.manifest.metrics})
