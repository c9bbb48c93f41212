"""Hybrid Distill on Fashion-MNIST: a student that takes its features from one teacher and its attention from another."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_fashion import KEPT, fashion, trained
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from trials import Claim

from trimtab.compress.analyse.attention import measure_attention
from trimtab.compress.distill.taps import Taps
from trimtab.compress.method import Context
from trimtab.compress.procedures.mae import MaeConfig, mae
from trimtab.models.architectures import architectures
from trimtab.models.bundle import Bundle, Manifest, load_bundle, save_bundle
from trimtab.models.source import Architecture
from trimtab.models.tasks.task import Task

SHARED = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 64, "max_eval": 64, "checkpoint_s": 1000}


def vit(seed: int) -> nn.Module:
    """A fresh vit_nano."""
    torch.manual_seed(seed)
    return architectures.get("vit_nano")(num_classes=10, in_channels=1)


def teacher(kind: str, task: Task) -> Bundle:
    """The MAE teacher (pixels alone) or the supervised one (labels), trained here and kept between runs."""
    folder = KEPT / f"vit-{kind}"
    if (folder / "bundle.json").exists():
        return load_bundle(folder)
    net = vit(100)
    if kind == "mae":
        with tempfile.TemporaryDirectory() as work:
            config = MaeConfig(epochs=20.0, batch_size=64, max_eval=64, checkpoint_s=1000)
            mae(net, task, config, Context(workdir=Path(work), parent=None, device="cpu"))  # type: ignore[arg-type]
    else:
        trained(None, task, None, 0, {**SHARED, "epochs": 12.0, "augment": True, "warmup_epochs": 0.5}, net)
    architecture = Architecture(name="vit_nano", kwargs={"num_classes": 10, "in_channels": 1})
    return save_bundle(folder, net, Manifest(architecture=architecture, contract=task.contract), force=True)


@torch.no_grad()
def embeddings(net: nn.Module, task: Task, split: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(embeddings (n, d), targets (n,)) of the first `count` samples."""
    net.eval()
    taps = Taps(net, ("embedding",), whose="student", classifier="head")
    values, targets = [], []
    for start in range(0, count, 250):
        raw = task.samples(split).__getitems__(range(start, start + 250))
        with taps.recording():
            values.append(taps.take(net(task.inputs(raw)))["embedding"].numpy())
        targets.append(raw.targets.numpy())
    taps.remove()
    return np.concatenate(values), np.concatenate(targets)


def figures_of(net: nn.Module, task: Task) -> dict[str, float]:
    """Linear-probe accuracy in percent (2 000 training, 5 000 test images), and the last block's attention on 256 test images."""
    x, y = embeddings(net, task, "train", 2000)
    scaler = StandardScaler().fit(x)
    probe = LogisticRegression(C=0.01, max_iter=300).fit(scaler.transform(x), y)
    x_test, y_test = embeddings(net, task, "test", 5000)
    images = task.inputs(task.samples("test").__getitems__(range(256)))
    attention = measure_attention(net, images)
    last = attention.distance_px[-1]
    return {
        "probe": 100 * float(probe.score(scaler.transform(x_test), y_test)),
        "distance_px": statistics.mean(last),
        "distance_spread_px": statistics.pstdev(last),
        "nmi": statistics.mean(attention.nmi[-1]),
    }


def hybrid_claim(seeds: int) -> None:
    """Hybrid keeps the supervised teacher's probe accuracy with the MAE teacher's spread of attention."""
    task = fashion(4000)
    more = fashion(10_000)
    pixels, labels = teacher("mae", more), teacher("supervised", more)
    tokens = {"kind": "tokens", "teacher": str(labels.folder)}
    relations = {"kind": "relations", "teacher": str(pixels.folder)}
    arms = {
        "features": [tokens],
        "relations": [relations],
        "hybrid": [tokens, relations],
        "hybrid, masked": [tokens, relations, {"kind": "token-masking"}],
    }
    training = {**SHARED, "epochs": 2.0, "augment": False, "warmup_epochs": 0.5}
    about = {
        "data": "Fashion-MNIST (for ImageNet), 4k training images without labels; probe on 2k, test on 5k images",
        "teacher": "two vit_nano: MAE on pixels (20 epochs) for relations, supervised (12 epochs) for features, both on 10k images",
        "teachers_test": {kind: figures_of(b.module(), task) for kind, b in (("mae", pixels), ("supervised", labels))},
        "untrained": figures_of(vit(0), task),
        "student": "vit_nano",
        "training": training,
        "figures": "linear-probe accuracy in percent; last block: mean attention distance in pixels, its spread over heads, NMI",
    }

    def trial(name: str, seed: int) -> dict[str, float]:
        net = vit(seed)
        trained({"objectives": arms[name], "label_weight": 0.0}, task, labels, seed, training, net)
        return figures_of(net, task)

    Claim("hybrid", about).run(list(arms), seeds, trial)


CLAIMS = {"hybrid": hybrid_claim}
