"""The demonstration: a shipped network through the whole road."""

from __future__ import annotations

from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import ConsoleProgress, output
from .models.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from .models.bundle import Bundle
    from .models.tasks.task import Task
    from .record import RunRecord

FORMATS = (("onnx", "fp32"), ("tflite", "fp32"), ("coreml", "fp16"), ("coreml", "fp32"))
RECIPES = {
    "fashion-mnist": {"epochs": 1.0, "lr": 0.02, "augment": False},
    "digits": {"epochs": 12.0, "lr": 0.02, "augment": False},
}
DIGITS_TRAINING = {"epochs": 15.0, "lr": 0.1, "batch_size": 64}


DYNAMIC = {
    "fashion-mnist": (
        {"epochs": 2.0, "lr": 0.03, "max_train": 6000},
        {"epochs": 3.0, "lr": 0.05, "max_train": 20_000, "ratios": [0.1, 0.35, 1.0]},
    ),
    "digits": ({"epochs": 6.0, "lr": 0.03}, {"epochs": 15.0, "lr": 0.05, "round_to": 1, "ratios": [0.3, 1.0]}),
}
"""Gates that say which channels matter, then branches of different size: the two steps' parameters."""


def dynamic_steps(data: str) -> list[dict[str, Any]]:
    """The recipe of `demo --dynamic`: gates, then branches cut by them."""
    gates, branches = DYNAMIC[data]
    common = {"schedule": "cosine", "augment": False, "max_eval": 1024}
    ours = {"scale": "standardise", "calibrate": True, "target_mac_reduction": 0.4}
    return [{"kind": "ftwt", **ours, **common, **gates}, {"kind": "route", **common, **branches}]


def run_demo(
    data: str, out: Path, *, seed: int, budget_s: float, command: str, dynamic: bool = False
) -> tuple[RunRecord, Path]:
    """The record and the report's path. Formats whose packages are missing are left out, and both the screen and the report say so.

    With `dynamic` the network is gated, then routed, instead of cut once.
    """
    from .compress.recipe import parse_recipe
    from .job import JobConfig, run_job
    from .loading import open_task

    if data not in RECIPES:
        raise UserError(
            f"the demo has no network for data {data!r}",
            hint=did_you_mean(data, RECIPES) + "; for your own: `trimtab run CHECKPOINT --model … --data …`",
        )
    pairs, notes = available_formats()
    for note in notes:
        output.say(note)
    task = open_task("classification", {"data": data, "seed": 0})
    parent = shipped_bundle(data) if data == "fashion-mnist" else _trained_on_digits(task, out / "train", seed)
    cut = [{"kind": "structured", "mac_ratio": 0.5}, {"kind": "distill", "cache_teacher": True, **RECIPES[data]}]
    steps = dynamic_steps(data) if dynamic else cut
    recipe = parse_recipe({"format": 1, "name": "demo", "seed": seed, "step": steps}, origin="demo")
    config = JobConfig(
        title=f"trimtab demo: ResNet-20 on {data}" + (", routed" if dynamic else ""),
        pairs=pairs,
        seed=seed,
        budget_s=budget_s,
        command=command,
        notes=tuple(notes),
    )
    return run_job(parent, recipe, task, out, config)


def faster_in(record: RunRecord) -> list[str]:
    """The runtimes in which the compressed network is measurably faster than its parent, every one's verdict said on the way."""
    proven = {a.artifact.name: a.artifact.parity for a in record.artifacts if a.model == "compressed"}
    before, after = ({m.name: m for m in record.models}[name] for name in ("parent", "compressed"))
    metric = record.metric
    output.say(
        f"\n{metric} {before.metrics[metric]:.4f} → {after.metrics[metric]:.4f} over {record.test_samples:,} test samples, "
        f"MACs {before.macs / 1e6:.2f} → {after.macs / 1e6:.2f} M{' expected' if after.macs_worst else ''}"
    )
    rows, faster = [], []
    for c in record.profile.comparisons if record.profile else ():
        if (parity := proven.get(c.b)) is None:
            continue
        span = f"{c.low:.2f}…{c.high:.2f}" if c.low is not None and c.high is not None else "?"
        rows.append(
            (c.runtime, f"{c.speedup:.2f}×", span, "yes" if c.significant else "no", f"{parity.sqnr_db:.0f} dB, proven")
        )
        if c.significant and c.speedup > 1:
            faster.append(c.runtime)
    output.table("", ("runtime", ">speed-up", ">95 %", "beyond noise", "parity"), rows)
    return faster


def available_formats() -> tuple[list[tuple[str, str]], list[str]]:
    """The demo's (format, precision) pairs that can be written here, and a sentence for each that can't."""
    from .export.exporter import exporters

    pairs, notes = [], []
    for name, precision in FORMATS:
        card = exporters.entry(name).card
        if gone := card.missing():
            notes.append(f"{card.title} is left out: {', '.join(gone)} not installed → pip install 'trimtab[{card.extra}]'")
        else:
            pairs.append((name, precision))
    return pairs, list(dict.fromkeys(notes))


def shipped_bundle(name: str) -> Bundle:
    """The trained Bundle that ships with the package."""
    from .models.bundle import load_bundle

    return load_bundle(Path(str(resources("trimtab") / "assets" / "bundles" / name)))


def _trained_on_digits(task: Task, folder: Path, seed: int) -> Bundle:
    """A ResNet-20 trained here on the 8×8 digits that ship with scikit-learn: seconds, and nothing to download."""
    from .models.bundle import MANIFEST, load_bundle
    from .training import training_recipe
    from .workflow import train_baseline

    if (folder / MANIFEST).exists():
        return load_bundle(folder)
    output.say("· train a ResNet-20 on digits")
    recipe = training_recipe(None, DIGITS_TRAINING, seed=seed)
    return train_baseline("resnet20", task, folder, recipe=recipe, kwargs={"width": 0.5}, progress=ConsoleProgress())
