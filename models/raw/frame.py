"""A Bayer mosaic with the levels, gains and matrix that tell what its counts mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .packing import checked_pattern, offsets


def checked_levels(
    black: float | Sequence[float], white: float, *, source: str = ""
) -> tuple[tuple[float, float, float, float], float]:
    """The black levels of the cell's four sites in reading order (one number stands for all four), and the white level.

    Raises UserError for levels that are no numbers, another count than one or four, a negative level, and black ≥ white.
    """
    where = f"{source}: " if source else ""
    try:
        levels = [float(black)] * 4 if isinstance(black, (int, float)) else [float(level) for level in black]
        top = float(white)
    except (TypeError, ValueError):
        raise UserError(
            f"{where}black={black!r}, white={white!r} must be numbers", hint="in sensor counts, such as black=64, white=1023"
        ) from None
    if len(levels) != 4:
        raise UserError(
            f"{where}black has {len(levels)} levels",
            hint="one number, or four by the position in the 2×2 cell: top left, top right, …",
        )
    if not all(math.isfinite(level) and level >= 0 for level in (*levels, top)):
        raise UserError(
            f"{where}black={black!r}, white={white!r} must be finite and not negative", hint="levels are sensor counts"
        )
    if max(levels) >= top:
        raise UserError(
            f"{where}the black level {max(levels):g} is not below the white level {top:g}",
            hint="white is the count at which the sensor saturates, such as 1023 for 10 bits, 16383 for 14",
        )
    return (levels[0], levels[1], levels[2], levels[3]), top


@dataclass(frozen=True, eq=False)
class RawFrame:
    """One Bayer mosaic as the sensor gave it: uint16 counts (H, W) with even sides, and what they mean.

    `pattern` has the colours of the 2×2 cell in reading order, `black` a level for each of its sites in the same order. `gains`
    (red, green = 1, blue) and `matrix` (float64 (3, 3), white-balanced camera RGB → linear sRGB) are None where the file doesn't
    say. `notes` tells what was noticed about the file. Raises UserError for counts of another type or shape, an unknown pattern,
    black ≥ white, gains that aren't positive, and a matrix of another shape.
    """

    mosaic: np.ndarray
    pattern: str
    black: tuple[float, float, float, float]
    white: float
    gains: tuple[float, float, float] | None = None
    matrix: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        where = f"{self.source}: " if self.source else ""
        checked_pattern(self.pattern)
        checked_levels(self.black, self.white, source=self.source)
        shape = tuple(self.mosaic.shape)
        if self.mosaic.dtype != np.uint16 or len(shape) != 2 or 0 in shape or shape[0] % 2 or shape[1] % 2:
            raise UserError(
                f"{where}a mosaic of {self.mosaic.dtype} and shape {shape}",
                hint="uint16 counts (H, W) with even sides are wanted",
            )
        if self.gains is not None and not (len(self.gains) == 3 and all(math.isfinite(g) and g > 0 for g in self.gains)):
            raise UserError(f"{where}white-balance gains {self.gains}", hint="three positive numbers for red, green and blue")
        if self.matrix is not None and (self.matrix.shape != (3, 3) or not np.isfinite(self.matrix).all()):
            raise UserError(
                f"{where}a colour matrix of shape {self.matrix.shape}", hint="3×3 finite numbers: camera RGB → linear sRGB"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.mosaic.shape[0], self.mosaic.shape[1]

    def normalised(self) -> np.ndarray:
        """float32 (H, W): (count − black) / (white − black), not clipped."""
        out = np.empty(self.mosaic.shape, np.float32)
        for row in (0, 1):
            for column in (0, 1):
                self._normalise(row, column, out[row::2, column::2])
        return out

    def packed(self) -> np.ndarray:
        """float32 (4, H/2, W/2): the normalised counts, channels B, Gr, R, Gb."""
        height, width = self.size
        out = np.empty((4, height // 2, width // 2), np.float32)
        for channel, (row, column) in enumerate(offsets(self.pattern).values()):
            self._normalise(row, column, out[channel])
        return out

    def noted(self, *notes: str) -> RawFrame:
        """The same frame with these notes added; those it has already are not repeated."""
        return dataclasses.replace(self, notes=(*self.notes, *(note for note in notes if note not in self.notes)))

    def _normalise(self, row: int, column: int, out: np.ndarray) -> None:
        """Writes one site of every cell, normalised, into `out`: no array larger than that is made."""
        black = np.float32(self.black[2 * row + column])
        np.subtract(self.mosaic[row::2, column::2], black, out=out, dtype=np.float32)
        out /= np.float32(self.white - float(black))
