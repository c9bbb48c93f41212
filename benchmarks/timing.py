"""Can trimtab's timing be trusted? Identical models and a planted 5 % slow-down, beside other work on the same CPU and without.

Every trial times one small network in three copies, each loaded for itself: a baseline (with its A/A twin), an identical one
("same") and a slower one ("slow"). One call of the first two is 20 inferences, one of the last is 21, so the truth is known
exactly: ratios of 1 and 20/21, whatever else the machine does. A trial is a false alarm when "same" is called significantly
different, and a hit when "slow" is called significantly slower. The control is the usual way: every copy loaded once, fixed
order, no warm calls, as many rounds, and the sign test over the rounds as its verdict.

    python benchmarks/timing.py            writes benchmarks/results/timing.json in about two and a half minutes
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from host import host
from onnx import TensorProto, helper, numpy_helper

from trimtab.devices import conditions
from trimtab.devices.intervals import paired_ratio
from trimtab.devices.measurement import is_significant
from trimtab.devices.runtime import require, runtimes
from trimtab.devices.timing import measure, plan_of
from trimtab.export.manifest import Contract, TensorSpec, write_json

INFERENCES = 20
SIZE, WIDTH = 12, 8
RESULT = Path(__file__).parent / "results" / "timing.json"


def network(path: Path) -> Contract:
    """The contract of a small convolutional network, written as ONNX at `path`: three 3×3 convolutions and a linear layer."""
    rng = np.random.default_rng(0)
    nodes, weights, channels, value = [], [], 3, "image"
    for index in range(3):
        kernel = rng.normal(0, 0.1, (WIDTH, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        channels, value = WIDTH, f"r{index}"
    weights.append(numpy_helper.from_array(rng.normal(size=(WIDTH, 10)).astype(np.float32), "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["logits"]))
    shape = [1, 3, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    image = TensorSpec(name="image", shape=(1, 3, SIZE, SIZE), layout="NCHW")
    return Contract(inputs=(image,), outputs=(TensorSpec(name="logits", shape=(1, 10), layout="NC"),))


def makers(runtime: str, path: Path, contract: Contract, *, seed: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """Per copy a maker of calls, each of a session of its own."""
    options = runtimes.entry(runtime).card.complete({})
    inputs = contract.random_inputs({}, seed=seed)
    shapes = {name: array.shape for name, array in inputs.items()}

    def maker(times: int) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            session = require(runtime).load(path, contract, shapes=shapes, threads=1, options=options)
            call = session.bind({name: array.copy() for name, array in inputs.items()})

            def repeated() -> None:
                for _ in range(times):
                    call()

            return repeated

        return make

    return {"baseline": maker(INFERENCES), "same": maker(INFERENCES), "slow": maker(INFERENCES + 1)}


@contextmanager
def busy_neighbour(on: bool, cpu: int | None) -> Iterator[None]:
    """Inside the block another process computes without pause, on the same CPU where it can be pinned."""
    if not on:
        yield
        return
    pin = f"import os; os.sched_setaffinity(0, [{cpu}])\n" if cpu is not None else ""
    code = pin + "x = list(range(100_000))\nwhile True: x.sort(key=lambda v: -v); x.reverse()"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.5)  # its start is not what we want to measure beside
        yield
    finally:
        process.kill()
        process.wait()


def trial(copies: dict[str, Callable[[], Callable[[], object]]], *, seed: int, budget_s: float) -> dict[str, Any]:
    """One trial by trimtab's loop."""
    outcome = measure(copies, plan=plan_of("standard", budget_s=budget_s, seed=seed))
    times = {name: timed.samples_ns for name, timed in outcome.timed.items()}
    aa = paired_ratio(times["baseline"], outcome.twin.samples_ns, outcome.sittings)
    ratios = {name: paired_ratio(times["baseline"], times[name], outcome.sittings) for name in ("same", "slow")}
    return {
        "seed": seed,
        "sittings": len(outcome.sittings),
        "rounds": outcome.rounds,
        "stopped_because": outcome.stopped_because,
        "p50_us_per_inference": float(np.median(times["baseline"])) / 1e3 / INFERENCES,
        "aa_ratio": aa.value,
        "noise_floor": aa.reach,
        **{f"{name}_ratio": ratio.value for name, ratio in ratios.items()},
        **{f"{name}_half_width": ratio.half_width for name, ratio in ratios.items()},
        **{f"{name}_significant": is_significant(ratio, aa.reach) for name, ratio in ratios.items()},
    }


