"""Full-resolution development, timed: three networks, Full HD and 12 megapixels, tiled and whole, in four runtimes; and peak memory.

    python benchmarks/models_develop.py [--rounds 3]

Every trial is a process of its own: it opens the network, develops one frame of noise with `trimtab.develop.develop` (the measuring of
the network's reach included) and says its seconds and its peak memory, torch, runtime, frame and picture included. Within a round the
arms run in random order, one of them twice (A/A). Weights are random: they change neither time nor memory. A finished trial is in the
result file, results/models/develop.json, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from host import host

from trimtab.models import files

RESULT = Path(__file__).parent / "results" / "models" / "develop.json"
NETS = {"efficient_isp": 4, "robust_isp": 4, "rmfa_tiny": 3}
SIZES = {"Full HD": (1080, 1920), "12 MP": (3000, 4000)}
FORMATS = {"onnx": "ONNX Runtime", "tflite": "LiteRT", "openvino": "OpenVINO"}
TILED, AGAIN, WHOLE = "torch, tiled", "torch, tiled, again", "torch, whole"
TILE = 512
LONG = {("rmfa_tiny", "12 MP"): "a whole 12-megapixel picture takes RMFA-Net some 8 GB"}
"""Where one round of the tiled arm alone is run, and why."""


def trial(net: str, size: str, arm: str, nets: Path) -> dict[str, float]:
    """Seconds and peak memory of one development, in this process."""
    import torch

    from trimtab.develop import develop
    from trimtab.develop_network import open_isp
    from trimtab.models.raw.frame import RawFrame

    torch.set_num_threads(1)
    kinds = {name: f"{to}-fp32" for to, name in FORMATS.items()}
    network = open_isp(nets / net / kinds.get(arm.removesuffix(", whole"), "bundle"))
    mosaic = np.random.default_rng(0).integers(63, 1024, SIZES[size], dtype=np.uint16)
    frame = RawFrame(mosaic, "RGGB", (63.0,) * 4, 1023.0)
    started = time.perf_counter()
    picture = develop(frame, network, tile=TILE, whole=arm == WHOLE)
    seconds = time.perf_counter() - started
    del picture
    return {"seconds": seconds, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The largest memory that this process has had (Linux). getrusage's figure would count the parent's, from before it was started."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def prepare(nets: Path) -> dict[str, float]:
    """Bundles and artifacts under `nets`; multiply-accumulates per pixel of the picture, by network."""
    import torch

    from trimtab.app import main
    from trimtab.compress.cost import count
    from trimtab.models.bundle import Manifest, save_bundle
    from trimtab.models.contract import Contract, TensorSpec
    from trimtab.models.source import Architecture

    macs = {}
    for net, channels in NETS.items():
        torch.manual_seed(0)
        architecture = Architecture(name=net)
        module = architecture.build()
        scale = 2 if channels == 4 else 1
        macs[net] = count(module, [torch.rand(1, channels, 64, 64)]).macs / (64 * scale) ** 2
        raw = TensorSpec(name="raw", shape=("N", channels, "h", "w"), layout="NCHW", value_range=(0.0, 1.0))
        rgb = TensorSpec(name="rgb", shape=("N", 3, "H", "W"), layout="NCHW", value_range=(0.0, 1.0))
        manifest = Manifest(architecture=architecture, contract=Contract(inputs=(raw,), outputs=(rgb,)))
        save_bundle(nets / net / "bundle", module, manifest)
        main(
            [
                "export",
                str(nets / net / "bundle"),
                "--to",
                ",".join(FORMATS),
                "--precision",
                "fp32",
                "-o",
                str(nets / net),
                "--force",
            ]
        )
    return macs


def arms_of(net: str, size: str) -> list[str]:
    """What is run: artifacts of a network that looks at the whole picture run whole, as far as Full HD."""
    if (net, size) in LONG:
        return [TILED]
    suffix = ", whole" if net.startswith("rmfa") else ""
    return [TILED, AGAIN, WHOLE, *(f"{name}{suffix}" for name in FORMATS.values())]


def ran(net: str, size: str, arm: str, nets: Path) -> dict[str, Any]:
    """A trial in a process of its own; {"failed": the last line} when it ends badly."""
    command = [sys.executable, __file__, "--trial", net, size, arm, str(nets)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def summary(trials: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By arm: median seconds, largest peak, and how many times as fast as the tiled arm of its round (median, least, most)."""
    found = {}
    for arm, rows in trials.items():
        good = [row for row in rows if "seconds" in row]
        if not good or not trials[TILED]:
            found[arm] = {"failed": rows[0]["failed"]}
            continue
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(trials[TILED], rows, strict=False) if "seconds" in b]
        found[arm] = {
            "rounds": len(good),
            "seconds": statistics.median(row["seconds"] for row in good),
            "peak_bytes": max(row["peak_bytes"] for row in good),
            "speed_up": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        }
    return found


def study(rounds: int, seed: int) -> None:
    """Runs what the result file lacks, and writes it after every trial."""
    old = json.loads(RESULT.read_text()) if RESULT.exists() else {"trials": {}}
    trials, rng = old["trials"], random.Random(seed)
    load = old.get("load_average", [])
    with tempfile.TemporaryDirectory() as folder:
        nets = Path(folder)
        macs = prepare(nets)
        for size in SIZES:
            for net in NETS:
                rows = trials.setdefault(f"{net}, {size}", {})
                arms = arms_of(net, size)
                for number in range(1 if (net, size) in LONG else rounds):
                    rng.shuffle(arms)
                    for arm in arms:
                        if len(rows.setdefault(arm, [])) > number:
                            continue
                        rows[arm].append(ran(net, size, arm, nets))
                        load.append(os.getloadavg()[0])
                        print(net, size, arm, rows[arm][-1], flush=True)
                        save(trials, macs, load, rounds=rounds, seed=seed)


def save(trials: dict[str, Any], macs: dict[str, float], load: list[float], *, rounds: int, seed: int) -> None:
    """None; the result file holds everything so far."""
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": f"python benchmarks/models_develop.py --rounds {rounds}",
        "seed": seed,
        "tile": TILE,
        "threads": 1,
        "host": host(("torch", "onnxruntime", "ai-edge-litert", "openvino", "numpy")),
        "load_average": [min(load), max(load)],
        "macs_per_pixel": macs,
        "left_out": {f"{net}, {size}": why for (net, size), why in LONG.items()},
        "trials": trials,
        "summary": {key: summary(rows) for key, rows in trials.items() if TILED in rows},
    }
    files.write_json(RESULT, record)


def main() -> None:
    """The whole study, or (in a process of its own) one trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", nargs=4, metavar=("NET", "SIZE", "ARM", "FOLDER"))
    options = parser.parse_args()
    if options.trial:
        net, size, arm, folder = options.trial
        print(json.dumps(trial(net, size, arm, Path(folder))))
    else:
        study(options.rounds, options.seed)


if __name__ == "__main__":
    main()
