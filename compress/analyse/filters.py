"""The quality of a network's filters, layer by layer: sparse, redundant, as random as on the first day, or healthy.

Source: Gavrikov and Keuper, "CNN Filter DB" (CVPR 2022): sparsity, variance entropy and its threshold for random weights; their work
on robust models: orthogonality. Cut-offs that the papers do not give are ours and are said to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...models.errors import UserError

Verdict = Literal["healthy", "redundant", "degenerate", "random-like", "not judged"]
FEWEST = 10
"""Fewer kernels than this can't vary in all nine directions: no verdict (ours)."""
FEW = 64
"""Below so many kernels the threshold lies low, and a trained layer can pass it (see docs/filters.md)."""
MASKED = 0.1
"""With more zeros than this inside the kernels that are left, a layer is not called random-like: scattered zeros raise H (ours)."""
LARGEST_CUT = 0.9


@dataclass(frozen=True)
class Limits:
    """Where a layer stops being healthy; both are our choice, the paper gives no number.

    `low_entropy`: redundant below this H/T_H; `mostly_sparse`: degenerate above this share of sparse kernels.
    """

    low_entropy: float = 0.5
    mostly_sparse: float = 0.5

    def __post_init__(self) -> None:
        """None. Raises UserError for a limit that is no share."""
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value} must be in 0 … 1", hint="0.5 is the default")


@dataclass(frozen=True)
class FilterRow:
    """One layer. A kernel is the spatial part of one (input, output) pair, a filter all kernels of one output.

    `sparsity`: share of kernels with every |w| < max|w|/100; `sparse_filters`: the same of whole filters; `zeros`: share of weights that
    are 0; `entropy`: H in 0 … log10(kernel size), None for single weights; `threshold`: T_H, for 3×3 alone; `ratio`: H/T_H, for other
    sizes H/log10(size); `clean_entropy`: H without sparse kernels; `orthogonality`: 0 … 1, None for one filter; `cut`: the share of
    filters that could go, a heuristic (see `suggested_cut`).
    """

    path: str
    kind: str
    kernel: tuple[int, ...]
    kernels: int
    filters: int
    params: int
    sparsity: float
    sparse_filters: float
    zeros: float
    entropy: float | None
    threshold: float | None
    ratio: float | None
    clean_entropy: float | None
    orthogonality: float | None
    verdict: Verdict
    reason: str
    cut: float


def random_threshold(kernels: int) -> float:
    """T_H(n): the least variance entropy (base 10) that n random 3×3 kernels have. Source: CNN Filter DB, fit of the released code."""
    return 1.2618047 / (1 + math.exp(-0.88767525 * (math.log2(kernels) - 2.30436435))) - 0.31050834


def variance_entropy(kernels: np.ndarray) -> float:
    """H = −Σ p_i·log10 p_i of the shares p_i of the principal components' variances, of kernels (n, k); 0 when nothing varies."""
    centred = kernels - kernels.mean(0)
    variances = np.linalg.eigvalsh(centred.T @ centred)
    # the mean of n equal numbers is off by rounding: what remains of equal kernels is no variance
    floor = len(kernels) * (np.finfo(np.float64).eps * np.abs(kernels).max(initial=0.0)) ** 2 * kernels.shape[1]
    shares = np.clip(variances, 0, None)
    if shares.sum() <= floor:
        return 0.0
    shares = shares[shares > 0] / shares.sum()
    return max(0.0, float(-(shares * np.log10(shares)).sum()))


def orthogonality(filters: Tensor) -> float | None:
    """O = 1 − Σ_{i≠j} |⟨ŵ_i, ŵ_j⟩| / (n·(n−1)) of filters (n, d) scaled to length 1 (zeros stay 0); None for fewer than two."""
    n = len(filters)
    if n < 2:
        return None
    unit = nn.functional.normalize(filters.float(), dim=1)
    total = 0.0
    for start in range(0, n, 1024):  # ⟨ŵ_i, ŵ_j⟩ = ⟨ŵ_j, ŵ_i⟩: pairs i < j, twice
        products = (unit[start : start + 1024] @ unit[start:].T).abs()
        total += 2 * float(products.triu(1).sum(dtype=torch.float64))
    return min(1.0, max(0.0, 1 - total / (n * (n - 1))))


def kernels_of(layer: _ConvNd | nn.Linear) -> Tensor:
    """The weights of a convolution or linear layer as (filters, inputs per group, kernel size)."""
    weight = layer.weight.detach()
    if not isinstance(layer, _ConvNd):
        return weight.unsqueeze(-1)
    if layer.transposed:  # (inputs, outputs per group, …)
        parts = weight.flatten(2).unflatten(0, (layer.groups, -1))
        return parts.transpose(1, 2).flatten(0, 1)
    return weight.flatten(2)


def filter_layers(module: nn.Module) -> Iterator[tuple[str, _ConvNd | nn.Linear]]:
    """Every convolution and linear layer with its path, in the network's order; a layer used twice comes once."""
    for path, part in module.named_modules():
        if isinstance(part, (_ConvNd, nn.Linear)) and part.weight.numel():
            yield path, part


