"""MobileNet: depthwise separable convolutions (Howard et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..architectures import ArchitectureCard, architectures
from .layers import check_arguments, check_stem_stride, initialise, make_divisible

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""(output channels, stride) of the thirteen separable blocks, table 1 of the paper."""


def separable(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    """A 3×3 depthwise and a 1×1 convolution, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class MobileNetV1(nn.Module):
    """A 3×3 stem, thirteen separable blocks, a global average and one linear layer."""

    def __init__(self, *, num_classes: int, in_channels: int, width: float, stem_stride: int) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        stem = nn.Conv2d(in_channels, channels, 3, stem_stride, padding=1, bias=False)
        blocks: list[nn.Module] = [nn.Sequential(stem, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))]
        for outputs, stride in BLOCKS:
            blocks.append(separable(channels, make_divisible(outputs * width), stride=stride))
            channels = make_divisible(outputs * width)
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@architectures.register(
    "mobilenet_v1",
    ArchitectureCard("MobileNet V1", "Howard et al.: MobileNets, arXiv 1704.04861, 2017, table 1", (3, 224, 224)),
)
def mobilenet_v1(*, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, stem_stride: int = 2) -> MobileNetV1:
    """MobileNet V1; `width` multiplies the channels (rounded to eights), `stem_stride=1` suits small images."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
    check_stem_stride(stem_stride)
    return MobileNetV1(num_classes=num_classes, in_channels=in_channels, width=width, stem_stride=stem_stride)
