"""What a mosaic's counts say against what is claimed of it: the phase, the levels, whether it is a mosaic at all.

The phase is told by the two greens: they stand on a diagonal of the 2×2 cell and measure the same light through the same filter, so
that their means over a few cells agree, while red and blue, on the other diagonal, differ wherever there is colour. Which of the
latter is red can't be told from counts: an exchange of red and blue stays unnoticed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .frame import RawFrame
from .packing import PATTERNS

CELLS = 9
"""Cells along the side of a block of which means are taken: noise and detail average out, the scene's colours don't. A multiple of 3,
so that a block holds whole cells of X-Trans (6×6), of which the four sites then see the same mixture."""
FEWEST = 8
"""Blocks that are neither dark nor saturated, below which nothing is said."""
DARK, BRIGHT = 0.005, 0.98
DISAGREE = 0.03
"""Relative difference that is too large for two greens; sensors' own (crosstalk) is 1 to 2 %."""
CLOSER = 0.4
"""Share of the claimed pair's difference below which the other pair must lie to be taken for the greens."""
EQUAL = 0.005
"""Relative offset below which sites are the same colour: a sensor's red, green and blue differ even on a grey wall."""
EIGHT_BIT = 255
TAILS = 0.001
"""Share of the counts at either end that is left out where gaps between counts are looked for: hot and dead pixels lie there."""


@dataclass(frozen=True)
class Sites:
    """Block means of the cell's four sites, float32 (4, n) in reading order, normalised; blocks too dark or saturated left out."""

    means: np.ndarray

    def difference(self, one: int, other: int) -> float:
        """Median over the blocks of |a − b| / mean(a, b)."""
        return float(np.median(np.abs(self._relative(one, other))))

    def offset(self, one: int, other: int) -> float:
        """|Median over the blocks of (a − b) / mean(a, b)|: detail that lies between the sites cancels out."""
        return abs(float(np.median(self._relative(one, other))))

    def _relative(self, one: int, other: int) -> np.ndarray:
        a, b = self.means[one], self.means[other]
        return (a - b) / (0.5 * (a + b))


def checked(frame: RawFrame) -> RawFrame:
    """The frame with every warning about its counts among its notes."""
    return frame.noted(*level_notes(frame), *phase_notes(frame))


def level_notes(frame: RawFrame) -> tuple[str, ...]:
    """Warnings about the range of the counts: above white, below black, all the same, no more than 8 bits."""
    counts, notes = frame.mosaic, []
    low, high = int(counts.min()), int(counts.max())
    if low == high:
        notes.append(f"every count is {low}: nothing was recorded, or everything is saturated")
    if high > frame.white:
        share = np.count_nonzero(counts > frame.white) / counts.size
        notes.append(
            f"{share:.2%} of the counts are above the white level {frame.white:g} (up to {high}): is the white level right?"
        )
    if high <= min(frame.black):
        notes.append(
            f"no count is above the black level {min(frame.black):g} (the largest is {high}): is the black level right?"
        )
    elif (below := _share_below(frame)) > 0.05:
        notes.append(f"{below:.0%} of the counts are far below the black level: is the black level right?")
    if frame.white <= EIGHT_BIT:
        notes.append(f"a white level of {frame.white:g} means no more than 8 bits: shadows are coarser than a sensor's")
    elif min(frame.black) < high <= EIGHT_BIT:
        notes.append(f"no count is above {high}, of a white level of {frame.white:g}: 8-bit data, or a dark picture")
    elif gaps := _gaps(counts):
        notes.append("the counts take {} values between {} and {}: 8-bit data stretched to more bits".format(*gaps))
    return tuple(notes)


def phase_notes(frame: RawFrame) -> tuple[str, ...]:
    """Warnings that the claimed phase is wrong, that the counts are no Bayer mosaic, or none where they don't tell."""
    sites = sites_of(frame)
    if sites is None or frame.mosaic.min() == frame.mosaic.max():
        return ()
    if looks_quad(frame):
        return ("the same colour fills 2×2 sites: this looks like quad-Bayer, which must be remosaicked to Bayer first",)
    if looks_grey(sites):
        return (
            "the four sites of the cells are equal: this looks like a grey photograph, a monochrome sensor or X-Trans, "
            "not a Bayer mosaic",
        )
    claimed = frame.pattern.upper()
    greens, others = _diagonals(claimed)
    here, there = sites.difference(*greens), sites.difference(*others)
    if here < DISAGREE or there > CLOSER * here:
        return ()
    likely = " or ".join(pattern for pattern in PATTERNS if _diagonals(pattern)[0] == others)
    return (
        f"the pattern {claimed} looks wrong: its two greens differ by {here:.1%}, the other two sites by {there:.1%}; "
        f"{likely} is likelier (counts alone can't tell which of the two)",
    )


