"""Experiments on Fashion-MNIST, which stands in for CIFAR-100: KD++ and its controls, the size of the teacher, the dual head,
aspects, and nested dropout under label noise."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from trials import Claim

from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.distill.taps import Taps, find_classifier
from trimtab.compress.finetune import FinetuneConfig, finetune
from trimtab.compress.method import Context
from trimtab.compress.train import Runtime, evaluate
from trimtab.demo import shipped_bundle
from trimtab.models.architectures import architectures
from trimtab.models.bundle import Bundle, Manifest, load_bundle, save_bundle
from trimtab.models.source import Architecture
from trimtab.models.tasks.task import Task, tasks

STUDENT = {"name": "resnet8", "width": 0.25}
KEPT = Path(tempfile.gettempdir()) / "trimtab-distill-benchmark"
"""Teachers' signals and teachers trained here: made again when they are gone."""


def student(seed: int, **more: Any) -> nn.Module:
    """A fresh ResNet-8 of quarter width: 4, 8 and 16 channels."""
    torch.manual_seed(seed)
    options = {k: v for k, v in {**STUDENT, **more}.items() if k != "name"}
    return architectures.get(STUDENT["name"])(num_classes=10, in_channels=1, **options)


WIDE_HEAD = "ResNet-8 of quarter width (4, 8, 16 channels) with a 1×1 convolution to 64 features before the pooling: the teacher's width"


def wide_head(seed: int) -> nn.Module:
    """The student with as many features as its teacher, so that no projector stands between the two embeddings."""
    net = student(seed)
    net.layer3.append(nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()))
    net.fc = nn.Linear(64, 10)
    return net


def fashion(images: int | None, seed: int = 0) -> Task:
    """The task with that many training images, stratified by `seed`; None = all 54 000."""
    return tasks.get("classification")(data="fashion-mnist", max_train=images, seed=seed)


def trained(
    arm: dict[str, Any] | None,
    task: Task,
    teacher: Bundle | None,
    seed: int,
    training: dict[str, Any],
    net: nn.Module | None = None,
) -> nn.Module:
    """A student trained with the terms of `arm` (None: labels alone), everything else equal."""
    net = net or student(seed)
    with tempfile.TemporaryDirectory() as work:
        context = Context(workdir=Path(work), parent=teacher, seed=seed, device="cpu")
        if arm is None:
            finetune(net, task, FinetuneConfig(**training), context)
        else:
            distill(net, task, DistillConfig(**training, **arm), context)
    return net


def accuracy(net: nn.Module, task: Task) -> float:
    """Test accuracy in percent."""
    return 100 * evaluate(net, task, "test", runtime=Runtime("cpu"))["accuracy"]


@torch.no_grad()
def embedding_norm(net: nn.Module, task: Task) -> float:
    """Mean norm of the embedding over 2 000 test images."""
    inputs = task.inputs(task.samples("test").__getitems__(range(2000)))
    net.eval()
    taps = Taps(net, ("embedding",), whose="student", classifier=find_classifier(net, inputs[:1], whose="student", key=""))
    with taps.recording():
        value = taps.take(net(inputs))["embedding"].norm(dim=1).mean().item()
    taps.remove()
    return value


def cached(**training: Any) -> dict[str, Any]:
    """Settings of a run whose teacher's signals are computed once."""
    return {"cache_teacher": True, "cache_folder": str(KEPT / "signals"), **training}


COMMON: dict[str, Any] = {"batch_size": 64, "lr": 0.1, "augment": False, "max_eval": 256, "checkpoint_s": 1000}
SIZES = {"2k": (2000, 30.0), "10k": (10_000, 8.0), "54k": (None, 1.0)}
"""Training images and epochs. Of the 60 000 images of the training part 6 000 are the validation split."""

KD = {"kind": "kd", "weight": 1.0, "temperature": 4.0, "warmup": 0.083}
ARMS: dict[str, dict[str, Any] | None] = {
    "CE": None,
    "KD": {"objectives": [KD]},
    "KD + cosine": {"objectives": [KD, {"kind": "cosine", "weight": 2.0}]},
    "KD + ND": {"objectives": [KD, {"kind": "nd", "weight": 2.0}]},
}


