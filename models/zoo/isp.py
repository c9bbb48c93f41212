"""EfficientISP and RobustISP: camera pipelines of three convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ..architectures import ArchitectureCard, architectures
from .sensor_input import Counts, Levels, Packing, sensor_input

SOURCE = "Arhire, Timofte: Learned Lightweight Smartphone ISP with Unpaired Data, CVPR Workshops 2025"


GREY = 0.5
"""What an untrained network's picture is, about."""


class PackedISP(nn.Module):
    """Three 3×3 convolutions at half the mosaic's resolution (tanh, ReLU, ReLU), then a pixel shuffle to the full one.

    The input is the packed mosaic (N, 4, H/2, W/2), channels B, Gr, R, Gb, (count − black) / (white − black), or the sensor counts
    themselves, (N, 1, H, W), with `packing="inside"`. The output (N, 3, H, W) is sRGB in 0…1 once clamped, which is left to whoever
    looks at it: the last ReLU has no upper end. There is no normalisation layer, and each output pixel sees 14×14 of the mosaic.
    An untrained network's picture is about mid grey, which is ours: the released code starts from a checkpoint.
    """

    def __init__(self, widths: Sequence[int], packer: nn.Module) -> None:
        super().__init__()
        first, second, third = widths
        self.packer = packer
        self.conv1 = nn.Conv2d(4, first, 3, padding=1)
        self.tanh = nn.Tanh()
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        # a last ReLU that starts shut has no gradient: a colour would stay black for good
        nn.init.constant_(cast(Tensor, self.conv3.bias), GREY)
        self.relu2 = nn.ReLU(inplace=True)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, raw: Tensor) -> Tensor:
        """sRGB (N, 3, H, W) of packed mosaics (N, 4, H/2, W/2), or of counts (N, 1, H, W) where the packing is inside."""
        x = self.tanh(self.conv1(self.packer(raw)))
        x = self.relu1(self.conv2(x))
        return self.shuffle(self.relu2(self.conv3(x)))


def _card(title: str) -> ArchitectureCard:
    recipe = ({"kind": "isp"},)
    return ArchitectureCard(title, SOURCE, (4, 128, 128), task="isp", task_options={"form": "packed"}, recipe=recipe)


@architectures.register("efficient_isp", _card("EfficientISP"))
def efficient_isp(
    *,
    packing: Packing = "outside",
    pattern: str = "RGGB",
    black: Levels = 63.0,
    white: float = 1023.0,
    dtype: Counts = "float32",
) -> PackedISP:
    """EfficientISP: widths 12, 12, 12; 3,060 parameters, 756 multiply-accumulates per pixel of the picture.

    `packing="inside"` takes counts (N, 1, H, W) of `dtype`, of a sensor with this `pattern` and these levels (`black`: one, or four by
    the position in the cell). Raises UserError for values that make no sense.
    """
    packer = sensor_input("packed", packing=packing, pattern=pattern, black=black, white=white, dtype=dtype)
    return PackedISP((12, 12, 12), packer)


@architectures.register("robust_isp", _card("RobustISP"))
def robust_isp(
    *,
    packing: Packing = "outside",
    pattern: str = "RGGB",
    black: Levels = 63.0,
    white: float = 1023.0,
    dtype: Counts = "float32",
) -> PackedISP:
    """RobustISP: widths 16, 4, 12; 1,616 parameters, 396 multiply-accumulates per pixel. Arguments as for `efficient_isp`."""
    packer = sensor_input("packed", packing=packing, pattern=pattern, black=black, white=white, dtype=dtype)
    return PackedISP((16, 4, 12), packer)
