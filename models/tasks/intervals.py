"""Intervals of the critical classes' error rates: a stratified percentile bootstrap (Efron and Tibshirani 1993, chapter 13).

Positives and negatives are resampled separately, so every resample has as many of each as the data. What varies is the choice
of samples; the network, its training seed and the threshold are held fixed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import UserError
from .critical import area_under_roc, checked, require_samples

FIGURES = ("fnr", "fpr", "auc")
CELLS = 2_000_000
"""Resampled indices held at once: about 50 MB with what is computed from them."""


def bootstrap(
    score: np.ndarray,
    positive: np.ndarray,
    threshold: float,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """{"fnr", "fpr", "auc"} → (low, high), the percentile interval of each figure of score ≥ threshold.

    A rate of exactly 0 or 1 gives an interval without width, since no resample can contain an error that the data lacks:
    `exact_limit` then says what the sample's size allows. Raises UserError for scores that are not finite, when the positives
    or the negatives are absent, and for resamples or confidence out of range.
    """
    score, positive = _ready(score, positive, resamples, confidence)
    drawn = _resampled([(score, threshold)], positive, resamples=resamples, seed=seed)[0]
    return {name: _percentiles(drawn[name], confidence) for name in FIGURES}


def paired_difference(
    score_a: np.ndarray,
    threshold_a: float,
    score_b: np.ndarray,
    threshold_b: float,
    positive: np.ndarray,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """{"fnr", "fpr", "auc"} → (difference b − a, low, high) of two decisions on the same samples in the same order.

    Both are judged on the same resamples, so what they share (a hard sample, say) cancels. Raises the errors of `bootstrap`.
    """
    score_a, positive = _ready(score_a, positive, resamples, confidence)
    score_b, _ = checked(score_b, positive)
    first, second = _resampled([(score_a, threshold_a), (score_b, threshold_b)], positive, resamples=resamples, seed=seed)
    before, after = _figures(score_a, positive, threshold_a), _figures(score_b, positive, threshold_b)
    return {name: (after[name] - before[name], *_percentiles(second[name] - first[name], confidence)) for name in FIGURES}


def exact_limit(errors: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high): the exact binomial interval of a rate of `errors` in `count` (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    found = binomtest(errors, count).proportion_ci(confidence_level=confidence, method="exact")
    return float(found.low), float(found.high)


def _ready(score: np.ndarray, positive: np.ndarray, resamples: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    score, positive = checked(score, positive)
    require_samples(positive, "these samples")
    if resamples < 100:
        raise UserError(f"resamples={resamples} must be 100 or more", hint="2000 is usual")
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence} must be between 0 and 1", hint="0.95 is usual")
    return score, positive


def _figures(score: np.ndarray, positive: np.ndarray, threshold: float) -> dict[str, float]:
    decided = score >= threshold
    return {
        "fnr": float(1 - decided[positive].mean()),
        "fpr": float(decided[~positive].mean()),
        "auc": area_under_roc(score, positive),
    }


def _resampled(
    decisions: list[tuple[np.ndarray, float]], positive: np.ndarray, *, resamples: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Per decision, each figure on every resample: float64 (resamples,)."""
    found: list[dict[str, list[np.ndarray]]] = [{name: [] for name in FIGURES} for _ in decisions]
    for hits, others in _draws(positive, resamples=resamples, seed=seed):
        for figures, (score, threshold) in zip(found, decisions, strict=True):
            figures["fnr"].append((score < threshold)[hits].mean(1))
            figures["fpr"].append((score >= threshold)[others].mean(1))
            figures["auc"].append(_areas(score, hits, others))
    return [{name: np.concatenate(parts) for name, parts in figures.items()} for figures in found]


def _draws(positive: np.ndarray, *, resamples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of the resampled positives (r, n⁺) and negatives (r, n⁻), a block of resamples at a time."""
    random = np.random.default_rng(seed)
    where = np.flatnonzero(positive), np.flatnonzero(~positive)
    block = max(1, CELLS // len(positive))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield (
            where[0][random.integers(len(where[0]), size=(rows, len(where[0])))],
            where[1][random.integers(len(where[1]), size=(rows, len(where[1])))],
        )


def _areas(score: np.ndarray, hits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 (r,): the AUC of each row of resampled indices, from counts of negatives at and below each distinct score."""
    distinct, place = np.unique(score, return_inverse=True)
    rows, width = len(hits), len(distinct)
    shift = np.arange(rows)[:, None] * width
    counts = np.bincount((place[others] + shift).ravel(), minlength=rows * width).reshape(rows, width)
    below = np.cumsum(counts, axis=1) - counts / 2  # negatives below, and half of those equal
    return np.take_along_axis(below, place[hits], axis=1).sum(1) / (hits.shape[1] * others.shape[1])


def _percentiles(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
