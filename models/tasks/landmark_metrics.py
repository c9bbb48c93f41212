"""Normalised mean error of landmarks, by the distance of the eyes, the box of the points or its diagonal."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .landmark_data import Eyes, in_pixels

Norm = Literal["interocular", "box", "diagonal"]
NORMS = ("interocular", "box", "diagonal")
THRESHOLD = 0.08
"""Up to which the cumulative error curve is integrated, and beyond which a sample has failed: the field's usual 8 %."""


def denominators(targets: np.ndarray, size: tuple[int, int], *, norm: Norm, eyes: Eyes | None) -> np.ndarray:
    """float64 (N,) in pixels of (H, W) = `size`: what each sample's error is divided by; targets (N, 2L) are relative.

    "interocular" is the distance between the two eyes, each the mean of its points in `eyes` (outer corners: one point each);
    "box" is √(width · height) of the points' box, "diagonal" its diagonal.
    """
    points = in_pixels(targets, size)
    if norm == "interocular":
        if eyes is None:
            raise ValueError("the interocular distance needs eyes")
        left, right = (points[:, list(eye)].mean(1) for eye in eyes)
        return np.linalg.norm(left - right, axis=1)
    extent = points.max(1) - points.min(1)
    return np.linalg.norm(extent, axis=1) if norm == "diagonal" else np.sqrt(extent.prod(1))


def normalised_errors(outputs: np.ndarray, targets: np.ndarray, size: tuple[int, int], divisors: np.ndarray) -> np.ndarray:
    """float64 (N,): each sample's mean distance of its L points over its divisor, as a fraction (0.04 = 4 %)."""
    distances = np.linalg.norm(in_pixels(outputs, size) - in_pixels(targets, size), axis=2)
    return distances.mean(1) / divisors


def summary(errors: np.ndarray) -> dict[str, float]:
    """{"nme", "auc_0.08", "failure_0.08"} of samples' errors (N,), all fractions.

    The area under the cumulative curve of errors up to t, divided by t, is the mean of max(0, 1 − error/t): exact, no bins. A
    sample whose error is not a number has failed.
    """
    passed = errors <= THRESHOLD
    area = np.where(passed, 1 - errors / THRESHOLD, 0.0)
    return {"nme": float(errors.mean()), "auc_0.08": float(area.mean()), "failure_0.08": float((~passed).mean())}
