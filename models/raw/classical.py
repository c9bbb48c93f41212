"""The fixed rendering: a picture from a mosaic without anything learned.

Demosaicing is the library colour-demosaicing's (Menon & Calvagno 2007; Malvar, He & Cutler 2004; bilinear). The rest follows the
content reference in the released code of Arhire & Timofte (CVPRW 2025): gains for red, green and blue, clip to 0…1, stretch of the
picture's minimum…maximum to 0…1, gamma 1/2.2. The gains (1.6, 1.2, 1.4) are those of their camera.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import UserError, did_you_mean
from .libraries import library
from .packing import checked_pattern

DEMOSAICS = {
    "menon": "demosaicing_CFA_Bayer_Menon2007",
    "malvar": "demosaicing_CFA_Bayer_Malvar2004",
    "bilinear": "demosaicing_CFA_Bayer_bilinear",
}
"""The library's function for each method."""
GAINS = (1.6, 1.2, 1.4)
TILE = 512
MARGIN = 16
"""Rows and columns around a tile that the methods may look at; the widest of them (Menon's) sees 13."""
SMALLEST = 4
"""The least side: Menon's mirrored edges need as much."""


def render(
    mosaic: np.ndarray,
    pattern: str,
    *,
    gains: Sequence[float] = GAINS,
    matrix: np.ndarray | None = None,
    demosaic: str = "menon",
    stretch: bool | tuple[float, float] = True,
    gamma: float = 2.2,
) -> np.ndarray:
    """float32 (3, H, W) in 0…1: the picture of a normalised mosaic, float32 (H, W), (count − black) / (white − black).

    In this order: demosaicing, gains (red, green, blue), clip to 0…1, `matrix` (3×3, balanced camera RGB → linear sRGB; the
    source has none) and a second clip, stretch, gamma 1/`gamma`. `stretch` = True maps the minimum and maximum over all pixels
    and colours to 0 and 1 (a picture that is constant is left as it is), a pair (low, high) maps these two, False leaves it out.

    Raises UserError for another shape, sides that are odd or below 4, an unknown pattern or method, and settings out of range.
    """
    _check_settings(gains, matrix, stretch, gamma)
    rgb = demosaiced(mosaic, pattern, method=demosaic)
    rgb *= np.asarray(gains, np.float32)[:, None, None]
    np.clip(rgb, 0, 1, out=rgb)
    if matrix is not None:
        rgb = np.matmul(np.asarray(matrix, np.float32), rgb.reshape(3, -1)).reshape(rgb.shape)
        np.clip(rgb, 0, 1, out=rgb)
    if stretch is not False:
        low, high = (float(rgb.min()), float(rgb.max())) if stretch is True else stretch
        if high > low:
            rgb -= np.float32(low)
            rgb /= np.float32(high - low)
            np.clip(rgb, 0, 1, out=rgb)
    return np.power(rgb, np.float32(1 / gamma), out=rgb)


def demosaiced(mosaic: np.ndarray, pattern: str, *, method: str = "menon") -> np.ndarray:
    """float32 (3, H, W): the mosaic's missing colours filled in, not clipped.

    The library works in float64, so it gets tiles of 512² with a margin wider than it can see: the result is that of the whole
    mosaic, while memory stays near that of the result. Raises UserError as `render` does.
    """
    known = checked_pattern(pattern)
    if method not in DEMOSAICS:
        raise UserError(f"demosaic={method!r} is unknown", hint=did_you_mean(method, DEMOSAICS))
    shape = tuple(mosaic.shape)
    if len(shape) != 2 or min(shape) < SMALLEST or shape[0] % 2 or shape[1] % 2:
        raise UserError(
            f"a mosaic of shape {shape} can't be demosaiced", hint=f"(H, W) with even sides of at least {SMALLEST} is wanted"
        )
    fill: Callable[[np.ndarray, str], np.ndarray] = getattr(library("colour_demosaicing"), DEMOSAICS[method])
    height, width = shape
    out = np.empty((3, height, width), np.float32)
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            # margins are even, so that every tile starts with the mosaic's own phase
            above, before = min(top, MARGIN), min(left, MARGIN)
            tile = mosaic[top - above : bottom + MARGIN, left - before : right + MARGIN]
            filled = fill(tile, known)[above : above + bottom - top, before : before + right - left]
            out[:, top:bottom, left:right] = filled.transpose(2, 0, 1)
    return out


def _spans(length: int) -> list[tuple[int, int]]:
    """Start and end of each tile along a side; a rest below 4 goes with the tile before it."""
    starts = list(range(0, length, TILE))
    if len(starts) > 1 and length - starts[-1] < SMALLEST:
        starts.pop()
    return list(zip(starts, [*starts[1:], length], strict=True))


def _check_settings(
    gains: Sequence[float], matrix: np.ndarray | None, stretch: bool | tuple[float, float], gamma: float
) -> None:
    if len(gains) != 3 or not all(np.isfinite(gain) and gain > 0 for gain in gains):
        raise UserError(f"gains={tuple(gains)!r}", hint="three positive numbers for red, green and blue, such as 1.6 1.2 1.4")
    if matrix is not None and (np.shape(matrix) != (3, 3) or not np.isfinite(matrix).all()):
        raise UserError(f"a colour matrix of shape {np.shape(matrix)}", hint="3×3 finite numbers: camera RGB → linear sRGB")
    if not (np.isfinite(gamma) and gamma > 0):
        raise UserError(f"gamma={gamma!r} must be a positive number", hint="2.2 is usual; 1 leaves the picture linear")
    if not isinstance(stretch, bool) and not (len(stretch) == 2 and stretch[0] < stretch[1]):
        raise UserError(f"stretch={stretch!r}", hint="True, False, or a pair (low, high) with low < high")
