"""Soft landmarks against an eigen-decomposition written out."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.models.errors import UserError
from trimtab.models.tasks.asm import fit_shapes


@pytest.fixture(scope="module")
def cloud():
    """300 shapes of 5 points: three modes of falling strength and a little noise."""
    rng = np.random.default_rng(0)
    modes = np.linalg.qr(rng.normal(size=(10, 10)))[0][:3]
    return (0.1 + rng.normal(size=(300, 3)) * (0.3, 0.1, 0.05) @ modes + rng.normal(0, 0.01, (300, 10))).astype(np.float32)


@pytest.mark.parametrize(("variance", "kept"), [(0.5, 1), (0.95, 2), (0.99, 3), (1.0, 10)])
def test_soft_shapes_by_eigenvectors(cloud, variance, kept):
    """x̄ + V·clip(Vᵀ(x − x̄), ±3√λ) with V from the covariance's eigenvectors, in float64; the result is float32: 1e-6."""
    values, vectors = np.linalg.eigh(np.cov(cloud.astype(float), rowvar=False))
    values, vectors = values[::-1], vectors[:, ::-1]
    assert np.cumsum(values)[kept - 1] / values.sum() >= variance - 1e-12
    mean = cloud.astype(float).mean(0)
    weights = (cloud - mean) @ vectors[:, :kept]
    weights = np.clip(weights, -3 * np.sqrt(values[:kept]), 3 * np.sqrt(values[:kept]))
    model = fit_shapes(cloud, variance)
    assert len(model.variances) == kept
    np.testing.assert_allclose(model.soft(cloud), mean + weights @ vectors[:, :kept].T, atol=1e-6)


def test_far_shapes_are_pulled_in(cloud):
    """A shape 10σ out along the first mode comes back at 3σ; the mean stays; softening twice is softening once."""
    model = fit_shapes(cloud, 0.9)
    sigma = np.sqrt(model.variances[0])
    far = model.mean + 10 * sigma * model.modes[0]
    np.testing.assert_allclose(model.soft(far[None])[0], model.mean + 3 * sigma * model.modes[0], atol=1e-6)
    np.testing.assert_allclose(model.soft(model.mean[None])[0], model.mean, atol=1e-7)
    once = model.soft(cloud)
    np.testing.assert_allclose(model.soft(once), once, atol=1e-6)


def test_everything_is_kept_at_one_but_what_lies_beyond_three_sigma(cloud):
    soft = fit_shapes(cloud, 1.0).soft(cloud)
    same = np.isclose(soft, cloud, atol=1e-6).all(1)
    assert same.mean() > 0.9  # 10 modes, 0.27 % beyond 3σ in each: 97 % expected
    assert not same.all()


@pytest.mark.parametrize(
    ("shapes", "variance", "said"),
    [
        (np.zeros((5, 4), np.float32), 0.9, r"5 training shape\(s\) without any difference"),
        (np.ones((1, 4), np.float32), 0.9, r"1 training shape\(s\)"),
        (np.eye(4, dtype=np.float32), 0.0, "soft=0.0 must lie in 0 … 1"),
        (np.eye(4, dtype=np.float32), 1.1, "soft=1.1 must lie in 0 … 1"),
    ],
)
def test_what_makes_no_model_is_refused(shapes, variance, said):
    with pytest.raises(UserError, match=said):
        fit_shapes(shapes, variance)
