"""KD-Loss for landmarks on drawn faces of a low-rank shape model: tough and tolerant teachers, and shuffled ones as the control."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from distill_fashion import KEPT
from torch import nn
from trials import Claim

from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.finetune import FinetuneConfig, finetune
from trimtab.compress.method import Context
from trimtab.compress.train import Runtime, evaluate
from trimtab.models.bundle import Bundle, Manifest, load_bundle, save_bundle
from trimtab.models.source import parse
from trimtab.models.tasks.task import Task, tasks

NETWORK = f"{Path(__file__).parent / 'point_net.py'}:make"
TEACHER, STUDENT = 24, 4
"""Widths of the first convolution."""


def shapes(**more: Any) -> Task:
    """Drawn faces of 21 points: 3 600 training, 400 validation and 1 000 test images."""
    return tasks.get("landmarks")(data="shapes", **more)


def network(width: int, task: Task, seed: int) -> nn.Module:
    """A fresh network that starts at the mean shape."""
    torch.manual_seed(seed)
    net = parse(NETWORK, {"width": width}).build()
    with torch.no_grad():
        net.fc.bias.copy_(task.samples("train").__getitems__(range(len(task.samples("train")))).targets.mean(0))
    return net


def teacher(soft: float) -> Bundle:
    """Tough (soft = 0: the true points) or tolerant (the shape model's), trained here and kept between runs."""
    folder = KEPT / f"points-soft-{soft:g}"
    if (folder / "bundle.json").exists():
        return load_bundle(folder)
    task = shapes(soft=soft)
    net = network(TEACHER, task, 0)
    config = FinetuneConfig(epochs=40.0, optimizer="adamw", lr=1e-2, batch_size=64, augment=True)
    with tempfile.TemporaryDirectory() as work:
        finetune(net, task, config, Context(workdir=Path(work), parent=None, device="cpu"))  # type: ignore[arg-type]
    architecture = parse(NETWORK, {"width": TEACHER})
    return save_bundle(folder, net, Manifest(architecture=architecture, contract=task.contract), force=True)


def nme(net: nn.Module, task: Task) -> dict[str, float]:
    """Mean error over the test images in percent of the distance between the eyes, and the share of failures above 8 %."""
    figures = evaluate(net, task, "test", runtime=Runtime("cpu"))
    return {"nme": 100 * figures["nme"], "failure_0.08": figures["failure_0.08"]}


def landmarks_claim(seeds: int) -> None:
    """Full loss < main alone < L2 in NME; shuffled teachers as the control."""
    tough, tolerant = teacher(0.0), teacher(0.9)
    hard, soft = str(tough.folder), str(tolerant.folder)
    released = {"kind": "landmark-main", "weight": 2.0, "teacher": soft}
    figure = {"kind": "landmark-main", "weight": 2.0, "form": "figure"}

    def assist(**more: Any) -> list[dict[str, Any]]:
        return [{"kind": "assistive", "teacher": which, **more} for which in (hard, soft)]

    arms: dict[str, list[dict[str, Any]] | None] = {
        "L2": None,
        "main, released form": [released],
        "full, released form": [released, *assist()],
        "main, figure's form": [figure],
        "full, figure's form": [figure, *assist()],
        "full, figure's form, shuffled teachers": [figure, *assist(shuffle=True)],
    }
    task = shapes()
    training = {
        "epochs": 30.0,
        "optimizer": "adamw",
        "lr": 1e-2,
        "batch_size": 64,
        "augment": True,
        "max_eval": 64,
        "checkpoint_s": 1000,
    }
    about = {
        "data": "drawn faces of 21 points (a synthetic shape model), 3600 training and 1000 test images of 48×48",
        "teacher": f"four convolutions of {TEACHER} to {4 * TEACHER} channels, trained on the same images",
        "teachers_test": {"tough": nme(tough.module(), task), "tolerant": nme(tolerant.module(), task)},
        "student": f"four convolutions of {STUDENT} to {4 * STUDENT} channels",
        "arms": {name: [{k: v for k, v in t.items() if k != "teacher"} for t in terms or []] for name, terms in arms.items()},
        "training": training,
        "figures": "NME in percent of the distance between the eyes; share of images above 8 %",
    }

    def trial(name: str, seed: int) -> dict[str, float]:
        net = network(STUDENT, task, seed)
        terms = arms[name]
        with tempfile.TemporaryDirectory() as work:
            context = Context(workdir=Path(work), parent=tough, seed=seed, device="cpu")
            if terms is None:
                finetune(net, task, FinetuneConfig(**training), context)
            else:
                distill(net, task, DistillConfig(**training, objectives=terms, label_weight=0.0), context)
        return nme(net, task)

    Claim("landmarks", about).run(list(arms), seeds, trial)


CLAIMS = {"landmarks": landmarks_claim}
