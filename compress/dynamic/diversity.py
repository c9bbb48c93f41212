"""How much masks depend on the input: the figures that tell a dynamic network from a static one in disguise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from torch import Tensor

from .observe import Observation

Verdict = Literal["dynamic", "static", "all on", "all off"]
STATIC_BITS = 1.0
"""A layer whose masks carry less entropy over inputs is static."""
STATIC_FLIPS = 0.01
"""So is one whose filters differ from its constant mask for less than this share of (input, filter) pairs."""
HISTOGRAM_BINS = 10


def diversity(seen: Observation) -> dict[str, Any]:
    """JSON-able figures of masks over N samples: of the whole network, and of every layer under "layers".

    `distinct` mask vectors; `dynamic_layers` of `gates`; `kept_per_sample`: quantiles of the filters on, over all layers;
    `beyond_constant`: the mean over layers; `classes`: agreement between classes (see `class_agreement`), None where targets are
    no classes. Raises ValueError without gates.
    """
    if not seen.masks:
        raise ValueError("no masks")
    masks = {path: _array(mask) for path, mask in seen.masks.items()}
    classes = _classes(seen.targets)
    layers = {path: layer_figures(mask, _array(seen.truths[path]), classes) for path, mask in masks.items()}
    whole = np.concatenate(list(masks.values()), axis=1)
    kept = whole.sum(1)
    return {
        "samples": len(whole),
        "gates": len(layers),
        "filters": whole.shape[1],
        "distinct": len(_patterns(whole)[1]),
        "entropy_bits": _bits(_patterns(whole)[1]),
        "dynamic_layers": sum(figures["verdict"] == "dynamic" for figures in layers.values()),
        "beyond_constant": float(np.mean([figures["beyond_constant"] for figures in layers.values()])),
        "kept_per_sample": {f"p{q}": float(np.percentile(kept, q)) for q in (0, 5, 25, 50, 75, 95, 100)},
        "thresholds": {"static_bits": STATIC_BITS, "static_flips": STATIC_FLIPS},
        "classes": class_agreement(whole, classes),
        "layers": layers,
    }


def layer_figures(mask: np.ndarray, truth: np.ndarray, classes: np.ndarray | None) -> dict[str, Any]:
    """One layer's figures for masks and ground truth bool (N, C), and classes (N,) where there are some.

    `flips`: the share of (input, filter) pairs that differ from the layer's constant mask (each filter as it is most often).
    `agreement` with the ground truth, and `constant`, the agreement of the best constant mask chosen on these very samples: what
    `beyond_constant`, their difference, leaves is what the gate owes to its input. `headroom` is how far from constant the truth is.
    """
    rate = mask.mean(0)
    flips = float(np.minimum(rate, 1 - rate).mean())
    _, counts = _patterns(mask)
    bits = _bits(counts)
    true_rate = truth.mean(0)
    agreement, constant = float((mask == truth).mean()), float(np.maximum(true_rate, 1 - true_rate).mean())
    return {
        "filters": mask.shape[1],
        "keep": float(rate.mean()),
        "distinct": len(counts),
        "entropy_bits": bits,
        "flips": flips,
        "undecided_filters": int(((rate > 0) & (rate < 1)).sum()),
        "class_bits": _class_bits(mask, classes),
        "agreement": agreement,
        "constant": constant,
        "beyond_constant": agreement - constant,
        "headroom": 1 - constant,
        "truth_keep": float(true_rate.mean()),
        "none_kept": float((~mask.any(1)).mean()),
        "histogram": keep_histogram(mask),
        "verdict": verdict(rate, bits, flips),
    }


def verdict(rate: np.ndarray, bits: float, flips: float) -> Verdict:
    """What a layer's masks are: "static" with less than 1 bit of entropy over inputs, or less than 1 % of filters ever differing."""
    if (rate == 1).all():
        return "all on"
    if (rate == 0).all():
        return "all off"
    return "static" if bits < STATIC_BITS or flips < STATIC_FLIPS else "dynamic"


def keep_histogram(mask: np.ndarray) -> list[int]:
    """How many inputs keep 0–10 %, 10–20 %, … 90–100 % of the filters."""
    counts, _ = np.histogram(mask.mean(1), bins=HISTOGRAM_BINS, range=(0, 1))
    return [int(count) for count in counts]


def class_agreement(mask: np.ndarray, classes: np.ndarray | None) -> list[list[float | None]] | None:
    """How alike two classes' masks are, 0 … 1: Σ min / Σ max of their mean masks (the weighted Jaccard index), a C×C matrix.

    Rows and columns of classes without samples are None.
    """
    if classes is None:
        return None
    present = {int(c): mask[classes == c].mean(0) for c in np.unique(classes)}
    numbers = range(int(classes.max()) + 1)
    return [[_jaccard(present.get(a), present.get(b)) for b in numbers] for a in numbers]


def collapsed(figures: Mapping[str, Any]) -> dict[Verdict, list[str]]:
    """The layers that don't look at their input, by verdict."""
    found: dict[Verdict, list[str]] = {"static": [], "all on": [], "all off": []}
    for path, layer in figures["layers"].items():
        if layer["verdict"] != "dynamic":
            found[layer["verdict"]].append(path)
    return found


def _jaccard(a: np.ndarray | None, b: np.ndarray | None) -> float | None:
    if a is None or b is None:
        return None
    most = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / most) if most else 1.0


def _array(mask: Tensor) -> np.ndarray:
    return mask.numpy().astype(bool)


def _classes(targets: Tensor) -> np.ndarray | None:
    return targets.numpy() if targets.ndim == 1 and not targets.is_floating_point() else None


def _patterns(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(each sample's pattern as a number, how often each pattern comes)."""
    packed = np.packbits(mask, axis=1)
    _, inverse, counts = np.unique(packed, axis=0, return_inverse=True, return_counts=True)
    return inverse.reshape(-1), counts


def _bits(counts: np.ndarray) -> float:
    return float(entropy(counts, base=2)) + 0.0


def _class_bits(mask: np.ndarray, classes: np.ndarray | None) -> float | None:
    """The mutual information of a filter with the class in bits, the mean over filters (at most 1: a filter is on or off).

    Filter by filter: whole patterns are too many for their number of samples to be told from chance.
    """
    if classes is None:
        return None
    rate = mask.mean(0)
    varied = np.flatnonzero((rate > 0) & (rate < 1))
    total = sum(mutual_info_score(classes, mask[:, c]) for c in varied)
    return float(total / math.log(2) / mask.shape[1])
