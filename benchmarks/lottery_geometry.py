"""The geometry of pruned networks on Fashion-MNIST: does the clean margin foretell survival, which corruptions are alike, how long
does it take.

    python benchmarks/lottery_geometry.py [--seeds 5] [--only trials|speed]

A stopped run goes on with the next seed. Results: results/lottery/geometry.json and geometry-speed.json.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from host import host
from torch import Tensor, nn
from torch.nn import functional as F
from trials import RESULTS, Claim

from trimtab.compress.analyse.analysis import AnalysisRecord, analyse_models
from trimtab.models import files
from trimtab.models.contract import Contract
from trimtab.models.progress import LogProgress
from trimtab.models.tasks.corruptions import corruption_records
from trimtab.models.tasks.task import Task, tasks

RATIOS = (50, 80, 90, 95)
METHODS = ("random", "magnitude", "gradient")
ARMS = ("dense", *(f"{method} {ratio} %" for method in METHODS for ratio in RATIOS))
IMAGES, SAMPLES, SEVERITIES = 10_000, 1500, (2, 4)
DENSE = {"epochs": 5, "lr": 0.05}
FINETUNE = {"epochs": 1, "lr": 0.02}
SPEED_KINDS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "gaussian_blur", "motion_blur"),
    *("brightness", "contrast", "pixelate", "jpeg"),
)


@dataclass(frozen=True)
class InMemory:
    """A network that was not saved: what an analysis uses of a Bundle."""

    net: nn.Module
    contract: Contract
    hash: str

    def module(self) -> nn.Module:
        """A copy of the network."""
        return copy.deepcopy(self.net)


def small_cnn(seed: int) -> nn.Module:
    """Two convolutions (8 and 16 channels) and two linear layers: 64 features before the classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def prunable(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of convolutions and linear layers, by name."""
    return {name: p for name, p in net.named_parameters() if p.ndim > 1}


def train(
    net: nn.Module, data: tuple[Tensor, Tensor], *, epochs: int, lr: float, seed: int, masks: Mapping[str, Tensor]
) -> None:
    """SGD with momentum and a cosine schedule. A mask is a hook on its weight's gradient: pruned weights start and stay at 0."""
    inputs, targets = data
    handles = [
        p.register_hook(lambda grad, mask=masks[name]: grad * mask) for name, p in prunable(net).items() if name in masks
    ]
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * len(inputs) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    net.train()
    done = 0
    while done < steps:
        for rows in torch.randperm(len(inputs), generator=generator).split(64)[: steps - done]:
            optimiser.zero_grad()
            F.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            optimiser.step()
            schedule.step()
            done += 1
    for handle in handles:
        handle.remove()
    net.eval()


def scores(net: nn.Module, method: str, data: tuple[Tensor, Tensor], seed: int) -> dict[str, Tensor]:
    """What each weight is worth: at random, |w|, or |w · gradient| of the mean loss of 1000 training images."""
    weights = prunable(net)
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(p.shape, generator=generator) for name, p in weights.items()}
    if method == "magnitude":
        return {name: p.detach().abs() for name, p in weights.items()}
    loss = F.cross_entropy(net(data[0][:1000]), data[1][:1000])
    grads = torch.autograd.grad(loss, list(weights.values()))
    return {name: (p.detach() * g).abs() for (name, p), g in zip(weights.items(), grads, strict=True)}


