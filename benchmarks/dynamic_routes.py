"""Which branches pay: of different size by difficulty, or of one size by masks or classes, against static networks, at equal budgets.

Thresholds are chosen on validation images for a share of the MACs; accuracy and MACs are those of the test images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from distill_fashion import accuracy, fashion
from dynamic_accuracy import COMMON, EPOCHS, IMAGES, run
from dynamic_nets import NETS, baseline
from dynamic_schedule import SCHEDULE
from trials import Claim

from trimtab.compress.apply import StepDone
from trimtab.compress.train import Runtime, evaluate
from trimtab.models.tasks.task import Task

STATIC = (0.1, 0.2, 0.35, 0.5)
BY_LAYER = ", cut by layer"
"""Arms whose layers all lose the same share of their channels; the others' channels are ranked across the network."""
TARGETS = (0.15, 0.2, 0.25, 0.35, 0.5)
ROUTES: dict[str, dict[str, Any]] = {
    "cascade": {},
    "cascade, channels by activity": {"importance": "activity"},
    "cascade, nested": {"nested": True},
    "cascade, nested, cut by layer": {"nested": True, "scope": "layer"},
    "router": {"rule": "router"},
    "router by mass": {"rule": "router", "signal": "mass"},
    "4 clusters of masks": {"by": "masks", "clusters": 4, "ratio": 0.35},
    "4 clusters of classes": {"by": "classes", "clusters": 4, "ratio": 0.35},
}


def steps_of(arm: str) -> list[dict[str, Any]]:
    """The recipe of an arm; every network in it is taught by the dense one for the same number of passes."""
    train = {**COMMON, "epochs": EPOCHS}
    if arm.startswith("static"):
        scope = "layer" if arm.endswith(BY_LAYER) else "global"
        cut = {"kind": "structured", "mac_ratio": float(arm.removesuffix(BY_LAYER).split()[1]), "round_to": 4, "scope": scope}
        return [cut, {"kind": "distill", "cache_teacher": False, **train}]
    sizes = {} if "by" in ROUTES[arm] else {"ratios": [0.1, 0.35, 1.0]}
    return [{"kind": "route", **sizes, **ROUTES[arm], **train}]


def figures_of(done: list[StepDone], task: Task) -> dict[str, float]:
    """Test accuracy in percent and MACs in percent of the dense network's; for thresholds at every target."""
    module = done[-1].bundle.module()
    if done[0].config.kind != "route":
        return {"accuracy": accuracy(module, task), "macs": 100 * done[0].figures["mac_ratio"]}
    figures = done[-1].figures
    paths = torch.tensor([branch["path_ratio"] for branch in figures["branches"]])
    found = {f"branch_{i}": 100 * b["val"]["accuracy"] for i, b in enumerate(figures["branches"])}
    curve = figures.get("calibration", {}).get("curve", [])
    settings = {f" @ {t:g}": [p for p in curve if p["mac_ratio"] <= t][-1] for t in TARGETS} if curve else {"": None}
    for name, point in settings.items():
        if point:
            module.thresholds.copy_(torch.tensor(point["thresholds"]))
        taken: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda net, _a, _o, taken=taken: taken.append(net.taken))
        found[f"accuracy{name}"] = 100 * evaluate(module, task, "test", runtime=Runtime("cpu", amp="off"))["accuracy"]
        handle.remove()
        found[f"macs{name}"] = 100 * float(paths[torch.cat(taken)].mean())
    return found


def routes_claim(net: str, seeds: int) -> None:
    """Every kind of branch, and the static networks, of one architecture."""
    task, bundle = fashion(IMAGES), baseline(net)
    about = {
        "data": f"Fashion-MNIST (for CIFAR-10), {IMAGES or 54_000} training images, tested on 10k",
        "network": {"name": net, **NETS[net]},
        "dense": accuracy(bundle.module(), task),
        "training": {**COMMON, "epochs": EPOCHS},
        "routes": ROUTES,
    }
    arms = [*(f"static {ratio:g}{scope}" for scope in ("", BY_LAYER) for ratio in STATIC), *ROUTES]

    def trial(arm: str, seed: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            return figures_of(run(bundle, steps_of(arm), task, seed, Path(folder)), task)

    Claim(f"routes-{net}", about, folder=SCHEDULE.folder).run(arms, seeds, trial)


CLAIMS = {f"routes-{net}": (lambda seeds, net=net: routes_claim(net, seeds)) for net in ("resnet20", "vgg16_bn")}
