"""Bias loss against cross-entropy and two controls, on small networks with and without skip blocks.

    python benchmarks/models_bias.py [--seeds 9] [--threads 1]

Fashion-MNIST stands in for CIFAR-100. Every arm sees the same images in the same order and starts from the same weights. Writes
results/models/bias.json; a trial that is there already is not run again. `tables_models_bias.py` makes the tables.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from distill_fashion import fashion
from torch import nn
from trials import Claim

from trimtab.compress.analyse.variance import variance_groups
from trimtab.compress.cost import count
from trimtab.compress.finetune import FinetuneConfig, finetune
from trimtab.compress.method import Context
from trimtab.compress.train import Runtime
from trimtab.models.architectures import architectures

NETS: dict[str, dict[str, Any]] = {"skip": {"skip": True}, "plain": {"skip": False, "width": 1.07}}
"""The plain one is as much wider as makes up for the skip blocks' MACs."""
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "bias, local": {"loss": "bias", "bias_normalisation": "local"},
    "bias, global": {"loss": "bias"},
    "bias, mean 1": {"loss": "bias", "bias_control": "mean1"},
    "bias, shuffled": {"loss": "bias", "bias_control": "shuffled"},
}
IMAGES = 12_000
TRAINING: dict[str, Any] = {
    "epochs": 3.0,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 0.002,
    "amp": "off",
    "augment": False,
    "max_eval": 256,
    "checkpoint_s": 1000,
}


def network(net: str, seed: int) -> nn.Module:
    """The small network, its weights drawn by `seed`."""
    torch.manual_seed(seed)
    return architectures.get("skipblocknet_small")(**NETS[net])


def trial(arm: str, seed: int) -> dict[str, float]:
    """Test accuracy in percent, as a whole and by tenth of feature variance (1 = lowest), the weights' mean and CPU seconds."""
    net_name, loss = arm.split(": ")
    started = time.process_time()
    net, task = network(net_name, seed), fashion(IMAGES, seed)
    with tempfile.TemporaryDirectory() as work:
        context = Context(workdir=Path(work), parent=None, seed=seed, device="cpu")  # type: ignore[arg-type]  # no teacher
        result = finetune(net, task, FinetuneConfig(**TRAINING, **LOSSES[loss]), context)
    groups = variance_groups(net, task, "test", runtime=Runtime("cpu"))
    right = sum(group.accuracy * group.count for group in groups)
    figures = {"accuracy": 100 * right / sum(group.count for group in groups)}
    figures |= {f"tenth {at}": 100 * group.accuracy for at, group in enumerate(groups, 1)}
    for at, epoch in enumerate(result.figures["history"]["epochs"], 1):
        figures |= {f"weight, epoch {at}": value for name, value in epoch["parts"].items() if name == "weight"}
    return figures | {"cpu_seconds": round(time.process_time() - started, 2)}


def costs() -> dict[str, dict[str, int]]:
    """MACs and parameters of the networks."""
    found = {name: count(network(name, 0), [torch.zeros(1, 1, 28, 28)]) for name in NETS}
    return {name: {"macs": cost.macs, "params": cost.params} for name, cost in found.items()}


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("trimtab").setLevel(logging.WARNING)
    about = {
        "data": f"Fashion-MNIST (for CIFAR-100), {IMAGES:,} training images drawn by the seed, 10,000 test images",
        "networks": NETS,
        "costs": costs(),
        "losses": LOSSES,
        "training": TRAINING,
        "figures": "test accuracy in percent, as a whole and by tenth of the last feature map's variance (1 = lowest)",
    }
    arms = [f"{net}: {loss}" for net in NETS for loss in LOSSES]
    Claim("bias", about, folder="models").run(arms, args.seeds, trial)


if __name__ == "__main__":
    main()
