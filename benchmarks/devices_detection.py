"""Through a runner in a process of its own, as every device is measured: does an A/A pair agree, and is a planted 5 % slow-down found?

The network is small (three convolutions on 12×12 pixels), so that a call of many inferences is shorter than the slices of time that the
kernel shares a CPU out in: a longer call, beside a busy process, is mostly waiting. One artifact is loaded four times: a baseline, its
A/A twin, an identical one ("same") and a slower one ("slow"). One call of the first three is 20 inferences, one of the last is 21, so the
truth is known exactly: ratios of 1 and 20/21. A trial is a false alarm when "same" is called significantly different, and a hit when
"slow" is called significantly slower.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import devices_nets
import numpy as np
from timing import busy_neighbour, network

from trimtab.devices import conditions
from trimtab.devices.intervals import paired_ratio
from trimtab.devices.job import LinkStand, load_request
from trimtab.devices.linked import Linked
from trimtab.devices.local import LocalConfig, LocalDevice
from trimtab.devices.measurement import is_significant
from trimtab.devices.staging import stage
from trimtab.devices.timing import measure_on, plan_of
from trimtab.export.manifest import MANIFEST, Artifact, Parity, load_artifact, write_json
from trimtab.models import files

INFERENCES = 20
BUDGET_S = 2.5
NAMES = ("baseline", "same", "slow")


class Planted(LinkStand):
    """A stand whose calls are many inferences: one more in the slot of "slow"."""

    def time(self, slots: Sequence[int], blocks: Sequence[int], *, warm: Sequence[int]) -> list[float]:
        """Nanoseconds a call."""
        many = [INFERENCES + (slot == NAMES.index("slow")) for slot in slots]
        single = super().time(slots, [block * n for block, n in zip(blocks, many, strict=True)], warm=warm)
        return [ns * n for ns, n in zip(single, many, strict=True)]


def small_artifact(folder: Path) -> Path:
    """An artifact's folder with the small network of benchmarks/timing.py."""
    folder.mkdir()
    contract = network(folder / "model.onnx")
    told: dict[str, Any] = {"sqnr_db": 200.0, "max_abs_error": 0.0}
    case = {"dims": {}, "inputs": 1, **told}
    parity = Parity(ok=True, gate_db=90.0, **told, top1_agreement=None, inputs="random", evaluator="none", cases=(case,))
    artifact = Artifact(
        name="small",
        format="onnx",
        precision="fp32",
        file="model.onnx",
        size_bytes=files.size_bytes(folder / "model.onnx"),
        sha256=files.sha256(folder / "model.onnx"),
        contract=contract,
        spec_version="17",
        ops={},
        parity=parity,
    )
    write_json(folder / MANIFEST, artifact.model_dump(mode="json"))
    return folder


def trial(device: Linked, load: dict[str, Any], *, runtime: str, cpu: int | None, seed: int) -> dict[str, Any]:
    """One trial on a runner of its own."""
    link = device.link()
    try:
        affinity = None if cpu is None else [cpu]
        link.ask({"do": "open", "runtime": runtime, "threads": 1, "options": {}, "affinity": affinity})
        stand = Planted(link, [load] * (len(NAMES) + 1))
        outcome = measure_on(stand, NAMES, plan=plan_of("standard", budget_s=BUDGET_S, seed=seed))
    finally:
        link.close()
    times = {name: timed.samples_ns for name, timed in outcome.timed.items()}
    aa = paired_ratio(times["baseline"], outcome.twin.samples_ns, outcome.sittings)
    ratios = {name: paired_ratio(times["baseline"], times[name], outcome.sittings) for name in ("same", "slow")}
    return {
        "seed": seed,
        "baseline_ms": float(np.median(times["baseline"])) / 1e6,
        "sittings": len(outcome.sittings),
        "rounds": outcome.rounds,
        "stopped_because": outcome.stopped_because,
        "aa_ratio": aa.value,
        "noise_floor": aa.reach,
        **{f"{name}_ratio": ratio.value for name, ratio in ratios.items()},
        **{f"{name}_significant": is_significant(ratio, aa.reach) for name, ratio in ratios.items()},
    }


def summary(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and quantiles over the trials of one cell."""
    truth = INFERENCES / (INFERENCES + 1)
    aa = np.abs([entry["aa_ratio"] - 1 for entry in trials])
    return {
        "trials": len(trials),
        "baseline_ms": float(np.median([entry["baseline_ms"] for entry in trials])),
        "hits": sum(entry["slow_significant"] and entry["slow_ratio"] < 1 for entry in trials),
        "false_alarms": sum(entry["same_significant"] for entry in trials),
        "aa_deviation_median": float(np.median(aa)),
        "aa_deviation_p95": float(np.percentile(aa, 95)),
        "aa_deviation_largest": float(aa.max()),
        "slow_ratio_median": float(np.median([entry["slow_ratio"] for entry in trials])),
        "slow_ratio_truth": truth,
    }


def study(*, seed: int, repeats: int = 100) -> dict[str, Any]:
    """Short calls alone, short calls beside a busy process on the same CPU, and long calls beside one (a quarter as many trials)."""
    cpus = conditions.allowed_cpus()
    cpu = cpus[-1] if cpus else None
    cells = []
    device = LocalDevice("local", LocalConfig())
    with tempfile.TemporaryDirectory() as folder:
        (long_calls,) = devices_nets.artifacts("resnet20", [("onnx", "fp32")], Path(folder)).values()
        places = {"short": small_artifact(Path(folder) / "small"), "long": long_calls}
        for calls, busy, count in (("short", False, repeats), ("short", True, repeats), ("long", True, max(1, repeats // 4))):
            staged_at = Path(folder) / f"staged-{len(cells)}"
            staged = stage(places[calls], load_artifact(places[calls]), staged_at, dims={"N": 1}, seed=seed)
            load = load_request(staged, str(staged_at))
            with busy_neighbour(busy, cpu):
                trials = [trial(device, load, runtime="onnxruntime", cpu=cpu, seed=seed + k) for k in range(count)]
            neighbour = "busy" if busy else "none"
            cells.append({"calls": calls, "neighbour": neighbour, "summary": summary(trials), "trials": trials})
            print(calls, neighbour, cells[-1]["summary"], flush=True)
    return {"cpu": cpu, "budget_s": BUDGET_S, "inferences": INFERENCES, "cells": cells}
