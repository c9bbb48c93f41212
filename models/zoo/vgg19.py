"""VGG-19 for ImageNet: sixteen plain 3×3 convolutions and three linear layers (Simonyan, Zisserman 2015, configuration E)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..architectures import ArchitectureCard, architectures
from .layers import check_arguments, initialise, scaled

STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
HIDDEN = 4096


class VGG19(nn.Module):
    """Sixteen convolutions with ReLU in five stages, each closed by a 2×2 max pool, a 7×7 average and three linear layers.

    Parameter names are torchvision's: `features.35` is relu5_4.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: float, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for stage in STAGES:
            for channels in stage:
                outputs = scaled(channels, width)
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = scaled(HIDDEN, width)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W) with H, W ≥ 32."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@architectures.register(
    "vgg19",
    ArchitectureCard(
        "VGG-19 for ImageNet",
        "Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015, configuration E",
        (3, 224, 224),
    ),
)
def vgg19(*, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> VGG19:
    """VGG-19 with torchvision's names; its maps are what perceptual losses are usually taken on."""
    check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
    return VGG19(num_classes=num_classes, in_channels=in_channels, width=width)
