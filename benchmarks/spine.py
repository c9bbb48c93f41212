"""The spine, measured: the demo's time, memory and result over seeds, its second run, and the start of the command line.

    python benchmarks/spine.py [--seeds 3] [--only start,demo]

Writes benchmarks/results/spine.json. Absolute times depend on the machine and are given for the goals that name them; the start
of the command line is a ratio from interleaved, order-randomised pairs with an A/A pair beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trimtab.compress.apply import tool_versions
from trimtab.devices.conditions import cpu_model
from trimtab.models import files

RESULTS = Path(__file__).parent / "results" / "spine.json"
CLI = [sys.executable, "-c", "import sys; from trimtab.app import main; sys.exit(main())"]


def timed(command: list[str]) -> float:
    """Wall-clock seconds of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def start_up(rounds: int, seed: int) -> dict:
    """`trimtab --help` over a bare interpreter start: median of per-round ratios, quartiles, and the A/A pair's."""
    commands = {"bare": [sys.executable, "-c", "pass"], "bare again": [sys.executable, "-c", "pass"], "help": [*CLI, "--help"]}
    for command in commands.values():
        timed(command)
    rng, samples = random.Random(seed), []
    for _ in range(rounds):
        order = list(commands)
        rng.shuffle(order)
        samples.append({name: timed(commands[name]) for name in order})

    def ratio(a: str, b: str) -> dict:
        ratios = [s[a] / s[b] for s in samples]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return {"median": middle, "q1": low, "q3": high}

    return {
        "rounds": rounds,
        "help_over_bare": ratio("help", "bare"),
        "aa": ratio("bare again", "bare"),
        "bare_ms": 1e3 * statistics.median(s["bare"] for s in samples),
        "goal": 12,
    }


def demo(seed: int, folder: Path) -> dict:
    """One fresh demo and one repeated: seconds, peak memory of the whole run, and what it made."""
    command = [*CLI, "demo", "-o", str(folder), "--seed", str(seed)]
    fresh = timed(command)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    again = timed(command)
    run = json.loads((folder / "run.json").read_text())
    parent, small = run["models"]
    return {
        "seed": seed,
        "fresh_s": fresh,
        "again_s": again,
        "peak_bytes": peak,
        "test_samples": run["test_samples"],
        "parent_accuracy": parent["metrics"]["accuracy"],
        "accuracy": small["metrics"]["accuracy"],
        "parent_macs": parent["macs"],
        "macs": small["macs"],
        "parent_params": parent["params"],
        "params": small["params"],
        "stages": run["stages"],
        "artifacts": [
            {
                "name": a["artifact"]["name"],
                "status": a["status"],
                "size_bytes": a["artifact"]["size_bytes"],
                "sqnr_db": a["artifact"]["parity"]["sqnr_db"],
                "top1_agreement": a["artifact"]["parity"]["top1_agreement"],
                "evaluator": a["artifact"]["parity"]["evaluator"],
            }
            for a in run["artifacts"]
        ],
        "latency": [
            {k: m[k] for k in ("runtime", "label", "p50_ms", "p90_ms", "p99_ms")} for m in run["profile"]["measurements"]
        ],
        "comparisons": run["profile"]["comparisons"],
    }


def main() -> None:
    """Runs the parts asked for and writes the results; parts not run keep their last result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="start,demo")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.update(
        command="python benchmarks/spine.py " + " ".join(sys.argv[1:]),
        host={"cpu": str(cpu_model().value)},
        versions=tool_versions(
            ("torch", "torch-pruning", "accelerate", "onnxruntime", "ai-edge-litert", "openvino", "coremltools")
        ),
    )
    if "start" in options.only:
        results["start"] = start_up(options.rounds, seed=0)
        files.write_json(RESULTS, results)
    if "demo" in options.only:
        results["demo"] = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as temp:
                results["demo"].append(demo(seed, Path(temp) / "run"))
            files.write_json(RESULTS, results)
    print(json.dumps({k: v for k, v in results.items() if k != "demo"}, indent=1))


if __name__ == "__main__":
    main()
