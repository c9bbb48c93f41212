"""What filters say of a network: width, data and training time against entropy, and the shift between networks.

    python benchmarks/lottery_filters.py [--seeds 5] [--threads 1]

Small networks of 3×3 convolutions alone, on Fashion-MNIST. Every trained arm sees the same number of images. Writes
results/lottery/filters.json; a trial that is there already is not run again. `tables_filters.py` makes the tables.
"""

from __future__ import annotations

import argparse
import functools
import logging

import torch
from distill_fashion import accuracy, fashion, trained
from torch import nn
from trials import Claim

from trimtab.compress.analyse.filter_shift import Shift, filter_shift, network_kernels
from trimtab.compress.analyse.filters import FilterRow, filter_quality

WIDTHS = (8, 24, 48)
DATA = (300, 3000)
IMAGES = 9000
MIDDLE, UNDER = 24, 600
TRAINING = {"batch_size": 32, "lr": 0.05, "weight_decay": 5e-4, "augment": False, "max_eval": 256, "checkpoint_s": 1000}


def network(width: int, seed: int) -> nn.Module:
    """Four 3×3 convolutions of width, width, 2·width and 2·width filters, at 14×14 and 7×7, and a linear layer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = (1, width, width, 2 * width, 2 * width)
    for at in range(4):
        conv = nn.Conv2d(channels[at], channels[at + 1], 3, stride=2 if at in (0, 2) else 1, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(channels[at + 1]), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


@functools.cache
def net_of(width: int, data: int, seen: int, seed: int) -> nn.Module:
    """The network after `seen` images, of `data` different ones; 0 seen: as it was drawn. Test accuracy in `.accuracy`, percent."""
    net = network(width, seed)
    if seen:
        trained(None, fashion(data), None, seed, {**TRAINING, "epochs": seen / data}, net)
    net.accuracy = accuracy(net, fashion(data or DATA[0]))  # type: ignore[assignment]
    return net


def convolutions(net: nn.Module) -> list[FilterRow]:
    """The rows of its convolutions."""
    return [row for row in filter_quality(net) if row.kind == "Conv2d"]


def quality_trial(width: int, data: int, seen: int, seed: int) -> dict[str, float]:
    """H/T_H and sparsity by layer (1 first), the share of the judged layers with each verdict, and test accuracy in percent."""
    net = net_of(width, data, seen, seed)
    rows = convolutions(net)
    figures: dict[str, float] = {"accuracy": float(net.accuracy)}  # type: ignore[arg-type]
    for at, row in enumerate(rows, 1):
        found = {name: getattr(row, name) for name in ("ratio", "sparsity", "orthogonality")}
        figures |= {f"{name} {at}": value for name, value in found.items() if value is not None}
    judged = [row.verdict for row in rows if row.verdict != "not judged"]
    for verdict in ("random-like", "redundant", "degenerate", "healthy"):
        figures[verdict] = judged.count(verdict) / len(judged)
    return figures


def shift_trial(first: nn.Module, second: nn.Module) -> dict[str, float]:
    """D as a whole and by layer, each with what chance gives."""
    found = filter_shift(network_kernels(first), network_kernels(second))
    named: list[tuple[str, Shift]] = [("", found.overall), *((f" {at}", row) for at, row in enumerate(found.layers, 1))]
    return {k: v for suffix, row in named for k, v in ((f"D{suffix}", row.divergence), (f"chance{suffix}", row.chance))}


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("trimtab").setLevel(logging.WARNING)
    quality = {f"trained, width {w}, {d} images": (w, d, IMAGES) for w in WIDTHS for d in DATA}
    quality |= {f"random, width {w}": (w, 0, 0) for w in WIDTHS}
    quality |= {f"under-trained, width {MIDDLE}": (MIDDLE, DATA[-1], UNDER)}
    shifts = {
        "shift, two seeds": (IMAGES, IMAGES),
        "shift, under- to well-trained": (UNDER, IMAGES),
        "shift, random to well-trained": (0, IMAGES),
        "shift, two random": (0, 0),
    }

    def trial(arm: str, seed: int) -> dict[str, float]:
        if arm in quality:
            return quality_trial(*quality[arm], seed)
        one, two = shifts[arm]  # of different starts in every arm, so that a common start is not what makes D small
        other = (seed + 1) % args.seeds
        return shift_trial(net_of(MIDDLE, DATA[-1], one, seed), net_of(MIDDLE, DATA[-1], two, other))

    about = {
        "data": "Fashion-MNIST (for ImageNet and CIFAR), tested on 10 000 images",
        "network": "four 3×3 convolutions of w, w, 2w and 2w filters, batch norm, ReLU, global average pooling, a linear layer",
        "training": {**TRAINING, "images seen": IMAGES, "images seen, under-trained": UNDER},
        "shifts": f"width {MIDDLE}, {DATA[-1]} images; seed against the next seed",
        "seeds": args.seeds,
    }
    Claim("filters", about, folder="lottery").run([*quality, *shifts], args.seeds, trial)


if __name__ == "__main__":
    main()
