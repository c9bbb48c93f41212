"""FTWT against its controls at equal training budgets: accuracy, and MACs as estimated before training and as realised after it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from distill_fashion import accuracy, fashion
from dynamic_nets import NETS, TRAINING, baseline
from dynamic_schedule import SCHEDULE
from trials import Claim

from trimtab.compress.apply import StepDone, run_recipe
from trimtab.compress.recipe import parse_recipe
from trimtab.models.bundle import Bundle
from trimtab.models.tasks.task import Task

CUTS = (0.40, 0.55, 0.65, 0.75)
IMAGES, EPOCHS = SCHEDULE.images, SCHEDULE.epochs
COMMON: dict[str, Any] = {
    "lr": 0.03,
    "schedule": "cosine",
    "batch_size": 64,
    "augment": True,
    "max_eval": 1024,
    "evaluate_every": 0,
    "checkpoint_s": 1000,
}
OURS: dict[str, Any] = {"scale": "standardise", "calibrate": True}
"""What makes a gate see its input (see dynamic_gates.py); every arm called "paper" goes without."""


def steps_of(arm: str, cut: float, epochs: float) -> list[dict[str, Any]]:
    """The recipe of an arm. All have `epochs` passes in all; the sliced average spends half of them on its gates."""
    train = {**COMMON, "epochs": epochs}
    half = {**COMMON, "epochs": epochs / 2}
    gated = {"kind": "ftwt", "target_mac_reduction": cut, **train}
    match arm:
        case "decoupled (paper)":
            return [gated]
        case "joint (paper)":
            return [gated | {"mode": "joint"}]
        case "decoupled":
            return [gated | OURS]
        case "uniform":
            return [gated | OURS | {"criterion": "uniform"}]
        case "static, average mask":
            return [gated | OURS | half, {"kind": "static-average"}, {"kind": "finetune", **half}]
        case "static, L1":
            cut_step = {
                "kind": "structured",
                "mac_ratio": round(1 - cut, 3),
                "importance": "l1",
                "round_to": 1,
                "scope": "layer",
            }
            return [cut_step, {"kind": "finetune", **train}]
    raise ValueError(arm)


ARMS = ("decoupled (paper)", "joint (paper)", "decoupled", "uniform", "static, average mask", "static, L1")


def run(bundle: Bundle, steps: list[dict[str, Any]], task: Task, seed: int, folder: Path) -> list[StepDone]:
    """The recipe's finished steps."""
    recipe = parse_recipe({"format": 1, "seed": seed, "step": steps}, origin="benchmark")
    return run_recipe(bundle, recipe, task, folder, device=SCHEDULE.device)


def figures_of(done: list[StepDone], task: Task, arm: str) -> dict[str, float]:
    """Test accuracy in percent and MAC reductions in percent; for gates also what was estimated, and how much they vary."""
    last = done[-1]
    found = {"accuracy": accuracy(last.bundle.module(), task)}
    if "static" in arm:
        cutting = next(step for step in done if step.config.kind in ("structured", "static-average"))
        found["reduction"] = 100 * (1 - cutting.figures["mac_ratio"])
        return found
    gated = last.figures
    found["reduction"] = 100 * gated["realised"]["mac_reduction"]
    found["estimated"] = 100 * gated["estimate"]["mac_reduction"]
    found["distinct_masks"] = gated["diversity"]["distinct"]
    found["dynamic_layers"] = sum(layer["verdict"] == "dynamic" for layer in gated["diversity"]["layers"].values())
    return found


def accuracy_claim(net: str, seeds: int) -> None:
    """Every arm at every cut of one network."""
    task, bundle = fashion(IMAGES), baseline(net)
    about = {
        "data": f"Fashion-MNIST (for CIFAR-10), {IMAGES or 54_000} training images, tested on 10k",
        "network": {"name": net, **NETS[net]},
        "dense": {"accuracy": accuracy(bundle.module(), task), "trained": "as shipped" if net == "resnet20" else TRAINING},
        "training": {**COMMON, "epochs": EPOCHS},
        "ours": OURS,
        "schedule": "scaled to two CPU cores: the paper has 200 epochs of 50k images",
    }
    arms = {f"{arm} @ {cut:.0%}": (arm, cut) for cut in CUTS for arm in ARMS}

    def trial(name: str, seed: int) -> dict[str, float]:
        arm, cut = arms[name]
        with tempfile.TemporaryDirectory() as folder:
            return figures_of(run(bundle, steps_of(arm, cut, EPOCHS), task, seed, Path(folder)), task, arm)

    Claim(f"accuracy-{net}", about, folder=SCHEDULE.folder).run(list(arms), seeds, trial)


CLAIMS = {f"accuracy-{net}": (lambda seeds, net=net: accuracy_claim(net, seeds)) for net in NETS}
