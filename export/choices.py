"""Which inputs prove a network that decides: some for every branch, and none that rounding alone may send to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from scipy.special import expit, logit

from ..models.contract import Contract
from ..models.errors import UserError
from .parity import Probe

Branch = Callable[[Mapping[str, np.ndarray]], int]

POOL = 64
"""So many of the real samples are looked at for probes, and go along with the artifact for profilers."""
EDGE = 0.1
"""How far, in logits, a score must lie from a threshold: more than float16's error in a network's logits."""


def telling(contract: Contract, branch: Branch, *, real: np.ndarray | None, seed: int) -> np.ndarray:
    """Values (N, …) of the first input, branches taking turns, without those that lie on the edge of a decision.

    An artifact may rightly decide an input on the edge in another way than its reference. They are taken from `real`, or
    random where that is None; all of them where every one lies on the edge.
    """
    name = contract.inputs[0].name
    pool = real
    if pool is None:
        pool = np.concatenate([contract.random_inputs({}, seed=seed + k)[name] for k in range(POOL)])
    lower, upper = _moved(contract, -EDGE), _moved(contract, EDGE)
    found: dict[int, list[int]] = {}
    for position in range(min(POOL, len(pool))):
        image = {name: pool[position : position + 1]}
        taken = branch({**image, **lower})
        if taken == branch({**image, **upper}):  # branches only grow with thresholds, so in between it is the same one
            found.setdefault(taken, []).append(position)
    order = [position for row in zip_longest(*found.values()) for position in row if position is not None]
    return pool[order] if order else pool


def clearest(contract: Contract, margin: Callable[[Mapping[str, np.ndarray]], float], real: np.ndarray) -> np.ndarray:
    """The first samples of `real`, those first whose gates all decide clearly: rounding alone may switch a channel at the edge."""
    name = contract.inputs[0].name
    pool = real[:POOL]
    margins = [margin({name: pool[k : k + 1]}) for k in range(len(pool))]
    return pool[np.argsort(margins, kind="stable")[::-1]]


def _moved(contract: Contract, by: float) -> dict[str, np.ndarray]:
    """The defaults, those between 0 and 1 moved by this much in logits."""
    moved = {}
    for name, values in contract.defaults().items():
        inside = (values > 0) & (values < 1)
        moved[name] = np.where(inside, expit(logit(np.where(inside, values, 0.5)) + by), values).astype(values.dtype)
    return moved


def mix(contract: Contract, branch: Branch, real: np.ndarray) -> dict[str, int]:
    """How many of the first samples of `real` each branch answers at the default settings, by its number."""
    name, settings = contract.inputs[0].name, contract.defaults()
    taken = [branch({name: real[k : k + 1], **settings}) for k in range(min(POOL, len(real)))]
    return {str(number): taken.count(number) for number in sorted(set(taken))}


def unproven(dynamic: Mapping[str, Any], found: Sequence[Probe]) -> tuple[str, ...]:
    """A warning that names the branches which no probe reached, where no setting can force them; else nothing.

    Raises UserError where settings should have made a branch answer and it did not: its scores are no numbers.
    """
    missing = sorted(set(range(len(dynamic.get("branches", ())))) - {probe.branch for probe in found})
    if not missing:
        return ()
    names = ", ".join(map(str, missing))
    if dynamic.get("thresholds"):
        raise UserError(
            f"branch {names} of the routed network never answers, whatever the thresholds: scores are no numbers in 0…1",
            hint="look at the network's outputs (trimtab evaluate) and make the route again",
        )
    return (f"branch {names} answered none of the inputs that the file was judged on: it is not proven",)
