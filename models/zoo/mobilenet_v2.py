"""MobileNet V2: inverted residuals with linear bottlenecks (Sandler et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..architectures import ArchitectureCard, architectures
from .layers import check_arguments, check_stem_stride, initialise, make_divisible

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion t, channels c, repeats n, stride s), table 2 of the paper."""


def conv_bn_relu6(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size at stride 1, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise, linear 1×1 projection; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [conv_bn_relu6(inputs, hidden, 1)]
        self.conv = nn.Sequential(
            *layers,
            conv_bn_relu6(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, ⌈H/stride⌉, ⌈W/stride⌉) from (N, inputs, H, W)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """A 3×3 stem, seventeen inverted residuals, a 1×1 convolution, a global average, dropout and one linear layer.

    Parameter names are torchvision's.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: float, stem_stride: int, dropout: float = 0.2) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        blocks: list[nn.Module] = [conv_bn_relu6(in_channels, channels, 3, stride=stem_stride)]
        for expansion, base, repeats, stride in STAGES:
            outputs = make_divisible(base * width)
            for i in range(repeats):
                blocks.append(InvertedResidual(channels, outputs, stride=stride if i == 0 else 1, expansion=expansion))
                channels = outputs
        # the last layer does not shrink below width 1 (paper, §5)
        last = make_divisible(1280 * max(1.0, width))
        blocks.append(conv_bn_relu6(channels, last, 1))
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@architectures.register(
    "mobilenet_v2",
    ArchitectureCard("MobileNet V2", "Sandler et al.: MobileNetV2, CVPR 2018, table 2", (3, 224, 224)),
)
def mobilenet_v2(*, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, stem_stride: int = 2) -> MobileNetV2:
    """MobileNet V2; `width` multiplies the channels (rounded to eights), `stem_stride=1` suits small images."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
    check_stem_stride(stem_stride)
    return MobileNetV2(num_classes=num_classes, in_channels=in_channels, width=width, stem_stride=stem_stride)