def kd_claim(seeds: int) -> None:
    """KD + ND > KD, KD + ND > KD + cosine; norms rise."""
    teacher = shipped_bundle("fashion-mnist")
    for size, (images, epochs) in SIZES.items():
        task = fashion(images)
        training = {**COMMON, "epochs": epochs}
        claim = Claim(
            f"kd-{size}",
            {
                "data": f"Fashion-MNIST (for CIFAR-100), {size} training images, 10 000 test images",
                "teacher": "the shipped ResNet-20 (trained on 54k images)",
                "student": WIDE_HEAD,
                "arms": ARMS,
                "training": training,
                "figures": "test accuracy in percent, mean embedding norm",
            },
        )
        run_arms(claim, ARMS, seeds, task, teacher, training, make=wide_head, norm=True)


def run_arms(
    claim: Claim,
    arms: dict[str, Any],
    seeds: int,
    task: Task,
    teacher: Bundle,
    training: dict[str, Any],
    *,
    make: Callable[[int], nn.Module] = student,
    norm: bool = False,
) -> None:
    """Every arm with every seed: accuracy, and the embedding's norm where it is asked for."""

    def trial(name: str, seed: int) -> dict[str, float]:
        settings = training if arms[name] is None else cached(**training)
        net = trained(arms[name], task, teacher, seed, settings, make(seed))
        figures = {"accuracy": accuracy(net, task)}
        return figures | {"norm": embedding_norm(net, task)} if norm else figures

    claim.run(list(arms), seeds, trial)


# ---------------------------------------------------------------- the teacher's size


def teacher_bundle(name: str, images: int, epochs: float) -> Bundle:
    """A teacher trained here with the labels, kept between runs."""
    folder = KEPT / f"{name}-{images}-{epochs:g}"
    if (folder / "bundle.json").exists():
        return load_bundle(folder)
    task = fashion(images)
    torch.manual_seed(0)
    net = architectures.get(name)(num_classes=10, in_channels=1)
    trained(None, task, None, 0, {**COMMON, "epochs": epochs, "augment": True, "max_eval": 0}, net)
    architecture = Architecture(name=name, kwargs={"num_classes": 10, "in_channels": 1})
    return save_bundle(folder, net, Manifest(architecture=architecture, contract=task.contract), force=True)


def teachers_claim(seeds: int) -> None:
    """A larger teacher does not hurt KD++."""
    task, training = fashion(10_000), {**COMMON, "epochs": 5.0}
    names = ("resnet8", "resnet20", "resnet44")
    bundles = {name: teacher_bundle(name, 20_000, 5.0) for name in names}
    scores = {name: accuracy(bundle.module(), task) for name, bundle in bundles.items()}
    arms = {f"{kind} ← {name}": (ARMS[kind], name) for name in names for kind in ("KD", "KD + ND")}
    claim = Claim(
        "teachers",
        {
            "data": "Fashion-MNIST (for CIFAR-100), 10k training images of the student, 20k × 5 epochs of the teachers",
            "teachers_test": scores,
            "student": WIDE_HEAD,
            "training": training,
            "figures": "test accuracy in percent",
        },
    )

    def trial(name: str, seed: int) -> dict[str, float]:
        arm, which = arms[name]
        return {"accuracy": accuracy(trained(arm, task, bundles[which], seed, cached(**training), wide_head(seed)), task)}

    claim.run(list(arms), seeds, trial)


# ---------------------------------------------------------------- two heads

DUAL_ARMS: dict[str, dict[str, Any] | None] = {
    "CE": None,
    "CE + BinaryKL, one head": {"objectives": [{"kind": "binary-kl"}]},
    "CE + BinaryKL-Norm, one head": {"objectives": [{"kind": "binary-kl-norm"}]},
    "dual, linear": {"objectives": [{"kind": "dual-head", "head": "linear", "align": False}]},
    "dual, non-linear": {"objectives": [{"kind": "dual-head", "head": "nonlinear", "align": False}]},
    "dual, linear, aligned": {"objectives": [{"kind": "dual-head", "head": "linear", "align": True}]},
}


def dual_claim(seeds: int) -> None:
    """CE + BinaryKL-Norm in one head < CE; dual head > one head."""
    task, training = fashion(2000), {**COMMON, "epochs": 30.0}
    about = {
        "data": "Fashion-MNIST (for CIFAR-100), 2k training images",
        "teacher": "the shipped ResNet-20",
        "student": STUDENT,
        "arms": DUAL_ARMS,
        "training": training,
        "figures": "test accuracy in percent",
    }
    run_arms(Claim("dual-head", about), DUAL_ARMS, seeds, task, shipped_bundle("fashion-mnist"), training)


# ---------------------------------------------------------------- aspects


