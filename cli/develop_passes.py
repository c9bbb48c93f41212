"""Networks with means and maxima over the whole picture, developed in tiles all the same: those are taken first, in passes.

A pass runs tiles as far as the first such pool whose value is not known yet and gathers its input over the picture, tile by tile;
with all of them known, the network looks no further than its convolutions do. Pools are found as torch runs them, whatever the
module is: mean and maximum over both axes of a picture, and adaptive average pooling to one pixel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .develop_tiles import Call

_AVERAGES = (torch.ops.aten._adaptive_avg_pool2d.default, torch.ops.aten.adaptive_avg_pool2d.default)


@dataclass(frozen=True)
class Kept:
    """The part of a tile that counts: those of all tiles make up the picture. `rows` and `columns`: first and last within a tile
    of `size` (h, w)."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    size: tuple[int, int]

    def of(self, values: Tensor) -> Tensor:
        """The same part of a map (1, C, h', w') inside the network. Raises ValueError when it is no whole number of its pixels."""
        parts = []
        for part, own, length in zip((self.rows, self.columns), values.shape[2:], self.size, strict=True):
            first, last = (edge * own for edge in part)
            if first % length or last % length:
                raise ValueError(f"pixels {part[0]} … {part[1]} of {length} are no whole pixels of a map of {own}")
            parts.append(slice(first // length, last // length))
        return values[:, :, parts[0], parts[1]]


@dataclass(frozen=True)
class Pooled:
    """A pool over the part of the picture seen so far: the sum (float64) or maximum (1, C), over `count` pixels of its map; `like` is
    a value as the network itself makes it."""

    kind: str
    value: Tensor
    count: int
    like: Tensor

    def __add__(self, other: Pooled) -> Pooled:
        value = self.value + other.value if self.kind == "mean" else torch.maximum(self.value, other.value)
        return Pooled(self.kind, value, self.count + other.count, self.like)

    def closed(self) -> Tensor:
        """The pool's value over all that was seen, in the network's own shape and type."""
        value = self.value / self.count if self.kind == "mean" else self.value
        return value.to(self.like.dtype).reshape(self.like.shape)


class Pools(TorchDispatchMode):
    """While it is on, the first pools have `known` values in place of the tile's own. The next one is gathered (`gather` names what
    counts of the tile), with those of the same map, and ends the run with `EnoughError`; without `gather` all others are noted."""

    def __init__(self, known: list[Tensor], *, gather: Kept | None = None) -> None:
        super().__init__()
        self.known, self.gather = known, gather
        self.seen = 0
        self.found: list[Pooled] = []
        self._map: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _pool(func, args)
        if kind is None:
            if self._map is not None:
                raise EnoughError
            return func(*args, **(kwargs or {}))
        self.seen += 1
        if self.seen <= len(self.known):
            return self.known[self.seen - 1]
        own = func(*args, **(kwargs or {}))
        if self.gather is None:
            self.found.append(Pooled(kind, own, 1, own))
            return own
        if self._map is not None and args[0] is not self._map:
            raise EnoughError
        self._map = args[0]
        part = self.gather.of(args[0])
        value = part.sum((2, 3), dtype=torch.float64) if kind == "mean" else part.amax((2, 3))
        self.found.append(Pooled(kind, value, part.shape[2] * part.shape[3], own))
        return own


class EnoughError(Exception):
    """A tile has been run as far as this pass needs: no failure, but the way out of a module that is running."""


def _pool(func: Any, args: Any) -> str | None:
    """ "mean" or "amax", when an operator takes it over both axes of a map (N, C, h, w); None for all others."""
    if not args or not isinstance(args[0], Tensor) or args[0].ndim != 4:
        return None
    if func in _AVERAGES:
        return "mean" if list(args[1]) in ([1, 1], [1]) else None
    kind = {torch.ops.aten.mean.dim: "mean", torch.ops.aten.amax.default: "amax"}.get(func)
    return kind if kind and len(args) > 1 and {axis % 4 for axis in args[1] or ()} == {2, 3} else None


def typical_pools(module: nn.Module, values: np.ndarray) -> list[Tensor]:
    """The values of all pools for these inputs (1, C, h, w), in the order that they are computed in; [] for a network without."""
    with torch.inference_mode(), Pools([]) as pools:
        module(torch.from_numpy(values))
    return [pool.value for pool in pools.found]


def with_pools(module: nn.Module, known: list[Tensor]) -> Call:
    """The network with all its pools' values fixed: what it answers no longer depends on the whole picture."""

    def call(values: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), Pools(known):
            return np.asarray(module(torch.from_numpy(np.ascontiguousarray(values))).numpy(), np.float32)

    return call


def gathered_pools(
    module: nn.Module,
    count: int,
    tiles: Callable[[], Iterable[tuple[slice, slice, Kept]]],
    inputs: Callable[[slice, slice], np.ndarray],
) -> list[Tensor]:
    """The values of the network's `count` pools over a whole picture. `tiles()` gives (rows, columns, Kept) anew for every pass,
    `inputs` the network's input for a region."""
    known: list[Tensor] = []
    while len(known) < count:
        sums: list[Pooled] = []
        for rows, columns, kept in tiles():
            pools = Pools(known, gather=kept)
            with contextlib.suppress(EnoughError), torch.inference_mode(), pools:
                module(torch.from_numpy(np.ascontiguousarray(inputs(rows, columns))))
            sums = [a + b for a, b in zip(sums, pools.found, strict=True)] if sums else pools.found
        known += [pool.closed() for pool in sums]
    return known
