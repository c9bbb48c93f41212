"""What masks cost: scoring and masking a ResNet-50, and a training step under masks against a dense one.

Steps come from interleaved, order-randomised runs of the same engine; "dense_again" is the A/A pair.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from host import host
from torch import nn
from training import BATCH, Clock, engine, interleaved, ratio, resnet, summary

from trimtab.compress.lottery.pruning import Scope, prune
from trimtab.compress.lottery.scores import prunable, weight_scores
from trimtab.compress.runtime import Runtime
from trimtab.compress.schedule import plan_run
from trimtab.compress.trainconfig import TrainConfig
from trimtab.models.architectures import architectures
from trimtab.models.masks import attach_masks
from trimtab.models.tasks.task import tasks


def masking_seconds(scope: Scope, repeats: int) -> dict[str, Any]:
    """Seconds to score a ResNet-50 by magnitude increase, choose the masks of a fifth of its weights, and attach them."""
    torch.manual_seed(0)
    net = architectures.get("resnet50")()
    start = {name: weight.clone() for name, weight in prunable(net).items()}
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        weights = prunable(net)
        scores = weight_scores("magnitude-increase", {n: w + 0.01 for n, w in weights.items()}, start)
        full = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
        attach_masks(net, prune(scores, full, density=0.2, scope=scope).masks)
        found.append(time.perf_counter() - began)
    return {
        "median_s": statistics.median(found),
        "all_s": [round(s, 4) for s in found],
        "weights": sum(w.numel() for w in start.values()),
    }


def masked(name: str, share: float) -> nn.Module:
    """A network under random masks."""
    net = resnet(name)
    generator = torch.Generator().manual_seed(1)
    attach_masks(net, {n: torch.rand(w.shape, generator=generator) < share for n, w in prunable(net).items()})
    return net


def step_cost(pairs: int, seed: int) -> dict[str, Any]:
    """A masked ResNet-20's step over a dense one's."""
    task = tasks.get("classification")(data="fashion-mnist")
    config = TrainConfig(epochs=1, batch_size=BATCH, max_eval=1, checkpoint_s=1000, max_train=7 * BATCH)
    runtime = Runtime("cpu", amp=config.amp)

    def plain(network: nn.Module, batch: Any) -> Any:
        return task.loss(network(batch.inputs), batch.targets), {}

    def run(net: nn.Module, clock: Clock) -> None:
        engine(net, task, config, clock.watch(plain), runtime)

    variants = {
        "dense": lambda clock: run(resnet("resnet20"), clock),
        "dense_again": lambda clock: run(resnet("resnet20"), clock),
        "masked": lambda clock: run(masked("resnet20", 0.1), clock),
    }
    times = interleaved(variants, pairs, random.Random(seed))
    return summary(times) | {
        "steps_per_run": plan_run(config, config.max_train).total,
        "masked_over_dense": ratio(times["masked"], times["dense"]),
        "dense_again_over_dense": ratio(times["dense_again"], times["dense"]),
        "goal_masked_over_dense": 1.05,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0, help="of the order of runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        "command": f"python benchmarks/lottery_speed.py --pairs {args.pairs} --seed {args.seed}",
        "host": host(("torch", "numpy")) | {"threads": 1},
        "masking": {scope: masking_seconds(scope, 7) for scope in ("layer", "global")} | {"goal_s": 2.0},
        "step": step_cost(args.pairs, args.seed),
    }
    Path("benchmarks/results/lottery/speed.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(record["masking"]), json.dumps(record["step"]["masked_over_dense"]))


if __name__ == "__main__":
    main()
