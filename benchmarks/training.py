"""What the training engine costs beside a hand-written loop, and what cached teacher logits save.

    python benchmarks/training.py [--pairs 15] [--out benchmarks/results/training.json]

1. Engine: time per step of `fit` over a plain torch loop that does the same work (batches, augmentation, channels_last, autocast,
   fused SGD, cosine schedule). Beside it an A/A pair, the same loop twice, shows how far two equal things come apart here.
   A network so small that the loop itself shows gives the engine's own cost in µs.
2. Distillation ResNet-56 → ResNet-20 on Fashion-MNIST: time per step with cached teacher logits over without.

Every round runs each variant once, in a random order; a figure is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.method import Context
from trimtab.compress.runtime import choose_amp
from trimtab.compress.sampling import StepSampler, chosen_positions
from trimtab.compress.schedule import learning_rate, plan_run
from trimtab.compress.train import Objective, Runtime, TrainBatch, TrainConfig, fit
from trimtab.models.architectures import architectures
from trimtab.models.bundle import Bundle, Manifest, save_bundle
from trimtab.models.source import Architecture
from trimtab.models.tasks.task import Task, tasks

BATCH = 128
Variant = Callable[["Clock"], None]
"""One run, which ticks at every step."""


class Clock:
    """Wall and CPU time per step, taken at the same place of every step of every variant: where the loss is asked for."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []

    def watch(self, objective: Objective) -> Objective:
        """The same objective, ticking."""

        def ticking(network: nn.Module, batch: TrainBatch) -> Any:
            self.tick()
            return objective(network, batch)

        return ticking

    def tick(self) -> None:
        """None; a step starts now."""
        self.ticks.append((time.perf_counter(), time.process_time()))

    def per_step(self) -> tuple[float, float]:
        """(wall, CPU) seconds per step, from the second step's start to the last one's."""
        (wall_0, cpu_0), (wall_1, cpu_1) = self.ticks[1], self.ticks[-1]
        return (wall_1 - wall_0) / (len(self.ticks) - 2), (cpu_1 - cpu_0) / (len(self.ticks) - 2)


def resnet(name: str) -> nn.Module:
    torch.manual_seed(0)
    return architectures.get(name)(num_classes=10, in_channels=1)


def tiny() -> nn.Module:
    """A network so small that the loop itself shows."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 10))


class Autocast(nn.Module):
    """A network under autocast, its outputs in float32."""

    def __init__(self, network: nn.Module, amp: str) -> None:
        super().__init__()
        self.network, self.amp = network, amp

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.amp == "bf16"):
            return self.network(inputs).float()


def hand_written(net: nn.Module, task: Task, config: TrainConfig, objective: Objective, amp: str) -> None:
    """A plain training loop. Its losses stay on the device until the end."""
    net = Autocast(net.to(memory_format=torch.channels_last), amp).train()
    heavy, light = [p for p in net.parameters() if p.ndim >= 2], [p for p in net.parameters() if p.ndim < 2]
    groups = [{"params": heavy, "weight_decay": config.weight_decay}, {"params": light, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=True)
    samples = task.samples("train")
    positions = chosen_positions(len(samples), config.max_train, 0)
    plan, generator, losses = plan_run(config, len(positions)), torch.Generator().manual_seed(0), []
    for step, rows in enumerate(StepSampler(positions, plan, seed=0)):
        batch = samples.__getitems__(rows)
        inputs = task.inputs(batch, augment=True, generator=generator).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, plan, step)
        loss, _ = objective(net, TrainBatch(inputs, batch.targets, batch.index, 0.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    torch.stack(losses).tolist()


def engine(net: nn.Module, task: Task, config: TrainConfig, objective: Objective, runtime: Runtime) -> None:
    """The same steps by `fit`."""
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder), None, seed=0, device="cpu")  # type: ignore[arg-type]
        fit(net, task, config, objective=objective, context=context, runtime=runtime)


def interleaved(variants: dict[str, Variant], rounds: int, rng: random.Random) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds per step of every variant in every round, after one unrecorded round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name in rng.sample(list(variants), len(variants)):
            clock = Clock()
            variants[name](clock)
            if turn:
                times[name].append(clock.per_step())
        print(
            f"  round {turn}/{rounds}: " + "  ".join(f"{n} {t[-1][0] * 1e3:.2f} ms" for n, t in times.items() if t), flush=True
        )
    return times


def ratio(above: list[tuple[float, float]], below: list[tuple[float, float]]) -> dict[str, Any]:
    """Median and quartiles of the ratios within rounds, of wall time and of CPU time (which other programs disturb less)."""
    figures: dict[str, Any] = {"pairs": len(above)}
    for index, name in enumerate(("wall", "cpu")):
        low, middle, high = statistics.quantiles(
            [a[index] / b[index] for a, b in zip(above, below, strict=True)], n=4, method="inclusive"
        )
        figures[name] = {"median": middle, "quartile_low": low, "quartile_high": high}
    return figures


def summary(times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Medians, and every round's figure, in milliseconds per step."""
    return {
        "step_ms_median": {name: statistics.median(wall for wall, _ in values) * 1e3 for name, values in times.items()},
        "step_ms_wall": {name: [round(wall * 1e3, 4) for wall, _ in values] for name, values in times.items()},
        "step_ms_cpu": {name: [round(cpu * 1e3, 4) for _, cpu in values] for name, values in times.items()},
    }


