"""What zeros are worth on a device: file and download sizes of every format, and latency in every runtime, at shares of zeros and patterns.

    python benchmarks/lottery_sparse.py [--nets resnet20,mobilenet_v1] [--again]        (about 15 minutes on one core)

Every layer of a trained network loses the same share of its weights, the smallest ones, or all but 2 of 4 neighbours, or blocks of 4 × 1.
Nothing is trained afterwards: neither size nor latency depends on the values, and accuracy is not what is asked here. Latency: batch 1, one
thread, one profile per runtime and precision, all variants interleaved in random order, with an A/A pair. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from export_nets import NETS, Net
from host import host
from torch import nn
from trials import RESULTS

from trimtab.compress.lottery.patterns import best_of_groups, block_scores, from_blocks
from trimtab.compress.lottery.shape import Pattern
from trimtab.devices import conditions
from trimtab.devices.profile import profile
from trimtab.export.artifact import Artifact
from trimtab.export.convert import ConversionError, Converted, convert
from trimtab.export.source import module_source
from trimtab.models import files
from trimtab.models.errors import UserError

RESULT = RESULTS / "lottery" / "sparse.json"
ARMS: dict[str, tuple[float, str]] = {
    "0 %": (0.0, "none"),
    **{f"{share} %": (share / 100, "none") for share in (50, 75, 90, 95, 99)},
    "2:4": (0.5, "2:4"),
    "4×1, 90 %": (0.9, "4x1"),
}
PAIRS = (
    *(("onnx", "fp32"), ("onnx", "int8"), ("tflite", "fp32"), ("tflite", "int8"), ("tflite", "sparse")),
    *(("coreml", "fp16"), ("coreml", "sparse"), ("openvino", "fp32"), ("openvino", "int8"), ("ncnn", "fp32")),
    *(("mnn", "fp32"), ("executorch", "fp32"), ("executorch", "int8")),
)
RUNS = (
    *(("onnxruntime", "onnx", "fp32"), ("onnxruntime", "onnx", "int8"), ("openvino", "openvino", "fp32")),
    *(("openvino", "openvino", "int8"), ("litert", "tflite", "fp32"), ("litert", "tflite", "int8")),
    *(("ncnn", "ncnn", "fp32"), ("mnn", "mnn", "fp32"), ("executorch", "executorch", "fp32")),
)
QUIET = 0.1
"""How far from 1 the A/A pair's interval may reach: a rule that looks at the dense network alone, whatever the others show."""
VERSIONS = ("torch", "onnxruntime", "openvino", "ai-edge-litert", "coremltools", "ncnn", "mnn", "executorch")


@torch.no_grad()
def pruned(module: nn.Module, share: float, pattern: str) -> nn.Module:
    """A copy whose convolutions and linear layers have `share` of zeros each, the smallest weights, in a pattern where it fits."""
    module, shape = copy.deepcopy(module), Pattern.parse(pattern)
    for layer in module.modules():
        if not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) or share == 0:
            continue
        weight = layer.weight
        worth = weight.abs()
        if shape.group:
            keep = (
                best_of_groups(worth, shape.keep, shape.group) if shape.fits(weight.shape) else torch.ones_like(weight).bool()
            )
        else:
            blocks = block_scores(worth, shape)
            gone = blocks.flatten().argsort()[: round(share * blocks.numel())]
            kept = torch.ones(blocks.numel(), dtype=torch.bool).index_fill_(0, gone, False)
            keep = from_blocks(kept.view_as(blocks), weight.shape, shape)
        weight.mul_(keep)
    return module


