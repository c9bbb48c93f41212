"""The networks and data of the lottery experiments: an AlexNet-like and a MobileNet-like one, on two imbalanced binary tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from trimtab.models.bundle import Bundle, Manifest, save_bundle
from trimtab.models.files import digest_of
from trimtab.models.source import parse
from trimtab.models.tasks.classification import ClassificationTask
from trimtab.models.tasks.images import ArrayImages
from trimtab.models.tasks.sources_fashion import open_fashion_mnist
from trimtab.models.tasks.splits import Splits
from trimtab.models.tasks.task import Task, tasks

CRITICAL = {"fashion": "shirt", "elpv": "defective"}
SHIRT, OTHERS = 6, (0, 2, 4)
"""Shirts against T-shirts, pullovers and coats."""
OTHER_IMAGES, RATIO = 2000, 5


def alexnet_like() -> nn.Module:
    """Three convolutions (batch norm added: without, nothing is learnt in so few epochs) and three linear layers; two classes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, 2, padding=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Flatten()),
        *(nn.Linear(32 * 16, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 2)),
    )


def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A depthwise and a pointwise convolution with batch norm."""
    return [
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        *(nn.BatchNorm2d(inputs), nn.ReLU()),
        *(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
    ]


def mobilenet_like() -> nn.Module:
    """A stem, five separable blocks, a global average and one linear layer; two classes."""
    blocks = [
        layer
        for i, o, s in ((16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        for layer in separable(i, o, s)
    ]
    stem = (nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 2))


def task_of(data: str, seed: int) -> Task:
    """The imbalanced task: shirts 1 : 5 (drawn by `seed`), or solar cells at 48 × 48 with their own imbalance."""
    if data == "elpv":
        return tasks.get("classification")(data="elpv", size=(48, 48), val_fraction=0.25, seed=seed)
    source, rng = open_fashion_mnist(), np.random.default_rng(seed)

    def pick(images: ArrayImages, others: int, *, skip: int = 0) -> ArrayImages:
        up = np.flatnonzero(images.targets == SHIRT)
        down = np.flatnonzero(np.isin(images.targets, OTHERS))
        drawn = np.concatenate([rng.permutation(down)[:others], rng.permutation(up)[: others // RATIO]])
        order = rng.permutation(drawn)
        return ArrayImages(images.pixels[order], (images.targets[order] == SHIRT).astype(np.int64))

    both = pick(source.train, 2 * OTHER_IMAGES)
    half = len(both.targets) // 2
    train, val = both.take(np.arange(half)), both.take(np.arange(half, 2 * half))
    everything = np.flatnonzero(np.isin(source.test.targets, (SHIRT, *OTHERS)))
    test = source.test.take(everything)
    test = ArrayImages(test.pixels, (test.targets == SHIRT).astype(np.int64))
    splits = Splits(train, val, test, ("other", "shirt"), flips=True, data_id=digest_of(["shirts", seed, OTHER_IMAGES, RATIO]))
    return ClassificationTask(splits, data="fashion-mnist, shirts")


def fresh(net: str, task: Task, seed: int, folder: Path) -> Bundle:
    """An untrained network as a Bundle."""
    architecture = parse(f"{Path(__file__)}:{net}")
    torch.manual_seed(seed)
    return save_bundle(folder, architecture.build(), Manifest(architecture=architecture, contract=task.contract), force=True)