def aspects_claim(seeds: int) -> None:
    """Aspects beat shuffled aspects and label smoothing when there is little data."""
    import aspects_oracle  # registers the oracle: what a language model would answer, computed from the picture

    source = aspects_oracle.NAME
    arms: dict[str, Any] = {
        "CE": None,
        "CE + aspects": {"objectives": [{"kind": "aspects", "source": source}]},
        "CE + shuffled aspects": {"objectives": [{"kind": "aspects", "source": source, "shuffle": "all"}]},
        "CE + aspects of another image of the class": {
            "objectives": [{"kind": "aspects", "source": source, "shuffle": "class"}]
        },
        "label smoothing 0.1": None,
    }
    training = {**COMMON, "epochs": 50.0, "lr": 0.05}
    for images in (200, 1000):
        task = fashion(images)
        smooth = tasks.get("classification")(data="fashion-mnist", max_train=images, label_smoothing=0.1)
        about = {
            "data": f"Fashion-MNIST, {images} training images; aspects from a programmatic oracle with noise, not from a language model",
            "student": STUDENT,
            "arms": arms,
            "training": training,
            "figures": "test accuracy in percent",
        }

        def trial(name: str, seed: int, task: Task = task, smooth: Task = smooth) -> dict[str, float]:
            chosen = smooth if name.startswith("label") else task
            return {"accuracy": accuracy(trained(arms[name], chosen, None, seed, training), task)}

        Claim(f"aspects-{images}", about).run(list(arms), seeds, trial)


# ---------------------------------------------------------------- nested dropout

KS = (1, 2, 4, 8, 16, 32, 64, 128)


class Noisy:
    """A task whose training labels are redrawn uniformly with probability `rate`; all else is the task's own."""

    def __init__(self, task: Task, rate: float, seed: int) -> None:
        self._task, samples = task, task.samples("train")
        rng = np.random.default_rng(seed)
        redrawn = rng.random(len(samples)) < rate
        self._labels = torch.from_numpy(np.where(redrawn, rng.integers(0, 10, len(samples)), samples.targets))
        self.data_id = f"{task.data_id}-noise-{rate}-{seed}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def training_pair(self, batch: Any, *, augment: bool, generator: torch.Generator) -> Any:
        inputs, _ = self._task.training_pair(batch, augment=augment, generator=generator)
        return inputs, self._labels[batch.index]


class OnTest:
    """A task whose validation samples are its test samples: for figures that are measured on validation."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def samples(self, split: str) -> Any:
        return self._task.samples("test" if split == "val" else split)


class WideEmbedding(nn.Module):
    """A narrow ResNet-8 with a 1×1 convolution to 128 features and a bias-free classifier."""

    def __init__(self, seed: int, dropout: float) -> None:
        super().__init__()
        self.body = student(seed)
        self.body.layer3.append(nn.Sequential(nn.Conv2d(16, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()))
        self.body.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(128, 10, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def nested_claim(seeds: int) -> None:
    """Eight of 128 features suffice under 50 % label noise."""
    from trimtab.compress.distill.features import accuracy_by_features

    task = fashion(4000)
    arms = {"CE": (None, 0.0), "dropout 0.5": (None, 0.5), "nested dropout": ({"objective": "nested"}, 0.0)}
    terms = {"objectives": [{"kind": "nested-dropout", "sigma": 10.0}], "label_weight": 0.0}
    training = {**COMMON, "epochs": 10.0}
    about = {
        "data": "Fashion-MNIST, 4k training images of which half have their label redrawn uniformly; 10 000 clean test images",
        "student": "ResNet-8 of quarter width with a 1×1 convolution to 128 features, bias-free classifier",
        "nested": terms,
        "training": training,
        "figures": "test accuracy in percent with the first k of 128 features",
    }

    def trial(name: str, seed: int) -> dict[str, float]:
        arm, dropout = arms[name]
        net = WideEmbedding(seed, dropout)
        noisy: Any = Noisy(task, 0.5, seed)
        trained(terms if arm else None, noisy, None, seed, training, net)
        unseen: Any = OnTest(task)
        curve = accuracy_by_features(net, unseen, KS, Runtime("cpu"))
        return {f"k={k}": 100 * value for k, value in curve.items()}

    Claim("nested-dropout", about).run(list(arms), seeds, trial)


CLAIMS = {
    "kd": kd_claim,
    "dual": dual_claim,
    "teachers": teachers_claim,
    "aspects": aspects_claim,
    "nested": nested_claim,
}
