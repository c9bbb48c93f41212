"""A mosaic's colours apart and together again: the packed form, the three planes, and the mosaic of a picture.

Every function takes a NumPy array or a torch tensor and gives back the same kind, of the same type of number; leading dimensions
are kept. The packed order B, Gr, R, Gb is the one of the released code of Arhire & Timofte (CVPRW 2025) for an RGGB mosaic; here it
holds for all four phases, so one network serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", np.ndarray, Tensor)

PATTERNS = ("RGGB", "GRBG", "GBRG", "BGGR")
"""The colours of the 2×2 cell in reading order."""
PACKED = ("B", "Gr", "R", "Gb")
"""The channels of the packed form; Gr is the green in red's row, Gb the one in blue's."""
Form = Literal["packed", "planes", "mosaic"]
FORMS: Mapping[Form, int] = {"packed": 4, "planes": 3, "mosaic": 1}
"""What goes into a network that develops RAW, and the number of channels that tells it."""


def checked_pattern(pattern: str) -> str:
    """The pattern in capitals. Raises UserError for one that is none of the four Bayer phases."""
    found = str(pattern).strip().upper()
    if found not in PATTERNS:
        raise UserError(
            f"pattern={pattern!r} is no Bayer phase",
            hint="the colours of the top left 2×2 cell, row by row: " + ", ".join(PATTERNS),
        )
    return found


def offsets(pattern: str) -> dict[str, tuple[int, int]]:
    """Row and column within the cell of each of B, Gr, R and Gb, in that order. Raises UserError for an unknown pattern."""
    at = checked_pattern(pattern)
    red, blue = divmod(at.index("R"), 2), divmod(at.index("B"), 2)
    return {"B": blue, "Gr": (red[0], 1 - red[1]), "R": red, "Gb": (blue[0], 1 - blue[1])}


def packed(mosaic: Array, pattern: str) -> Array:
    """(…, 4, H/2, W/2): the four sites of each cell as channels in the order of `PACKED`.

    Raises UserError for an unknown pattern and for odd sides.
    """
    _check_even(mosaic)
    sites: list[Any] = [mosaic[..., row::2, column::2] for row, column in offsets(pattern).values()]
    if isinstance(mosaic, np.ndarray):
        return np.stack(sites, axis=-3)
    import torch

    return torch.stack(sites, dim=-3)


def mosaic_of(packed: Array, pattern: str) -> Array:
    """(…, H, W): the mosaic of a packed form (…, 4, H/2, W/2); undoes `packed`.

    Raises UserError for an unknown pattern and for another number of channels than 4.
    """
    places = offsets(pattern)
    if packed.ndim < 3 or packed.shape[-3] != len(PACKED):
        raise UserError(
            f"a packed form of shape {tuple(packed.shape)} has no 4 channels", hint="(…, 4, H/2, W/2) in the order B, Gr, R, Gb"
        )
    shape = (*packed.shape[:-3], 2 * packed.shape[-2], 2 * packed.shape[-1])
    mosaic: Any = np.empty(shape, packed.dtype) if isinstance(packed, np.ndarray) else packed.new_empty(shape)
    for channel, (row, column) in enumerate(places.values()):
        mosaic[..., row::2, column::2] = packed[..., channel, :, :]
    return mosaic


def planes3(mosaic: Array, pattern: str) -> Array:
    """(…, 3, H, W): red, green and blue where the sensor sampled them, 1 elsewhere (the input of RMFA-Net).

    Raises UserError for an unknown pattern and for odd sides.
    """
    _check_even(mosaic)
    shape = (*mosaic.shape[:-2], 3, *mosaic.shape[-2:])
    planes: Any = np.ones(shape, mosaic.dtype) if isinstance(mosaic, np.ndarray) else mosaic.new_ones(shape)
    for colour, row, column in _sites(pattern):
        planes[..., colour, row::2, column::2] = mosaic[..., row::2, column::2]
    return planes


def in_form(mosaic: Array, pattern: str, form: Form) -> Array:
    """(…, C, h, w): the mosaic (…, H, W) packed, as three planes, or as it is. Raises UserError as `packed` does."""
    if form == "mosaic":
        return mosaic[..., None, :, :]
    return packed(mosaic, pattern) if form == "packed" else planes3(mosaic, pattern)


def sample(rgb: Array, pattern: str) -> Array:
    """(…, H, W): what a sensor of this pattern keeps of an RGB picture (…, 3, H, W): one colour per pixel.

    Raises UserError for an unknown pattern, odd sides, and another number of channels than 3.
    """
    if rgb.ndim < 3 or rgb.shape[-3] != 3:
        raise UserError(f"a picture of shape {tuple(rgb.shape)} has no 3 channels", hint="(…, 3, H, W): red, green, blue")
    _check_even(rgb)
    shape = (*rgb.shape[:-3], *rgb.shape[-2:])
    mosaic: Any = np.empty(shape, rgb.dtype) if isinstance(rgb, np.ndarray) else rgb.new_empty(shape)
    for colour, row, column in _sites(pattern):
        mosaic[..., row::2, column::2] = rgb[..., colour, row::2, column::2]
    return mosaic


def _sites(pattern: str) -> list[tuple[int, int, int]]:
    """(0, 1 or 2 for red, green, blue; row; column) of the cell's four sites."""
    return [("RGB".index(name[0]), row, column) for name, (row, column) in offsets(pattern).items()]


def _check_even(array: Any) -> None:
    height, width = (tuple(array.shape) if array.ndim >= 2 else (0, 0))[-2:]
    if height < 2 or width < 2 or height % 2 or width % 2:
        raise UserError(f"a mosaic of {height}×{width} is not made of 2×2 cells", hint="both sides must be even, at least 2")
