"""Drawn faces: a Gaussian shape model of known rank, rendered with clutter and occlusion. Data that is always there."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .images import ArrayImages
from .landmark_data import LandmarkData, relative

SIDE = 48
TRAIN, TEST = 4000, 1000
SEED = 20_211_104
JITTER = 0.006
"""Standard deviation of every coordinate's own deviation from the shape model, in units of the picture's side."""

NAMES = (
    *("jaw 0", "jaw 1", "jaw 2", "chin", "jaw 4", "jaw 5", "jaw 6"),
    *("left brow, outer", "left brow, inner", "right brow, inner", "right brow, outer"),
    *("left eye, outer", "left eye, inner", "right eye, inner", "right eye, outer"),
    *("nose bridge", "nose tip", "mouth, left", "mouth, top", "mouth, right", "mouth, bottom"),
)
EYES = ((11,), (14,))
FLIP_PAIRS = ((0, 6), (1, 5), (2, 4), (7, 10), (8, 9), (11, 14), (12, 13), (17, 19))

_MEAN = np.array(
    [
        *[(-0.27, -0.06), (-0.25, 0.1), (-0.15, 0.25), (0, 0.31), (0.15, 0.25), (0.25, 0.1), (0.27, -0.06)],
        *[(-0.2, -0.19), (-0.06, -0.18), (0.06, -0.18), (0.2, -0.19)],
        *[(-0.18, -0.09), (-0.07, -0.09), (0.07, -0.09), (0.18, -0.09)],
        *[(0, -0.07), (0, 0.06), (-0.1, 0.16), (0, 0.13), (0.1, 0.16), (0, 0.2)],
    ]
)
_STROKES = (
    *[(i, i + 1) for i in range(6)],
    *[(7, 8), (9, 10), (11, 12), (13, 14), (15, 16), (17, 18), (18, 19), (19, 20), (20, 17)],
)
_CLUTTER_LINES = 3


@lru_cache(maxsize=1)
def shapes() -> LandmarkData:
    """4 000 training and 1 000 test faces of 21 points, 48×48 grey, the same on every call.

    Points = mean + 8 modes (rank 8: widths, heights, mouth, brows, gaze) with Gaussian weights, turned, scaled and shifted, plus
    a small jitter of every coordinate. Drawn as anti-aliased strokes and pupils of random contrast, over a cloudy background with
    stray lines and behind up to two grey patches: what a patch covers must be inferred from the shape.
    """
    rng = np.random.default_rng(SEED)
    count = TRAIN + TEST
    points = sample_points(count, rng)
    pixels = np.concatenate([_draw(points[i : i + 50], rng) for i in range(0, count, 50)])  # 50: fits the cache
    targets = relative((points + 0.5) * SIDE - 0.5, np.tile((0, 0, SIDE, SIDE), (count, 1)))
    parts = np.array(["train"] * TRAIN + ["test"] * TEST)
    names = tuple(f"shape {i}" for i in range(count))
    images = ArrayImages(pixels, targets)
    for array in (pixels, targets, parts):
        array.setflags(write=False)  # shared by everybody who asks
    return LandmarkData(images, names, images.digest(), parts, None, EYES, FLIP_PAIRS)


def modes() -> np.ndarray:
    """float64 (8, 21, 2): what one standard deviation of each mode adds to the mean, in units of the picture's side."""
    x, y = _MEAN[:, 0], _MEAN[:, 1]
    which, zero = np.arange(len(NAMES)), np.zeros(len(NAMES))
    jaw, brows, eyes = which < 7, (which >= 7) & (which < 11), (which >= 11) & (which < 15)
    corners, chin = np.isin(which, (17, 19)), jaw & (y > 0.05)
    depth = -0.5 * jaw + 1.0 * (which == 15) + 2.0 * (which == 16)
    opened = np.where(np.isin(which, (3, 20)), 0.025, 0.0) + np.where(np.isin(which, (2, 4)), 0.015, 0.0)
    moves = [
        (0.1 * x, zero),  # width of the face
        (zero, 0.1 * y),  # height of the face
        (zero, opened),  # the mouth opens, and the chin goes with it
        (0.2 * x * corners, -0.02 * corners),  # smile
        (0.08 * x * brows, -0.02 * brows),  # raised brows
        (0.12 * x * eyes, zero),  # distance of the eyes
        (0.02 * depth, zero),  # turned head: what is near moves against what is far
        (0.12 * x * chin, zero),  # width of the chin
    ]
    return np.stack([np.stack(move, axis=1) for move in moves])


