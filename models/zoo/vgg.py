"""VGG-16 with batch normalisation for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..architectures import ArchitectureCard, architectures
from .layers import check_arguments, initialise, scaled

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Thirteen 3×3 convolutions in five stages with a 2×2 max pool between stages, a global average, one linear layer.

    The usual form for CIFAR: the paper's three linear layers of 4 096 belong to 224×224 images and would hold nine tenths
    of the parameters. The global average stands for the fifth pool, so that every input from 16×16 up fits (28×28 too).
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for i, stage in enumerate(STAGES):
            if i > 0:
                layers.append(nn.MaxPool2d(2, 2))
            for channels in stage:
                outputs = scaled(channels, width)
                conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W) with H, W ≥ 16."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@architectures.register(
    "vgg16_bn",
    ArchitectureCard(
        "VGG-16 with batch norm for CIFAR",
        "Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015, configuration D; batch norm: Ioffe, Szegedy 2015",
        (3, 32, 32),
    ),
)
def vgg16_bn(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> VGG:
    """VGG-16 with batch norm for small images; `width` multiplies every channel count."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
    return VGG(num_classes=num_classes, in_channels=in_channels, width=width)
