"""Wall-clock on real inputs in their natural mix: dense, masked, gathered, static and routed forms of one network, side by side.

Every artifact sees the same test images, one at a time, on one thread. Per image the artifacts run in random order; models are loaded
anew for every sitting; a ratio is of the mean latencies of one sitting, and its figure the median over sittings with their range. The
dense network is there twice (A/A). Router, gates and `If` are inside the artifacts and thus inside the times.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_fashion import accuracy, fashion
from dynamic_accuracy import COMMON, OURS, run
from dynamic_nets import KEPT, NETS, baseline
from dynamic_schedule import SCHEDULE
from training import conditions
from trials import RESULTS

from trimtab.compress.apply import StepDone
from trimtab.compress.train import Runtime, evaluate
from trimtab.devices.runtime import require, runtimes
from trimtab.devices.timing import collector_off
from trimtab.export.artifact import load_artifact
from trimtab.export.parity import relayout
from trimtab.exporting import Settings, export_bundle
from trimtab.models import files
from trimtab.models.bundle import Bundle
from trimtab.models.tasks.task import Task
from trimtab.scoring import channels_first

IMAGES, EPOCHS = SCHEDULE.images and 2 * SCHEDULE.images, SCHEDULE.epochs
TIMED, SITTINGS = 200, 8
STATIC = (0.1, 0.2, 0.35, 0.5, 0.7)
TARGETS = (0.15, 0.2, 0.25, 0.35, 0.5, 0.7)
"""Shares of the dense MACs that thresholds are chosen for, on validation images."""
RUNTIMES = {"onnxruntime": "onnx", "openvino": "onnx", "litert": "tflite"}
TRAIN: dict[str, Any] = {**COMMON, "epochs": EPOCHS}
TAUGHT: dict[str, Any] = {"kind": "distill", "cache_teacher": False, **TRAIN}


@dataclass(frozen=True)
class Contender:
    """One artifact with one setting: where it lies, what it is fed beside the image, and its test accuracy and MAC ratio."""

    name: str
    folders: dict[str, Path]
    thresholds: np.ndarray | None
    about: dict[str, float]


def recipes() -> dict[str, list[dict[str, Any]]]:
    """How every form is made from the dense network; each network in it is trained for the same number of passes."""
    half = {**TRAIN, "epochs": EPOCHS / 2}
    gated = {"kind": "ftwt", "target_mac_reduction": 0.5, **OURS, **TRAIN}
    forms: dict[str, list[dict[str, Any]]] = {
        "gated": [gated],
        "static, average mask": [gated | half, {"kind": "static-average"}, TAUGHT | half],
        "routed": [{"kind": "route", "ratios": [0.1, 0.35, 1.0], "scope": "layer", **TRAIN}],
        "routed nested": [{"kind": "route", "ratios": [0.1, 0.35, 1.0], "nested": True, "scope": "layer", **TRAIN}],
    }
    for ratio in STATIC:
        forms[f"static {ratio:g}"] = [{"kind": "structured", "mac_ratio": ratio, "round_to": 4, "scope": "layer"}, TAUGHT]
    return forms


def contenders(net: str, task: Task, folder: Path) -> list[Contender]:
    """Everything that is timed, made and exported under `folder`."""
    dense = baseline(net)
    found = [_exported("dense", dense, task, folder), _exported("dense again", dense, task, folder)]
    for name, steps in recipes().items():
        done = run(dense, steps, task, 0, folder / "steps" / name.replace(" ", "-"))
        bundle = done[-1].bundle
        if name == "gated":
            macs = done[-1].figures["realised"]["mac_ratio"]
            found += [
                _exported(n, bundle, task, folder, mode=mode, macs=macs)
                for n, mode in (("masked", ""), ("gathered", "gathered"))
            ]
        elif name.startswith("routed"):
            found += _at_settings(name, done[-1], task, folder)
        else:
            cutting = next(step for step in done if step.config.kind in ("structured", "static-average"))
            found.append(_exported(name, bundle, task, folder, macs=cutting.figures["mac_ratio"]))
    return found


def _exported(name: str, bundle: Bundle, task: Task, folder: Path, *, mode: str = "", macs: float = 1.0) -> Contender:
    pairs = [("onnx", "fp32")] if mode == "gathered" else [("onnx", "fp32"), ("tflite", "fp32")]
    made = export_bundle(
        bundle, pairs, folder / name.replace(" ", "-"), task=task, label=name, mode=mode, settings=Settings(force=True)
    )
    if bad := [c for c in made if not c.ok]:
        raise RuntimeError(f"{name}: {bad[0].artifact.parity.reason}")
    about = {"mac_ratio": macs} | ({"accuracy": accuracy(bundle.module(), task)} if not bundle.plan.routes else {})
    about["size_bytes"] = made[0].artifact.size_bytes
    return Contender(name, {c.artifact.format: c.folder for c in made}, None, about)


def _at_settings(name: str, done: StepDone, task: Task, folder: Path) -> list[Contender]:
    """The routed artifact at the thresholds calibrated for every target, with the accuracy and the shares measured on test images."""
    base, net, found = _exported(name, done.bundle, task, folder), done.bundle.module(), []
    paths = torch.tensor([branch["path_ratio"] for branch in done.figures["branches"]])
    for target in TARGETS:
        fitting = [point for point in done.figures["calibration"]["curve"] if point["mac_ratio"] <= target]
        if not fitting:
            continue
        net.thresholds.copy_(torch.tensor(fitting[-1]["thresholds"]))
        taken: list[torch.Tensor] = []
        handle = net.register_forward_hook(lambda module, _a, _o, taken=taken: taken.append(module.taken))
        score = 100 * evaluate(net, task, "test", runtime=Runtime("cpu", amp="off"))["accuracy"]
        handle.remove()
        shares = torch.bincount(torch.cat(taken), minlength=len(paths)).float() / sum(map(len, taken))
        about = {
            "accuracy": score,
            "mac_ratio": float(shares @ paths),
            **{f"threshold_{i}": float(t) for i, t in enumerate(net.thresholds)},
            **{f"share_{i}": float(s) for i, s in enumerate(shares)},
        }
        found.append(Contender(f"{name} @ {target:g}", base.folders, net.thresholds.numpy().copy(), {**base.about, **about}))
    return found


Call = Callable[[int], object]


def calls(contender: Contender, runtime: str, images: np.ndarray) -> Call:
    """A freshly loaded session, as a call on the i-th image."""
    folder = contender.folders[RUNTIMES[runtime]]
    artifact = load_artifact(folder)
    contract = artifact.contract
    source = channels_first(contract).inputs[0]
    laid = [relayout(image[None], source, contract.inputs[0]) for image in images]
    extra = {}
    if contender.thresholds is not None:
        extra = {contract.inputs[1].name: contender.thresholds.astype(np.float32)}
    feeds = [{contract.inputs[0].name: image, **extra} for image in laid]
    shapes = {name: array.shape for name, array in feeds[0].items()}
    options = runtimes.entry(runtime).card.complete({})
    session = require(runtime).load(artifact.path(folder), contract, shapes=shapes, threads=1, options=options)
    return lambda i: session.run(feeds[i])


def timed(found: list[Contender], runtime: str, images: np.ndarray, rng: random.Random) -> dict[str, np.ndarray]:
    """Seconds per (sitting, image) and contender."""
    fit = [c for c in found if RUNTIMES[runtime] in c.folders and (c.name != "gathered" or runtime == "onnxruntime")]
    seconds = {c.name: np.zeros((SITTINGS, len(images))) for c in fit}
    for sitting in range(SITTINGS):
        ready = [(c.name, calls(c, runtime, images)) for c in fit]
        for _, call in ready:
            for i in range(20):
                call(i)
        with collector_off():
            for i in range(len(images)):
                rng.shuffle(ready)
                for name, call in ready:
                    start = time.perf_counter()
                    call(i)
                    seconds[name][sitting, i] = time.perf_counter() - start
    return seconds


def summary(seconds: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Per contender: mean and 99th percentile in ms, and the speed-up over dense (median over sittings, lowest, highest)."""
    base = seconds["dense"].mean(1)
    found = {}
    for name, values in seconds.items():
        ratios = sorted(base / values.mean(1))
        found[name] = {
            "mean_ms": 1000 * float(np.median(values.mean(1))),
            "p99_ms": 1000 * float(np.median(np.percentile(values, 99, axis=1))),
            "speedup": statistics.median(ratios),
            "speedup_low": ratios[0],
            "speedup_high": ratios[-1],
        }
    return found


