"""Class-dependent lottery pruning against plain, round by round: `python benchmarks/lottery.py --data fashion --net alexnet_like`.

Every scenario of the paper and two one-shot baselines, over seeds: missed positives and false alarms at argmax and at one common
false-positive rate (threshold chosen on validation, counted on the test split: the threshold-shift control), AUC and accuracy. It can be
stopped: what is done is kept.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from lottery_nets import CRITICAL, fresh, task_of
from trials import Claim

from trimtab.compress.apply import run_recipe
from trimtab.compress.lottery.config import SCENARIOS
from trimtab.compress.recipe import parse_recipe
from trimtab.models.progress import LogProgress

DENSITY, MAX_FPR = 0.0157, 0.1
ONE_SHOT = {"snip": {"criterion": "snip", "scope": "global"}, "random": {"criterion": "random"}}
TRAINING: dict[str, dict[str, Any]] = {
    "fashion": {"epochs": 6, "augment": False},
    "elpv": {"epochs": 8, "augment": True},
}
OPTIMIZER: dict[str, Any] = {"optimizer": "adamw", "lr": 0.002, "batch_size": 64, "warmup_epochs": 0.5}
"""Its steps do not grow with the loss: with plain SGD at one rate for all, λ = 5 drove networks into constant answers."""
SHARES = {("fashion", "alexnet_like"): 0.5}
"""Weights pruned by a round as the paper has it, where the time allows; else three of four."""


def trial(data: str, net: str, arm: str, seed: int) -> dict[str, float]:
    """One lottery: figures of every round, keyed ROUND_FIGURE."""
    task = task_of(data, seed)
    how = {"one_shot": True, "scenario": "plain", **ONE_SHOT[arm]} if arm in ONE_SHOT else {"scenario": arm}
    step = {
        "kind": "lottery",
        "density": DENSITY,
        "critical": [CRITICAL[data]],
        "max_fpr": MAX_FPR,
        "control": False,
        "checkpoint_s": 1000,
        "amp": "off",
        "prune_share": SHARES.get((data, net), 0.75),
        **OPTIMIZER,
        **TRAINING[data],
        **how,
    }
    with tempfile.TemporaryDirectory() as folder:
        recipe = parse_recipe({"format": 1, "seed": seed, "step": [step]}, origin="benchmark")
        parent = fresh(net, task, seed, Path(folder) / "parent")
        (done,) = run_recipe(parent, recipe, task, Path(folder) / "work", progress=LogProgress(), device="cpu")
    figures: dict[str, float] = {}
    for number, row in enumerate(done.figures["rounds"]):
        argmax, point = (row["critical"][key]["test"] for key in ("argmax", "operating_point"))
        figures |= {
            f"{number}_density": row["density"],
            f"{number}_fnr": argmax["fnr"],
            f"{number}_fpr": argmax["fpr"],
            f"{number}_auc": argmax["auc"],
            f"{number}_fnr_at": point["fnr"],
            f"{number}_fpr_at": point["fpr"],
            f"{number}_accuracy": row["metrics"]["test"]["accuracy"],
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(CRITICAL), default="fashion")
    parser.add_argument("--net", choices=("alexnet_like", "mobilenet_like"), default="alexnet_like")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = {
        "data": args.data,
        "net": args.net,
        "critical": CRITICAL[args.data],
        "final density": DENSITY,
        "max_fpr": MAX_FPR,
        "training of every round": {**OPTIMIZER, **TRAINING[args.data]},
        "prune_share": SHARES.get((args.data, args.net), 0.75),
        "criterion": "magnitude-increase per layer, rewound to the start; one-shot: SNIP global, random per layer",
    }
    claim = Claim(f"{args.data}_{args.net}", about, folder="lottery")
    claim.run([*SCENARIOS, *ONE_SHOT], args.seeds, lambda arm, seed: trial(args.data, args.net, arm, seed))


if __name__ == "__main__":
    main()