def filter_quality(module: nn.Module, limits: Limits | None = None) -> tuple[FilterRow, ...]:
    """A row for every convolution and linear layer. Raises UserError for NaN or infinite weights, and where there is no such layer."""
    layers = list(filter_layers(module))
    if not layers:
        raise UserError("the network has no convolution and no linear layer", hint="filters are looked at in these alone")
    broken = [path for path, layer in layers if not torch.isfinite(layer.weight).all()]
    if broken:
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise UserError(
            f"weights with NaN or infinity: {', '.join(broken[:10])}{more}", hint="train with a lower lr or gradient clipping"
        )
    return tuple(_row(path, layer, limits or Limits()) for path, layer in layers)


def _row(path: str, layer: _ConvNd | nn.Linear, limits: Limits) -> FilterRow:
    weights = kernels_of(layer).cpu()
    filters, inputs, size = weights.shape
    largest = weights.abs().amax(2)  # of every kernel
    # a layer of zeros has no scale: all of its kernels are sparse
    sparse = largest < largest.max() / 100 if largest.max() > 0 else torch.ones_like(largest, dtype=torch.bool)
    n, holes = filters * inputs, 0.0
    entropy = clean = threshold = ratio = None
    shape = tuple(layer.kernel_size) if isinstance(layer, _ConvNd) else ()
    if size > 1:
        kernels = weights.reshape(-1, size).double().numpy()
        full = kernels[~sparse.reshape(-1).numpy()]
        entropy, clean = variance_entropy(kernels), variance_entropy(full) if len(full) else 0.0
        threshold = random_threshold(n) if shape == (3, 3) and n >= FEWEST else None
        ratio = entropy / (threshold if threshold is not None else math.log10(size)) if shape != (3, 3) or threshold else None
        left = kernels[np.any(kernels != 0, axis=1)]
        holes = float((left == 0).mean()) if left.size else 0.0
    share, dead = _share(sparse), _share(sparse.all(1))
    verdict, reason = _judge(limits, share=share, holes=holes, entropy=entropy, threshold=threshold, n=n, shape=shape)
    return FilterRow(
        path=path,
        kind=type(layer).__name__,
        kernel=shape,
        kernels=n,
        filters=filters,
        params=weights.numel(),
        sparsity=share,
        sparse_filters=dead,
        zeros=_share(weights == 0),
        entropy=entropy,
        threshold=threshold,
        ratio=ratio,
        clean_entropy=clean,
        orthogonality=orthogonality(weights.reshape(filters, inputs * size)),
        verdict=verdict,
        reason=reason,
        cut=suggested_cut(verdict, dead, entropy, threshold) if isinstance(layer, _ConvNd) else 0.0,
    )


def _share(mask: Tensor) -> float:
    return int(mask.count_nonzero()) / mask.numel()


def suggested_cut(verdict: Verdict, sparse_filters: float, entropy: float | None, threshold: float | None) -> float:
    """The share of a layer's filters that could go, at most 0.9: a heuristic of ours, to be checked by pruning and measuring.

    Sparse filters can go. Kernels of entropy H vary in about 10^H directions, random ones in 10^T_H: a redundant layer could lose
    1 − 10^(H − T_H). A random-like layer is never cut: train it longer instead.
    """
    if verdict == "random-like":
        return 0.0
    spare = 1 - 10 ** (entropy - threshold) if verdict == "redundant" and entropy is not None and threshold else 0.0
    return min(LARGEST_CUT, max(sparse_filters, spare))


def _judge(
    limits: Limits,
    *,
    share: float,
    holes: float,
    entropy: float | None,
    threshold: float | None,
    n: int,
    shape: tuple[int, ...],
) -> tuple[Verdict, str]:
    """The verdict on a layer, and why in words."""
    above = entropy is not None and threshold is not None and entropy > threshold
    advice = "train longer" if n >= FEW else f"or trained, {n} kernels are too few to tell"
    found: tuple[Verdict, str] = ("healthy", "its kernels differ, and not as random ones do")
    if above and holes <= MASKED:
        found = "random-like", f"H {entropy:.3f} is above {threshold:.3f}, as of untrained weights: {advice}"
    elif share > limits.mostly_sparse:
        what = "kernels" if entropy is not None else "weights"
        found = "degenerate", f"{share:.0%} of its {what} are below a hundredth of the largest weight"
    elif entropy is None:
        found = "not judged", "kernels of one weight have no entropy"
    elif shape != (3, 3):
        found = "not judged", f"the threshold is published for 3×3 kernels alone, these are {'×'.join(map(str, shape))}"
    elif threshold is None:
        found = "not judged", f"{n} kernels are too few for a verdict (below {FEWEST})"
    elif above:
        found = "not judged", f"{holes:.0%} zeros inside the kernels that are left make H as high as that of untrained weights"
    elif entropy < limits.low_entropy * threshold:
        found = "redundant", f"its kernels vary in about {10**entropy:.1f} of 9 directions"
    return found
