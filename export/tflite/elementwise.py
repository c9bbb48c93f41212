"""Bringing the operands of an element-wise operator into one layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .convert import signature
from .ir import FREE, Tensor
from .layout import NHWC, Perm, Scramble, Value, identity
from .moves import reshape, transpose
from .registry import UnsupportedError

if TYPE_CHECKING:
    from .convert import Converter

_KERNEL_RANK = 4
"""Broadcasting kernels of every LiteRT take each operator up to this rank, so that higher ones are folded into it if possible."""

_HIGHEST_RANK = 6
"""What today's kernels take (2.3, each operator tried)."""


def padded(probe: np.ndarray, rank: int) -> np.ndarray:
    """A shape (P, R) with leading ones up to `rank`."""
    return np.concatenate([np.ones((len(probe), rank - probe.shape[1]), dtype=np.int64), probe], axis=1)


def spread(ctx: Converter, names: Sequence[str], build: Callable[[list[Tensor], tuple[int, ...]], Tensor]) -> Value:
    """The broadcast result of `build(tensors, stored shape)` over these values, in the layout of the largest operand."""
    rank = max(ctx.rank(name) for name in names)
    probes = [padded(ctx.probe(name), rank) for name in names]
    perm = _layout(ctx, names, probes, rank)
    scramble = _common_scramble(ctx, names, probes, rank)
    tensors = [_operand(ctx, name, probe, perm, scramble) for name, probe in zip(names, probes, strict=True)]
    shape = broadcast([tensor.shape for tensor in tensors], rank)
    mixed = rank > _KERNEL_RANK and len({tensor.shape for tensor in tensors}) > 1
    if mixed and shape.count(FREE) < 2:
        tensor = _folded(ctx, tensors, shape, build)
    else:
        if mixed and rank > _HIGHEST_RANK:
            raise UnsupportedError(f"it broadcasts over {rank} dimensions; LiteRT takes {_HIGHEST_RANK}")
        tensor = build(tensors, shape)
    return Value(tensor, perm, scramble)


def broadcast(shapes: Sequence[Sequence[int]], rank: int) -> tuple[int, ...]:
    """The joint shape: 1 gives way to anything, a free dimension to a fixed one above 1."""
    columns = zip(*([1] * (rank - len(shape)) + list(shape) for shape in shapes), strict=True)
    return tuple(max((d for d in column if d != 1), default=1) for column in columns)


def _layout(ctx: Converter, names: Sequence[str], probes: Sequence[np.ndarray], rank: int) -> Perm:
    """The axis order of the largest computed operand; of equals, NHWC for images and ONNX's own order for the rest."""
    best: tuple[float, bool] = (-1.0, False)
    chosen = identity(rank)
    for name, probe in zip(names, probes, strict=True):
        if ctx.const(name) is not None:
            continue
        perm = lifted(ctx.raw(name).perm, rank)
        rating = (float(np.prod(probe[0].astype(float))), perm == (NHWC if rank == 4 else identity(rank)))
        if rating > best:
            best, chosen = rating, perm
    return chosen


def lifted(perm: Perm, rank: int) -> Perm:
    """A permutation with leading new axes, which come first in storage too."""
    extra = rank - len(perm)
    return (*range(extra), *(axis + extra for axis in perm))


def _common_scramble(ctx: Converter, names: Sequence[str], probes: Sequence[np.ndarray], rank: int) -> dict[int, Scramble]:
    """The scrambles that all operands can share: a constant follows, a size-1 axis doesn't care, others must agree."""
    found: dict[int, list[Scramble | None]] = {}
    for name, probe in zip(names, probes, strict=True):
        if ctx.const(name) is not None:
            continue
        value = ctx.raw(name)
        for axis in range(rank):
            if not np.all(probe[:, axis] == 1):
                found.setdefault(axis, []).append(value.scramble.get(axis - (rank - value.rank)))
    return {axis: held[0] for axis, held in found.items() if held[0] is not None and all(s == held[0] for s in held)}


def _operand(ctx: Converter, name: str, probe: np.ndarray, perm: Perm, scramble: dict[int, Scramble]) -> Tensor:
    """A value's tensor, ready to broadcast against the others: stored in `perm`, leading size-1 axes left out."""
    rank = len(perm)
    array = ctx.const(name)
    if array is not None:
        whole = np.asarray(array).reshape([1] * (rank - np.ndim(array)) + list(np.shape(array)))
        for axis, order in scramble.items():
            if whole.shape[axis] != 1:
                whole = np.take(whole, order.order, axis=axis)
        whole = whole.transpose(perm)
        while whole.ndim and whole.shape[0] == 1:
            whole = whole[0]
        return ctx.constant(whole)
    extra = rank - ctx.rank(name)
    value = ctx.unscrambled(name, keep=[axis - extra for axis in scramble if axis >= extra])
    mine, tensor = lifted(value.perm, rank), value.tensor
    if mine == perm:
        return tensor
    key = (name, perm, tuple(value.scramble))
    solid = [axis for axis in perm if not np.all(probe[:, axis] == 1)]
    if solid != [axis for axis in mine if axis in solid]:
        turned = [value.perm.index(axis - extra) for axis in perm if axis >= extra]
        tensor = ctx.cached(("turned", *key), lambda: transpose(ctx, value.tensor, turned))
        if not extra:
            return tensor
    target = list(signature(probe[:, perm]))
    while len(target) > 1 and target[0] == 1:
        target.pop(0)
    return ctx.cached(("operand", *key), lambda: reshape(ctx, tensor, target))


def _folded(
    ctx: Converter,
    tensors: Sequence[Tensor],
    shape: tuple[int, ...],
    build: Callable[[list[Tensor], tuple[int, ...]], Tensor],
) -> Tensor:
    """The result with neighbouring axes merged where no operand distinguishes them, since kernels stop at rank 4."""
    rank = len(shape)
    rows = [[1] * (rank - tensor.rank) + list(tensor.shape) for tensor in tensors]
    groups: list[list[int]] = []
    for axis in (axis for axis in range(rank) if shape[axis] != 1):
        pattern = [row[axis] == 1 for row in rows]
        if groups and pattern == [row[groups[-1][-1]] == 1 for row in rows]:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(groups) > _HIGHEST_RANK:
        raise UnsupportedError(f"it broadcasts over {len(groups)} independent dimensions; LiteRT takes {_HIGHEST_RANK}")
    merged = [
        reshape(ctx, t, [_product([row[a] for a in group]) for group in groups]) for t, row in zip(tensors, rows, strict=True)
    ]
    joint = tuple(_product([shape[a] for a in group]) for group in groups)
    return reshape(ctx, build(merged, joint), shape)


def _product(dims: Sequence[int]) -> int:
    return FREE if FREE in dims else int(np.prod(dims))
