"""What distillation's claims come to here: at least five seeds, equal budgets, controls, paired tests.

    python benchmarks/distill.py [--only kd,dual,…] [--seeds 5] [--threads 1]

Every claim writes a file of benchmarks/results/distill/; `python benchmarks/tables.py` makes docs/distillation.md's tables and
verdicts of them. A trial that is there already is not run again. Sizes and schedules fit two CPU cores; each file says them.
"""

from __future__ import annotations

import argparse
import importlib
import logging

import torch

MODULES = ("distill_fashion", "distill_landmarks", "distill_hybrid", "distill_small", "distill_speed")


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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
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
