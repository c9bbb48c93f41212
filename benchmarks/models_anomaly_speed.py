"""How fast and how large: EfficientAD as docs/anomaly.md measures it and as published, beside the fitted baselines.

    python benchmarks/models_anomaly_speed.py [--budget-s 90] [--runtimes onnxruntime litert]

Each network is one exported file that gives map and score of one picture, on one thread. Per runtime all are timed by trimtab's own loop:
loaded anew for every sitting, in random order in every round, the first of them twice (A/A). A ratio is to the memory at 224×224, in
the same round. Weights, memory and covariances are random: they change neither time nor memory. Memory is the rise of a process of its
own from before the file is loaded to its peak over five calls. Writes results/models/anomaly_speed.json, runtime by runtime; one
that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from host import host
from models_anomaly import ELPV
from torch import nn
from trials import RESULTS

from trimtab.compress.anomaly_fit import fitting_contract
from trimtab.compress.cost import count
from trimtab.devices import conditions
from trimtab.devices.intervals import paired_ratio
from trimtab.devices.memory import peak_memory
from trimtab.devices.runtime import require, runtimes
from trimtab.devices.timing import measure, plan_of
from trimtab.export.artifact import load_artifact
from trimtab.export.convert import convert, module_source
from trimtab.models import files
from trimtab.models.architectures import architectures
from trimtab.models.tasks.anomaly import anomaly_contract

RESULT = RESULTS / "models" / "anomaly_speed.json"
FORMATS = {"onnxruntime": "onnx", "litert": "tflite"}
SMALL = ELPV["size"]
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "kNN bank, 224": ("memory_bank", {"image_size": 224}),
    f"kNN bank, {SMALL}": ("memory_bank", {"image_size": SMALL}),
    "Gaussian-AD, 224": ("gaussian_ad", {"image_size": 224}),
    f"Gaussian-AD, {SMALL}": ("gaussian_ad", {"image_size": SMALL}),
    f"EfficientAD as measured, {SMALL}": ("efficientad_s", {"image_size": SMALL, **ELPV["network"]}),
    "EfficientAD-S as published, 256": ("efficientad_s", {"image_size": 256}),
}
"""The first is what the ratios are to."""


def network(name: str) -> nn.Module:
    """The network, with numbers in place of what it would learn."""
    torch.manual_seed(0)
    architecture, kwargs = NETS[name]
    module = architectures.get(architecture)(**kwargs)
    for key, buffer in module.named_buffers():
        if key.startswith(("bank", "centre", "whiten", "mean_")):
            buffer.normal_()
    return module.eval()


def exported(name: str, folder: Path, formats: Sequence[str]) -> dict[str, Any]:
    """What the network costs, and where its files lie, by format. Raises RuntimeError for one that does not compute the same."""
    module, side = network(name), NETS[name][1]["image_size"]
    contract = fitting_contract(module, anomaly_contract(side, side))
    made = convert(module_source(module, contract, label=name), [(form, "fp32") for form in formats], folder)
    if wrong := [one.artifact.parity.reason for one in made if not one.ok]:
        raise RuntimeError(f"{name}: {wrong[0]}")
    cost = count(module, [torch.rand(1, 3, side, side)])
    size = {one.artifact.format: one.artifact.size_bytes for one in made}
    return {
        "macs": cost.macs,
        "params": cost.params,
        "size_bytes": size,
        "at": {m.artifact.format: str(m.folder) for m in made},
    }


def call_of(runtime: str, folder: Path) -> Callable[[], object]:
    """A freshly loaded file, as a call on one picture."""
    artifact = load_artifact(folder)
    inputs = artifact.contract.random_inputs({"N": 1}, seed=0)
    shapes = {name: array.shape for name, array in inputs.items()}
    options = runtimes.entry(runtime).card.complete({})
    session = require(runtime).load(artifact.path(folder), artifact.contract, shapes=shapes, threads=1, options=options)
    bound = session.bind(inputs)

    def call(session: Any = session) -> object:  # the session lives as long as its call
        return bound()

    return call


def memory(runtime: str, folder: Path) -> float:
    """Bytes by which this process grows."""
    require(runtime).version()
    with peak_memory() as peak:
        call = call_of(runtime, folder)
        for _ in range(5):
            call()
    return float(peak.reading.value)  # type: ignore[arg-type]  # None where it can't be read, and float says so


def grown(runtime: str, folder: str) -> float:
    """`memory` of a process of its own, which is what makes files comparable: a second one finds the first one's pages."""
    command = [sys.executable, __file__, "--memory", runtime, folder]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def timed(runtime: str, nets: dict[str, dict[str, Any]], *, budget_s: float, seed: int) -> dict[str, Any]:
    """Median, ratio to the first network and memory of every network, and how far two copies of the first differ."""
    folders = {name: Path(net["at"][FORMATS[runtime]]) for name, net in nets.items()}
    before = conditions.load_average().value
    makers = {name: (lambda folder=folder: call_of(runtime, folder)) for name, folder in folders.items()}
    outcome = measure(makers, plan=plan_of("standard", budget_s=budget_s, seed=seed))
    times = {name: found.samples_ns for name, found in outcome.timed.items()}
    first = times[next(iter(NETS))]
    rows = {}
    for name, samples in times.items():
        ratio = paired_ratio(first, samples, outcome.sittings)
        rows[name] = {
            "p50_ms": float(np.median(samples)) / 1e6,
            "ratio": ratio.value,
            "half_width": ratio.half_width,
            "memory_bytes": grown(runtime, str(folders[name])),
        }
    aa = paired_ratio(first, outcome.twin.samples_ns, outcome.sittings)
    return {
        "rows": rows,
        "aa_ratio": aa.value,
        "noise_floor": aa.reach,
        "sittings": len(outcome.sittings),
        "rounds": outcome.rounds,
        "stopped_because": outcome.stopped_because,
        "load_average": [before, conditions.load_average().value],
    }


def main() -> None:
    """Writes what is missing of the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=90.0)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime"], choices=list(FORMATS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", nargs=2, metavar=("RUNTIME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory:
        print(memory(given.memory[0], Path(given.memory[1])))
        return
    about = {
        "networks": {name: [kind, kwargs] for name, (kind, kwargs) in NETS.items()},
        "threads": 1,
        "budget_s": given.budget_s,
    }
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if result.get("about") != about:
        result = {"command": "python benchmarks/models_anomaly_speed.py", "about": about, "runtimes": {}}
    result["host"] = host(("numpy", *({"litert": "ai-edge-litert"}.get(r, r) for r in given.runtimes)))
    formats = [FORMATS[runtime] for runtime in given.runtimes]
    with tempfile.TemporaryDirectory() as work:
        nets = {name: exported(name, Path(work) / str(at), formats) for at, name in enumerate(NETS)}
        result["costs"] = {name: {k: net[k] for k in ("macs", "params", "size_bytes")} for name, net in nets.items()}
        for runtime in given.runtimes:
            if runtime not in result["runtimes"]:
                result["runtimes"][runtime] = timed(runtime, nets, budget_s=given.budget_s, seed=given.seed)
                files.write_json(RESULT, result)
                print(json.dumps(result["runtimes"][runtime], indent=1), flush=True)


if __name__ == "__main__":
    main()
