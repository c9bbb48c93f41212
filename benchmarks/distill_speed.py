"""What a step of distillation costs: cached against live teacher, and every objective against plain KD."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from training import BATCH, conditions, distillation, distilling, interleaved, ratio, saved, summary
from trials import RESULTS

from trimtab.compress.distill.method import DistillConfig
from trimtab.models import files
from trimtab.models.tasks.task import tasks

OBJECTIVES: dict[str, list[dict]] = {
    "kd": [{"kind": "kd"}],
    "kd again": [{"kind": "kd"}],
    "kd + nd": [{"kind": "kd"}, {"kind": "nd"}],
    "kd + cosine": [{"kind": "kd"}, {"kind": "cosine"}],
    "dkd": [{"kind": "dkd"}],
    "dist": [{"kind": "dist"}],
    "logit-mse": [{"kind": "logit-mse"}],
    "hints": [{"kind": "hints", "student_layer": "layer2", "teacher_layer": "layer2"}],
    "dual-head": [{"kind": "dual-head", "align": False}],
    "dual-head, aligned": [{"kind": "dual-head", "align": True}],
    "multi-sample-dropout": [{"kind": "kd"}, {"kind": "multi-sample-dropout"}],
    "nested-dropout": [{"kind": "kd"}, {"kind": "nested-dropout"}],
}


def speed_claim(seeds: int) -> None:
    """Interleaved, order-randomised rounds, at least five; ratios within rounds."""
    rounds, rng = max(5, seeds), random.Random(0)
    task = tasks.get("classification")(data="fashion-mnist")
    common = {"epochs": 1, "batch_size": BATCH, "max_train": 6 * BATCH, "max_eval": 1, "checkpoint_s": 1000, "lr": 1e-4}
    figures = {"cached": distillation(task, DistillConfig(**common), rounds, rng)}
    with tempfile.TemporaryDirectory() as folder:
        teacher = saved("resnet56", task, Path(folder) / "teacher")
        kept = {"cache_teacher": True, "cache_folder": str(Path(folder) / "signals")}
        times = interleaved(
            {
                name: distilling("resnet20", task, DistillConfig(**common, **kept, objectives=terms), teacher)
                for name, terms in OBJECTIVES.items()
            },
            rounds,
            rng,
        )
    figures["overhead"] = summary(times) | {"over_kd": {name: ratio(times[name], times["kd"]) for name in times}}
    about = (
        "ResNet-56 → ResNet-20, Fashion-MNIST, batches of 128; teacher's signals cached, so that the objective's own cost shows"
    )
    record = {"command": "python benchmarks/distill.py --only speed", "about": about, "conditions": conditions(), **figures}
    (RESULTS / "distill").mkdir(parents=True, exist_ok=True)
    files.write_json(RESULTS / "distill" / "speed.json", record)
    print(json.dumps({k: v["wall"] for k, v in figures["overhead"]["over_kd"].items()}, indent=1))


CLAIMS = {"speed": speed_claim}
