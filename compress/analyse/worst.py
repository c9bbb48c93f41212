"""What pruning or corruption hit hardest: accuracy by class, the classes and the samples that fell most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .analysis_record import ClassFall, SampleFall

CLASSES_KEPT = 50
SAMPLES_KEPT = 128
CLEAN = "clean"


def accuracy_by_class(right: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """The mean of `right` (…, n) over the samples of each class, (…, classes); NaN for a class without samples."""
    members = np.stack([targets == k for k in range(classes)], axis=1).astype(np.float64)
    count = members.sum(0)
    return np.where(count > 0, right.astype(np.float64) @ members / np.maximum(count, 1), np.nan)


def worst_classes(
    clean: np.ndarray,
    corrupted: np.ndarray,
    targets: np.ndarray,
    *,
    models: Sequence[str],
    kinds: Sequence[str],
    classes: Sequence[str],
) -> list[ClassFall]:
    """The largest falls of a class's accuracy, at most 50, largest first.

    `clean` (models, classes) and `corrupted` (models, kinds, classes) are accuracies. Every other model is held against the first on
    the same benchmark; a model that is alone is held against itself on clean data.
    """
    boards = np.concatenate([clean[:, None], corrupted], axis=1)
    counts = np.bincount(targets, minlength=len(classes))
    falls: list[ClassFall] = []
    for m, b, k in np.ndindex(*boards.shape):
        alone = len(models) == 1
        before, after = boards[0, 0 if alone else b, k], boards[m, b, k]
        if counts[k] == 0 or before <= after:  # the first model against itself never falls
            continue
        falls.append(
            {
                "index": k,
                "name": classes[k],
                "model": models[m],
                "benchmark": (CLEAN, *kinds)[b],
                "against": CLEAN if alone else models[0],
                "n": int(counts[k]),
                "before": float(before),
                "after": float(after),
                "fall": float(before - after),
            }
        )
    return sorted(falls, key=lambda fall: -fall["fall"])[:CLASSES_KEPT]


def worst_samples(clean: np.ndarray, corrupted: np.ndarray, targets: np.ndarray, *, models: Sequence[str]) -> list[SampleFall]:
    """The samples whose margin fell most, at most 128, largest fall first.

    `corrupted` (models, n) are margins averaged over corruptions and severities: the fall is from the first model's to the mean of
    the others. A model that is alone falls from its `clean` margin.
    """
    alone = len(models) == 1
    before = clean[0] if alone else corrupted[0]
    falls = before - corrupted
    fall = falls[0] if alone else falls[1:].mean(0)
    worst = np.argsort(-fall, kind="stable")[:SAMPLES_KEPT]
    return [
        {
            "index": int(i),
            "target": int(targets[i]),
            "fall": float(fall[i]),
            "before": float(before[i]),
            "by_model": [float(value) for value in falls[:, i]],
            "against": CLEAN if alone else models[0],
        }
        for i in worst
        if fall[i] > 0
    ]
