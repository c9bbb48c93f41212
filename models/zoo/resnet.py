"""Residual networks (He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import ArchitectureCard, architectures
from ..errors import UserError
from .layers import check_arguments, initialise, scaled

Shortcut = Literal["A", "B"]
SOURCE = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016"


class PadShortcut(nn.Module):
    """The paper's option A: every `stride`-th pixel, the missing channels filled with zeros. It has no parameters."""

    def __init__(self, *, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C + extra, ⌈H/stride⌉, ⌈W/stride⌉) from (N, C, H, W)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def make_shortcut(inputs: int, outputs: int, *, stride: int, option: Shortcut) -> nn.Module | None:
    """What brings a block's input to its output's shape; None when the shapes agree already."""
    if stride == 1 and inputs == outputs:
        return None
    if option == "A":
        return PadShortcut(extra=outputs - inputs, stride=stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, *, stride: int, option: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = make_shortcut(inputs, planes, stride=stride, option=option)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, planes, ⌈H/stride⌉, ⌈W/stride⌉) from (N, inputs, H, W)."""
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + identity)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut; the stride sits on the 3×3, as in torchvision's published weights."""

    expansion = 4
    spread = 1

    def __init__(self, inputs: int, planes: int, *, stride: int, option: Shortcut) -> None:
        super().__init__()
        inner, outputs = planes * self.spread, planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = make_shortcut(inputs, outputs, stride=stride, option=option)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4·planes, ⌈H/stride⌉, ⌈W/stride⌉) from (N, inputs, H, W)."""
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.bn3(self.conv3(y)) + identity)


class WideBottleneck(Bottleneck):
    """A bottleneck whose 3×3 convolution is twice as wide (Zagoruyko, Komodakis 2016)."""

    spread = 2


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """A stem, stages `layer1`, `layer2` … of residual blocks, a global average and one linear layer `fc`.

    Parameter names are torchvision's. The stem is 3×3 for small images, or 7×7 stride 2 with a max pool (`large_stem`).
    """

    def __init__(
        self,
        *,
        block: Block,
        blocks: tuple[int, ...],
        planes: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        large_stem: bool,
        option: Shortcut = "B",
    ) -> None:
        super().__init__()
        kernel, stride = (7, 2) if large_stem else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, planes[0], kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large_stem else nn.Identity()
        self.stages = [f"layer{i}" for i in range(1, len(blocks) + 1)]
        inputs = planes[0]
        for i, (name, count, width) in enumerate(zip(self.stages, blocks, planes, strict=True)):
            stage: list[nn.Module] = []
            for j in range(count):
                stage.append(block(inputs, width, stride=2 if i > 0 and j == 0 else 1, option=option))
                inputs = width * block.expansion
            self.add_module(name, nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def cifar_resnet(depth: int, *, num_classes: int, in_channels: int, width: float, shortcut: str) -> ResNet:
    """ResNet-(6n+2) of the paper's §4.2: three stages of n basic blocks with 16, 32 and 64 channels times `width`.

    The default shortcut is option B (1×1 convolution) where the paper used A (stride and zero channels): A ties every new
    channel to the position of an old one, so no channel between stages could be removed, and the padding costs a copy on
    every runtime. B adds 2 752 parameters at width 1, whatever the depth.
    """
    check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
    if shortcut not in ("A", "B"):
        raise UserError(
            f"shortcut={shortcut!r} must be 'A' or 'B'", hint="'B' (1×1 convolution) can be pruned, 'A' is the paper's"
        )
    option: Shortcut = "A" if shortcut == "A" else "B"
    return ResNet(
        block=BasicBlock,
        blocks=((depth - 2) // 6,) * 3,
        planes=(scaled(16, width), scaled(32, width), scaled(64, width)),
        num_classes=num_classes,
        in_channels=in_channels,
        large_stem=False,
        option=option,
    )


def _register_cifar(depth: int) -> None:
    def build(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, shortcut: str = "B") -> ResNet:
        return cifar_resnet(depth, num_classes=num_classes, in_channels=in_channels, width=width, shortcut=shortcut)

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = f"ResNet-{depth} for small images; see `cifar_resnet`."
    architectures.register(f"resnet{depth}", ArchitectureCard(f"ResNet-{depth} for CIFAR", f"{SOURCE}, §4.2", (3, 32, 32)))(
        build
    )


def _register_imagenet(name: str, title: str, block: Block, blocks: tuple[int, ...], source: str) -> None:
    def build(*, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, small_input: bool = False) -> ResNet:
        check_arguments(num_classes=num_classes, in_channels=in_channels, width=width)
        return ResNet(
            block=block,
            blocks=blocks,
            planes=tuple(scaled(planes, width) for planes in (64, 128, 256, 512)),
            num_classes=num_classes,
            in_channels=in_channels,
            large_stem=not small_input,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{title} with torchvision's names; `small_input` swaps its 7×7 stem and max pool for one 3×3."
    architectures.register(name, ArchitectureCard(f"{title} for ImageNet", source, (3, 224, 224)))(build)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    _register_cifar(_depth)
_register_imagenet("resnet18", "ResNet-18", BasicBlock, (2, 2, 2, 2), f"{SOURCE}, table 1")
_register_imagenet("resnet50", "ResNet-50", Bottleneck, (3, 4, 6, 3), f"{SOURCE}, table 1")
_register_imagenet(
    "wide_resnet101_2",
    "Wide ResNet-101-2",
    WideBottleneck,
    (3, 4, 23, 3),
    "Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016",
)
