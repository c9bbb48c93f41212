"""A torch module as converters take it: one that returns tensors alone, and example inputs of the right sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.contract import Contract
from ..models.errors import UserError
from ..models.outputs import entries

SIDE = 64
"""The height and width of an example where they are free and nobody says other ones."""


class TensorsOnly(nn.Module):
    """What `module` returns as a tuple of tensors, for modules that return dicts or named tuples."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(entries(self.module(*inputs)).values())


def tensors_only(module: nn.Module, example: tuple[Tensor, ...], contract: Contract, *, title: str) -> nn.Module:
    """`module`, wrapped when it returns anything but one tensor, so that it returns a flat tuple in the contract's order.

    Raises UserError when what it returns is not the contract's number of tensors.
    """
    with torch.no_grad():
        result = module(*example)
    found = entries(result)
    if other := [name for name, value in found.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"the module's output {other[0]!r} is a {type(found[other[0]]).__name__}, {title} outputs are tensors",
            hint="wrap the module so that it returns its tensors in the contract's order",
        )
    if len(found) != len(contract.outputs):
        wanted = ", ".join(spec.name for spec in contract.outputs)
        raise UserError(
            f"the module returns {len(found)} tensors, the contract has {len(contract.outputs)} outputs ({wanted})",
            hint="name every output in the contract, or wrap the module so that it returns those alone",
        )
    return module if isinstance(result, Tensor) else TensorsOnly(module).eval()


def example_sides(contract: Contract, given: tuple[Any, ...]) -> dict[str, int]:
    """A size for every free dimension but the batch: the given example's own, else 64."""
    sides: dict[str, int] = {}
    for i, spec in enumerate(contract.inputs):
        shape = tuple(getattr(given[i], "shape", ())) if i < len(given) else ()
        for axis, symbol in enumerate(spec.shape):
            if isinstance(symbol, str) and axis:
                sides.setdefault(symbol, int(shape[axis]) if len(shape) == len(spec.shape) else SIDE)
    return sides


def examples(contract: Contract, dims: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Seeded random tensors, one per input, of the sizes `dims`."""
    return tuple(torch.from_numpy(array) for array in contract.random_inputs(dims, seed=0).values())
