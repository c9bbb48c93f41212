"""The registry of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .contract import Contract
from .registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ArchitectureCard:
    """What a stock network is: where it was published, and the input (C, H, W) it was made for.

    `trimtab train NAME` opens `task` with `task_options`, unless told otherwise, and runs the steps of `recipe`, the network's own
    training method; without one it is fine-tuned from scratch.
    """

    title: str
    source: str
    input: tuple[int, int, int]
    task: str = "classification"
    task_options: Mapping[str, Any] = field(default_factory=dict)
    recipe: tuple[Mapping[str, Any], ...] = ()


architectures: Registry[Callable[..., nn.Module], ArchitectureCard] = Registry(
    "architecture",
    modules=tuple(
        f"trimtab.models.zoo.{name}"
        for name in ("resnet", "vgg", "vgg19", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "efficientnet_lite", "vit")
    ),
)
"""Factories: `architectures.get("resnet20")(num_classes=10, in_channels=1, …) -> nn.Module`, all arguments keyword-only."""


def stock_arguments(contract: Contract) -> dict[str, int]:
    """`num_classes` and `in_channels` of a zoo network with this contract's output width and input channels.

    The width is what the output's last dimension says, whether its numbers are classes or coordinates. A free dimension is left out.
    """
    sizes = {
        "num_classes": contract.outputs[0].shape[-1],
        "in_channels": contract.inputs[0].shape[contract.inputs[0].channel_axis],
    }
    return {name: size for name, size in sizes.items() if isinstance(size, int)}
