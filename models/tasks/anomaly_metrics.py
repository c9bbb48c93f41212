"""How well anomaly scores and maps tell normal from anomalous: AUROC, AP, AU-PRO and rates at a threshold.

AU-PRO is the area under the per-region overlap (the share of a connected anomalous region that lies above the threshold, averaged over
the regions of all pictures) against the share of normal pixels above it, up to a share of 0.3, divided by 0.3: Bergmann et al., The MVTec
Anomaly Detection Dataset, IJCV 2021, §5.2. Regions are connected over eight neighbours, as in the data set's own evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

PRO_LIMIT = 0.3
EXACT_PIXELS = 1 << 24
"""Up to so many pixels every one is a threshold of its own; the curves are then exact."""
LEVELS = 1 << 16
"""Beyond, so many thresholds are taken, at even shares of a sample of the pixels: a curve's steps are then about 1/65536 wide."""
SAMPLE = 1 << 22
BLOCK = 64
"""So many maps are enlarged at once."""


def image_figures(scores: np.ndarray, targets: np.ndarray, kinds: np.ndarray, groups: Mapping[str, str]) -> dict[str, float]:
    """{"auroc", "ap", "auroc_KIND" …} of scores (N,) against targets 0/1 (N,); a kind's AUROC is against all normal pictures.

    `groups` names kinds that are counted together as well. Raises UserError when either side has no picture.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if targets.min(initial=1) == targets.max(initial=0):
        raise UserError(
            f"all {len(targets)} pictures are {'anomalous' if targets.max(initial=0) else 'normal'}: no AUROC can be measured",
            hint="raise limit, or leave it out",
        )
    figures = {"auroc": float(roc_auc_score(targets, scores)), "ap": float(average_precision_score(targets, scores))}
    normal = targets == 0
    names = {kind: kinds == kind for kind in sorted({str(k) for k in kinds[~normal]})}
    for group in sorted(set(groups.values())):
        members = np.array([groups.get(str(kind)) == group for kind in kinds])
        names |= {group: members} if members.any() else {}
    if len(names) > 1:
        for name, chosen in names.items():
            where = normal | (chosen & ~normal)
            figures[f"auroc_{name}"] = float(roc_auc_score(targets[where], scores[where]))
    return figures


def threshold_at(normal: np.ndarray, fpr: float) -> float:
    """The lowest of the normal scores (n,) such that at most the share `fpr` of them lies above it."""
    ordered = np.sort(np.asarray(normal, dtype=np.float64))[::-1]
    return float(ordered[int(np.floor(fpr * len(ordered) + 1e-9))])


def operating_point(scores: np.ndarray, targets: np.ndarray, threshold: float) -> dict[str, float]:
    """{"tpr", "fpr", "threshold"}: the shares of anomalous and of normal pictures whose score lies above the threshold."""
    above = scores.astype(np.float64) > threshold
    return {"tpr": float(above[targets == 1].mean()), "fpr": float(above[targets == 0].mean()), "threshold": threshold}


@dataclass(frozen=True)
class PixelCurve:
    """Shares of normal pixels, of anomalous pixels, and of regions' area (each region alike), from above a threshold, falling thresholds.

    float64 (L + 1,), from 0 (no pixel is above) to 1.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    pro: np.ndarray


def pixel_figures(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """{"pixel_auroc", "au_pro"} of maps (N, h, w), enlarged bilinearly, against masks uint8 (N, H, W); {} where nothing is masked."""
    if not masks.any() or masks.all():
        return {}
    curve = pixel_curve(maps, masks)
    return {"pixel_auroc": float(np.trapezoid(curve.tpr, curve.fpr)), "au_pro": au_pro(curve.fpr, curve.pro)}


def pixel_curve(maps: np.ndarray, masks: np.ndarray, *, exact_pixels: int = EXACT_PIXELS, levels: int = LEVELS) -> PixelCurve:
    """The curves over all thresholds that differ, or over `levels` of them beyond `exact_pixels` pixels (see `LEVELS`).

    A region's pixels weigh 1/(its area × the number of regions): the mean overlap is then a weighted count like the other two.
    Memory: the thresholds, three counts for each, and `BLOCK` enlarged maps.
    """
    edges = _thresholds(maps, masks, exact_pixels, levels)
    counts = np.zeros((3, len(edges)))
    regions = 0
    for values, part in _enlarged(maps, masks):
        place = np.searchsorted(edges, values.ravel(), side="right") - 1
        # what lies below the lowest threshold of a sample belongs to it: there is no lower one
        place = np.maximum(place, 0).reshape(values.shape)
        normal = part == 0
        counts[0] += np.bincount(place[normal], minlength=len(edges))
        counts[1] += np.bincount(place[~normal], minlength=len(edges))
        for where, mask in zip(place, part, strict=True):
            if mask.any():
                weights, found = _region_weights(mask)
                regions += found
                counts[2] += np.bincount(where[mask > 0], weights=weights, minlength=len(edges))
    totals = np.array([counts[0].sum(), counts[1].sum(), max(regions, 1)])
    falling = np.cumsum(counts[:, ::-1], axis=1) / totals[:, None]
    fpr, tpr, pro = np.concatenate([np.zeros((3, 1)), falling], axis=1)
    return PixelCurve(fpr, tpr, pro)


def _region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """(1/area of its region for each masked pixel in row-major order, the number of regions)."""
    from scipy.ndimage import label

    regions, found = label(mask, structure=np.ones((3, 3)))
    members = regions[mask > 0]
    return 1 / np.bincount(members, minlength=found + 1)[members], found


def _thresholds(maps: np.ndarray, masks: np.ndarray, exact_pixels: int, levels: int) -> np.ndarray:
    """Rising distinct thresholds: every value that occurs, or quantiles of an even sample of them."""
    total = masks.size
    if total <= exact_pixels:
        return np.unique(np.concatenate([values.ravel() for values, _ in _enlarged(maps, masks)]))
    step = -(-total // SAMPLE)
    sample = np.concatenate([values.ravel()[::step] for values, _ in _enlarged(maps, masks)])
    return np.unique(np.quantile(sample, np.linspace(0, 1, levels), method="nearest"))


def _enlarged(maps: np.ndarray, masks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(maps float32 (n, H, W) at the masks' size, masks (n, H, W)), a block at a time."""
    import torch
    from torch.nn import functional as F

    for start in range(0, len(maps), BLOCK):
        part = masks[start : start + BLOCK]
        block = torch.from_numpy(np.ascontiguousarray(maps[start : start + BLOCK], dtype=np.float32))[:, None]
        if block.shape[2:] != part.shape[1:]:
            block = F.interpolate(block, size=part.shape[1:], mode="bilinear", align_corners=False)
        yield block[:, 0].numpy(), part


def au_pro(fpr: np.ndarray, pro: np.ndarray, *, limit: float = PRO_LIMIT) -> float:
    """The area under per-region overlap over false-positive rate from 0 to `limit`, by trapezia, divided by `limit`; in 0…1.

    Both rise and start at 0; the curve is cut at `limit` by linear interpolation.
    """
    inside = fpr <= limit
    x, y = fpr[inside], pro[inside]
    if x[-1] < limit:
        # np.interp takes the last of equal abscissae on its left, so a vertical step at the limit counts whole
        x, y = np.append(x, limit), np.append(y, np.interp(limit, fpr, pro))
    return float(np.trapezoid(y, x) / limit)
