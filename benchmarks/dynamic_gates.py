"""What makes a gate see its input: the paper's predictor and changes to it, one at a time, by how much masks vary.

A gate that answers every input alike is a static network in disguise, however good its accuracy looks. `beyond_constant` is the
agreement with the ground-truth mask beyond that of the best constant mask; `headroom` is how far that constant is from the truth.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from distill_fashion import accuracy, fashion
from dynamic_accuracy import COMMON, EPOCHS, IMAGES, run
from dynamic_nets import NETS, baseline
from dynamic_schedule import SCHEDULE
from trials import Claim

R = 0.85
OURS: dict[str, Any] = {"scale": "standardise", "calibrate": True}
ARMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released code (average pooling)": {"pool": "avg"},
    "gate learning rate 1": {"predictor_lr": 1.0},
    "gates learn 90 % of the run": {"mask_until": 0.9},
    "hidden layer of 64": {"hidden": 64},
    "r = 0.7": {"r": 0.7},
    "random start": {"start": "random"},
    "standardised": {"scale": "standardise"},
    "standardised, average pooling": {"scale": "standardise", "pool": "avg"},
    "standardised, hidden layer of 64": {"scale": "standardise", "hidden": 64},
    "standardised, calibrated (ours)": OURS,
}


def gates_claim(net: str, seeds: int) -> None:
    """Every predictor on one network."""
    task, bundle = fashion(IMAGES), baseline(net)
    about = {
        "data": f"Fashion-MNIST (for CIFAR-10), {IMAGES or 54_000} training images, tested on 10k; masks over 1024 validation images",
        "network": {"name": net, **NETS[net]},
        "training": {**COMMON, "epochs": EPOCHS, "r": R},
        "arms": ARMS,
    }

    def trial(arm: str, seed: int) -> dict[str, float]:
        step = {"kind": "ftwt", "r": R, **COMMON, "epochs": EPOCHS} | ARMS[arm]
        with tempfile.TemporaryDirectory() as folder:
            done = run(bundle, [step], task, seed, Path(folder))[-1]
            varied = done.figures["diversity"]
            layers = varied["layers"].values()
            return {
                "accuracy": accuracy(done.bundle.module(), task),
                "reduction": 100 * done.figures["realised"]["mac_reduction"],
                "estimated": 100 * done.figures["estimate"]["mac_reduction"],
                "distinct_masks": varied["distinct"],
                "dynamic_layers": 100 * varied["dynamic_layers"] / varied["gates"],
                "entropy_bits": statistics.mean(layer["entropy_bits"] for layer in layers),
                "class_bits": statistics.mean(layer["class_bits"] for layer in layers),
                "beyond_constant": 100 * varied["beyond_constant"],
                "headroom": 100 * statistics.mean(layer["headroom"] for layer in layers),
            }

    Claim(f"gates-{net}", about, folder=SCHEDULE.folder).run(list(ARMS), seeds, trial)


CLAIMS = {f"gates-{net}": (lambda seeds, net=net: gates_claim(net, seeds)) for net in ("resnet20", "vgg16_bn")}
