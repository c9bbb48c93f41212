"""RAW frames developed at full resolution, in tiles without seams: by a network, or by the fixed rendering."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .develop_network import IspNetwork
from .develop_tiles import Call, Reach, Window, tiles, windows
from .models.errors import UserError
from .models.progress import LogProgress

if TYPE_CHECKING:
    from .models.progress import Progress
    from .models.raw.frame import RawFrame

TILE = 512
WHOLE_PIXELS = 1920 * 1088
"""What is given whole to a network that looks at all of it: Full HD takes RMFA-Net tiny 1.3 GiB in torch, OpenVINO and ONNX Runtime
(LiteRT 4 GiB)."""


def develop(
    frame: RawFrame,
    network: IspNetwork,
    *,
    tile: int = TILE,
    whole: bool = False,
    bits: int = 8,
    progress: Progress | None = None,
) -> np.ndarray:
    """The developed picture, uint8 or (`bits` = 16) uint16 (H, W, 3), clamped to 0…1 before it is rounded.

    `tile`: side in mosaic pixels of the windows that the network sees at once, overlap included; `whole`: the picture at once,
    whatever memory that takes. Raises UserError for a frame that the network was not made for, a tile too small, a large picture
    for a network that looks at all of it in ways that can't be done in passes, and NaN.
    """
    height, width = frame.size
    out = np.empty((height, width, 3), np.uint8 if bits == 8 else np.uint16)
    parts = answers(frame, network, tile=tile, whole=whole)
    with (progress or LogProgress()).meter("develop", height * width / 1e6, "megapixels") as meter:
        for rows, columns, answer in parts:
            _quantised(answer, out[rows, columns], label=network.label, at=(rows.start, columns.start))
            meter.advance((rows.stop - rows.start) * (columns.stop - columns.start) / 1e6)
    return out


def answers(
    frame: RawFrame, network: IspNetwork, *, tile: int = TILE, whole: bool = False
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """(rows, columns, float32 (3, h, w) as the network gave it) of every tile of a frame. Raises UserError as `develop` does."""
    network.check(frame)
    (height, width), scale, fixed = frame.size, network.scale, network.fixed
    fits = fixed is None and (whole or (height <= tile and width <= tile))
    if fits or fixed == (height // scale, width // scale):
        return tiles([Window.all(height)], [Window.all(width)], functools.partial(_region, frame, network, network.call))
    call, reach = network.call, network.reach
    if reach.margin is None:
        call, reach = _pinned(frame, network, tile)
    if reach.margin is None:
        if fixed is None and height * width <= WHOLE_PIXELS:
            return answers(frame, network, whole=True)
        raise UserError(_global(network, frame), hint=_WAYS_FIXED if fixed else _WAYS)
    rows, columns = _windows(frame, network, reach, tile)
    return tiles(rows, columns, functools.partial(_region, frame, network, call))


def _pinned(frame: RawFrame, network: IspNetwork, tile: int) -> tuple[Call, Reach]:
    """The network with its pools over the whole picture fixed to this frame's, and how far it looks then.

    Unknown (None) stays the reach of one without such pools, of one of which more than them is global, and of what is no torch module.
    """
    if network.module is None:
        return network.call, Reach(None)
    from .develop_passes import Kept, gathered_pools, typical_pools, with_pools

    noise = np.random.default_rng(0).uniform(0, 1, (1, int(network.spec.shape[1]), 64, 64)).astype(np.float32)
    typical = typical_pools(network.module, network.drawn(noise))
    reach = network.measured(with_pools(network.module, typical)) if typical else Reach(None)
    if reach.margin is None:
        return network.call, reach
    rows, columns = _windows(frame, network, reach, tile)

    def parts() -> Iterator[tuple[slice, slice, Kept]]:
        for row, column in itertools.product(rows, columns):
            kept = Kept(
                (row.first - row.start, row.last - row.start),
                (column.first - column.start, column.last - column.start),
                size=(row.stop - row.start, column.stop - column.start),
            )
            yield slice(row.start, row.stop), slice(column.start, column.stop), kept

    known = gathered_pools(network.module, len(typical), parts, lambda r, c: network.inputs(_cut(frame, r, c)))
    return with_pools(network.module, known), reach


def _windows(frame: RawFrame, network: IspNetwork, reach: Reach, tile: int) -> tuple[list[Window], list[Window]]:
    """Windows over rows and columns, in mosaic pixels, for a network of this reach."""
    scale, fixed = network.scale, network.fixed
    sizes = (fixed[0] * scale, fixed[1] * scale) if fixed else (tile, tile)
    unit = math.lcm(2, reach.stride * scale)
    found = [
        windows(length, size, margin=(reach.margin or 0) * scale, unit=unit, exact=fixed is not None)
        for length, size in zip(frame.size, sizes, strict=True)
    ]
    return found[0], found[1]


def _region(frame: RawFrame, network: IspNetwork, call: Call, rows: slice, columns: slice) -> np.ndarray:
    """The answer (3, h, w) for a region whose corner is the corner of a 2×2 cell."""
    answer = call(network.inputs(_cut(frame, rows, columns)))
    wanted = (1, 3, rows.stop - rows.start, columns.stop - columns.start)
    if answer.shape != wanted:
        raise UserError(
            f"{network.label} gives {answer.shape[2]}×{answer.shape[3]} pixels for a mosaic of {wanted[2]}×{wanted[3]}",
            hint="a picture as large as the mosaic is wanted; sides that a network can't halve often enough can be cut off",
        )
    return answer[0]


def _cut(frame: RawFrame, rows: slice, columns: slice) -> RawFrame:
    return dataclasses.replace(frame, mosaic=frame.mosaic[rows, columns])


_WAYS = "develop with its Bundle, which is done in passes; or --whole, if the memory is there; or a network without such layers"
_WAYS_FIXED = "develop with its Bundle; or export it at the frame's size, or with free sizes"


def _global(network: IspNetwork, frame: RawFrame) -> str:
    height, width = frame.size
    return (
        f"{network.label}: what it answers at a place depends on the whole picture (or on more than 60 pixels around), "
        f"so {width}×{height} pixels can't be developed in tiles"
    )


def _quantised(answer: np.ndarray, out: np.ndarray, *, label: str, at: tuple[int, int]) -> None:
    """`answer` (3, h, w) clamped, rounded and written into `out` (h, w, 3). Raises UserError for NaN."""
    if np.isnan(answer).any():
        raise UserError(
            f"{label} gives NaN in the tile at row {at[0]}, column {at[1]}", hint="the network is broken: train it again"
        )
    top = np.iinfo(out.dtype).max
    np.copyto(out, np.rint(np.clip(answer, 0, 1) * np.float32(top)).transpose(1, 2, 0), casting="unsafe")


def classical(frame: RawFrame, *, gains: Sequence[float] | None = None, demosaic: str = "menon", bits: int = 8) -> np.ndarray:
    """The fixed rendering, uint8 or uint16 (H, W, 3): nothing learned. `gains`: red, green, blue; default: the file's, with its
    colour matrix, else those of the paper's camera."""
    from .models.raw.classical import GAINS, render

    chosen = tuple(gains) if gains else frame.gains or GAINS
    picture = render(frame.normalised(), frame.pattern, gains=chosen, matrix=frame.matrix, demosaic=demosaic)
    out = np.empty((*frame.size, 3), np.uint8 if bits == 8 else np.uint16)
    for start in range(0, frame.size[0], TILE):  # in strips: rounding makes copies
        strip = slice(start, start + TILE)
        _quantised(picture[:, strip], out[strip], label="the fixed rendering", at=(start, 0))
    return out