def sample_points(count: int, rng: np.random.Generator) -> np.ndarray:
    """float64 (count, 21, 2) as (x, y) from the picture's centre, in units of its side."""
    weights = np.clip(rng.normal(size=(count, 8)), -2.5, 2.5)
    face = _MEAN + np.einsum("nk,kpc->npc", weights, modes())
    angle, scale = np.radians(rng.normal(0, 8, count)), 0.95 + 0.07 * np.clip(rng.normal(size=count), -2, 2)
    cos, sin = (scale * np.cos(angle))[:, None], (scale * np.sin(angle))[:, None]
    x, y = face[..., 0], face[..., 1]
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], axis=2)
    return turned + np.clip(rng.normal(0, 0.04, (count, 1, 2)), -0.08, 0.08) + rng.normal(0, JITTER, face.shape)


def _draw(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (n, 1, 48, 48) of points (n, 21, 2)."""
    n = len(points)
    places = ((points + 0.5) * SIDE - 0.5).astype(np.float32)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    background = uniform(0.3, 0.7)
    canvas = background + uniform(0.02, 0.15) * _clouds(n, rng)
    stray = rng.uniform(0, SIDE, (n, 2 * _CLUTTER_LINES, 2)).astype(np.float32)
    lines = _coverage(stray, [(2 * i, 2 * i + 1) for i in range(_CLUTTER_LINES)], width=uniform(0.5, 1.2))
    canvas += lines * (uniform(0, 1) - canvas)
    ink = background + uniform(0.25, 0.45) * np.where(uniform(0, 1) < 0.3, 1, -1).astype(np.float32)
    canvas += _coverage(places, _STROKES, width=uniform(0.7, 1.3)) * (ink - canvas)
    pupils = np.stack([places[:, 11:13].mean(1), places[:, 13:15].mean(1)], axis=1)
    canvas += _coverage(pupils, [(0, 0), (1, 1)], width=uniform(1.2, 1.8)) * (ink - canvas)
    grid = np.arange(SIDE, dtype=np.float32)
    for _ in range(2):
        wide, high, left, top = uniform(6, 16), uniform(6, 16), uniform(0, SIDE - 6), uniform(0, SIDE - 6)
        covered = (np.abs(grid - left - wide / 2) < wide / 2) & (np.abs(grid[:, None] - top - high / 2) < high / 2)
        canvas = np.where(covered & (uniform(0, 1) < 0.5), uniform(0, 1), canvas)
    canvas += rng.normal(0, 0.03, canvas.shape).astype(np.float32)
    return np.clip(np.round(canvas * 255), 0, 255).astype(np.uint8)[:, None]


def _clouds(n: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (n, 48, 48): Gaussian noise on a 6×6 grid, bilinear between."""
    place = np.linspace(0, 5, SIDE)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(6))).astype(np.float32)
    across = np.einsum("nab,xb->nax", rng.normal(size=(n, 6, 6)).astype(np.float32), weights)
    return np.einsum("nax,ya->nyx", across, weights)


def _coverage(places: np.ndarray, strokes: object, *, width: np.ndarray) -> np.ndarray:
    """float32 (n, 48, 48) in 0…1: how much of each pixel the strokes (pairs of rows of `places` (n, P, 2), in pixels) cover.

    `width` (n, 1, 1) is half a stroke's width in pixels. A stroke's edge falls off linearly over one pixel.
    """
    first, second = np.array(strokes, dtype=np.int64).T
    grid = np.arange(SIDE, dtype=np.float32)
    nearest = np.full((len(places), SIDE, SIDE), np.inf, dtype=np.float32)
    for a, b in zip(first, second, strict=True):
        ax, ay = places[:, a, 0, None, None], places[:, a, 1, None, None]
        dx, dy = places[:, b, 0, None, None] - ax, places[:, b, 1, None, None] - ay
        px, py = grid - ax, grid[:, None] - ay  # (n, 1, W) and (n, H, 1)
        square = dx * dx + dy * dy
        along = np.clip((px * dx + py * dy) / np.maximum(square, 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.square(px - along * dx) + np.square(py - along * dy))
    return np.clip(width + 0.5 - np.sqrt(nearest), 0, 1)