def control(copies: dict[str, Callable[[], Callable[[], object]]], *, rounds: int) -> dict[str, Any]:
    """The usual way: loaded once, fixed order, no warm calls, ratio of medians, the sign test over rounds."""
    calls = {name: make() for name, make in copies.items()}
    times: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call()
            times[name].append(time.perf_counter_ns() - start)
    said: dict[str, Any] = {"rounds": rounds}
    for name in ("same", "slow"):
        said[f"{name}_ratio"] = float(np.median(times["baseline"]) / np.median(times[name]))
        said[f"{name}_significant"] = is_significant(paired_ratio(times["baseline"], times[name]), 0.0)
    return said


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and quantiles over the trials of one cell."""
    truth = INFERENCES / (INFERENCES + 1)
    same = np.array([entry["same_ratio"] for entry in trials])
    slow = np.array([entry["slow_ratio"] for entry in trials])
    hits = [entry["slow_significant"] and entry["slow_ratio"] < 1 for entry in trials]
    return {
        "trials": len(trials),
        "hits": sum(hits),
        "false_alarms": sum(entry["same_significant"] for entry in trials),
        "same_ratio_median": float(np.median(same)),
        "same_ratio_furthest": float(same[np.argmax(np.abs(np.log(same)))]),
        "slow_ratio_median": float(np.median(slow)),
        "slow_ratio_truth": truth,
        "slow_error_furthest": float(np.max(np.abs(slow / truth - 1))),
    }


def study(runtime: str, *, seed: int, trials: int, budget_s: float) -> list[dict[str, Any]]:
    """One cell per neighbourhood."""
    cells = []
    allowed = conditions.allowed_cpus()
    cpus = allowed[-1:] if allowed else None
    with tempfile.TemporaryDirectory() as folder, conditions.pinned(cpus):
        path = Path(folder) / "net.onnx"
        contract = network(path)
        require(runtime).version()
        for busy in (False, True):
            before = conditions.load_average().value
            ours, usual = [], []
            with busy_neighbour(busy, cpus[0] if cpus else None):
                for index in range(trials):
                    copies = makers(runtime, path, contract, seed=seed + index)
                    ours.append(trial(copies, seed=seed + index, budget_s=budget_s))
                    usual.append(control(copies, rounds=ours[-1]["rounds"]))
            cell = {"neighbour": "busy" if busy else "none", "load_average": [before, conditions.load_average().value]}
            cells.append({**cell, "trimtab": summary(ours), "control": summary(usual), "trials": ours, "control_trials": usual})
            print(cell, "trimtab", cells[-1]["trimtab"], "control", cells[-1]["control"], sep="\n  ")
    return cells


def main() -> None:
    """Writes the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--budget-s", type=float, default=2.5)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    start = time.monotonic()
    cells = study(given.runtime, seed=given.seed, trials=given.trials, budget_s=given.budget_s)
    result = {
        "command": "python benchmarks/timing.py "
        f"--runtime {given.runtime} --seed {given.seed} --trials {given.trials} --budget-s {given.budget_s:g}",
        "runtime": given.runtime,
        "seed": given.seed,
        **host(("numpy", "scipy", "onnx", "onnxruntime", "openvino")),
        "planted": {"inferences": INFERENCES, "slow_inferences": INFERENCES + 1},
        "seconds": round(time.monotonic() - start, 1),
        "cells": cells,
    }
    print(write_json(given.out, result))


if __name__ == "__main__":
    main()
