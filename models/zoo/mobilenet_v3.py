"""MobileNet V3 small: squeeze-and-excitation and hard-swish in inverted residuals (Howard et al. 2019)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..architectures import ArchitectureCard, architectures
from .layers import check_arguments, check_stem_stride, initialise, make_divisible


class Row(NamedTuple):
    """One line of the paper's table 2."""

    kernel: int
    hidden: int
    outputs: int
    squeeze: bool
    hard_swish: bool
    stride: int


SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)
LAST = 1024


def conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: type[nn.Module] | None = None
) -> nn.Sequential:
    """A convolution that keeps the size at stride 1, batch norm (ε 10⁻³, momentum 0.01 as published) and an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in 0…1 computed from all channels' means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.scale_activation = nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) from (N, C, H, W)."""
        scale = self.activation(self.fc1(self.avgpool(x)))
        return x * self.scale_activation(self.fc2(scale))


class InvertedResidualV3(nn.Module):
    """Expansion, depthwise, optional squeeze-and-excitation, linear projection; added to its input where the shapes agree."""

    def __init__(self, inputs: int, row: Row, *, width: float) -> None:
        super().__init__()
        hidden, outputs = make_divisible(row.hidden * width), make_divisible(row.outputs * width)
        activation: type[nn.Module] = nn.Hardswish if row.hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(conv_bn(inputs, hidden, 1, activation=activation))
        layers.append(conv_bn(hidden, hidden, row.kernel, stride=row.stride, groups=hidden, activation=activation))
        if row.squeeze:
            layers.append(SqueezeExcitation(hidden, make_divisible(hidden // 4)))
        layers.append(conv_bn(hidden, outputs, 1))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, ⌈H/stride⌉, ⌈W/stride⌉) from (N, inputs, H, W)."""
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3(nn.Module):
    """A 3×3 stem, eleven blocks, a 1×1 convolution, a global average and two linear layers with hard-swish between.

    Parameter names are torchvision's.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: float, stem_stride: int, dropout: float = 0.2) -> None:
        super().__init__()
        channels = make_divisible(16 * width)
        blocks: list[nn.Module] = [conv_bn(in_channels, channels, 3, stride=stem_stride, activation=nn.Hardswish)]
        for row in SMALL:
            blocks.append(InvertedResidualV3(channels, row, width=width))
            channels = make_divisible(row.outputs * width)
        hidden = 6 * channels
        blocks.append(conv_bn(channels, hidden, 1, activation=nn.Hardswish))
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        last = make_divisible(LAST * width)
        self.classifier = nn.Sequential(
            nn.Linear(hidden, last), nn.Hardswish(inplace=True), nn.Dropout(dropout), nn.Linear(last, num_classes)
        )
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@architectures.register(
    "mobilenet_v3_small",
    ArchitectureCard("MobileNet V3 small", "Howard et al.: Searching for MobileNetV3, ICCV 2019, table 2", (3, 224, 224)),
)
def mobilenet_v3_small(
    *, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, stem_stride: int = 2
) -> MobileNetV3:
    """MobileNet V3 small; `width` multiplies the channels (rounded to eights), `stem_stride=1` suits small images."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
    check_stem_stride(stem_stride)
    return MobileNetV3(num_classes=num_classes, in_channels=in_channels, width=width, stem_stride=stem_stride)
