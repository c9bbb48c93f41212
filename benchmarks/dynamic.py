"""What dynamic pruning comes to here: accuracy against controls at equal budgets, then wall-clock on real inputs.

    python benchmarks/dynamic.py [--only accuracy-resnet20,gates,routes,…] [--seeds 3] [--threads 1] [--full]

Every claim writes a file of benchmarks/results/dynamic/; `python benchmarks/tables.py` makes docs/dynamic.md's tables of them. A trial
that is there already is not run again. Sizes and schedules fit two CPU cores (dynamic_schedule.py); each file says them.
"""

from __future__ import annotations

import argparse
import importlib
import logging

import torch

MODULES = ("dynamic_accuracy", "dynamic_gates", "dynamic_routes", "dynamic_speed", "dynamic_overhead")


def claims() -> dict:
    """Every experiment by name."""
    found: dict = {}
    for name in MODULES:
        found |= importlib.import_module(name).CLAIMS
    return found


def main() -> None:
    """Runs the claims asked for."""
    known = claims()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(known), help="comma-separated: " + ", ".join(known))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="the paper's schedule, all images, ResNet-56 too: for a GPU")
    args = parser.parse_args()
    chosen = [name.strip() for name in args.only.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(args.threads)
    logging.getLogger("trimtab").setLevel(logging.WARNING)
    for name in chosen:
        known[name](args.seeds)


if __name__ == "__main__":
    main()
