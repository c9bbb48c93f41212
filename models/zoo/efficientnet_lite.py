"""EfficientNet-Lite0: EfficientNet without squeeze-and-excitation, with ReLU6, for integer hardware (Google, 2020)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import ArchitectureCard, architectures
from .layers import check_arguments, check_stem_stride, initialise

STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
"""(expansion, channels, repeats, kernel, stride)."""
STEM, HEAD = 32, 1280
EPS = 1e-3


class SamePad(nn.Module):
    """TensorFlow's "same" padding for a stride of 2: ⌈size/2⌉ positions, the odd pixel going to the bottom and right.

    A side of even length gets k − 2 zeros and one of odd length k − 1, the smaller half in front. (At stride 1 the padding is
    symmetric, and the convolution's own does.) The amounts are plain numbers of the input's size, so a graph traced or
    exported at a fixed H×W holds a constant padding, whatever the batch.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H + k − 2 or k − 1, W + k − 2 or k − 1) from (N, C, H, W)."""
        top, bottom = self._amounts(x, 2)
        left, right = self._amounts(x, 3)
        return F.pad(x, (left, right, top, bottom))

    def _amounts(self, x: Tensor, axis: int) -> tuple[int, int]:
        with warnings.catch_warnings():
            # tracing warns that the side becomes a constant: it shall
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            total = self.kernel - 2 + int(x.shape[axis]) % 2
        return total // 2, total - total // 2


class LiteBlock(nn.Module):
    """Expansion, depthwise convolution, linear projection; added to its input where the shapes agree.

    Names and order are those of the published weights. Drop-connect, which only matters in training from scratch, is left out.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self._bn0 = batch_norm(hidden)
            self._relu0 = nn.ReLU6(inplace=True)
        self._pad = SamePad(kernel) if stride == 2 else nn.Identity()
        padding = 0 if stride == 2 else kernel // 2
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, padding=padding, groups=hidden, bias=False)
        self._bn1 = batch_norm(hidden)
        self._relu1 = nn.ReLU6(inplace=True)
        self._project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self._bn2 = batch_norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, ⌈H/stride⌉, ⌈W/stride⌉) from (N, inputs, H, W)."""
        y = self._relu0(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._relu1(self._bn1(self._depthwise_conv(self._pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with the published ε and momentum."""
    return nn.BatchNorm2d(channels, eps=EPS, momentum=0.01)


class EfficientNetLite(nn.Module):
    """A 3×3 stem, sixteen blocks, a 1×1 convolution, a global average, dropout and one linear layer."""

    def __init__(self, *, num_classes: int, in_channels: int, stem_stride: int, dropout: float = 0.2) -> None:
        super().__init__()
        self._pad = SamePad(3) if stem_stride == 2 else nn.Identity()
        self._conv_stem = nn.Conv2d(in_channels, STEM, 3, stem_stride, padding=0 if stem_stride == 2 else 1, bias=False)
        self._bn0 = batch_norm(STEM)
        self._relu0 = nn.ReLU6(inplace=True)
        blocks: list[nn.Module] = []
        channels = STEM
        for expansion, outputs, repeats, kernel, stride in STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                blocks.append(LiteBlock(channels, outputs, kernel=kernel, stride=step, expansion=expansion))
                channels = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self._bn1 = batch_norm(HEAD)
        self._relu1 = nn.ReLU6(inplace=True)
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD, num_classes)
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W); the published weights want (pixel − 127) / 128."""
        x = self._relu0(self._bn0(self._conv_stem(self._pad(x))))
        x = self._blocks(x)
        x = self._relu1(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(torch.flatten(self._avg_pooling(x), 1)))


@architectures.register(
    "efficientnet_lite0",
    ArchitectureCard(
        "EfficientNet-Lite0",
        "Tan, Le: EfficientNet, ICML 2019; Lite variants: Google, TensorFlow TPU repository, 2020",
        (3, 224, 224),
    ),
)
def efficientnet_lite0(*, num_classes: int = 1000, in_channels: int = 3, stem_stride: int = 2) -> EfficientNetLite:
    """EfficientNet-Lite0 with the names of its published weights; `stem_stride=1` suits small images.

    It has no width argument: Lite0 is the family's smallest, and the larger ones scale depth and size together with width.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels)
    check_stem_stride(stem_stride)
    return EfficientNetLite(num_classes=num_classes, in_channels=in_channels, stem_stride=stem_stride)
