"""Which samples stay right under corruption, and what told so beforehand: AUCs with intervals; what falls with what, and most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .analysis_record import Redundancy, SurvivalRow

RESAMPLES = 200
"""Bootstrap resamples of an interval."""
INTERVAL = (2.5, 97.5)
SCORES = ("margin", "confidence", "norm", "angle")
TOGETHER = 0.5
"""The mean correlation between two groups of corruptions from which on they count as one."""


def resampled(samples: int, seed: int, *, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each sample is in each bootstrap resample, float32 (resamples, samples)."""
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(0, samples, samples), minlength=samples) for _ in range(resamples)]
    return np.stack(drawn).astype(np.float32)


def counted_auc(score: np.ndarray, survived: np.ndarray, lost: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The chance that a survivor scores higher than one that did not (ties count half), for each row of `weights`.

    A sample (n,) stands for `survived` positives and `lost` negatives with one score: its severities. `weights` (resamples, n) says
    how often each is in a resample; without, one row of ones. NaN where there are no positives or no negatives.
    """
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    weights = np.ones((1, len(score))) if weights is None else weights
    taken = weights[:, order].astype(np.float64)
    positive, negative = taken * survived[order], taken * lost[order]
    first = np.flatnonzero(np.diff(ranked, prepend=np.nan) != 0)
    if len(first) < len(ranked):  # equal scores form one step
        positive, negative = (np.add.reduceat(part, first, axis=1) for part in (positive, negative))
    below = negative.cumsum(axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positive * below).sum(1) / pairs, np.nan)


def survival_row(
    model: str,
    corruption: str,
    *,
    scores: Mapping[str, np.ndarray],
    survived: np.ndarray,
    tries: np.ndarray,
    weights: np.ndarray,
) -> SurvivalRow:
    """How well the clean scores of one model foretell survival: AUC of margin, confidence, norm, and of a small angle.

    `tries` (n,) counts the corrupted versions of a sample that was right when clean (0 for one that was wrong), `survived` (n,) those
    that stayed right. `difference` is margin's AUC − confidence's, `low`…`high` its 95 % bootstrap interval over samples: all
    versions of a sample go together, and both AUCs see the same resamples (`weights`). All are None, with the reason, where
    every sample survived or none did.
    """
    there = tries > 0
    kept, lost = survived[there], (tries - survived)[there]
    n, alive = int(tries.sum()), int(kept.sum())
    row: SurvivalRow = {
        "model": model,
        "corruption": corruption,
        "n": n,
        "survived": alive,
        "auc_margin": None,
        "auc_confidence": None,
        "auc_norm": None,
        "auc_angle": None,
        "difference": None,
        "low": None,
        "high": None,
        "reason": "",
    }
    if alive in (0, n):
        fate = "no sample was right when clean" if n == 0 else "every sample survived" if alive else "no sample survived"
        row["reason"] = f"{fate}: there is nothing to tell apart"
        return row
    told = {name: (-1 if name == "angle" else 1) * scores[name][there] for name in SCORES}
    auc = {name: float(counted_auc(score, kept, lost)[0]) for name, score in told.items()}
    drawn = weights[:, there]
    gaps = counted_auc(told["margin"], kept, lost, drawn) - counted_auc(told["confidence"], kept, lost, drawn)
    gaps = gaps[~np.isnan(gaps)]
    row["auc_margin"], row["auc_confidence"] = auc["margin"], auc["confidence"]
    row["auc_norm"], row["auc_angle"] = auc["norm"], auc["angle"]
    row["difference"] = auc["margin"] - auc["confidence"]
    if len(gaps):
        row["low"], row["high"] = (float(value) for value in np.percentile(gaps, INTERVAL))
    else:
        row["reason"] = "too few samples were lost for an interval"
    return row


def redundancy(shift: np.ndarray, names: Sequence[str]) -> Redundancy:
    """Pearson correlations between corruptions of the margin's shift (models, corruptions, n), corrupted − clean.

    None where a shift is the same for all samples. Clusters: average linkage on 1 − the mean correlation, cut at 0.5.
    """
    by_model = np.stack([_correlations(part) for part in shift])
    counted = (~np.isnan(by_model)).sum(0)
    mean = np.where(counted > 0, np.nansum(by_model, axis=0) / np.maximum(counted, 1), np.nan)
    return {
        "mean": _listed(mean),
        "by_model": [_listed(part) for part in by_model],
        "clusters": _clusters(mean, names),
        "nearest": _nearest(mean, names),
    }


def _correlations(shift: np.ndarray) -> np.ndarray:
    """Pearson's r between the rows of (corruptions, n); NaN with a row that does not vary."""
    centred = shift - shift.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1)
    length[length <= 1e-12 * np.linalg.norm(shift, axis=1)] = np.nan  # a constant row leaves rounding behind
    length[length == 0] = np.nan
    unit = centred / length[:, None]
    return np.clip(unit @ unit.T, -1, 1)


def _listed(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _clusters(mean: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(names) < 2:
        return [[name] for name in names]
    apart = 1 - np.nan_to_num(mean, nan=0.0)
    np.fill_diagonal(apart, 0)
    groups = fcluster(linkage(squareform((apart + apart.T) / 2, checks=False), "average"), 1 - TOGETHER, "distance")
    found: dict[int, list[str]] = {}
    for group, name in zip(groups.tolist(), names, strict=True):
        found.setdefault(group, []).append(name)
    return list(found.values())


def _nearest(mean: np.ndarray, names: Sequence[str]) -> list[str]:
    """The two corruptions with the largest mean correlation; empty when no pair has one."""
    pairs = [(mean[i, j], i, j) for i in range(len(names)) for j in range(i) if not np.isnan(mean[i, j])]
    if not pairs:
        return []
    _, i, j = max(pairs)
    return [names[j], names[i]]
