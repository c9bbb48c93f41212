"""Yes/no questions about Fashion-MNIST that a program can answer from the pixels: a stand-in for a language model's answers.

It makes the loss of multi-aspect distillation testable without a model that sees; it says nothing about what such a model knows.
Each question is a measurement m of the picture, answered P(yes) = σ((m − at)/scale + noise·ε) with ε ~ N(0, 1) drawn from the
picture itself, so that the answers are the same in any order and batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import expit, ndtri

from trimtab.compress.distill.aspect_source import AspectCard, aspect_sources

NAME = "fashion-oracle"
NOISE = 0.5
"""Standard deviation of the noise, in units of logits."""
INK = 0.1
"""Pixels brighter than this share of white belong to the thing."""
SPECK = 6
"""Dark spots below so many pixels are shadow, not holes."""


@dataclass(frozen=True)
class Aspect:
    """A question, what is measured on ink (N, H, W) in 0…1, the value at which P(yes) is ½, and what one logit is worth."""

    question: str
    measure: Callable[[np.ndarray], np.ndarray]
    at: float
    scale: float


def fill(ink: np.ndarray) -> np.ndarray:
    """Share of pixels that belong to the thing."""
    return (ink > INK).mean((1, 2))


def brightness(ink: np.ndarray) -> np.ndarray:
    """Mean ink of the pixels that belong to the thing."""
    own = ink > INK
    return (ink * own).sum((1, 2)) / np.maximum(own.sum((1, 2)), 1)


def elongation(ink: np.ndarray) -> np.ndarray:
    """log(height / width) of the box around the thing."""
    own = ink > INK
    height, width = own.any(2).sum(1), own.any(1).sum(1)
    return np.log(np.maximum(height, 1) / np.maximum(width, 1))


def symmetry(ink: np.ndarray) -> np.ndarray:
    """1 − Σ|x − mirrored x| / 2Σx: 1 for a picture that is its own mirror image."""
    return 1 - np.abs(ink - ink[:, :, ::-1]).sum((1, 2)) / np.maximum(2 * ink.sum((1, 2)), 1e-9)


def top_heaviness(ink: np.ndarray) -> np.ndarray:
    """Share of the ink in the upper half."""
    return ink[:, : ink.shape[1] // 2].sum((1, 2)) / np.maximum(ink.sum((1, 2)), 1e-9)


def holes(ink: np.ndarray) -> np.ndarray:
    """Number of empty regions of `SPECK` pixels or more that the thing encloses, 4-connected; all pictures are labelled at once."""
    empty = np.pad(ink <= INK, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    within = np.zeros((3, 3, 3), dtype=int)
    within[1] = ndimage.generate_binary_structure(2, 1)  # neighbours in the same picture alone
    regions, count = ndimage.label(empty, structure=within)
    large = np.bincount(regions.ravel(), minlength=count + 1) >= SPECK
    owner = np.zeros(count + 1, dtype=np.int64)
    owner[regions] = np.arange(len(ink))[:, None, None]
    large[0] = False
    return np.bincount(owner[large], minlength=len(ink)) - 1.0  # the surroundings are a region too


def texture(ink: np.ndarray) -> np.ndarray:
    """Mean absolute step between neighbouring pixels that both belong to the thing, relative to its brightness."""
    own = ink > INK
    down, right = own[:, 1:] & own[:, :-1], own[:, :, 1:] & own[:, :, :-1]
    steps = (np.abs(np.diff(ink, axis=1)) * down).sum((1, 2)) + (np.abs(np.diff(ink, axis=2)) * right).sum((1, 2))
    pairs = down.sum((1, 2)) + right.sum((1, 2))
    return steps / np.maximum(pairs, 1) / np.maximum(brightness(ink), 1e-9)


def sleeves(ink: np.ndarray) -> np.ndarray:
    """How far the outer thirds are filled, below the shoulders, on the emptier side; 0 for a thing too flat to hang."""
    _, height, width = ink.shape
    own = ink > INK
    low, third = own[:, height // 2 : height * 6 // 7], width // 3
    filled = np.minimum(low[:, :, :third].mean((1, 2)), low[:, :, -third:].mean((1, 2)))
    return filled * (own.any(2).sum(1) > 0.75 * height)


def legs(ink: np.ndarray) -> np.ndarray:
    """How much emptier the middle columns are than their neighbours in the lower half."""
    _, height, width = ink.shape
    low, middle = ink[:, height // 2 :] > INK, width // 2
    beside = np.concatenate([low[:, :, middle - 6 : middle - 2], low[:, :, middle + 2 : middle + 6]], axis=2)
    return beside.mean((1, 2)) - low[:, :, middle - 1 : middle + 1].mean((1, 2))


def flare(ink: np.ndarray) -> np.ndarray:
    """log(width at the bottom / width at the top) of the thing, over a quarter of its box at either end."""
    own = ink > INK
    rows = own.any(2)
    filled = own.sum(2).astype(float)
    height = np.maximum(rows.sum(1), 1)
    rank = np.cumsum(rows, axis=1)  # 1 at the first row of the thing, `height` at its last
    quarter = np.maximum(height // 4, 1)[:, None]
    top, bottom = rows & (rank <= quarter), rows & (rank > height[:, None] - quarter)
    means = [(filled * part).sum(1) / np.maximum(part.sum(1), 1) for part in (top, bottom)]
    return np.log(np.maximum(means[1], 1) / np.maximum(means[0], 1))


ASPECTS = (
    Aspect("Does it fill much of the picture?", fill, 0.50, 0.08),
    Aspect("Is it of a light material?", brightness, 0.55, 0.10),
    Aspect("Is it clearly taller than wide?", elongation, 0.20, 0.15),
    Aspect("Is the left half the mirror image of the right half?", symmetry, 0.85, 0.05),
    Aspect("Is the upper half heavier than the lower half?", top_heaviness, 0.50, 0.04),
    Aspect("Can one see through a hole in it, as under a handle?", holes, 0.50, 0.30),
    Aspect("Does its surface have a pattern?", texture, 0.17, 0.03),
    Aspect("Does it have long sleeves?", sleeves, 0.30, 0.08),
    Aspect("Does it have two legs?", legs, 0.15, 0.06),
    Aspect("Is it wider at the bottom than at the top?", flare, 0.10, 0.15),
)
QUESTIONS = tuple(aspect.question for aspect in ASPECTS)


def measurements(pixels: np.ndarray) -> np.ndarray:
    """Every aspect's measurement (N, Q) of pixels uint8 (N, C, H, W); colours are averaged."""
    ink = pixels.mean(1, dtype=np.float64) / 255
    return np.stack([aspect.measure(ink) for aspect in ASPECTS], axis=1)


def pixel_noise(pixels: np.ndarray, columns: int) -> np.ndarray:
    """N(0, 1) numbers (N, columns) that depend on each picture alone: a hash of its pixels through the inverse normal CDF."""
    flat = pixels.reshape(len(pixels), -1).astype(np.uint64)
    keys = np.random.default_rng(0).integers(0, 2**64, (flat.shape[1], columns), dtype=np.uint64) | np.uint64(1)
    mixed = flat @ keys  # modulo 2^64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finaliser of SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return ndtri(((mixed >> np.uint64(11)) + 0.5) / 2.0**53)


@aspect_sources.register(NAME, AspectCard("Measured answers about Fashion-MNIST", QUESTIONS))
def answer(pixels: np.ndarray, _targets: np.ndarray) -> np.ndarray:
    """P(yes) (N, Q) of pixels uint8 (N, C, H, W); the labels are not looked at."""
    at, scale = (np.array([getattr(aspect, name) for aspect in ASPECTS]) for name in ("at", "scale"))
    return expit((measurements(pixels) - at) / scale + NOISE * pixel_noise(pixels, len(ASPECTS)))
