"""The registry of architectures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ArchitectureCard:
    """What a stock network is: where it was published, and the input (C, H, W) it was made for."""

    title: str
    source: str
    input: tuple[int, int, int]


architectures: Registry[Callable[..., nn.Module], ArchitectureCard] = Registry(
    "architecture",
    modules=tuple(
        f"trimtab.models.zoo.{name}"
        for name in ("resnet", "vgg", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "efficientnet_lite")
    ),
)
"""Factories: `architectures.get("resnet20")(num_classes=10, in_channels=1, …) -> nn.Module`, all arguments keyword-only."""
