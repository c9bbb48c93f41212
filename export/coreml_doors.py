"""What is put around a module before it is traced: the rest of an image's normalisation in front, probabilities behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..models.contract import Contract
from ..models.errors import UserError
from .coreml_image import Pixels

SCORES = "classProbabilities"
"""The output that holds a classifier's probabilities until the package's class names are put to them."""


class PackageDoors(nn.Module):
    """`module`, a flat one, with its image input multiplied per channel, and the softmax of its first output added to the outputs."""

    rest: Tensor | None

    def __init__(self, module: nn.Module, *, image: int, rest: tuple[float, ...], softmax: bool) -> None:
        super().__init__()
        self.module, self.image, self.softmax = module, image, softmax
        self.register_buffer("rest", torch.tensor(rest, dtype=torch.float32).reshape(1, -1, 1, 1) if rest else None)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        given = list(inputs)
        if self.rest is not None:
            given[self.image] = given[self.image] * self.rest
        outputs = self.module(*given)
        if not self.softmax:
            return outputs
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        return (*((outputs,) if isinstance(outputs, Tensor) else outputs), first.softmax(1))


def with_doors(
    module: nn.Module, example: tuple[Tensor, ...], contract: Contract, *, image: tuple[str, Pixels] | None, softmax: bool
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """(the module as the package needs it, the example as it takes it)."""
    name, pixels = image or ("", None)
    rest = () if pixels is None or pixels.even else pixels.rest
    if not rest and not softmax:
        return module, example
    index = next((i for i, spec in enumerate(contract.inputs) if spec.name == name), 0)
    doors = PackageDoors(module, image=index, rest=rest, softmax=softmax).eval()
    if doors.rest is not None:
        example = tuple(tensor / doors.rest if i == index else tensor for i, tensor in enumerate(example))
    return doors, example


def gives_probabilities(module: nn.Module, example: tuple[Tensor, ...], contract: Contract) -> bool:
    """Whether the first output of a classifier is probabilities already: none below 0, and each sample's sum is 1.

    Raises UserError when the contract has no class names, or not as many as the network has outputs.
    """
    if not contract.classes:
        raise UserError("a classifier package wants class names, and the contract has none", hint="name the classes in it")
    with torch.no_grad():
        returned: Any = module(*example)
    first = returned if isinstance(returned, Tensor) else returned[0]
    if first.ndim != 2 or first.shape[1] != len(contract.classes):
        raise UserError(
            f"the contract names {len(contract.classes)} classes, and output {contract.outputs[0].name!r} has shape "
            f"{('N', *first.shape[1:])}",
            hint="name as many classes as the network has outputs, or export without classifier",
        )
    names = contract.classes
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two classes are named {twice!r}", hint="Core ML gives probabilities by name: make them differ")
    return bool((first >= 0).all() and ((first.sum(1) - 1).abs() < 1e-4).all())
