"""RMFA-Net: a camera pipeline of texture and tone branches with attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..architectures import ArchitectureCard, architectures
from ..errors import UserError
from .sensor_input import Counts, Levels, Packing, sensor_input

SOURCE = "RMFA-Net, in the form released with Arhire, Timofte: Learned Lightweight Smartphone ISP with Unpaired Data, CVPR Workshops 2025"
SQUEEZE = 16
"""The channel attention's inner width is that of the block over this."""


class TextureBranch(nn.Module):
    """Half of the channels from a 1×1 convolution, half from a 3×3 one, ReLU after each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(channels, channels // 2, 1)
        self.relu1 = nn.ReLU(inplace=True)
        self.area = nn.Conv2d(channels, channels - channels // 2, 3, padding=1)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return torch.cat([self.relu1(self.point(x)), self.relu2(self.area(x))], dim=1)


class ToneBranch(nn.Module):
    """The input minus its illumination (after Retinex), which is estimated at a half and a quarter of the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool1, self.pool2 = nn.AvgPool2d(2), nn.AvgPool2d(2)
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.relu1, self.relu2, self.relu3 = (nn.ReLU(inplace=True) for _ in range(3))
        self.up1, self.up2 = (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W); H and W multiples of 4."""
        half = self.relu1(self.conv1(self.pool1(x)))
        quarter = self.relu2(self.conv2(self.pool2(half)))
        return x - self.up2(self.up1(self.relu3(self.conv3(quarter))) + half)


class ChannelAttention(nn.Module):
    """Each channel times a factor in 0…1 that all of the picture decides: a small shared network on its mean and its maximum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // SQUEEZE)
        self.squeeze = nn.Conv2d(channels, inner, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        # one above the other as a picture of two pixels, so that the shared layers run once
        pooled = torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)], dim=2)
        return x * self.gate(self.expand(self.relu(self.squeeze(pooled))).sum(2, keepdim=True))


class SpatialAttention(nn.Module):
    """Each pixel times a factor in 0…1 from the mean and the maximum over its channels, by one 7×7 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return x * self.gate(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


class Block(nn.Module):
    """Texture and tone side by side, joined by a 3×3 convolution, weighed by both attentions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.texture, self.tone = TextureBranch(channels), ToneBranch(channels)
        self.join = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.channel, self.spatial = ChannelAttention(channels), SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        joined = self.relu(self.join(torch.cat([self.texture(x), self.tone(x)], dim=1)))
        return x + self.spatial(self.channel(joined))


class RMFANet(nn.Module):
    """Two 3×3 convolutions and tanh, `blocks` blocks of `width` channels, a 3×3 convolution and a sigmoid, all at full resolution.

    The input has three planes (N, 3, H, W), each colour (count − black) / (white − black) where the sensor sampled it and 1
    elsewhere (the released code clips at black and divides by 1023 instead), or the sensor counts themselves, (N, 1, H, W), with
    `packing="inside"`. H and W must be multiples of 4, since the tone branch halves them twice: pad, or cut.

    The channel attention looks at the mean and the maximum over the whole picture: a picture that is developed in tiles gives each
    tile its own, and does not come out as it would in one piece.
    """

    def __init__(self, *, blocks: int, width: int, packer: nn.Module) -> None:
        super().__init__()
        self.packer = packer
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.tanh = nn.Tanh()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.conv3 = nn.Conv2d(width, 3, 3, padding=1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, raw: Tensor) -> Tensor:
        """sRGB (N, 3, H, W) of planes (N, 3, H, W), or of counts (N, 1, H, W) where the packing is inside.

        Raises UserError for sides that are no multiples of 4.
        """
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            _check_sides(raw)
        x = self.tanh(self.conv2(self.conv1(self.packer(raw))))
        return self.sigmoid(self.conv3(self.blocks(x)))


def _check_sides(raw: Tensor) -> None:
    height, width = raw.shape[-2:]
    if height % 4 or width % 4:
        raise UserError(
            f"RMFA-Net takes sides that are multiples of 4, not {height}×{width}",
            hint="pad the mosaic, or cut its last rows and columns",
        )


@architectures.register(
    "rmfa_tiny",
    ArchitectureCard(
        "RMFA-Net tiny", SOURCE, (3, 256, 256), task="isp", task_options={"form": "planes"}, recipe=({"kind": "isp"},)
    ),
)
def rmfa_tiny(
    *,
    blocks: int = 2,
    width: int = 16,
    packing: Packing = "outside",
    pattern: str = "RGGB",
    black: Levels = 63.0,
    white: float = 1023.0,
    dtype: Counts = "float32",
) -> RMFANet:
    """RMFA-Net tiny: 2 blocks of width 16, 29,223 parameters (the larger published ones have 8 or 20 blocks of 16, 32 or 64).

    The other arguments are those of `efficient_isp`. Raises UserError for values that make no sense.
    """
    for name, value in (("blocks", blocks), ("width", width)):
        if not 1 <= value <= 256:
            raise UserError(f"{name}={value} must be 1 … 256", hint="2 blocks of width 16 are the published tiny network")
    if width < 2:
        raise UserError(f"width={width} leaves the texture branch half a channel", hint="2 or more")
    packer = sensor_input("planes", packing=packing, pattern=pattern, black=black, white=white, dtype=dtype)
    return RMFANet(blocks=blocks, width=width, packer=packer)
