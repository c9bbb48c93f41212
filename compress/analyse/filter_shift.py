"""How far the 3×3 kernels of two networks lie apart: the divergence of their distributions along common principal components.

Source: Gavrikov and Keuper, "CNN Filter DB" (CVPR 2022), the shift D. What chance alone gives is ours: the figure needs it, since few
kernels leave many of the 70 bins empty and D large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ...models.errors import UserError
from .filters import filter_layers

BINS = 70
SPLITS = 30
"""Random splits of the common pool behind `chance`."""
Kernels = dict[str, np.ndarray]
"""Path of a layer → its kernels (n, 9), in the network's order where that is known."""


@dataclass(frozen=True)
class Shift:
    """D between two sets of kernels, of `kernels` (first, second); `chance`: D of random splits of their pool in the same sizes."""

    name: str
    divergence: float
    chance: float
    kernels: tuple[int, int]


@dataclass(frozen=True)
class FilterShift:
    """The shift as a whole, by layers whose names match, and by tenths of the depth; `note`: why a part is missing."""

    overall: Shift
    layers: tuple[Shift, ...]
    depths: tuple[Shift, ...]
    explained: tuple[float, ...]
    note: str


def network_kernels(module: nn.Module) -> Kernels:
    """The 3×3 kernels of a network's two-dimensional convolutions, in its order."""
    return {
        path: _flat(layer.weight)
        for path, layer in filter_layers(module)
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and tuple(layer.kernel_size) == (3, 3)
    }


def state_kernels(state: Mapping[str, Tensor]) -> Kernels:
    """The 3×3 kernels among a checkpoint's tensors: those of shape (…, …, 3, 3), in the file's order."""
    return {name.removesuffix(".weight"): _flat(t) for name, t in state.items() if t.ndim == 4 and t.shape[2:] == (3, 3)}


def _flat(weight: Tensor) -> np.ndarray:
    return weight.detach().reshape(-1, 9).double().cpu().numpy()


def filter_shift(first: Kernels, second: Kernels, *, ordered: bool = True, seed: int = 0) -> FilterShift:
    """The shift from `first` to `second`; `ordered`: whether `second` stands in its network's order, which depth needs.

    Layers and depths are seen in the components and bins of the whole pool, so that their figures compare.
    Raises UserError when either has no 3×3 kernel, and for NaN or infinite weights.
    """
    for which, found in (("first", first), ("second", second)):
        if not found:
            raise UserError(f"the {which} network has no 3×3 kernel", hint="the shift is defined for 3×3 kernels alone")
        if broken := [path for path, kernels in found.items() if not np.isfinite(kernels).all()]:
            raise UserError(
                f"weights with NaN or infinity in the {which} network: {', '.join(broken[:10])}", hint="use a sound checkpoint"
            )
    binned, explained = _bins(scaled(np.concatenate([*first.values(), *second.values()])))
    a, b = _split(binned, first, second)
    rng = np.random.default_rng(seed)

    def shift(name: str, one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> Shift:
        return _shift(name, np.concatenate(one), np.concatenate(two), explained, rng)

    shared = [path for path in a if path in b]
    notes = [] if shared else ["no layer's name is in both networks"]
    depths = []
    if ordered or (shared and set(a) == set(b)):
        tenths = _tenths(list(a)), _tenths(list(a) if set(a) == set(b) else list(b))
        for k in range(10):
            mine, theirs = ([found[p] for p, t in tenth.items() if t == k] for found, tenth in zip((a, b), tenths, strict=True))
            if mine and theirs:
                depths.append(shift(f"{10 * k}–{10 * k + 10} %", mine, theirs))
    else:
        notes.append("the file keeps no order of layers: no shift by depth (give a Bundle)")
    return FilterShift(
        overall=shift("all", list(a.values()), list(b.values())),
        layers=tuple(shift(path, [a[path]], [b[path]]) for path in shared),
        depths=tuple(depths),
        explained=tuple(float(share) for share in explained),
        note="; ".join(notes),
    )


def scaled(kernels: np.ndarray) -> np.ndarray:
    """Kernels (n, 9), each divided by its own largest |w|; kernels of zeros stay."""
    largest = np.abs(kernels).max(1, keepdims=True)
    return np.divide(kernels, largest, out=np.zeros_like(kernels), where=largest > 0)


def divergence(first: np.ndarray, second: np.ndarray, explained: np.ndarray) -> float:
    """D = Σ_i a_i·(KL(p_i‖q_i) + KL(q_i‖p_i)) in nats, of counts (9, bins); empty bins get float32's eps; exactly 0 for equal shares."""
    p, q = _shares(first), _shares(second)
    return float(explained @ ((p - q) * np.log(p / q)).sum(1))  # p·ln(p/q) + q·ln(q/p)


def _shares(counts: np.ndarray) -> np.ndarray:
    shares = counts / counts.sum(1, keepdims=True)
    shares = np.where(shares == 0, np.finfo(np.float32).eps, shares)
    return shares / shares.sum(1, keepdims=True)


def _bins(pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of every kernel's 9 coefficients (n, 9) over the range common to all, and the variance that each component explains."""
    columns = np.ascontiguousarray((pool - pool.mean(0)).T)  # (9, n)
    variances, axes = np.linalg.eigh(columns @ columns.T)
    variances, axes = np.clip(variances[::-1], 0, None), axes[:, ::-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(9)])  # eigenvectors have no sign of their own
    # term by term: a matrix product may round equal kernels differently by their place, and D of a set with itself be above 0
    coefficients = np.stack([sum((axis[k] * columns[k] for k in range(1, 9)), axis[0] * columns[0]) for axis in axes.T])
    low, high = coefficients.min(), coefficients.max()
    width = (high - low) or 1.0
    binned = np.minimum(((coefficients - low) / width * BINS).astype(np.uint8), BINS - 1)
    total = variances.sum()
    return binned.T, variances / total if total > 0 else np.full(9, 1 / 9)


def _split(binned: np.ndarray, first: Kernels, second: Kernels) -> tuple[Kernels, Kernels]:
    edges = np.cumsum([len(k) for k in (*first.values(), *second.values())])[:-1]
    parts = np.split(binned, edges)
    return dict(zip(first, parts, strict=False)), dict(zip(second, parts[len(first) :], strict=True))


def _tenths(paths: Sequence[str]) -> dict[str, int]:
    """Which tenth of the depth a layer lies in: its place among the 3×3 convolutions, from the first (0) to the last (1)."""
    return {path: min(9, 10 * at // max(1, len(paths) - 1)) for at, path in enumerate(paths)}


def _counts(binned: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(column, minlength=BINS) for column in binned.T])


def _shift(name: str, one: np.ndarray, two: np.ndarray, explained: np.ndarray, rng: np.random.Generator) -> Shift:
    mine, theirs = _counts(one), _counts(two)
    pool = mine + theirs
    by_chance = []
    for _ in range(SPLITS):  # component by component: D adds them up, so its mean is that of splitting whole kernels
        drawn = np.stack([rng.multivariate_hypergeometric(row, len(one), method="marginals") for row in pool])
        by_chance.append(divergence(drawn, pool - drawn, explained))
    return Shift(name, divergence(mine, theirs, explained), float(np.mean(by_chance)), (len(one), len(two)))
