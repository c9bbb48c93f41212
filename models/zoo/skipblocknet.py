"""SkipblockNet: a MobileNetV3-like network with two blocks that carry early features past its groups (Abrahamyan et al. 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import ArchitectureCard, architectures
from .layers import check_arguments, check_stem_stride, initialise, make_divisible
from .mobilenet_v3 import SqueezeExcitation

SOURCE = "Abrahamyan, Ziatchin, Chen, Deligiannis: Bias Loss for Mobile Neural Networks, ICCV 2021"
DROPOUT = 0.2


class Row(NamedTuple):
    """One inverted residual: kernel, expansion of its input's channels, output channels, squeeze-and-excitation, h-swish, stride."""

    kernel: int
    expansion: float
    outputs: int
    squeeze: bool
    hard_swish: bool
    stride: int


class Skip(NamedTuple):
    """One skip block: expansion of the base block's channels, kernel, and the group (from 0) whose output it is added to."""

    expansion: float
    kernel: int
    group: int


@dataclass(frozen=True)
class Plan:
    """A network at width 1: stem channels, groups of rows, skip blocks, the last convolution's channels and the hidden layer's.

    `divisor` is what channel counts are rounded to.
    """

    stem: int
    groups: tuple[tuple[Row, ...], ...]
    skips: tuple[Skip, ...]
    last: int
    hidden: int
    divisor: int


M = Plan(
    stem=16,
    groups=(
        (
            Row(3, 4, 24, False, False, 2),
            Row(3, 3, 24, False, False, 1),
            Row(5, 3, 40, True, False, 2),
            Row(5, 3, 40, True, False, 1),
            Row(5, 6, 40, True, True, 1),
        ),
        (
            Row(3, 6, 80, False, True, 2),
            Row(3, 2.5, 80, False, True, 1),
            Row(3, 2.3, 80, False, True, 1),
            Row(3, 2.3, 80, False, True, 1),
        ),
        (Row(3, 6, 112, True, True, 1), Row(3, 6, 112, True, True, 1)),
        (Row(5, 6, 160, True, True, 2), Row(5, 6, 160, True, True, 1), Row(5, 6, 160, True, True, 1)),
    ),
    skips=(Skip(6, 5, 0), Skip(2.3, 3, 1)),
    last=960,
    hidden=1280,
    divisor=8,
)

SMALL = Plan(
    stem=8,
    groups=(
        (Row(3, 4, 16, False, False, 2), Row(5, 3, 24, True, False, 2), Row(5, 3, 24, True, True, 1)),
        (Row(3, 4, 40, False, True, 2), Row(3, 2.5, 40, False, True, 1)),
    ),
    skips=(Skip(6, 5, 0), Skip(2.3, 3, 1)),
    last=160,
    hidden=128,
    divisor=2,
)
"""Ours: M's beginning at half its channels, for images of about 28×28."""


def conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: type[nn.Module] | None = None
) -> nn.Sequential:
    """A convolution to ⌈size/stride⌉, batch norm (torch's ε and momentum) and an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise, optional squeeze-and-excitation, linear 1×1; added to its input where the shapes agree.

    Unlike MobileNetV3's it expands even to as many channels as came in: the published count of MACs has that convolution.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, row: Row) -> None:
        super().__init__()
        activation: type[nn.Module] = nn.Hardswish if row.hard_swish else nn.ReLU
        layers: list[nn.Module] = [
            conv_bn(inputs, hidden, 1, activation=activation),
            conv_bn(hidden, hidden, row.kernel, stride=row.stride, groups=hidden, activation=activation),
        ]
        if row.squeeze:
            layers.append(SqueezeExcitation(hidden, max(1, hidden // 4)))
        layers.append(conv_bn(hidden, outputs, 1))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, ⌈H/stride⌉, ⌈W/stride⌉) from (N, inputs, H, W)."""
        return x + self.block(x) if self.residual else self.block(x)


