"""Pictures with points: the pool that a landmark source delivers, its coordinates and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .images import Images

Pairs = tuple[tuple[int, int], ...]
Eyes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class LandmarkData:
    """All samples of a source in one pool; `images.targets` are centred relative coordinates float32 (N, 2L), see `relative`.

    `names` say where a sample came from. `parts` (N,) holds "train", "val" or "test" where the data is divided already,
    `groups` (N,) what must not be torn apart by a split (people), `eyes` and `flip_pairs` what the source knows of its points.
    `content` is a digest of all pixels and points.
    """

    images: Images
    names: tuple[str, ...]
    content: str
    parts: np.ndarray | None = None
    groups: np.ndarray | None = None
    eyes: Eyes | None = None
    flip_pairs: Pairs | None = None


def relative(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """float32 (N, 2L) = x₀, y₀, x₁, y₁ …: points (N, L, 2), in pixels of the picture, relative to their view `boxes` (N, 4) of
    (left, top, width, height), minus 0.5.

    A pixel's centre is a whole number (0 = the first), so the view spans left − ½ … left + width − ½ and the result is −0.5 at
    its left or top edge, 0 in the middle and 0.5 at the right or bottom edge. KD-Loss's (112 − p)/224 is this with the sign
    turned and the half pixel left out.
    """
    corner, extent = boxes[:, None, :2], boxes[:, None, 2:]
    return ((points + 0.5 - corner) / extent - 0.5).reshape(len(points), -1).astype(np.float32)


def in_pixels(targets: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Points float64 (N, L, 2) as (x, y) in pixels of a view of (H, W) = `size`, from its centre: what distances are measured in."""
    return targets.reshape(len(targets), -1, 2).astype(np.float64) * (size[1], size[0])


def stacked(points: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """float64 (N, L, 2) of the samples' points (L, 2). Raises UserError naming a sample whose number of points is not the others'."""
    counts = np.array([len(p) for p in points])
    values, times = np.unique(counts, return_counts=True)
    usual = int(values[times.argmax()])
    if len(values) > 1:
        odd = np.flatnonzero(counts != usual)
        raise UserError(
            f"{len(odd)} of {len(points)} samples have another number of points than the others' {usual}: "
            f"{some([f'{names[i]} has {counts[i]}' for i in odd])}",
            hint="every sample needs the same points in the same order",
        )
    if usual < 2:
        raise UserError(f"the samples have {usual} point(s) each", hint="a landmark task needs two points or more")
    return np.stack(points).astype(np.float64)


def check_points(points: np.ndarray, sizes: np.ndarray, names: Sequence[str], *, margin: float) -> None:
    """None, when all points (N, L, 2), counted from 0, belong to pictures of these sizes (N, 2) = (H, W).

    Raises UserError for missing points (not a number, or twice the same negative number, such as the usual marker −1, −1), for points given as
    fractions instead of pixels, and for points that lie outside their picture by more than `margin` of its sides.
    """
    gone = ~np.isfinite(points).all(2) | ((points < 0).all(2) & (points[..., 0] == points[..., 1]))
    if gone.any():
        where = np.argwhere(gone)
        raise UserError(
            f"{len({int(i) for i, _ in where})} of {len(points)} samples have missing points: "
            f"{some([f'{names[i]}, point {j} at ({points[i, j, 0]:g}, {points[i, j, 1]:g})' for i, j in where])}",
            hint="every point must be placed; leave such samples out (points are counted from 0)",
        )
    if points.max() <= 1.5 and sizes.min() > 4:
        raise UserError(
            f"all coordinates lie between {points.min():g} and {points.max():g}: they look like fractions of the picture's sides",
            hint="give pixels, counted from 0 (.pts: from 1): multiply x by the width and y by the height",
        )
    reach = margin * sizes[:, None, ::-1]
    outside = ((points < -reach) | (points > sizes[:, None, ::-1] - 1 + reach)).any(2)
    if outside.any():
        where = np.argwhere(outside)
        told = [
            f"{names[i]}, point {j} at ({points[i, j, 0]:g}, {points[i, j, 1]:g}) in {sizes[i, 1]}×{sizes[i, 0]}"
            for i, j in where[:3]
        ]
        raise UserError(
            f"{len({int(i) for i, _ in where})} of {len(points)} samples have points outside their picture by more than "
            f"{margin:g} of its side: {some(told, total=len(where))}",
            hint="do these points belong to this picture, in its own pixels as (x, y)? A larger `margin` lets them pass",
        )


def some(texts: Sequence[str], *, total: int | None = None) -> str:
    """The first three, and how many more there are."""
    more = (len(texts) if total is None else total) - 3
    return "; ".join(texts[:3]) + (f"; … and {more} more" if more > 0 else "")
