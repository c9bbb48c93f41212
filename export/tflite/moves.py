"""Moving data between layouts: reshapes with free dimensions, transposes, and putting scrambled axes back in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .convert import INT
from .ir import FREE, Tensor
from .layout import Perm, Scramble, Value
from .registry import UnsupportedError

if TYPE_CHECKING:
    from .convert import Converter


def reshape(ctx: Converter, tensor: Tensor, shape: Sequence[int], *, runtime: Tensor | None = None) -> Tensor:
    """The tensor in another shape of equal size. With two or more free dimensions, `runtime` holds the shape.

    Raises UnsupportedError when the shape can't be said.
    """
    shape = tuple(int(d) for d in shape)
    if shape == tensor.shape and shape.count(FREE) < 2:
        return tensor
    if shape.count(FREE) >= 2:
        if runtime is None:
            return _stretch(ctx, tensor, shape)
        return ctx.emit("RESHAPE", [tensor, runtime], shape)
    target = ctx.constant(np.array(shape, dtype=np.int32))
    return ctx.emit("RESHAPE", [tensor, target], shape, options={"newShape": list(shape)})


def _stretch(ctx: Converter, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A reshape that only adds or drops size-1 dimensions, which needs no shape at run time."""
    if shape == tensor.shape:
        return tensor
    if [d for d in shape if d != 1] != [d for d in tensor.shape if d != 1]:
        raise UnsupportedError(f"it reshapes {tensor.shape} to {shape} with more than one free dimension")
    out = tensor
    ones = [axis for axis, d in enumerate(tensor.shape) if d == 1]
    if ones:
        kept = [d for d in tensor.shape if d != 1]
        out = ctx.emit("SQUEEZE", [out], kept, options={"squeezeDims": ones})
    for axis, d in enumerate(shape):
        if d == 1:
            grown = [*out.shape[:axis], 1, *out.shape[axis:]]
            out = ctx.emit("EXPAND_DIMS", [out, ctx.constant(np.array(axis, dtype=np.int32))], grown)
    return out


def transpose(ctx: Converter, tensor: Tensor, order: Sequence[int]) -> Tensor:
    """The tensor with stored axis `order[i]` moved to i: a RESHAPE when only size-1 axes move, else a TRANSPOSE."""
    order = [int(axis) for axis in order]
    shape = tuple(tensor.shape[axis] for axis in order)
    if order == list(range(len(order))):
        return tensor
    solid = [axis for axis in order if tensor.shape[axis] != 1]
    if solid == sorted(solid):
        return reshape(ctx, tensor, shape)
    if len(order) > 6:
        raise UnsupportedError(f"it transposes {len(order)} dimensions; LiteRT moves 6 at most")
    return ctx.emit("TRANSPOSE", [tensor, ctx.constant(np.array(order, dtype=np.int32))], shape)


def permute(ctx: Converter, value: Value, perm: Perm) -> Tensor:
    """The tensor of an unscrambled value, stored in the axis order `perm`."""
    return transpose(ctx, value.tensor, [value.perm.index(axis) for axis in perm])


def unscramble(ctx: Converter, value: Value, axes: Sequence[int]) -> Tensor:
    """The value's tensor, axis order kept, with the entries of these logical axes in logical order."""
    tensor = value.tensor
    for axis in axes:
        tensor = _unscramble_axis(ctx, tensor, value.stored(axis), value.scramble[axis])
    return tensor


def _unscramble_axis(ctx: Converter, tensor: Tensor, at: int, scramble: Scramble) -> Tensor:
    others = [d for i, d in enumerate(tensor.shape) if i != at]
    rank = len(scramble.dims)
    if others.count(FREE) > 1 or len(others) + rank > 6:
        picks = np.argsort(scramble.order).astype(np.int32)
        return ctx.emit("GATHER", [tensor, ctx.constant(picks)], tensor.shape, options={"axis": at})
    inside = [scramble.dims[i] for i in scramble.perm]
    split = reshape(ctx, tensor, [*tensor.shape[:at], *inside, *tensor.shape[at + 1 :]])
    back = [at + scramble.perm.index(i) for i in range(rank)]
    moved = transpose(ctx, split, [*range(at), *back, *range(at + rank, split.rank)])
    return reshape(ctx, moved, tensor.shape)


