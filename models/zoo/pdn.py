"""PDN: a patch description network, a few convolutions whose every output describes one patch of 33×33 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import ArchitectureCard, architectures
from ..errors import UserError
from .layers import scaled

SOURCE = "Batzner, Heckler, König: EfficientAD, WACV 2024"
STRIDE = 4
BORDER = 4
"""Places of the padded map, a side, that the map without padding lacks."""
CHANNELS = 384
"""Features per patch, as published."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's pixels, 0…1."""


class ImagenetNorm(nn.Module):
    """Pixels (N, 3, H, W) in 0…1 → the same, per channel with ImageNet's mean subtracted and divided by its standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        return (image - self.mean) / self.std


class Pdn(nn.Module):
    """Convolutions (kernel, padding, activation) with a 2×2 average pool behind each of the first two; all step by 1.

    Padding serves the training of a teacher alone: with it the map has H/4 × W/4 places, without it `map_side` of each side, and what
    lies at the picture's edge is not described. `features` takes normalised pixels, `forward` plain ones.
    """

    def __init__(self, layers: list[tuple[int, int, int, bool]], *, padding: bool) -> None:
        """`layers`: (output channels, kernel, padding, whether a ReLU follows)."""
        super().__init__()
        self.norm = ImagenetNorm()
        self.pads = tuple(pad for _, _, pad, _ in layers)
        self.active = tuple(relu for *_, relu in layers)
        channels = [3, *(outputs for outputs, *_ in layers)]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], kernel) for i, (_, kernel, _, _) in enumerate(layers)
        )
        self.padding = padding

    @property
    def out_channels(self) -> int:
        """Features per patch."""
        return cast(nn.Conv2d, self.convs[-1]).out_channels

    @contextmanager
    def padded(self) -> Iterator[None]:
        """A context in which the network pads, as its training from another network's features wants it."""
        before, self.padding = self.padding, True
        try:
            yield
        finally:
            self.padding = before

    def features(self, x: Tensor) -> Tensor:
        """(N, C, h, w) from normalised pixels (N, 3, H, W)."""
        for number, (conv, pad, relu) in enumerate(zip(self.convs, self.pads, self.active, strict=True)):
            x = conv(F.pad(x, (pad,) * 4) if self.padding and pad else x)
            x = F.relu(x) if relu else x
            if number < 2:
                x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)) if self.padding else x, 2, 2)
        return x

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, h, w) from pixels (N, 3, H, W) in 0…1."""
        return self.features(self.norm(image))


def map_side(side: int) -> int:
    """Places of a PDN's map without padding, for a picture of `side` pixels: 56 for 256."""
    return ((side - 3) // 2 - 3) // 2 - 5


def check(*, width: float, out_channels: int) -> None:
    """None, when a PDN can be built from these. Raises UserError that names the value and its range."""
    if not 0 < width <= 4:
        raise UserError(f"width={width} must be above 0 and at most 4", hint="1.0 is the published network, 0.25 suits a CPU")
    if out_channels < 1:
        raise UserError(f"out_channels={out_channels} must be 1 or more", hint=f"{CHANNELS} is published")


def build_small(*, out_channels: int, width: float, padding: bool = False) -> Pdn:
    """PDN-S (the paper's appendix, table 6): four convolutions."""
    a, b = scaled(128, width), scaled(256, width)
    return Pdn([(a, 4, 3, True), (b, 4, 3, True), (b, 3, 1, True), (out_channels, 4, 0, False)], padding=padding)


def build_medium(*, out_channels: int, width: float, padding: bool = False) -> Pdn:
    """PDN-M (the paper's appendix, table 7): six convolutions, the last two with `out_channels`."""
    a, b = scaled(256, width), scaled(512, width)
    return Pdn(
        [
            (a, 4, 3, True),
            (b, 4, 3, True),
            (b, 1, 0, True),
            (b, 3, 1, True),
            (out_channels, 4, 0, True),
            (out_channels, 1, 0, False),
        ],
        padding=padding,
    )


@architectures.register(
    "pdn_small",
    ArchitectureCard(
        "PDN-S, a patch description network", SOURCE, (3, 256, 256), task="anomaly", recipe=({"kind": "pdn-teacher"},)
    ),
)
def pdn_small(*, out_channels: int = CHANNELS, width: float = 1.0, padding: bool = False) -> Pdn:
    """PDN-S: `width` multiplies the hidden channels; `padding` keeps a map of H/4 × W/4."""
    check(width=width, out_channels=out_channels)
    return build_small(out_channels=out_channels, width=width, padding=padding)


@architectures.register(
    "pdn_medium",
    ArchitectureCard(
        "PDN-M, a patch description network", SOURCE, (3, 256, 256), task="anomaly", recipe=({"kind": "pdn-teacher"},)
    ),
)
def pdn_medium(*, out_channels: int = CHANNELS, width: float = 1.0, padding: bool = False) -> Pdn:
    """PDN-M: `width` multiplies the hidden channels; `padding` keeps a map of H/4 × W/4."""
    check(width=width, out_channels=out_channels)
    return build_medium(out_channels=out_channels, width=width, padding=padding)