def zeros(module: nn.Module) -> float:
    """The share of zeros among the weights of convolutions and linear layers."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def written(net: Net, module: nn.Module, pair: tuple[str, str], out: Path) -> Converted | str:
    """The artifact, proven or not (its size and its speed are what is asked), or why there is none."""
    source = module_source(module, net.source.contract, label=net.name)
    try:
        return convert(source, [pair], out, real=net.real, calibration=net.calibration)[0]
    except (ConversionError, UserError) as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return said.split(" (/")[0][:300]  # no path of this machine


def sizes_of(made: Artifact) -> dict[str, int]:
    """File and download bytes."""
    return {"size_bytes": made.size_bytes, "deflated_bytes": made.deflated_bytes or 0}


def timed(folders: list[Path], runtime: str, *, budget_s: float) -> dict[str, Any] | None:
    """How many times as fast as the first every other variant is, with its interval, and what the A/A pair shows.

    None when the A/A pair says that nothing could have been seen.
    """
    cpus = conditions.allowed_cpus()
    found = profile(
        folders,
        runtimes=[runtime],
        preset="quick",
        budget_s=budget_s,
        force=True,
        affinity=cpus[-1:] if cpus else None,
    )
    (aa,) = found.aa
    ratio = aa.ratio
    if ratio.reach is None or ratio.reach > QUIET:
        print(f"{runtime}: too noisy ({ratio}); run this again on a quieter machine", flush=True)
        return None
    return {
        "p50_ms": {Path(f).parent.name: m.p50_ms for f, m in zip(folders, found.measurements, strict=True)},
        "speedup": {
            Path(folder).parent.name: {"ratio": c.speedup, "low": c.low, "high": c.high, "significant": c.significant}
            for folder, c in zip(folders[1:], found.comparisons, strict=True)
        },
        "aa": {"ratio": ratio.value, "low": ratio.low, "high": ratio.high},
        "sittings": found.comparisons[0].sittings,
    }


def study(name: str, kept: dict[str, Any], work: Path, *, budget_s: float, save: Any) -> None:
    """One network: sizes of all formats, then latency, each saved when it is there."""
    net = NETS[name]()
    row = kept["nets"].setdefault(name, {"about": net.about, "zeros": {}, "sizes": {}, "unable": {}, "latency": {}})
    modules = {arm: pruned(net.module, *how) for arm, how in ARMS.items()}
    row["zeros"] = {arm: zeros(module) for arm, module in modules.items()}
    for pair in PAIRS:
        key, runs = " ".join(pair), [run for run in RUNS if run[1:] == pair and f"{run[0]} {run[2]}" not in row["latency"]]
        if (key in row["sizes"] or key in row["unable"]) and not runs:
            continue
        folders, started = [], time.monotonic()
        for arm, module in modules.items():
            made = written(net, module, pair, work / key / arm)
            if isinstance(made, str):
                if arm != "0 %" or "sparse" not in key or "tensorflow" in made.lower():
                    row["unable"].setdefault(key, {})[arm] = made
                if "tensorflow" in made.lower():
                    break
                continue
            folders.append(made.folder)
            row["sizes"].setdefault(key, {})[arm] = sizes_of(made.artifact)
        print(name, key, f"{time.monotonic() - started:.0f} s", row["sizes"].get(key), row["unable"].get(key), flush=True)
        save()
        for runtime, _, precision in runs if len(folders) == len(ARMS) else ():
            found = timed(folders, runtime, budget_s=budget_s)
            if found is None:
                continue
            row["latency"][f"{runtime} {precision}"] = found
            shown = {
                arm: f"{c['ratio']:.3f} [{c['low'] or 0:.3f}, {c['high'] or 0:.3f}]" for arm, c in found["speedup"].items()
            }
            print(name, runtime, precision, shown, "A/A", found["aa"], flush=True)
            save()


def main() -> None:
    """Writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="resnet20,mobilenet_v1")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of timing per runtime and precision")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULT.read_text()) if RESULT.exists() and not given.again else {"nets": {}}
    load = conditions.load_average().value

    def save() -> None:
        head = {
            "command": f"python benchmarks/lottery_sparse.py {' '.join(sys.argv[1:])}".strip(),
            "about": "the same share of zeros in every layer, smallest weights first, without training; batch 1, one thread",
            "conditions": {**host(VERSIONS), "load_average": [load, conditions.load_average().value]},
            "arms": {arm: {"share": share, "pattern": pattern} for arm, (share, pattern) in ARMS.items()},
        }
        files.write_json(RESULT, {**head, "nets": kept["nets"]})

    with tempfile.TemporaryDirectory(prefix="trimtab-") as work:
        for name in given.nets.split(","):
            study(name, kept, Path(work) / name, budget_s=given.budget, save=save)


if __name__ == "__main__":
    main()
