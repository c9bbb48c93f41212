"""Sensor counts as an ISP network's own input: the packed form or the three planes, made inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError, did_you_mean
from ..raw.frame import checked_levels
from ..raw.packing import offsets

Packing = Literal["outside", "inside"]
Counts = Literal["float32", "uint16", "uint8"]
Form = Literal["packed", "planes"]
Levels = float | Sequence[float]


class SensorInput(nn.Module):
    """Counts (N, 1, H, W) → (N, 4, H/2, W/2) in the order B, Gr, R, Gb, or three planes (N, 3, H, W) with 1 where a colour is not sampled.

    Both are (count − black) / (white − black), not clipped. One 2×2 convolution with fixed weights does it (and a pixel shuffle, for the
    planes): it takes every height and width, and each runtime has it. It costs 4 multiply-accumulates a pixel, the planes 12. It has no
    parameters and keeps nothing in the weights file. An odd last row or column is left out.
    """

    def __init__(self, form: Form, *, pattern: str, black: Levels, white: float, dtype: Counts) -> None:
        super().__init__()
        levels, top = checked_levels(black if isinstance(black, (int, float)) else tuple(black), white)
        at = offsets(pattern)
        self.form, self.integers = form, dtype != "float32"
        channels: list[tuple[int, int] | None] = [*at.values()] if form == "packed" else _planes(at)
        weight = torch.zeros(len(channels), 1, 2, 2, dtype=torch.float64)
        bias = torch.ones(len(channels), dtype=torch.float64)
        for channel, site in enumerate(channels):
            if site is not None:
                level = levels[2 * site[0] + site[1]]
                weight[channel, 0, site[0], site[1]] = 1 / (top - level)
                bias[channel] = -level / (top - level)
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.float(), persistent=False)
        self.register_buffer("bias", bias.float(), persistent=False)

    def forward(self, counts: Tensor) -> Tensor:
        """The network's own input from counts of any numeric type."""
        values = counts.float() if self.integers else counts
        sites = F.conv2d(values, self.weight, self.bias, stride=2)
        return F.pixel_shuffle(sites, 2) if self.form == "planes" else sites


def sensor_input(
    form: Form, *, packing: Packing, pattern: str, black: Levels, white: float, dtype: Counts
) -> SensorInput | nn.Identity:
    """What stands in front of an ISP network: nothing where the packing is done outside, else a `SensorInput`.

    Raises UserError for an unknown packing, phase or type, for levels that make no sense, and for a white level beyond the type.
    """
    for name, value, known in (("packing", packing, get_args(Packing)), ("dtype", dtype, get_args(Counts))):
        if value not in known:
            raise UserError(f"{name}={value!r} is unknown", hint=did_you_mean(str(value), known))
    if packing == "outside":
        return nn.Identity()
    most = {"float32": float("inf"), "uint16": 65535, "uint8": 255}[dtype]
    if white > most:
        raise UserError(f"white={white:g} does not fit dtype={dtype!r}", hint=f"at most {most:g}, or a wider type")
    return SensorInput(form, pattern=pattern, black=black, white=white, dtype=dtype)


def _planes(at: dict[str, tuple[int, int]]) -> list[tuple[int, int] | None]:
    """The 12 channels that a pixel shuffle makes three planes of: a site of the cell where it has the plane's colour, else None."""
    return [
        (row, column) if (row, column) in [site for name, site in at.items() if name[0] == colour] else None
        for colour in "RGB"
        for row in (0, 1)
        for column in (0, 1)
    ]