def shape_of(ctx: Converter, tensor: Tensor) -> Tensor:
    """The tensor's own shape at run time, int32 (rank,)."""
    return ctx.cached(("shape", tensor), lambda: ctx.emit("SHAPE", [tensor], (tensor.rank,), INT, {"outType": _INT32_TYPE}))


def own(ctx: Converter, tensor: Tensor) -> Tensor:
    """A tensor that may go out of the program: the same one, or a copy of an input, a constant, or what goes out already."""
    if tensor.data is None and tensor not in (*ctx.program.inputs.values(), *ctx.program.outputs.values()):
        return tensor
    if tensor.dtype == np.bool_:
        return ctx.emit("LOGICAL_OR", [tensor, tensor], tensor.shape)
    if not tensor.rank:
        return ctx.emit("ABS", [tensor], ())
    return ctx.emit("PAD", [tensor, ctx.constant(np.zeros((tensor.rank, 2), dtype=np.int32))], tensor.shape)


_INT32_TYPE = 2
"""`TensorType.INT32` in the schema."""


def shape_vector(ctx: Converter, parts: Sequence[int | tuple[Tensor, int, int]]) -> Tensor:
    """An int32 vector built at run time from constants and (tensor, stored axis, factor) = factor · that dimension."""
    sources = list(dict.fromkeys(part[0] for part in parts if not isinstance(part, int)))
    fixed = [part for part in parts if isinstance(part, int)]
    if not sources:
        return ctx.constant(np.array(fixed, dtype=np.int32))
    offsets, pool = {}, []
    total = 0
    for source in sources:
        offsets[source], total = total, total + source.rank
        pool.append(shape_of(ctx, source))
    if fixed:
        pool.append(ctx.constant(np.array(fixed, dtype=np.int32)))
    whole = pool[0] if len(pool) == 1 else ctx.emit("CONCATENATION", pool, (total + len(fixed),), INT, {"axis": 0})
    picks, factors, number = [], [], total
    for part in parts:
        if isinstance(part, int):
            picks.append(number)
            factors.append(1)
            number += 1
        else:
            picks.append(offsets[part[0]] + part[1])
            factors.append(part[2])
    picked = ctx.emit("GATHER", [whole, ctx.constant(np.array(picks, dtype=np.int32))], (len(parts),), options={"axis": 0})
    if any(factor != 1 for factor in factors):
        return ctx.emit("MUL", [picked, ctx.constant(np.array(factors, dtype=np.int32))], (len(parts),))
    return picked


def symbolic_part(ctx: Converter, column: np.ndarray) -> int | tuple[Tensor, int, int] | None:
    """A dimension seen as `column` in the probes: a constant, or a multiple of an input's free dimension, or None."""
    if np.all(column == column[0]):
        return int(column[0])
    for name, dims in ctx.graph.inputs.items():
        for axis, dim in enumerate(dims):
            if isinstance(dim, str) and name in ctx.values:
                sizes = ctx.graph.symbols[dim]
                factor = int(column[0] // sizes[0])
                if factor and np.array_equal(column, factor * sizes) and not np.all(sizes == sizes[0]):
                    value = ctx.values[name]
                    return (value.tensor, value.stored(axis), factor)
    return None


def runtime_shape(ctx: Converter, probe: np.ndarray, known: dict[int, tuple[Tensor, int]] | None = None) -> Tensor | None:
    """A shape (P, R) as an int32 tensor: a constant, or computed from live tensors; None when a dimension can't be traced.

    `known` says which axes equal which stored axis of a tensor at hand.
    """
    parts: list[int | tuple[Tensor, int, int]] = []
    for axis, column in enumerate(probe.T):
        if known and axis in known and not np.all(column == column[0]):
            parts.append((*known[axis], 1))
            continue
        part = symbolic_part(ctx, column)
        if part is None:
            return None
        parts.append(part)
    return shape_vector(ctx, parts)


def integers(ctx: Converter, name: str) -> Tensor:
    """An integer ONNX value (scalar or vector) as int32: shape arithmetic is rebuilt from the inputs' sizes when it can be."""
    if name in ctx.graph.varying and name not in ctx.values:
        rows = np.stack([np.atleast_1d(value) for value in ctx.graph.varying[name]])
        if (tensor := runtime_shape(ctx, rows)) is not None:
            return tensor
    tensor = ctx.dense(name)
    return tensor if tensor.rank else reshape(ctx, tensor, (1,))
