"""A large picture through a network in windows, without seams: how far the network looks is measured, and windows overlap by it.

All windows of a picture have one size. Those at its border end where the picture ends, so the network pads there as it would the
whole; what lies within the network's reach of a window's inner edge is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .models.errors import UserError

Call = Callable[[np.ndarray], np.ndarray]
"""(1, C, h, w) in the network's form → float32 (1, 3, scale · h, scale · w)."""
Draw = Callable[[np.ndarray], np.ndarray]
"""float32 (1, C, h, w) of numbers in 0…1 → the same as the network takes them."""

SIDES = (64, 128, 256)
"""Pictures that the reach is looked for in, the next where the one before is too small."""
SHIFTS = (1, 2, 4, 8, 16, 32)
"""Steps that a network may go in (the product of its strides), tried in order."""
EXACT = 3e-6
"""Answers closer than this, on a scale of 1, are equal: float32 sums in another order differ by less; the promise is 1e-5."""


@dataclass(frozen=True)
class Reach:
    """What a network's answer at a place depends on, in pixels of its input: those up to `margin` away; it is the same function
    everywhere when moved by multiples of `stride`. `margin` None: the whole picture."""

    margin: int | None
    stride: int = 1


@dataclass(frozen=True)
class Window:
    """A stretch of one axis: `start` … `stop` goes in, `first` … `last` of what comes out is kept."""

    start: int
    stop: int
    first: int
    last: int

    @classmethod
    def all(cls, length: int) -> Window:
        """The whole axis in one."""
        return cls(0, length, 0, length)


def measured_reach(
    call: Call, draw: Draw, *, channels: int, scale: int, fixed: tuple[int, int] | None = None, tolerance: float = EXACT
) -> Reach:
    """The reach, seen from outside: two windows of one picture, shifted against each other, must agree away from their edges.

    `scale`: output pixels for an input pixel. `fixed`: the only input size (h, w). A network that looks further than a quarter of
    256 pixels counts as one that looks at all of it.
    """
    for side in SIDES:
        size = fixed or (side, side)
        found = _stride(call, draw, size, channels=channels, scale=scale, tolerance=tolerance)
        if found is not None or fixed:
            return found or Reach(None)
    return Reach(None)


def _stride(call: Call, draw: Draw, size: tuple[int, int], *, channels: int, scale: int, tolerance: float) -> Reach | None:
    """The reach as windows of this size show it; None, when they agree nowhere."""
    limit = min(size) // 4 - 1

    def depth(shift: int) -> int | None:
        """How deep the edges reach into the overlap; None, when they meet."""
        worst = 0
        for axis in (0, 1):
            worst = max(
                worst,
                _depth(call, draw, size, axis=axis, shift=shift, channels=channels, scale=scale, tolerance=tolerance),
            )
            if worst > limit:
                return None
        return worst

    half = min(size) // 2
    # first so far that the windows show quite different scenes, by a step that all the others divide
    far = depth(half // SHIFTS[-1] * SHIFTS[-1] or half)
    if far is None:
        return None
    for shift in (s for s in SHIFTS if s <= half):
        if (near := depth(shift)) is not None:
            return Reach(max(near, far), shift)
    return None


def _depth(
    call: Call, draw: Draw, size: tuple[int, int], *, axis: int, shift: int, channels: int, scale: int, tolerance: float
) -> int:
    """How many input pixels from the edges of their overlap two windows `shift` apart still differ; the overlap's length, when all."""
    whole = list(size)
    whole[axis] += shift
    scene = draw(_scene((channels, *whole), axis=axis))
    length = size[axis]
    cut = [slice(None)] * 4
    answers = []
    for start in (0, shift):
        cut[axis + 2] = slice(start, start + length)
        answers.append(np.moveaxis(call(np.ascontiguousarray(scene[tuple(cut)])), axis + 2, 0))
    first, second = answers[0][scale * shift :], answers[1][: scale * (length - shift)]
    apart = np.abs(first - second).reshape(len(first), -1).max(1)
    differ = ~(apart <= tolerance * max(1.0, float(np.abs(first).max())))  # NaN differs from everything
    if not differ.any():
        return 0
    places = np.flatnonzero(differ)
    middle = len(differ) / 2
    left = int(places[places < middle].max(initial=-1)) + 1
    right = len(differ) - int(places[places >= middle].min(initial=len(differ)))
    return math.ceil(max(left, right) / scale)


def _scene(shape: tuple[int, ...], *, axis: int) -> np.ndarray:
    """float32 (1, C, h, w) in 0…1: noise in patches from black to white (units that saturate in one are at work in another), one
    end of `axis` far darker, so that windows differ in whatever a network takes of the whole."""
    rng = np.random.default_rng(0)
    _, height, width = shape
    levels = np.array([0.005, 0.02, 0.06, 0.15, 0.4, 0.9], np.float32)
    patch = 8
    grid = rng.choice(levels, (math.ceil(height / patch), math.ceil(width / patch)))
    level = np.kron(grid, np.ones((patch, patch), np.float32))[:height, :width]
    ramp = np.linspace(0.05, 1.0, shape[axis + 1], dtype=np.float32)
    level = level * (ramp[:, None] if axis == 0 else ramp[None, :])
    noise = rng.uniform(0.0, 2.0, shape).astype(np.float32)
    return np.clip(level * noise, 0, 1)[None]


def windows(length: int, size: int, *, margin: int, unit: int, exact: bool = False) -> list[Window]:
    """Windows of `size` (rounded down to units) over `length` pixels, each begun at a multiple of `unit`; what is kept of them joins
    without gaps. The last may be longer by less than a unit. `exact`: of this size and no other.

    Raises UserError when no window leaves anything to keep, or when those of exactly this size can't end where the picture does.
    """
    margin = math.ceil(margin / unit) * unit
    if length <= size and not (exact and length < size):
        return [Window.all(length)]
    if length < size:
        raise UserError(
            f"the picture has a side of {length} pixels, the network takes {size} and no less",
            hint="export it with free sizes (`trimtab export … --free size`), or develop with the Bundle",
        )
    size = size if exact else size // unit * unit
    step = (size - 2 * margin) // unit * unit
    if step < unit:
        raise UserError(
            f"a tile of {size} pixels is too small: the network looks {margin} pixels far on either side",
            hint=f"--tile {2 * margin + 8 * unit} or more, or an artifact of a larger size",
        )
    end = (length - size) // unit * unit
    if exact and end + size != length:
        raise UserError(
            f"a side of {length} pixels can't be covered by windows of {size} that begin at multiples of {unit}",
            hint="export it with free sizes (`trimtab export … --free size`), or develop with the Bundle",
        )
    starts = [*range(0, end, step), end]
    found: list[Window] = []
    for start in starts:
        last = start == end
        stop = length if last else start + size
        found.append(Window(start, stop, found[-1].last if found else 0, length if last else stop - margin))
    return found


def tiles(
    rows: list[Window], columns: list[Window], run: Callable[[slice, slice], np.ndarray]
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """(rows, columns, answer (3, h, w)) of every tile: `run` gives the answer (3, h, w) for a region of the picture that goes in."""
    for row in rows:
        for column in columns:
            answer = run(slice(row.start, row.stop), slice(column.start, column.stop))
            kept = answer[
                :, row.first - row.start : row.last - row.start, column.first - column.start : column.last - column.start
            ]
            yield slice(row.first, row.last), slice(column.first, column.last), kept
