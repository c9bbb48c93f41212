"""Soft landmarks: shapes as a point distribution model of limited variance describes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from ..errors import UserError

CLIP = 3.0
"""Weights of modes are kept within so many standard deviations (Cootes et al. 1995, §3.3)."""


@dataclass(frozen=True)
class ShapeModel:
    """A mean shape (2L,), its modes (K, 2L), orthonormal, by falling variance, and the weights' variances (K,)."""

    mean: np.ndarray
    modes: np.ndarray
    variances: np.ndarray

    def soft(self, shapes: np.ndarray) -> np.ndarray:
        """float32 (N, 2L): each shape's nearest in the model, x̄ + Vᵀ·clip(V(x − x̄), ±3√λ)."""
        limit = CLIP * np.sqrt(self.variances)
        weights = np.clip((shapes.astype(np.float64) - self.mean) @ self.modes.T, -limit, limit)
        return (self.mean + weights @ self.modes).astype(np.float32)


def fit_shapes(shapes: np.ndarray, variance: float) -> ShapeModel:
    """The model of shapes (N, 2L) with the fewest modes that hold `variance` (0…1] of the variance; 1 keeps them all.

    Principal components of the flattened coordinates, without aligning the shapes first, as KD-Loss's released code does.
    Source: Cootes, Taylor, Cooper, Graham: Active Shape Models, 1995; Fard and Mahoor: Facial Landmark Points Detection Using
    Knowledge Distillation-Based Neural Networks, 2022. Raises UserError for a fraction out of range and for shapes all alike.
    """
    if not 0 < variance <= 1:
        raise UserError(f"soft={variance} must lie in 0 … 1", hint="0.9 is a tolerant teacher's, 0 trains on the true points")
    if len(shapes) < 2 or not np.ptp(shapes, axis=0).any():
        raise UserError(
            f"{len(shapes)} training shape(s) without any difference make no shape model",
            hint="soft wants two different ones or more",
        )
    pca = PCA(n_components=variance if variance < 1 else None, svd_solver="full").fit(shapes.astype(np.float64))
    return ShapeModel(pca.mean_, pca.components_, pca.explained_variance_)
