"""Unstructured zeros turned into a smaller network: a network pruned at 90, 95 and 99 %, its dead channels sliced away, and timed.

    python benchmarks/lottery_readout.py        (about 8 minutes on one core)

Weights go by magnitude across the whole network in three steps, each with a short fine-tune, so that at 99 % whole channels have died.
"exact" slices what is dead and changes no output; "approximate" also takes channels with less than 5 % of their incoming weights left, folds
constants before padded convolutions, and is fine-tuned once more. The masked network keeps its shape: it is what the others are timed against.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from distill_fashion import accuracy
from export_nets import KEPT, NETS, Net
from host import host
from lottery_sparse import VERSIONS, timed
from torch import nn
from trials import RESULTS

from trimtab.compress.apply import StepDone, run_recipe
from trimtab.compress.recipe import parse_recipe
from trimtab.demo import shipped_bundle
from trimtab.devices import conditions
from trimtab.exporting import Settings, export_bundle
from trimtab.models import files
from trimtab.models.bundle import MANIFEST, Bundle, load_bundle, save_bundle
from trimtab.models.masks import attach_masks

RESULT = RESULTS / "lottery" / "readout.json"
SHARES = (0.90, 0.95, 0.99)
TRAIN: dict[str, Any] = {"kind": "finetune", "batch_size": 64, "amp": "off", "max_eval": 512, "checkpoint_s": 1000}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20": TRAIN | {"epochs": 3, "lr": 0.02, "max_train": 4000},
    "mobilenet_v1": TRAIN | {"epochs": 12, "lr": 0.05},
}
APPROXIMATE = {"kind": "readout", "min_weights": 0.05, "fold": "approximate"}
RUNTIMES = {"onnxruntime": "onnx", "openvino": "onnx", "litert": "tflite"}
BUDGET_S = 8.0


def masked(bundle: Bundle, share: float, folder: Path) -> Bundle:
    """The Bundle with masks over the smallest `share` of all weights of its convolutions and linear layers; made once."""
    if (folder / MANIFEST).exists():
        return load_bundle(folder)
    module = bundle.module()
    weights = {
        f"{path}.weight": layer.weight.detach()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
    }
    sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    least = sizes.kthvalue(round(share * len(sizes))).values
    attach_masks(module, {name: weight.abs() > least for name, weight in weights.items()})
    return save_bundle(folder, module, bundle.manifest)


def run(bundle: Bundle, steps: list[dict[str, Any]], net: Net, folder: Path) -> list[StepDone]:
    """The recipe's finished steps."""
    return run_recipe(bundle, parse_recipe({"format": 1, "step": steps}, origin="benchmark"), net.task, folder, device="cpu")


def latencies(bundles: dict[str, Bundle], net: Net, kept: dict[str, Any]) -> None:
    """None; `kept` has per runtime how many times as fast as the masked network the others are, but for what was too noisy."""
    places: dict[str, dict[str, Path]] = {}
    with tempfile.TemporaryDirectory(prefix="trimtab-") as work:
        for arm, bundle in bundles.items():
            pairs = [("onnx", "fp32"), ("tflite", "fp32")]
            for made in export_bundle(bundle, pairs, Path(work) / arm, task=net.task, label=arm, settings=Settings()):
                if not made.ok:
                    raise RuntimeError(f"{arm}: {made.artifact.parity.reason}")
                places.setdefault(made.artifact.format, {})[arm] = made.folder
        for runtime, kind in RUNTIMES.items():
            found = None if runtime in kept else timed(list(places[kind].values()), runtime, budget_s=BUDGET_S)
            if found:
                kept[runtime] = found


def row(arm: str, step: StepDone | None, bundle: Bundle, net: Net) -> dict[str, Any]:
    """What is kept of a variant: accuracy in percent, and what its readout says."""
    if net.task is None:
        raise SystemExit(f"{net.name} comes without data")
    kept = ("mac_ratio", "param_ratio", "removed", "removed_approximately", "zeros_before", "zeros_after", "deviation", "exact")
    figures = {key: step.figures[key] for key in kept} | {"notes": list(step.notes)} if step else {}
    found = {"accuracy": accuracy(bundle.module(), net.task), **figures}
    print(net.name, arm, found, flush=True)
    return found


def study(name: str, kept: dict[str, Any], save: Callable[[], None]) -> None:
    """One network at every share of zeros, saved share by share. What was trained lies in a folder of its own and is reused."""
    net = NETS[name]()
    bundle = shipped_bundle("fashion-mnist") if name == "resnet20" else load_bundle(KEPT / name)
    training, work = NETWORKS[name], KEPT / "readout" / name
    if "dense_accuracy" not in kept:
        dense = row("dense", None, bundle, net)["accuracy"]
        kept |= {"about": net.about, "training": training, "dense_accuracy": dense, "shares": {}}
    for share in SHARES:
        place, found = work / f"{share:g}", kept["shares"].setdefault(f"{100 * share:g} %", {"arms": {}, "latency": {}})
        done = run(masked(bundle, share, place / "masked"), [training, {"kind": "readout"}], net, place / "exact")
        bundle = done[0].bundle  # the next share is pruned from this one
        rough = run(bundle, [APPROXIMATE, training], net, place / "approximate")
        made = {"masked": (None, bundle), "exact": (done[1], done[1].bundle), "approximate": (rough[0], rough[1].bundle)}
        for arm, (step, result) in made.items():
            if arm not in found["arms"]:
                found["arms"][arm] = row(arm, step, result, net)
        save()
        if len(found["latency"]) < len(RUNTIMES):
            latencies({arm: result for arm, (_, result) in made.items()}, net, found["latency"])
        print(name, share, found["latency"], flush=True)
        save()


def main() -> None:
    """Writes the result file; what is in it is not run again."""
    torch.set_num_threads(1)
    kept = json.loads(RESULT.read_text())["nets"] if RESULT.exists() and "--again" not in sys.argv else {}
    load = conditions.load_average().value

    def save() -> None:
        head = {
            "command": "python benchmarks/lottery_readout.py",
            "about": "global magnitude pruning in three steps, one seed; batch 1, one thread",
            "approximate": APPROXIMATE,
            "conditions": {**host(VERSIONS), "load_average": [load, conditions.load_average().value]},
        }
        files.write_json(RESULT, {**head, "nets": kept})

    for name in NETWORKS:
        study(name, kept.setdefault(name, {}), save)


if __name__ == "__main__":
    main()
