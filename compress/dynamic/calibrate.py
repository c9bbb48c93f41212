"""Gates' thresholds moved so that every layer keeps as many filters as its ground truth does.

A gate that is not sure switches on: with the threshold at ½, a filter that fires for 60 % of inputs, and whose predictor knows
no more, is on for all of them. The network then computes more than was estimated. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .gating import taping
from .ground_truth import Rule

if TYPE_CHECKING:
    from ...models.gates import Gate

ROUNDS = 3
"""A layer's masks change what later layers see: thresholds are moved, looked at, and moved again."""


def match_rates(module: nn.Module, gates: Mapping[str, Gate], rule: Rule, inputs: Iterable[Tensor]) -> None:
    """None; shifts the last bias of every gate by one number for all its filters, so that those most likely on stay on.

    `inputs` are batches (N, C, H, W) on the module's device. The network runs in eval mode and gets its modes back.
    """
    batches = list(inputs)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        for _ in range(ROUNDS):
            logits, truths = _look(module, gates, rule, batches)
            with torch.no_grad():
                for path, gate in gates.items():
                    gate.linear.bias.sub_(threshold(logits[path], int(truths[path].sum())))
    finally:
        for part, training in modes:
            part.training = training


TIE = 1e-5
"""Logits closer than this are equal but for rounding, which no threshold may tell apart: it differs from runtime to runtime."""


def threshold(logits: Tensor, count: int) -> float:
    """The number above which nearest to `count` of all logits (N, C) lie, halfway between neighbours that differ; ±1 at the ends."""
    ordered = logits.double().flatten().cpu().sort(descending=True).values
    padded = torch.cat([ordered[:1] + 2, ordered, ordered[-1:] - 2])
    places = (padded[:-1] - padded[1:] > TIE).nonzero()[:, 0]  # that many logits lie above such a place
    place = int(places[(places - count).abs().argmin()])
    return float((padded[place] + padded[place + 1]) / 2)


@torch.no_grad()
def _look(
    module: nn.Module, gates: Mapping[str, Gate], rule: Rule, batches: Iterable[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    logits: dict[str, list[Tensor]] = {path: [] for path in gates}
    truths: dict[str, list[Tensor]] = {path: [] for path in gates}

    def keep(_module: nn.Module, _args: Any, _output: Any) -> None:
        for path, gate in gates.items():
            if gate.logits is not None and gate.saliency is not None:
                logits[path].append(gate.logits.float())
                truths[path].append(rule.mask(path, gate.saliency))

    hook = module.register_forward_hook(keep)
    try:
        with taping(gates):
            for batch in batches:
                module(batch)
    finally:
        hook.remove()
    return {p: torch.cat(parts) for p, parts in logits.items()}, {p: torch.cat(parts) for p, parts in truths.items()}