def looks_grey(sites: Sites) -> bool:
    """Whether all four sites measure the same, as the pixels of a grey photograph do and a Bayer sensor's don't."""
    pairs = itertools.combinations(range(4), 2)
    return all(sites.offset(a, b) < EQUAL and sites.difference(a, b) < DISAGREE for a, b in pairs)


def looks_quad(frame: RawFrame) -> bool:
    """Whether neighbours in 2×2 squares agree while the squares of a 4×4 cell don't: a quad-Bayer mosaic, wherever it begins."""
    blocks = _blocks(frame, period=4)
    if blocks is None:
        return False
    return any(_quad_at(np.roll(blocks, shift, axis=(0, 1))) for shift in itertools.product((0, 1), repeat=2))


def _quad_at(blocks: np.ndarray) -> bool:
    """`looks_quad` of block means (4, 4, n) whose squares begin at their corner."""
    quads = blocks.reshape(2, 2, 2, 2, -1)  # square row, row within, square column, column within
    squares = quads.mean(axis=(1, 3))
    cell = squares.mean(axis=(0, 1))
    within = np.median(np.abs(quads - squares[:, None, :, None]).max(axis=(0, 1, 2, 3)) / cell)
    between = np.median(np.abs(squares - cell).max(axis=(0, 1)) / cell)
    return bool(between > DISAGREE and within < CLOSER * between)


def sites_of(frame: RawFrame) -> Sites | None:
    """The block means of the four sites, or None where too few blocks are neither dark nor saturated."""
    blocks = _blocks(frame, period=2)
    return None if blocks is None else Sites(blocks.reshape(4, -1))


def _blocks(frame: RawFrame, *, period: int) -> np.ndarray | None:
    """float32 (period, period, n): normalised means of each site of the period×period cell over blocks of cells."""
    height, width = (side // period for side in frame.size)
    side = max(1, min(CELLS, min(height, width) // 4))
    rows, columns = height // side, width // side
    if not rows or not columns:
        return None
    means = np.empty((period, period, rows * columns), np.float32)
    usable = np.ones(rows * columns, bool)
    for row in range(period):
        for column in range(period):
            black = frame.black[2 * (row % 2) + column % 2]
            site = frame.mosaic[row::period, column::period][: rows * side, : columns * side].reshape(rows, side, columns, side)
            means[row, column] = (site.mean(axis=(1, 3), dtype=np.float32).ravel() - black) / (frame.white - black)
            usable &= (site.max(axis=(1, 3)).ravel() < black + BRIGHT * (frame.white - black)) & (means[row, column] > DARK)
    return means[..., usable] if np.count_nonzero(usable) >= FEWEST else None


def _diagonals(pattern: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The sites of the two greens, and those of red and blue, in reading order."""
    return ((1, 2), (0, 3)) if pattern[0] != "G" else ((0, 3), (1, 2))


def _share_below(frame: RawFrame) -> float:
    """The share of counts that lie below black by more than read noise reaches: 1 % of the range."""
    below = 0
    for site, level in enumerate(frame.black):
        below += int(np.count_nonzero(frame.mosaic[site // 2 :: 2, site % 2 :: 2] < level - 0.01 * (frame.white - level)))
    return below / frame.mosaic.size


def _gaps(counts: np.ndarray) -> tuple[int, int, int] | None:
    """How many values the counts take between two of them, where these are at most 256 and fill a third or less; else None.

    Fewer than 32 values are none of a photograph's: nothing is said.
    """
    if counts.size < 1 << 16:
        return None
    seen = np.zeros(1 << 16, np.int64)
    for band in np.array_split(counts, max(1, counts.shape[0] // 256)):
        seen += np.bincount(band.ravel(), minlength=seen.size)
    below = np.cumsum(seen)
    low, high = (int(at) for at in np.searchsorted(below, [TAILS * counts.size, (1 - TAILS) * counts.size]))
    distinct = int(np.count_nonzero(seen[low : high + 1]))
    return (distinct, low, high) if 32 <= distinct <= EIGHT_BIT + 1 and high - low >= 3 * (distinct - 1) else None
