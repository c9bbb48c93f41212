"""trimtab's latency against the runtimes' own tools: the same artifact, one thread, the same CPU, one after the other in random order.

The tools: OpenVINO's `benchmark_app` (synchronous, no hint), LiteRT's `litert-benchmark`, and for ONNX Runtime the `model_run` events of its
own profiler, beside a plain loop without the profiler, which costs time by itself. A pair's ratio is trimtab's median over the tool's.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import devices_nets
import numpy as np

from trimtab.devices import conditions
from trimtab.devices.intervals import median_interval, sitting_medians
from trimtab.devices.profile import profile
from trimtab.export.manifest import load_artifact

NETS = ("vgg16_bn", "efficientnet_lite0")
SECONDS = 3.0
OPENVINO = (
    "import sys; sys.modules['openvino_telemetry'] = None\n"
    "from openvino.tools.benchmark.main import main; main()"  # its own command, less the reporting
)
ONNXRUNTIME = """
import json, sys, time
import numpy as np, onnxruntime as ort
path, shape, seconds, profiled = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "profiler"
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.enable_profiling, options.profile_file_prefix = profiled, sys.argv[5]
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: np.random.default_rng(0).uniform(size=shape).astype(np.float32)}
until, times = time.perf_counter() + seconds, []
while time.perf_counter() < until:
    start = time.perf_counter()
    session.run(None, feed)
    times.append((time.perf_counter() - start) * 1e3)
if profiled:
    events = json.load(open(session.end_profiling()))
    times = [event["dur"] / 1e3 for event in events if event["name"] == "model_run"]
print(json.dumps(float(np.median(times[len(times) // 10:]))))
"""


def ours(folder: Path, runtime: str, *, cpu: int | None, seed: int) -> float:
    """trimtab's median in ms: of the sittings' medians, as its report shows it."""
    affinity = None if cpu is None else (cpu,)
    result = profile([folder], runtimes=[runtime], preset="quick", budget_s=SECONDS, affinity=affinity, seed=seed)
    (measured,) = result.measurements
    return float(np.median(sitting_medians(measured.samples_ns, measured.sittings))) / 1e6


def _pinned(argv: list[str], cpu: int | None) -> str:
    done = subprocess.run(
        argv if cpu is None else ["taskset", "-c", str(cpu), *argv], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def benchmark_app(folder: Path, *, cpu: int | None) -> float:
    """The median in ms that OpenVINO's tool tells."""
    artifact = load_artifact(folder)
    path, (spec, *_) = artifact.path(folder), artifact.contract.inputs
    model = str(path / "model.xml" if path.is_dir() else path)
    shape = json.dumps(list(spec.concrete({})))
    settings = ["-hint", "none", "-api", "sync", "-nthreads", "1", "-nstreams", "1", "-infer_precision", "f32"]
    said = _pinned([sys.executable, "-c", OPENVINO, "-m", model, "-shape", shape, "-t", str(int(SECONDS)), *settings], cpu)
    found = re.search(r"Median:\s+([\d.]+) (us|ms)", said)
    if not found:
        raise SystemExit(f"benchmark_app told no median:\n{said[-2000:]}")
    return float(found.group(1)) / (1e3 if found.group(2) == "us" else 1)


def litert_benchmark(folder: Path, *, cpu: int | None) -> float:
    """The median in ms that LiteRT's tool tells, rounded by it to 0.01."""
    path = load_artifact(folder).path(folder)
    with tempfile.TemporaryDirectory() as work:
        told = Path(work) / "told.json"
        tool = str(Path(sys.executable).with_name("litert-benchmark"))
        first = _litert(tool, path, told, runs=20, cpu=cpu)
        return _litert(tool, path, told, runs=max(50, int(1e3 * SECONDS / first)), cpu=cpu)


def _litert(tool: str, path: Path, told: Path, *, runs: int, cpu: int | None) -> float:
    _pinned([tool, "--model", str(path), "--num_threads", "1", "--num_runs", str(runs), "--result_json", str(told)], cpu)
    return float(json.loads(told.read_text())["latency"]["median_ms"])


def onnxruntime_loop(folder: Path, *, cpu: int | None, mode: str) -> float:
    """The median in ms of ONNX Runtime's own `model_run` events, or of a plain loop."""
    artifact = load_artifact(folder)
    with tempfile.TemporaryDirectory() as work:
        arguments = [str(artifact.path(folder)), json.dumps(artifact.contract.inputs[0].concrete({})), str(SECONDS), mode]
        return float(_pinned([sys.executable, "-c", ONNXRUNTIME, *arguments, f"{work}/trace"], cpu).strip().splitlines()[-1])


Tool = Callable[..., float]
TOOLS: dict[str, tuple[str, str, Tool]] = {
    "benchmark_app": ("openvino", "openvino", benchmark_app),
    "litert-benchmark": ("litert", "tflite", litert_benchmark),
    "onnxruntime profiler": ("onnxruntime", "onnx", lambda folder, cpu: onnxruntime_loop(folder, cpu=cpu, mode="profiler")),
    "onnxruntime plain loop": ("onnxruntime", "onnx", lambda folder, cpu: onnxruntime_loop(folder, cpu=cpu, mode="plain")),
}


def study(*, seed: int, repeats: int = 7) -> dict[str, Any]:
    """Per network and tool the ratios of `repeats` pairs."""
    rng = random.Random(seed)
    cpus = conditions.allowed_cpus()
    cpu = cpus[-1] if cpus else None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for net in NETS:
            made = devices_nets.artifacts(net, [(f, "fp32") for f in ("onnx", "tflite", "openvino")], Path(folder))
            for name, (runtime, kind, tool) in TOOLS.items():
                pairs = []
                for index in range(repeats):
                    order = ["trimtab", "tool"]
                    rng.shuffle(order)
                    times = {
                        who: ours(made[kind, "fp32"], runtime, cpu=cpu, seed=seed + index)
                        if who == "trimtab"
                        else tool(made[kind, "fp32"], cpu=cpu)
                        for who in order
                    }
                    pairs.append({"order": order, "trimtab_ms": times["trimtab"], "tool_ms": times["tool"]})
                ratios = [pair["trimtab_ms"] / pair["tool_ms"] for pair in pairs]
                rows.append(
                    {
                        "net": net,
                        "tool": name,
                        "runtime": runtime,
                        "pairs": pairs,
                        "ratio": statistics.median(ratios),
                        "interval": median_interval(ratios),
                        "lowest": min(ratios),
                        "highest": max(ratios),
                    }
                )
                print(net, name, f"{rows[-1]['ratio']:.4f}", rows[-1]["interval"], flush=True)
    return {"cpu": cpu, "seconds_each": SECONDS, "rows": rows}
