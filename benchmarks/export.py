"""The export layer over ten networks: parity, size, operators, seconds, and latency paired with the best other converter.

python benchmarks/export.py [--nets resnet20,isp] [--formats onnx,tflite] [--onnx2tf PYTHON] [--no-latency]

Every network has a file results/export/NET.json; what is there is not made again unless --again. Latency: batch 1, one thread,
interleaved and order-randomised, our artifact and those of the other converters in one profile with an A/A pair. Routes to litert-torch and
TensorFlow want their environments (`trimtab export --setup litert-torch`, `--setup tensorflow`). Sparse precisions are left out: none of
the networks has weights that are zero.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from export_nets import NETS, Net
from export_others import artifact as other_artifact
from export_others import others
from training import conditions
from trials import RESULTS

from trimtab.compress.apply import tool_versions
from trimtab.devices.profile import profile
from trimtab.devices.runtime import require
from trimtab.export.artifact import Artifact
from trimtab.export.convert import ConversionError, convert
from trimtab.export.exporter import exporters
from trimtab.export.worker import Limits
from trimtab.models import files
from trimtab.models.errors import UserError
from trimtab.scoring import predictor, score

FOLDER = RESULTS / "export"
PACKAGES = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxslim",
    "openvino",
    "nncf",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "coremltools",
)
MORE = ("executorch", "torchao", "ncnn", "pnnx", "mnn")
CROSS = {"onnx": ("onnxruntime",), "tflite": ("litert",), "openvino": ("openvino",)}
"""In which runtime the converters of a format are compared."""


def facts(made: Artifact) -> dict[str, Any]:
    """What is kept of an artifact."""
    audit = made.audit
    return {
        "ok": made.parity.ok,
        "reason": made.parity.reason,
        "sqnr_db": round(made.parity.sqnr_db, 2),
        "top1_agreement": made.parity.top1_agreement,
        "size_bytes": made.size_bytes,
        "ops": sum(made.ops.values()),
        "transposes": audit.transposes if audit else None,
        "casts": audit.casts if audit else None,
        "islands": audit.islands if audit else {},
        "warnings": list(made.warnings),
    }


def latencies(net: Net, folders: dict[str, Path], runtime: str, *, budget_s: float) -> dict[str, Any]:
    """Ours (the first) timed with the others in the same rounds: medians, and how many times as fast as each other one ours is."""
    free = {d: size for d, size in zip(net.source.contract.inputs[0].shape, net.real.shape, strict=True) if isinstance(d, str)}
    dims = {**free, "N": 1} if len(free) > 1 else None
    result = profile(list(folders.values()), runtimes=[runtime], preset="quick", dims=dims, budget_s=budget_s, force=True)
    by_label = {m.artifact: m for m in result.measurements}
    floors = [a.noise_floor for a in result.aa if a.noise_floor is not None]
    return {
        "runtime": runtime,
        "p50_ms": {label: round(m.p50_ms, 5) for label, m in by_label.items()},
        "ours_over": {
            # ours over the other one's: below 1, ours takes less time
            c.b: {"ratio": c.speedup, "low": c.low, "high": c.high, "significant": c.significant, "rounds": c.rounds}
            for c in result.comparisons
        },
        "noise_floor": max(floors) if floors else None,
        "skipped": {s.label: s.reason for s in result.skipped},
    }


def one(net: Net, pair: tuple[str, str], work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network in one format and precision."""
    name, precision = pair
    started = time.perf_counter()
    try:
        second = score(net.source, net.task) if net.task else None
        (ours,) = convert(
            net.source, [pair], work / "ours", real=net.real, calibration=net.calibration, score=second, limits=Limits(600)
        )
    except (ConversionError, UserError) as error:
        return {"error": str(error)}
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 2), **facts(ours.artifact), "others": {}}
    if net.task and precision != "fp32":
        runner = exporters.get(name).runner(ours.artifact.path(ours.folder), ours.artifact.contract)
        predict = predictor(runner, ours.artifact.contract, module=net.source.contract)
        row["accuracy"] = net.task.evaluate(predict, "test", limit=2000)["accuracy"]
    folders = {"ours": ours.folder}
    for label, make in others(pair, onnx2tf_python=args.onnx2tf).items():
        try:
            folder, made, seconds = other_artifact(net, pair, label, make, work / label.replace(" ", "-").replace(".", "-"))
        except (Exception, SystemExit) as error:  # another converter's failure is a result
            row["others"][label] = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
            continue
        row["others"][label] = {"seconds": round(seconds, 2), **facts(made)}
        if made.parity.max_abs_error is not None:
            folders[label] = folder
    for runtime in CROSS.get(name, ()) if precision in ("fp32", "int8") and not args.no_latency else ():
        require(runtime)
        row["latency"] = latencies(net, folders, runtime, budget_s=args.budget)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--formats", default=",".join(exporters.names()))
    parser.add_argument("--precisions", default="")
    parser.add_argument("--onnx2tf", default="", help="the Python of an environment that has onnx2tf")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of timing per format and precision")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    for net_name in args.nets.split(","):
        path = FOLDER / f"{net_name}.json"
        kept = json.loads(path.read_text()) if path.exists() and not args.again else {"rows": {}}
        net: Net | None = None
        for name in args.formats.split(","):
            card = exporters.entry(name).card
            wanted = (
                args.precisions.split(",")
                if args.precisions
                else [p for p, why in card.precisions.items() if not why and "sparse" not in p]
            )
            for precision in (p for p in wanted if p in card.precisions and not card.precisions[p]):
                key = f"{name} {precision}"
                if key in kept["rows"]:
                    continue
                net = net or NETS[net_name]()
                with tempfile.TemporaryDirectory(prefix="trimtab-") as work:
                    kept["rows"][key] = one(net, (name, precision), Path(work), args)
                row = kept["rows"][key]
                print(
                    f"{net_name} {key}: {row.get('error', '')[:150] or (row['ok'], row['sqnr_db'], row['seconds'])}", flush=True
                )
                kept |= {
                    "about": net.about,
                    "command": shlex.join(["python", *sys.argv]),
                    "conditions": conditions(),
                    "versions": tool_versions((*PACKAGES, *MORE)),
                }
                files.write_json(path, kept)


if __name__ == "__main__":
    main()
