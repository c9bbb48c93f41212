"""Drawn pictures with structural and logical anomalies, and masks: what a detector does is known where the truth is known.

A normal scene is a striped, grainy ground with four handwritten glyphs, each kind in its own corner. Structural anomalies are on the
ground or a glyph itself (scratch, blob, stain); in logical ones every part looks right and their arrangement is not (a glyph missing,
two swapped, one that occurs twice), which local features alone cannot tell. After the two kinds of Bergmann et al., Beyond Dents and
Scratches, IJCV 2022. The glyphs are scikit-learn's copy of the digits of E. Alpaydin and C. Kaynak (CC BY 4.0); the test's are not
among training's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import digest_of
from .anomaly_data import GOOD, AnomalyData, Part
from .images import ArrayImages

COUNTS = (240, 60, 120)
"""Training normals (validation comes out of them), test normals, test anomalies (shared among the kinds)."""
GLYPHS = (0, 1, 4, 7)
"""The digit of each corner: top left, top right, bottom left, bottom right."""
INK = ((200, 60, 50), (50, 90, 190), (40, 130, 70), (60, 40, 90))
GROUND = (176, 160, 132)
KINDS = {
    "scratch": "structural",
    "blob": "structural",
    "stain": "structural",
    "missing": "logical",
    "swapped": "logical",
    "duplicated": "logical",
}
SMALLEST = 32
TRAIN_SHARE = 0.6
"""Of a digit's samples, so many are drawn in training; the test draws the others."""


@dataclass(frozen=True)
class Glyphs:
    """Ink float32 (n, 8, 8) in 0…1 of each corner's digit."""

    corners: tuple[np.ndarray, ...]


def open_scenes(*, size: tuple[int, int], counts: tuple[int, int, int] = COUNTS) -> AnomalyData:
    """Scenes (3, H, W) = `size`; the same for the same arguments. Raises UserError for sizes below 32 and counts that leave a kind out."""
    if min(size) < SMALLEST:
        raise UserError(f"size={size}: scenes are {SMALLEST}×{SMALLEST} at least", hint="64×64 is what they are made for")
    if len(counts) != 3 or counts[0] < 2 or counts[1] < 1 or counts[2] < len(KINDS):
        raise UserError(
            f"counts={counts} must be three numbers: training normals (2 or more), test normals (1 or more) and test anomalies "
            f"({len(KINDS)} or more, one of each kind)",
            hint="240, 60, 120 unless told otherwise",
        )
    learned, unseen = _glyphs()
    train = _part([GOOD] * counts[0], learned, size, stream=0)
    kinds = [GOOD] * counts[1] + [list(KINDS)[i % len(KINDS)] for i in range(counts[2])]
    test = _part(kinds, unseen, size, stream=1)
    parts = (train, test)
    content = digest_of(
        [(part.images.digest(), digest_of(part.kinds)) for part in parts if isinstance(part.images, ArrayImages)]
    )
    return AnomalyData(train, None, test, content, groups=KINDS)


def _glyphs() -> tuple[Glyphs, Glyphs]:
    from sklearn.datasets import load_digits

    found = load_digits()
    ink = (found.images / 16).astype(np.float32)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for digit in GLYPHS:
        own = ink[found.target == digit]
        cut = round(TRAIN_SHARE * len(own))
        parts[0].append(own[:cut])
        parts[1].append(own[cut:])
    return Glyphs(tuple(parts[0])), Glyphs(tuple(parts[1]))


def _part(kinds: list[str], glyphs: Glyphs, size: tuple[int, int], *, stream: int) -> Part:
    pixels = np.zeros((len(kinds), 3, *size), dtype=np.uint8)
    masks = np.zeros((len(kinds), *size), dtype=np.uint8)
    for i, kind in enumerate(kinds):
        picture, mask = draw(kind, glyphs, size, np.random.default_rng((stream, i)))
        pixels[i] = np.clip(np.rint(picture), 0, 255).astype(np.uint8).transpose(2, 0, 1)
        masks[i] = mask
    targets = np.array([int(kind != GOOD) for kind in kinds], dtype=np.int64)
    return Part(ArrayImages(pixels, targets), tuple(kinds), masks)


