"""A task that a tiny network learns in seconds, and the tiny network, for the tests of everything that trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trimtab.compress.method import Context
from trimtab.compress.train import TrainConfig, fit
from trimtab.models.contract import Contract
from trimtab.models.files import digest_of
from trimtab.models.tasks.classification import ClassificationTask
from trimtab.models.tasks.images import ArrayImages
from trimtab.models.tasks.splits import Splits

CLASSES = 4


def make_task(
    *, train: int = 96, val: int = 64, classes: int = CLASSES, seed: int = 0, channels: int = 1
) -> ClassificationTask:
    """8×8 images: a fixed random pattern per class plus noise."""
    patterns = np.random.default_rng(99).uniform(60, 190, (classes, channels, 8, 8))
    rng = np.random.default_rng(seed)

    def images(count: int) -> ArrayImages:
        targets = rng.integers(0, classes, count)
        pixels = np.clip(patterns[targets] + rng.normal(0, 25, (count, channels, 8, 8)), 0, 255).astype(np.uint8)
        return ArrayImages(pixels, targets.astype(np.int64))

    names = tuple(f"class {k}" for k in range(classes))
    splits = Splits(images(train), images(val), images(val), names, flips=True, data_id=digest_of([train, val, classes, seed]))
    return ClassificationTask(splits, data="toy")


def make_net(*, classes: int = CLASSES, channels: int = 1, seed: int = 0, dropout: float = 0.3) -> nn.Module:
    """A convolution, batch norm, dropout and a linear layer, with weights by `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(8 * 16, classes),
        )


@dataclass
class FakeBundle:
    """What the engine uses of a Bundle."""

    contract: Contract
    net: nn.Module
    hash: str = "teacher-1"
    built: list[int] = field(default_factory=list)

    def module(self) -> nn.Module:
        self.built.append(1)
        return self.net


def make_context(folder: Path, *, parent: FakeBundle | None = None, seed: int = 0, **more: object) -> Context:
    return Context(workdir=folder, parent=parent, seed=seed, device="cpu", **more)  # type: ignore[arg-type]


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.05, amp="off", checkpoint_s=1000)


def task_loss(task):
    """The objective of plain training."""
    return lambda network, batch: (task.loss(network(batch.inputs), batch.targets), {})


def train(folder, config=CONFIG, *, net=None, task=None, objective=None, seed=0, **more):
    net, task = net or make_net(), task or make_task()
    history = fit(net, task, config, objective=objective or task_loss(task), context=make_context(folder, seed=seed), **more)
    return net, history


def lively(module):
    """The module with norm statistics that make every channel matter, in eval mode."""
    torch.manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.3)
    return module.eval()