class AveragePoolTo(nn.Module):
    """Means over windows: ⌈H/stride⌉ × ⌈W/stride⌉ positions, as many as convolutions of these strides leave.

    This is the paper's adaptive pooling (to 28×28 and 14×14 there) wherever it has equal windows, which at 224, 32 and 28 it has.
    Where a side cannot be shared out equally, the last window of `stride` is cut off at the border: a plain pooling, where adaptive
    windows overlap and have no operator in most formats. Which it is follows from the traced size: a graph exported at a fixed
    H×W holds one pooling.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ⌈H/stride⌉, ⌈W/stride⌉) from (N, C, H, W)."""
        with warnings.catch_warnings():
            # tracing warns that the size becomes a constant: it shall
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            height, width = int(x.shape[2]), int(x.shape[3])
        rows, columns = -(-height // self.stride), -(-width // self.stride)
        if height % rows or width % columns:
            return F.avg_pool2d(x, self.stride, ceil_mode=True)  # nothing is padded: a cut-off window's mean is its own
        return F.avg_pool2d(x, (height // rows, width // columns))

    def extra_repr(self) -> str:
        """Its stride, as print shows it."""
        return f"stride={self.stride}"


class SkipBlock(nn.Module):
    """The base block's map, averaged to a later map's size, through an inverted residual of its own with a linear end."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.pool = AveragePoolTo(stride)
        self.block = nn.Sequential(
            conv_bn(inputs, hidden, 1, activation=nn.ReLU),
            conv_bn(hidden, hidden, kernel, groups=hidden, activation=nn.ReLU),
            conv_bn(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, ⌈H/stride⌉, ⌈W/stride⌉) from (N, inputs, H, W)."""
        return self.block(self.pool(x))


class SkipblockNet(nn.Module):
    """A stem, a base block, groups of inverted residuals, a 1×1 convolution, a global average and two linear layers.

    Skip blocks read the base block's map and are added to the outputs of groups; they take their channel counts from both ends,
    so any width works. Without `skip` it is the plain MobileNetV3-like network.
    """

    def __init__(self, plan: Plan, *, num_classes: int, in_channels: int, width: float, stem_stride: int, skip: bool) -> None:
        super().__init__()

        def rounded(value: float) -> int:
            return make_divisible(value, plan.divisor)

        base = rounded(plan.stem * width)
        self.stem = conv_bn(in_channels, base, 3, stride=stem_stride, activation=nn.Hardswish)
        self.base = InvertedResidual(base, base, base, Row(3, 1, base, False, True, 1))
        groups, ends, channels, stride = [], [], base, 1
        for rows in plan.groups:
            blocks = []
            for row in rows:
                outputs = rounded(row.outputs * width)
                blocks.append(InvertedResidual(channels, rounded(channels * row.expansion), outputs, row))
                channels, stride = outputs, stride * row.stride
            groups.append(nn.Sequential(*blocks))
            ends.append((channels, stride))
        self.groups = nn.ModuleList(groups)
        self.skips = nn.ModuleDict()
        for block in plan.skips if skip else ():
            outputs, stride = ends[block.group]
            hidden = rounded(base * block.expansion)
            self.skips[str(block.group)] = SkipBlock(base, hidden, outputs, kernel=block.kernel, stride=stride)
        last, hidden = rounded(plan.last * width), rounded(plan.hidden * width)
        self.last = conv_bn(channels, last, 1, activation=nn.Hardswish)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(last, hidden), nn.Hardswish(inplace=True), nn.Dropout(DROPOUT), nn.Linear(hidden, num_classes)
        )
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W)."""
        x = early = self.base(self.stem(x))
        for index, group in enumerate(self.groups):
            x = group(x)
            if str(index) in self.skips:
                x = x + self.skips[str(index)](early)
        return self.classifier(torch.flatten(self.avgpool(self.last(x)), 1))


Factory = Callable[..., SkipblockNet]


@architectures.register("skipblocknet_m", ArchitectureCard("SkipblockNet-M", SOURCE, (3, 224, 224)))
def skipblocknet_m(
    *, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, stem_stride: int = 2, skip: bool = True
) -> SkipblockNet:
    """SkipblockNet-M; `width` multiplies the channels (rounded to eights), `stem_stride=1` suits small images such as CIFAR's.

    `skip=False` leaves the skip blocks out. Source: the released code's table, which has 5.53 M parameters and 236.6 M MACs at
    224×224.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
    check_stem_stride(stem_stride)
    return SkipblockNet(M, num_classes=num_classes, in_channels=in_channels, width=width, stem_stride=stem_stride, skip=skip)


@architectures.register(
    "skipblocknet_small", ArchitectureCard("SkipblockNet for small images", f"{SOURCE}; this size is ours", (1, 28, 28))
)
def skipblocknet_small(
    *, num_classes: int = 10, in_channels: int = 1, width: float = 1.0, stem_stride: int = 1, skip: bool = True
) -> SkipblockNet:
    """A SkipblockNet of a few million MACs for images of about 28×28; `width` multiplies the channels (rounded to twos).

    `skip=False` leaves the skip blocks out; `width` then makes up for their MACs.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
    check_stem_stride(stem_stride)
    return SkipblockNet(
        SMALL, num_classes=num_classes, in_channels=in_channels, width=width, stem_stride=stem_stride, skip=skip
    )