def pruned(net: nn.Module, method: str, ratio: int, data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """A copy without its `ratio` % least worthy weights of the whole network, fine-tuned."""
    net = copy.deepcopy(net)
    worth = scores(net, method, data, seed)
    everything = torch.cat([value.flatten() for value in worth.values()])
    least = everything.kthvalue(len(everything) * ratio // 100).values
    masks = {name: (value > least).float() for name, value in worth.items()}
    with torch.no_grad():
        for name, p in prunable(net).items():
            p.mul_(masks[name])
    train(net, data, **FINETUNE, seed=seed, masks=masks)
    return net


def networks(task: Task, seed: int) -> dict[str, InMemory]:
    """The dense network of a seed and its twelve pruned ones, by arm."""
    raw = task.samples("train").__getitems__(range(IMAGES))
    data = (task.inputs(raw), raw.targets)
    dense = small_cnn(seed)
    train(dense, data, **DENSE, seed=seed, masks={})
    nets = {"dense": dense}
    for method in METHODS:
        for ratio in RATIOS:
            nets[f"{method} {ratio} %"] = pruned(dense, method, ratio, data, seed)
    return {arm: InMemory(net, task.contract, f"{arm}, seed {seed}") for arm, net in nets.items()}


def family_means(matrix: list[list[float | None]], families: list[str]) -> dict[str, float]:
    """Mean correlation of pairs of corruptions of one family, and of two."""
    pairs = [(a, b) for a in range(len(families)) for b in range(a)]
    alike = {True: [], False: []}
    for a, b in pairs:
        alike[families[a] == families[b]].append(matrix[a][b])
    return {"within": statistics.mean(alike[True]), "between": statistics.mean(alike[False])}


def given_clean(record: AnalysisRecord, model: int) -> list[list[float | None]]:
    """Correlations of the margin's shift at the kept severity, the clean margin's linear share taken out.

    The control: shifts are corrupted − clean, so two corruptions that leave nothing of a picture correlate by the clean margin alone.
    """
    clean = record.arrays["clean_margin"][model].astype(np.float64)
    clean -= clean.mean()
    shift = record.arrays["margin"][model].astype(np.float64) - clean
    shift -= shift.mean(1, keepdims=True)
    return np.corrcoef(shift - np.outer(shift @ clean / (clean @ clean), clean)).tolist()


def figures(record: AnalysisRecord) -> dict[str, dict[str, float]]:
    """What is kept of an analysis, by model."""
    info, found = record.info, {}
    families = [row["family"] for row in info["corruptions"]]
    for m, model in enumerate(info["models"]):
        arm: dict[str, float] = {
            "accuracy": 100 * model["accuracy"],
            "corrupted": 100 * float(np.mean(info["accuracy"][m])),
            "angle_mean": float(record.arrays["clean_angle"][m].mean()),
            "angle_sd": float(record.arrays["clean_angle"][m].std()),
            **family_means(info["redundancy"]["by_model"][m], families),
            **{f"{name} given clean": value for name, value in family_means(given_clean(record, m), families).items()},
        }
        for row in info["survival"]:
            if row["model"] == model["name"]:
                arm |= {f"{score} {row['corruption']}": row[f"auc_{score}"] for score in ("margin", "confidence")}
                if row["corruption"] == "all":
                    arm |= {f"{score} all": row[f"auc_{score}"] for score in ("norm", "angle")}
        if m == 0:
            names = [row["name"] for row in info["corruptions"]]
            matrix = info["redundancy"]["mean"]
            arm |= {f"r {names[b]} {names[a]}": matrix[a][b] for a in range(len(names)) for b in range(a)}
        found[model["name"]] = {name: round(value, 5) for name, value in arm.items()}
    return found


def trials_claim(seeds: int) -> None:
    """Thirteen networks a seed, each analysed over all kinds of corruption."""
    task = tasks.get("classification")(data="fashion-mnist")
    about = {
        "data": f"Fashion-MNIST (for CIFAR-10 and ImageNet), {IMAGES} training images, the first {SAMPLES} test images",
        "network": "two convolutions (8, 16 channels), two linear layers, 64 features",
        "dense": DENSE,
        "finetune": FINETUNE,
        "corruptions": {card.name: card.family for card in corruption_records()},
        "levels": {card.name: card.levels for card in corruption_records()},
        "severities": SEVERITIES,
        "figures": "accuracies in percent; areas under the ROC curve for survival (severities pooled); Pearson's r of margin shifts "
        "within and between families (also with the clean margin's linear share taken out, at the larger severity), and (in the dense "
        "arm) of every pair, mean over the models",
    }

    @functools.cache
    def of_seed(seed: int) -> dict[str, dict[str, float]]:
        bundles: Any = list(networks(task, seed).items())
        return figures(
            analyse_models(bundles, task, severities=SEVERITIES, limit=SAMPLES, seed=seed, device="cpu", progress=LogProgress())
        )

    Claim("geometry", about, folder="lottery").run(ARMS, seeds, lambda arm, seed: dict(of_seed(seed)[arm]))


def speed_claim(_seeds: int) -> None:
    """Seconds of six networks × 10 000 images × nine corruptions at one severity, and of making those corruptions alone."""
    from trimtab.models.tasks.corruptions import corrupt

    task = tasks.get("classification")(data="fashion-mnist")
    bundles: Any = [(f"net {seed}", InMemory(small_cnn(seed), task.contract, str(seed))) for seed in range(6)]
    runs = []
    for _ in range(2):
        started = time.perf_counter()
        analyse_models(bundles, task, corruptions=SPEED_KINDS, severities=(3,), device="cpu", progress=LogProgress())
        runs.append(time.perf_counter() - started)
    pixels = task.samples("test").__getitems__(range(10_000)).pixels
    making = {}
    for card in corruption_records():
        started = time.perf_counter()
        corrupt(pixels, card.name, 3, torch.Generator().manual_seed(0))
        making[card.name] = round(time.perf_counter() - started, 3)
    record = {
        "command": "python benchmarks/lottery_geometry.py --only speed",
        "about": "6 small CNNs × 10 000 Fashion-MNIST test images × 9 corruptions at severity 3 (and clean), one thread; record included",
        "conditions": {**host(("torch", "numpy", "scipy", "pillow")), "threads": torch.get_num_threads()},
        "seconds": [round(run, 2) for run in runs],
        "corrupt_10k_seconds": making,
    }
    files.write_json(RESULTS / "lottery" / "geometry-speed.json", record)
    print(record["seconds"], making)


CLAIMS: dict[str, Callable[[int], None]] = {"trials": trials_claim, "speed": speed_claim}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=CLAIMS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, claim in CLAIMS.items():
        if args.only in (None, name):
            claim(args.seeds)


if __name__ == "__main__":
    main()
