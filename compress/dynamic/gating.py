"""Gates put on a network, how their predictors start, and the self-supervised loss that trains them.

Source: Elkerdawy et al., "Fire Together Wire Together" (CVPR 2022), §3.1 and §3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.errors import UserError
from ...models.gates import Gate, GateSpec, attach, gates_of
from ...models.routed import RoutedNet

Start = Literal["random", "open", "mean"]
OPEN_BIAS = 1.0
"""The logit that every filter starts from when gates start open: σ(1) = 0.73."""
SURE = 0.01
"""With "mean", no filter starts surer than this: the logit of 0.01 … 0.99."""


def refuse_dynamic(module: nn.Module) -> None:
    """None, for a network without gates and branches. Raises UserError for one that has them."""
    if any(isinstance(part, RoutedNet) for part in module.modules()):
        raise UserError("the network is routed already", hint='put "ftwt" before "route", or leave it out')
    if gates := gates_of(module):
        raise UserError(
            f"the network has {len(gates)} gates already (the first at {next(iter(gates))})",
            hint='take one of the two "ftwt" steps out of the recipe, or start from the dense Bundle',
        )


def gated(
    module: nn.Module,
    specs: Sequence[GateSpec],
    *,
    seed: int,
    start: Start = "random",
    means: Mapping[str, Tensor] | None = None,
) -> dict[str, Gate]:
    """The gates put on `module`, by their convolution's path; their first weights derive from `seed` alone.

    `start`: "random" = torch's own initialisation, by which about half of the filters are off at first; "open" = all on;
    "mean" = as often on as `means` says, (C,) in 0 … 1 by path, whatever the input: the best constant predictor.
    Raises UserError for a network that is dynamic already.
    """
    refuse_dynamic(module)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        attach(module, specs)
    gates = gates_of(module)
    with torch.no_grad():
        for path, gate in gates.items():
            if start == "random":
                continue
            gate.linear.weight.zero_()
            if start == "open":
                gate.linear.bias.fill_(OPEN_BIAS)
            else:
                gate.linear.bias.copy_((means or {})[path].clamp(SURE, 1 - SURE).logit())
    return gates


@contextmanager
def choosing(gates: Mapping[str, Gate], choose: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Inside, every mask is `choose(path, saliency)` instead of the predictor's."""
    before = {path: gate.chooser for path, gate in gates.items()}
    try:
        for path, gate in gates.items():
            gate.chooser = partial(choose, path)
        yield
    finally:
        for path, gate in gates.items():
            gate.chooser = before[path]


@contextmanager
def taping(gates: Mapping[str, Gate]) -> Iterator[None]:
    """Inside, gates keep the saliency of every pass; afterwards they have forgotten all they saw."""
    before = {path: gate.taping for path, gate in gates.items()}
    try:
        for gate in gates.values():
            gate.taping = True
        yield
    finally:
        for path, gate in gates.items():
            gate.taping = before[path]
        forget(gates)


def forget(gates: Mapping[str, Gate]) -> None:
    """None; drops what the last pass left in the gates, so that the network can be copied and its memory freed."""
    for gate in gates.values():
        gate.logits = gate.mask = gate.saliency = None


def mask_loss(logits: Sequence[Tensor], truths: Sequence[Tensor]) -> Tensor:
    """1/L · Σ_l mean over samples of Σ_c BCE(logit, truth), in nats: a scalar, for L layers of logits and truths (N, C_l)."""
    layers = [
        F.binary_cross_entropy_with_logits(logit.float(), truth.float(), reduction="sum") / len(logit)
        for logit, truth in zip(logits, truths, strict=True)
    ]
    return torch.stack(layers).mean()


def chance_level(gates: Mapping[str, Gate]) -> float:
    """The mask loss of predictors that answer one half always, in nats: what untrained ones start near."""
    return math.log(2) * sum(gate.spec.channels for gate in gates.values()) / max(1, len(gates))