def overhead(make: Callable[[], nn.Module], task: Task, config: TrainConfig, rounds: int, rng: random.Random) -> dict[str, Any]:
    """Engine over hand-written loop, and the A/A pair."""
    runtime = Runtime("cpu", amp=config.amp)

    def plain(network: nn.Module, batch: TrainBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return task.loss(network(batch.inputs), batch.targets), {}

    def by_hand(clock: Clock) -> None:
        hand_written(make(), task, config, clock.watch(plain), runtime.amp)

    def by_engine(clock: Clock) -> None:
        engine(make(), task, config, clock.watch(plain), runtime)

    times = interleaved({"hand": by_hand, "hand_again": by_hand, "engine": by_engine}, rounds, rng)
    more = [(e[1] - h[1]) * 1e6 for e, h in zip(times["engine"], times["hand"], strict=True)]
    return summary(times) | {
        "steps_per_run": plan_run(config, config.max_train).total,
        "amp": runtime.amp,
        "engine_over_hand": ratio(times["engine"], times["hand"]),
        "hand_again_over_hand": ratio(times["hand_again"], times["hand"]),
        "engine_minus_hand_cpu_us_median": statistics.median(more),
        "goal_engine_over_hand": 1.03,
    }


class Ticking:
    """A task that ticks where a step asks for its data; all else is the task's own."""

    def __init__(self, task: Task, clock: Clock) -> None:
        self._task, self._clock = task, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def training_pair(self, *args: Any, **more: Any) -> Any:
        self._clock.tick()
        return self._task.training_pair(*args, **more)


def distilling(student: str, task: Task, config: DistillConfig, teacher: Bundle) -> Variant:
    """A run of the step "distill", which ticks at every step."""

    def run(clock: Clock) -> None:
        with tempfile.TemporaryDirectory() as work:
            context = Context(workdir=Path(work), parent=teacher, device="cpu")
            ticking: Any = Ticking(task, clock)
            distill(resnet(student), ticking, config, context)

    return run


def saved(name: str, task: Task, folder: Path) -> Bundle:
    """An untrained network as a Bundle: speed does not depend on the weights."""
    architecture = Architecture(name=name, kwargs={"num_classes": 10, "in_channels": 1})
    return save_bundle(folder, resnet(name), Manifest(architecture=architecture, contract=task.contract))


def distillation(task: Task, config: DistillConfig, rounds: int, rng: random.Random) -> dict[str, Any]:
    """Cached over uncached teacher signals."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = saved("resnet56", task, Path(folder) / "teacher")
        kept = {"cache_teacher": True, "cache_folder": str(Path(folder) / "signals")}
        variants = {
            "uncached": distilling("resnet20", task, config, teacher),
            "cached": distilling("resnet20", task, config.model_copy(update=kept), teacher),
        }
        times = interleaved(variants, rounds, rng)
    return summary(times) | {
        "steps_per_run": plan_run(config, config.max_train).total,
        "amp": choose_amp(config.amp, torch.device("cpu")),
        "cached_over_uncached": ratio(times["cached"], times["uncached"]),
        "goal_cached_over_uncached": 0.6,
    }


def conditions() -> dict[str, Any]:
    """The machine in words, without names."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), model
        )
    packages = ("torch", "accelerate", "numpy", "safetensors", "torchmetrics")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the order of runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before, rng = conditions(), random.Random(args.seed)
    task = tasks.get("classification")(data="fashion-mnist")
    common: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "max_eval": 1, "checkpoint_s": 1000}
    results = {}
    print("engine, ResNet-20")
    results["engine_resnet20"] = overhead(
        lambda: resnet("resnet20"), task, TrainConfig(**common, max_train=7 * BATCH), args.pairs, rng
    )
    print("engine, tiny network")
    results["engine_tiny"] = overhead(tiny, task, TrainConfig(**common | {"batch_size": 8}, max_train=200 * 8), args.pairs, rng)
    print("distillation, ResNet-56 → ResNet-20")
    results["distill_resnet56_resnet20"] = distillation(task, DistillConfig(**common, max_train=5 * BATCH), args.pairs, rng)
    command = f"python benchmarks/training.py --pairs {args.pairs} --threads {args.threads} --seed {args.seed}"
    record = {
        "command": command,
        "data": "Fashion-MNIST, 28×28×1, batches of 128 (tiny network: 8), random crops and mirroring",
        "seeds": {"order": args.seed, "weights": 0, "data order": 0},
        "conditions": before,
        "results": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for name, figures in results.items():
        shown = {k: v for k, v in figures.items() if isinstance(v, dict) and "pairs" in v}
        print(name, json.dumps(shown), file=sys.stdout)


if __name__ == "__main__":
    main()
