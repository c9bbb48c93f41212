"""What a gate costs, layer by layer: dense, masked and gathered convolutions in ONNX Runtime, OpenVINO and LiteRT.

Every cell is a chain of three convolutions C→C on an H×H map, each with batch norm and ReLU, at batch 1 on one thread; figures are
per layer. "masked" has a gate on every layer, whose mask multiplies; "gathered 50 %" leaves a random half of the channels out (ONNX
Runtime alone). Gates are set so that the same channels are on for every input: their time does not depend on the input, and the
network computes them all the same. Ratios are of pairs in the same round, dense over the other (above 1: faster than dense), with
the interval over sittings; the dense chain is there twice (A/A).

    python benchmarks/dynamic_overhead.py [--quick]     writes benchmarks/results/dynamic/overhead.json in about seven minutes
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from host import host
from torch import nn

from trimtab.devices import conditions
from trimtab.devices.intervals import paired_ratio
from trimtab.devices.runtime import require, runtimes
from trimtab.devices.timing import Maker, Plan, measure
from trimtab.export.artifact import load_artifact
from trimtab.export.convert import convert, module_source
from trimtab.export.dynamic.gathered import gathered_source, single
from trimtab.models import files
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.gates import GateSpec, attach, detach_gates, gates_of

LAYERS = 3
SHAPES = (
    (16, 56),
    (16, 28),
    (32, 28),
    (64, 56),
    (64, 28),
    (64, 14),
    (128, 28),
    (128, 14),
    (128, 7),
    (256, 14),
    (512, 7),
    (512, 4),
)
QUICK_SHAPES = ((16, 28), (64, 28), (128, 14))
KEEPS = (0.25, 0.5, 0.75, 1.0)
RUNTIMES = {"onnxruntime": "onnx", "openvino": "onnx", "litert": "tflite"}
BUDGET_S = {"onnxruntime": 12.0, "openvino": 7.0, "litert": 7.0}
RESULT = Path(__file__).parent / "results" / "dynamic" / "overhead.json"


class Chain(nn.Module):
    """Three convolutions C→C with batch norm and ReLU, then the mean over the map."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(LAYERS):
            conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, C) from (1, C, H, W)."""
        return self.features(x).mean((2, 3))


def chain(channels: int, kernel: int) -> nn.Module:
    """The gated chain, in eval mode."""
    torch.manual_seed(0)
    net = Chain(channels, kernel)
    specs = [
        GateSpec(conv=f"features.{3 * i}", points=(f"features.{3 * i + 1}",), inputs=channels, channels=channels)
        for i in range(LAYERS)
    ]
    return attach(net, specs).eval()


def keeping(net: nn.Module, keep: float, *, seed: int) -> nn.Module:
    """A copy whose gates keep a random share of the channels, the same for every input."""
    net, rng = copy.deepcopy(net), np.random.default_rng(seed)
    for gate in gates_of(net).values():
        count = gate.spec.channels
        on = rng.choice(count, round(keep * count), replace=False)
        with torch.no_grad():
            gate.linear.weight.zero_()
            gate.linear.bias.fill_(-1.0)
            gate.linear.bias[on] = 1.0
    return net


def contract(channels: int, side: int) -> Contract:
    """Any image in, one number a channel out."""
    return Contract(
        inputs=(TensorSpec(name="x", shape=("N", channels, side, side), layout="NCHW"),),
        outputs=(TensorSpec(name="y", shape=("N", channels), layout="NC"),),
    )


def artifacts(channels: int, side: int, kernel: int, folder: Path) -> dict[str, dict[str, Path]]:
    """The proven artifacts of one cell: their folders by format and variant."""
    net, io = chain(channels, kernel), single(contract(channels, side))
    dense = detach_gates(copy.deepcopy(net))
    half = keeping(net, 0.5, seed=0)
    sources = {"dense": module_source(dense, io, label="dense"), "masked": module_source(half, io, label="masked")}
    pairs = {name: [("onnx", "fp32"), ("tflite", "fp32")] for name in sources}
    for keep in KEEPS:
        name = f"gathered {keep:.0%}"
        sources[name] = gathered_source(keeping(net, keep, seed=0), io, label=name, keep=0.0)
        pairs[name] = [("onnx", "fp32")]
    found: dict[str, dict[str, Path]] = {"onnx": {}, "tflite": {}}
    for name, source in sources.items():
        for made in convert(source, pairs[name], folder / name.replace(" ", "-").replace("%", ""), seed=0):
            if not made.ok:
                raise RuntimeError(f"{name} as {made.artifact.format}: {made.artifact.parity.reason}")
            found[made.artifact.format][name] = made.folder
    return found


def maker(runtime: str, folder: Path) -> Maker:
    """Loads the artifact anew and gives the call that runs it."""
    artifact = load_artifact(folder)
    inputs = artifact.contract.random_inputs({}, seed=0)
    shapes = {name: array.shape for name, array in inputs.items()}
    options = runtimes.entry(runtime).card.complete({})

    def make() -> Callable[[], object]:
        loaded = require(runtime).load(artifact.path(folder), artifact.contract, shapes=shapes, threads=1, options=options)
        return loaded.bind(inputs)

    return make


def cell(runtime: str, folders: dict[str, Path], *, budget_s: float, seed: int) -> dict[str, Any]:
    """The figures of one shape in one runtime, per layer. `extra_us`: what the form costs over dense (below 0: what it saves)."""
    chosen = {name: folder for name, folder in folders.items() if runtime == "onnxruntime" or not name.startswith("gathered")}
    plan = Plan(budget_s=budget_s, seed=seed, precision=0.03, ratio_precision=0.015, min_sittings=7, min_rounds=10)
    seen = measure({name: maker(runtime, folder) for name, folder in chosen.items()}, plan=plan)
    times = {name: timed.samples_ns for name, timed in seen.timed.items()}
    same = paired_ratio(times["dense"], seen.twin.samples_ns, seen.sittings)
    dense_us = float(np.median(times["dense"])) / 1e3 / LAYERS
    rows = {}
    for name, samples in times.items():
        if name == "dense":
            continue
        ratio = paired_ratio(times["dense"], samples, seen.sittings)
        rows[name] = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "extra_us": dense_us * (1 / ratio.value - 1)}
    return {
        "dense_us": dense_us,
        "aa_ratio": same.value,
        "noise_floor": same.reach,
        "sittings": len(seen.sittings),
        "rounds": seen.rounds,
        "stopped_because": seen.stopped_because,
        "forms": rows,
        **({"break_even_keep": break_even(rows)} if runtime == "onnxruntime" else {}),
    }


def break_even(rows: dict[str, dict[str, Any]]) -> float | None:
    """The share of channels at which gathered and dense take equally long, between measured ones; None outside of them."""
    points = [(keep, 1 / rows[f"gathered {keep:.0%}"]["ratio"]) for keep in KEEPS]
    for (low, a), (high, b) in itertools.pairwise(points):
        if a <= 1 < b:
            return low + (high - low) * (1 - a) / (b - a)
    return None


def study(shapes: tuple[tuple[int, int], ...], *, budget: float, seed: int) -> list[dict[str, Any]]:
    """All cells."""
    cells = []
    allowed = conditions.allowed_cpus()
    with conditions.pinned(allowed[-1:] if allowed else None):
        for channels, side in shapes:
            for kernel in (3, 1) if (channels, side) in QUICK_SHAPES else (3,):
                with tempfile.TemporaryDirectory() as folder:
                    found = artifacts(channels, side, kernel, Path(folder))
                    shape = {"channels": channels, "side": side, "kernel": kernel}
                    for runtime, format_name in RUNTIMES.items():
                        seconds = BUDGET_S[runtime] * budget
                        figures = cell(runtime, found[format_name], budget_s=seconds, seed=seed)
                        cells.append({"runtime": runtime, **shape, **figures})
                        _say(cells[-1])
    return cells


def _say(found: dict[str, Any]) -> None:
    forms = "  ".join(f"{name} ×{row['ratio']:.2f} ({row['extra_us']:+.1f} µs)" for name, row in found["forms"].items())
    where = f"{found['runtime']:<12} {found['kernel']}×{found['kernel']} C {found['channels']:>3} H {found['side']:>2}"
    print(f"{where}  dense {found['dense_us']:8.1f} µs  A/A ×{found['aa_ratio']:.3f}  {forms}", flush=True)


def overhead(*, quick: bool = False, seed: int = 0, out: Path = RESULT) -> None:
    """None; the result file is written."""
    torch.set_num_threads(1)
    start, load = time.monotonic(), conditions.load_average().value
    cells = study(QUICK_SHAPES if quick else SHAPES, budget=0.4 if quick else 1.0, seed=seed)
    packages = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "ai-edge-litert")
    record = {
        "command": "python benchmarks/dynamic_overhead.py" + (" --quick" if quick else "") + f" --seed {seed}",
        "about": f"chains of {LAYERS} convolutions with batch norm and ReLU, batch 1, 1 thread; per layer",
        **host(packages),
        "load_average": [load, conditions.load_average().value],
        "seconds": round(time.monotonic() - start, 1),
        "cells": cells,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    print(files.write_json(out, record))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three shapes, under two minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    overhead(quick=given.quick, seed=given.seed, out=given.out)


CLAIMS = {"overhead": lambda _seeds: overhead()}

if __name__ == "__main__":
    main()