def speed_claim(net: str) -> None:
    """All contenders of one network in all runtimes."""
    task, rng = fashion(IMAGES), random.Random(0)
    images = task.inputs(task.samples("test").__getitems__(range(TIMED))).numpy()
    found = contenders(net, task, KEPT / f"speed-{net}")
    measured = {runtime: summary(timed(found, runtime, images, rng)) for runtime in RUNTIMES}
    record = {
        "command": f"python benchmarks/dynamic.py --only speed-{net}",
        "about": {
            "data": f"Fashion-MNIST (for CIFAR-10), {IMAGES or 54_000} training images, tested on 10k, timed on the first {TIMED} test images",
            "network": {"name": net, **NETS[net]},
            "training": TRAIN,
            "timing": f"batch 1, 1 thread, {SITTINGS} sittings, per image in random order; one trained network of each form (seed 0)",
        },
        "conditions": conditions(),
        "contenders": {c.name: c.about for c in found},
        "latency": measured,
    }
    path = RESULTS / SCHEDULE.folder / f"speed-{net}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, record)
    for runtime, rows in measured.items():
        for name, row in rows.items():
            print(f"{net} {runtime:<12} {name:<22} " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)


CLAIMS = {f"speed-{net}": (lambda _seeds, net=net: speed_claim(net)) for net in NETS}
