"""The registry of architectures."""

from __future__ import annotations

import inspect
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
        for name in (
            *(
                "resnet",
                "vgg",
                "vgg19",
                "mobilenet_v1",
                "mobilenet_v2",
                "mobilenet_v3",
                "efficientnet_lite",
                "skipblocknet",
                "vit",
            ),
            *("isp", "rmfa", "gaussian_ad", "memory_bank", "pdn", "efficientad"),
        )
    ),
)
"""Factories: `architectures.get("resnet20")(num_classes=10, in_channels=1, …) -> nn.Module`, all arguments keyword-only."""


def stock_arguments(contract: Contract, name: str) -> dict[str, int]:
    """Those of `num_classes` and `in_channels` that the zoo network `name` takes, from this contract's output and input.

    The width is what the output's last dimension says, whether its numbers are classes or coordinates. A free dimension is left out.
    A network that says what it is for (its card's `task`) and takes an `image_size` gets the contract's, where it is square.
    """
    entry, image = architectures.entry(name), contract.inputs[0]
    sizes = {"num_classes": contract.outputs[0].shape[-1], "in_channels": image.shape[image.channel_axis]}
    if entry.card.task != "classification" and image.layout == "NCHW" and image.shape[2] == image.shape[3]:
        sizes["image_size"] = image.shape[2]
    taken = inspect.signature(entry.value).parameters
    return {key: size for key, size in sizes.items() if isinstance(size, int) and key in taken}