def draw(kind: str, glyphs: Glyphs, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(the scene float64 (H, W, 3) in 0…255, its mask bool (H, W)): normal for "good", else with that anomaly."""
    picture = _ground(size, rng)
    shown: list[int | None] = [0, 1, 2, 3]
    mask = np.zeros(size, dtype=bool)
    if kind in _ARRANGED:
        for corner in _ARRANGED[kind](shown, rng):
            top, left, height, width = _box(corner, size)
            mask[top : top + height, left : left + width] = True
    for corner, glyph in enumerate(shown):
        if glyph is not None:
            _write(picture, glyphs, glyph, corner, rng)
    if kind in _DAMAGED:
        alpha, colour = _DAMAGED[kind](size, rng)
        picture += alpha[..., None] * (colour - picture)
        mask = alpha > alpha.max() / 4
    return picture, mask


def _ground(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Slanted stripes with a random phase, a slow change of brightness, and grain."""
    rows, columns = np.mgrid[: size[0], : size[1]] / min(size) * 64
    stripes = 9 * np.sin(0.9 * rows + 0.35 * columns + rng.uniform(0, 2 * np.pi))
    slow = Image.fromarray(rng.normal(0, 7, (4, 4)).astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    bright = stripes + np.asarray(slow) + rng.normal(0, 5)
    return np.array(GROUND) + bright[..., None] + rng.normal(0, 4, (*size, 3))


def _box(corner: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a corner's glyph: three tenths of the sides, centred in its quarter."""
    height, width = (round(0.34 * side) for side in size)
    centre = [(0.25 + 0.5 * at) * side for at, side in zip(divmod(corner, 2), size, strict=True)]
    return round(centre[0] - height / 2), round(centre[1] - width / 2), height, width


def _write(picture: np.ndarray, glyphs: Glyphs, glyph: int, corner: int, rng: np.random.Generator) -> None:
    """Blends a random sample of the glyph, up to a pixel (of 64) off its place, into `picture`."""
    top, left, height, width = _box(corner, picture.shape[:2])
    own = glyphs.corners[glyph]
    ink = Image.fromarray(own[rng.integers(len(own))]).resize((width, height), Image.Resampling.BICUBIC)
    reach = max(1, round(min(picture.shape[:2]) / 64))
    top, left = (int(np.clip(place + rng.integers(-reach, reach + 1), 0, None)) for place in (top, left))
    where = picture[top : top + height, left : left + width]
    alpha = 0.9 * np.clip(np.asarray(ink), 0, 1)[: where.shape[0], : where.shape[1], None]
    where += alpha * (np.array(INK[glyph]) - where)


def _missing(shown: list[int | None], rng: np.random.Generator) -> list[int]:
    corner = int(rng.integers(4))
    shown[corner] = None
    return [corner]


def _swapped(shown: list[int | None], rng: np.random.Generator) -> list[int]:
    a, b = (int(i) for i in rng.choice(4, 2, replace=False))
    shown[a], shown[b] = shown[b], shown[a]
    return [a, b]


def _duplicated(shown: list[int | None], rng: np.random.Generator) -> list[int]:
    """One glyph takes another's place and so occurs twice: that place is odd."""
    a, b = (int(i) for i in rng.choice(4, 2, replace=False))
    shown[a] = shown[b]
    return [a]


def _scratch(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A straight bright or dark line, one to two pixels (of 64) wide, with soft edges."""
    scale = min(size) / 64
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
    middle = np.array([rng.uniform(0.2, 0.8) * side for side in size])
    angle, half = rng.uniform(0, np.pi), rng.uniform(8, 16) * scale
    along = (rows - middle[0]) * np.sin(angle) + (columns - middle[1]) * np.cos(angle)
    across = (rows - middle[0]) * np.cos(angle) - (columns - middle[1]) * np.sin(angle)
    distance = np.hypot(np.maximum(np.abs(along) - half, 0), across)
    alpha = 0.8 * np.clip(rng.uniform(0.6, 1.1) * scale + 0.5 - distance, 0, 1)
    return alpha, np.full(3, rng.choice([30.0, 245.0]))


def _blob(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An opaque ellipse of a colour of its own, two to five pixels (of 64) in radius."""
    return np.clip(_ellipse(size, rng, (2.0, 5.0)) + 0.5, 0, 1) * 0.9, rng.uniform(20, 235, 3)


def _stain(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A soft dark patch, without an edge: a bell curve of five to nine pixels (of 64)."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
    centre = [rng.uniform(0.2, 0.8) * side for side in size]
    spread = rng.uniform(5, 9) * min(size) / 64
    bell = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * spread**2))
    return rng.uniform(0.35, 0.55) * bell, np.array([50.0, 40.0, 30.0])


def _ellipse(size: tuple[int, int], rng: np.random.Generator, radii: tuple[float, float]) -> np.ndarray:
    """Roughly the distance in pixels to an ellipse's edge, positive inside."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
    centre = [rng.uniform(0.15, 0.85) * side for side in size]
    a, b = rng.uniform(*radii, 2) * min(size) / 64
    reach = np.hypot((rows - centre[0]) / a, (columns - centre[1]) / b)
    return (1 - reach) * min(a, b)


_ARRANGED: dict[str, Callable[[list[int | None], np.random.Generator], list[int]]] = {
    "missing": _missing,
    "swapped": _swapped,
    "duplicated": _duplicated,
}
_DAMAGED: dict[str, Callable[[tuple[int, int], np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "scratch": _scratch,
    "blob": _blob,
    "stain": _stain,
}
