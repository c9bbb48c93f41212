"""The dense networks that the dynamic experiments start from, trained here once on Fashion-MNIST (which stands in for CIFAR-10)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from distill_fashion import fashion, trained
from dynamic_schedule import FULL, SCHEDULE

from trimtab.demo import shipped_bundle
from trimtab.models.bundle import MANIFEST, Bundle, Manifest, load_bundle, save_bundle
from trimtab.models.source import Architecture

KEPT = Path(tempfile.gettempdir()) / f"trimtab-{SCHEDULE.folder}-benchmark"
"""Networks trained here: made again when they are gone."""

NETS: dict[str, dict[str, Any]] = {
    "vgg16_bn": {"width": 0.25},
    "resnet20": {},
    "mobilenet_v1": {"width": 0.5, "stem_stride": 1},
}
"""Arguments of every network; ResNet-20 is the one that ships with the package."""
if SCHEDULE is FULL:
    NETS |= {"resnet56": {}}

TRAINING: dict[str, Any] = {
    "epochs": SCHEDULE.dense_epochs,
    "lr": 0.1,
    "batch_size": 128,
    "augment": True,
    "warmup_epochs": 0.2,
    "max_eval": 256,
    "checkpoint_s": 1000,
}


def baseline(name: str) -> Bundle:
    """The trained dense network: so many passes over 54 000 images, seed 0."""
    if name == "resnet20":
        return shipped_bundle("fashion-mnist")
    folder = KEPT / name
    if not (folder / MANIFEST).exists():
        task = fashion(None)
        architecture = Architecture(name=name, kwargs={"num_classes": 10, "in_channels": 1, **NETS[name]})
        torch.manual_seed(0)
        net = trained(None, task, None, 0, TRAINING, architecture.build())
        save_bundle(folder, net, Manifest(architecture=architecture, contract=task.contract), force=True)
    return load_bundle(folder)
