"""How an ONNX value lies in its TFLite tensor: a lazy permutation of axes, and of the entries of merged axes.

A feature map is (N, C, H, W) to ONNX and stored as (N, H, W, C): `perm = (0, 2, 3, 1)`, stored axis i holds logical axis
`perm[i]`. An ONNX `Transpose` only changes `perm`. Flattening (N, C, H, W) to (N, C·H·W) leaves the stored entries in the
order H, W, C: a `Scramble` on axis 1, which the next layer's weights absorb. Neither costs an operator unless something
reads the value in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from .ir import Tensor

NHWC = (0, 2, 3, 1)

Perm = tuple[int, ...]


@dataclass(frozen=True)
class Scramble:
    """The order of a merged axis: logically sizes `dims` in row-major order, stored with those dimensions permuted by `perm`."""

    dims: tuple[int, ...]
    perm: Perm

    @property
    def order(self) -> np.ndarray:
        """For every stored position, the logical index that lies there."""
        return np.arange(int(np.prod(self.dims))).reshape(self.dims).transpose(self.perm).ravel()


_NONE: Mapping[int, Scramble] = MappingProxyType({})


@dataclass(frozen=True)
class Value:
    """A TFLite tensor and how the logical ONNX value lies in it; `scramble` is keyed by logical axis."""

    tensor: Tensor
    perm: Perm
    scramble: Mapping[int, Scramble] = field(default_factory=lambda: _NONE)

    @property
    def rank(self) -> int:
        """The logical rank."""
        return len(self.perm)

    def stored(self, axis: int) -> int:
        """The stored position of a logical axis (negative axes count from the end)."""
        return self.perm.index(axis % self.rank if self.rank else 0)


def identity(rank: int) -> Perm:
    """The permutation that changes nothing."""
    return tuple(range(rank))


def home(rank: int) -> Perm:
    """The order in which a feature map of this rank is stored: channels last."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def regroup(source: np.ndarray, target: np.ndarray) -> list[tuple[list[int], list[int]]] | None:
    """The finest pairing of source axes with target axes of equal product, both in order; size-1 axes are left out.

    `source` and `target` hold one row of sizes per probe: (P, R) and (P, S). None when the products never meet.
    """
    left = [axis for axis in range(source.shape[1]) if not np.all(source[:, axis] == 1)]
    right = [axis for axis in range(target.shape[1]) if not np.all(target[:, axis] == 1)]
    groups: list[tuple[list[int], list[int]]] = []
    while left or right:
        if not (left and right):
            return None
        a, b = [left.pop(0)], [right.pop(0)]
        size_a, size_b = source[:, a[0]].copy(), target[:, b[0]].copy()
        while not np.array_equal(size_a, size_b):
            if left and (np.all(size_a <= size_b) or not right):
                a.append(left.pop(0))
                size_a = size_a * source[:, a[-1]]
            elif right:
                b.append(right.pop(0))
                size_b = size_b * target[:, b[-1]]
            else:
                return None
        groups.append((a, b))
    return groups


def refine(source: np.ndarray, target: np.ndarray) -> list[list[np.ndarray]] | None:
    """Every source axis (P, R) split into factors such that each target axis is a run of them; None when sizes don't divide.

    (L, N, 16) → (L, 2N, 8) splits the 16 into 2 and 8: the target is (L), (N, 2), (8).
    """
    factors: list[list[np.ndarray]] = [[] for _ in range(source.shape[1])]
    groups = regroup(source, target)
    if groups is None:
        return None
    for axes, news in groups:
        left, right = [source[:, a] for a in axes], [target[:, n] for n in news]
        i = j = 0
        while i < len(axes) and j < len(news):
            a, b = left[i], right[j]
            if np.all(a % b == 0):
                factors[axes[i]].append(b)
                left[i], j = a // b, j + 1
                i += bool(np.all(left[i] == 1))
            elif np.all(b % a == 0):
                factors[axes[i]].append(a)
                right[j], i = b // a, i + 1
            else:
                return None
    return [found or [source[:, axis]] for axis, found in enumerate(factors)]


def place(groups_in_order: Sequence[Sequence[int]], target: np.ndarray) -> Perm:
    """A stored order of the target's axes whose groups come in this order, size-1 axes wherever they hurt least.

    Rank 4 becomes NHWC, and any rank stays as it is, when only size-1 axes have to move for that.
    """
    rank = target.shape[1]
    wanted = [axis for group in groups_in_order for axis in group]
    for perm in (home(rank) if rank == 4 else identity(rank), identity(rank), home(rank)):
        if [axis for axis in perm if axis in wanted] == wanted:
            return perm
    placed = list(wanted)
    for axis in range(rank):
        if axis not in placed:
            placed.insert(placed.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(placed)


@dataclass(frozen=True)
class Regrouped:
    """What a reshape does to a stored order: the new order, and the merged axis that is left scrambled, if any."""

    perm: Perm
    scramble: Mapping[int, Scramble]


def reshaped(perm: Perm, source: np.ndarray, target: np.ndarray) -> Regrouped | None:
    """The layout after a reshape that only relabels the stored data; None when the data has to move."""
    groups = regroup(source, target)
    if groups is None:
        return None
    order = [axis for axis in perm if not np.all(source[:, axis] == 1)]
    scramble: dict[int, Scramble] = {}
    placed: list[tuple[int, list[int]]] = []
    for axes, news in groups:
        positions = [order.index(axis) for axis in axes]
        first = min(positions)
        if sorted(positions) != list(range(first, first + len(axes))):
            return None
        if positions != sorted(positions):
            sizes = source[:, axes]
            if len(news) != 1 or not np.all(sizes == sizes[0]):
                return None
            inside = tuple(int(i) for i in np.argsort(positions))
            scramble[news[0]] = Scramble(tuple(int(size) for size in sizes[0]), inside)
        placed.append((first, news))
    placed.sort()
    return Regrouped(place([news for _, news in placed], target), scramble)
