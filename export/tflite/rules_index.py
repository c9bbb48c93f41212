"""Operators that pick, cut, join and pad along axes."""

from __future__ import annotations

import numpy as np

from .convert import INT, Converter, signature
from .graph import Node
from .ir import FREE, Tensor
from .layout import Perm, Value
from .moves import integers, permute, reshape
from .registry import UnsupportedError, rule


def turned(ctx: Converter, name: str, perm: Perm) -> Value:
    """A value stored in the axis order `perm`, unscrambled."""
    return Value(ctx.dense(name, perm), perm)


@rule("Concat")
def concat(ctx: Converter, node: Node) -> None:
    """CONCATENATION in the layout of the largest operand."""
    rank = ctx.rank(node.inputs[0])
    axis = int(node.attr("axis")) % rank
    names = [name for name in node.inputs if np.all(ctx.probe(name).prod(axis=1) > 0)]
    computed = [name for name in names if ctx.const(name) is None]
    sizes = {name: float(np.prod(ctx.probe(name)[0].astype(float))) for name in computed}
    perm = ctx.plain(max(computed, key=lambda name: sizes[name])).perm
    tensors = [turned(ctx, name, perm).tensor for name in names]
    shape = signature(ctx.probe(node.outputs[0])[:, perm])
    if len(tensors) == 1:
        return ctx.put(node.outputs[0], tensors[0], perm)
    return ctx.put(node.outputs[0], ctx.emit("CONCATENATION", tensors, shape, options={"axis": perm.index(axis)}), perm)


@rule("Split")
def split(ctx: Converter, node: Node) -> None:
    """SPLIT into equal parts, SPLIT_V into given sizes."""
    value = ctx.plain(node.inputs[0])
    axis = int(node.attr("axis", 0)) % value.rank
    probes = [ctx.probe(name) for name in node.outputs]
    widths = [signature(probe)[axis] for probe in probes]
    tensors = [ctx.fresh(signature(probe[:, value.perm]), value.tensor.dtype) for probe in probes]
    at = ctx.constant(np.array(value.stored(axis), dtype=np.int32))
    options = {"numSplits": len(tensors)}
    if len(set(widths)) == 1 and (widths[0] != FREE or _even(probes, axis)):
        ctx.program.emit("SPLIT", [at, value.tensor], tensors, options)
    elif FREE not in widths:
        ctx.program.emit("SPLIT_V", [value.tensor, ctx.constant(np.array(widths, dtype=np.int32)), at], tensors, options)
    else:
        raise UnsupportedError("it splits a free dimension into parts of different sizes")
    for name, tensor in zip(node.outputs, tensors, strict=True):
        ctx.put(name, tensor, value.perm)


def _even(probes: list[np.ndarray], axis: int) -> bool:
    return all(np.array_equal(probe[:, axis], probes[0][:, axis]) for probe in probes)


@rule("Slice")
def slice_of(ctx: Converter, node: Node) -> None:
    """STRIDED_SLICE with open ends where ONNX's reach past the axis; ends computed from shapes are computed here too."""
    value = ctx.plain(node.inputs[0])
    starts, ends = _bounds(ctx, node, "starts", 1), _bounds(ctx, node, "ends", 2)
    axes = ctx.ints(node, "axes", 3) or list(range(len(starts[0])))
    steps = ctx.ints(node, "steps", 4) or [1] * len(axes)
    rank = value.rank
    table = {value.stored(axis): i for i, axis in enumerate(axes)}
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    begin_mask = end_mask = 0
    late: dict[tuple[str, int], int] = {}
    for at in range(rank):
        bit = 1 << at
        if at not in table:
            begin_mask, end_mask = begin_mask | bit, end_mask | bit
            continue
        i = table[at]
        stride[at], size = steps[i], value.tensor.shape[at]
        for side, rows in (("begin", starts), ("end", ends)):
            if rows.ndim == 2 and np.all(rows[:, i] == rows[0, i]):
                number = int(rows[0, i])
                edge = _open(number, size, stride[at], side)
                if edge:
                    begin_mask, end_mask = (begin_mask | bit, end_mask) if side == "begin" else (begin_mask, end_mask | bit)
                elif side == "begin":
                    begin[at] = _clamped(number, size)
                else:
                    end[at] = _clamped(number, size)
            else:
                late[side, at] = i
    options = {"beginMask": begin_mask, "endMask": end_mask}
    bounds = [_vector(ctx, node, side, fixed, late) for side, fixed in (("begin", begin), ("end", end))]
    shape = signature(ctx.probe(node.outputs[0])[:, value.perm])
    if value.rank > 5:
        raise UnsupportedError("it cuts more than 5 dimensions")
    inputs = [value.tensor, *bounds, ctx.constant(np.array(stride, dtype=np.int32))]
    ctx.put(node.outputs[0], ctx.emit("STRIDED_SLICE", inputs, shape, options=options), value.perm)


def _bounds(ctx: Converter, node: Node, attr: str, index: int) -> np.ndarray:
    """Starts or ends, one row per probe (P, k). Raises UnsupportedError when they depend on data."""
    name = node.input(index)
    if attr not in node.attrs and name in ctx.graph.varying:
        return np.stack([np.atleast_1d(v) for v in ctx.graph.varying[name]])
    return np.array([ctx.ints(node, attr, index)])


def _open(number: int, size: int, stride: int, side: str) -> bool:
    """Whether a bound reaches the axis's own end, so that a mask says it for every size."""
    if stride > 0:
        return number == 0 if side == "begin" else number >= (2**31 - 1 if size == FREE else size)
    if side == "begin":
        return number == -1 or number >= (2**31 - 1 if size == FREE else size - 1)
    return number <= (-(2**31) + 1 if size == FREE else -size - 1)


def _clamped(number: int, size: int) -> int:
    limit = 2**31 - 2 if size == FREE else size
    return max(-limit, min(limit, number))


def _vector(ctx: Converter, node: Node, side: str, fixed: list[int], late: dict[tuple[str, int], int]) -> Tensor:
    """The begin or end vector: constant, or with entries picked from the shape arithmetic at run time."""
    mine = {at: i for (which, at), i in late.items() if which == side}
    if not mine:
        return ctx.constant(np.array(fixed, dtype=np.int32))
    computed = integers(ctx, node.inputs[1 if side == "begin" else 2])
    width = computed.shape[0]
    pool = ctx.emit(
        "CONCATENATION", [computed, ctx.constant(np.array(fixed, dtype=np.int32))], (width + len(fixed),), INT, {"axis": 0}
    )
    picks = np.array([mine.get(at, width + at) for at in range(len(fixed))], dtype=np.int32)
    return ctx.emit("GATHER", [pool, ctx.constant(picks)], (len(fixed),), options={"axis": 0})


@rule("Gather")
def gather(ctx: Converter, node: Node) -> None:
    """GATHER along the stored axis; the index's own axes take that axis's place."""
    data, index = node.inputs
    axis = int(node.attr("axis", 0)) % ctx.rank(data)
    known = ctx.const(index)
    value = ctx.plain(data) if ctx.const(data) is None else ctx.raw(data)
    size = signature(ctx.probe(data))[axis]
    if known is not None:
        if size == FREE and np.any(known < 0):
            return _gather_from_end(ctx, node, value, axis, known)
        picks = ctx.constant(np.where(known < 0, known + max(size, 0), known).astype(np.int32))
    else:
        picks = ctx.dense(index)
    at = value.stored(axis)
    grown = ctx.rank(index) - 1
    perm: list[int] = []
    for logical in value.perm:
        if logical == axis:
            perm.extend(range(axis, axis + grown + 1))
        else:
            perm.append(logical + grown if logical > axis else logical)
    shape = (*value.tensor.shape[:at], *picks.shape, *value.tensor.shape[at + 1 :])
    return ctx.put(
        node.outputs[0], ctx.emit("GATHER", [value.tensor, picks], shape, value.tensor.dtype, {"axis": at}), tuple(perm)
    )


def _gather_from_end(ctx: Converter, node: Node, value: Value, axis: int, known: np.ndarray) -> None:
    """x[…, −k, …] on a free dimension: a STRIDED_SLICE that drops the axis."""
    if known.ndim:
        raise UnsupportedError("it picks several negative positions of a free dimension")
    at, rank = value.stored(axis), value.rank
    begin = np.zeros(rank, dtype=np.int32)
    begin[at] = int(known)
    rest = sum(1 << i for i in range(rank) if i != at)
    perm = tuple(a - (a > axis) for a in value.perm if a != axis)
    shape = tuple(d for i, d in enumerate(value.tensor.shape) if i != at)
    ends = ctx.constant(np.zeros(rank, dtype=np.int32))
    inputs = [value.tensor, ctx.constant(begin), ends, ctx.constant(np.ones(rank, dtype=np.int32))]
    options = {"beginMask": rest, "endMask": rest, "shrinkAxisMask": 1 << at}
    ctx.put(node.outputs[0], ctx.emit("STRIDED_SLICE", inputs, shape, options=options), perm)


@rule("GatherElements")
def gather_elements(ctx: Converter, node: Node) -> None:
    """GATHER with all other axes as batch axes, the gathered one stored last."""
    data, index = node.inputs
    rank = ctx.rank(data)
    axis = int(node.attr("axis", 0)) % rank
    perm = (*(a for a in range(rank) if a != axis), axis)
    x, picks = ctx.dense(data, perm), ctx.dense(index, perm)
    if x.shape[:-1] != picks.shape[:-1]:
        raise UnsupportedError("its indices cover only a part of the other axes")
    known = ctx.const(index)
    if known is not None and np.any(known < 0):
        picks = ctx.constant(np.where(known < 0, known + ctx.dim(data, axis, "a negative index"), known).transpose(perm))
    out = ctx.emit("GATHER", [x, picks], picks.shape, x.dtype, {"axis": rank - 1, "batchDims": rank - 1})
    ctx.put(node.outputs[0], out, perm)


@rule("GatherND")
def gather_nd(ctx: Converter, node: Node) -> None:
    """GATHER_ND."""
    if node.attr("batch_dims", 0):
        raise UnsupportedError("GatherND with batch_dims")
    x, picks = ctx.dense(node.inputs[0]), ctx.dense(node.inputs[1])
    ctx.put(node.outputs[0], ctx.emit("GATHER_ND", [x, picks], ctx.dims(node.outputs[0]), x.dtype))


@rule("Pad")
def pad(ctx: Converter, node: Node) -> None:
    """PAD, PADV2 or MIRROR_PAD; an edge pad of p is p mirrored pads of one; negative pads cut."""
    value = ctx.plain(node.inputs[0])
    pads = ctx.ints(node, "pads", 1) or []
    axes = ctx.ints(node, "axes", 3) or list(range(value.rank))
    amounts = np.zeros((value.rank, 2), dtype=np.int32)
    for i, axis in enumerate(axes):
        amounts[value.stored(axis)] = (pads[i], pads[i + len(axes)])
    tensor = value.tensor
    if (amounts < 0).any():
        tensor = _cut(ctx, tensor, np.minimum(amounts, 0))
        amounts = np.maximum(amounts, 0)
    mode = node.attr("mode", "constant")
    filler = ctx.const(node.input(2)) if node.input(2) else np.asarray(node.attr("value", 0.0))
    if mode == "constant":
        tensor = _pad_constant(ctx, tensor, amounts, filler, node)
    elif mode == "reflect":
        tensor = _grow(ctx, "MIRROR_PAD", [tensor], amounts, {"mode": 0})
    elif mode == "edge":
        for step in range(int(amounts.max(initial=0))):
            tensor = _grow(ctx, "MIRROR_PAD", [tensor], (amounts > step).astype(np.int32), {"mode": 1})
    else:
        raise UnsupportedError(f"Pad with mode {mode!r}")
    ctx.put(node.outputs[0], tensor, value.perm)


def _pad_constant(ctx: Converter, tensor: Tensor, amounts: np.ndarray, filler: np.ndarray | None, node: Node) -> Tensor:
    if filler is None:
        value: Tensor | None = reshape(ctx, ctx.dense(node.inputs[2]), ())
    else:
        number = np.asarray(filler).reshape(()).astype(tensor.dtype)
        value = ctx.constant(number) if number else None
    if value is None:
        return _grow(ctx, "PAD", [tensor], amounts, {})
    return _grow(ctx, "PADV2", [tensor, value], amounts, {})


def _grow(ctx: Converter, kind: str, inputs: list[Tensor], amounts: np.ndarray, options: dict[str, int]) -> Tensor:
    tensor = inputs[0]
    if not amounts.any():
        return tensor
    shape = [d if d == FREE else d + int(a.sum()) for d, a in zip(tensor.shape, amounts, strict=True)]
    return ctx.emit(kind, [tensor, ctx.constant(amounts), *inputs[1:]], shape, options=options)


def _cut(ctx: Converter, tensor: Tensor, amounts: np.ndarray) -> Tensor:
    shape = [d if d == FREE else d + int(a.sum()) for d, a in zip(tensor.shape, amounts, strict=True)]
    ends = ctx.constant(amounts[:, 1])
    mask = sum(1 << axis for axis in range(tensor.rank) if amounts[axis, 1] == 0)
    inputs = [tensor, ctx.constant(-amounts[:, 0]), ends, ctx.constant(np.ones(tensor.rank, dtype=np.int32))]
    return ctx.emit("STRIDED_SLICE", inputs, shape, options={"beginMask": 0, "endMask": mask})


@rule("ArgMax", "ArgMin")
def arg(ctx: Converter, node: Node) -> None:
    """ARG_MAX or ARG_MIN, int32."""
    if node.attr("select_last_index", 0):
        raise UnsupportedError("select_last_index=1")
    value = ctx.plain(node.inputs[0])
    axis = int(node.attr("axis", 0)) % value.rank
    at = value.stored(axis)
    shape = tuple(d for i, d in enumerate(value.tensor.shape) if i != at)
    where = ctx.constant(np.array(at, dtype=np.int32))
    kind = "ARG_MAX" if node.op == "ArgMax" else "ARG_MIN"
    tensor = ctx.emit(kind, [value.tensor, where], shape, INT, {"outputType": 2})
    if node.attr("keepdims", 1):
        kept = (*shape[:at], 1, *shape[at:])
        ctx.put(node.outputs[0], reshape(ctx, tensor, kept), value.perm)
    else:
        ctx.put(node.outputs[0], tensor, tuple(a - (a > axis) for a in value.perm if a != axis))


@rule("TopK")
def top_k(ctx: Converter, node: Node) -> None:
    """TOPK_V2 over the last stored axis; the smallest are the largest of −x."""
    count = ctx.ints(node, "k", 1)
    rank = ctx.rank(node.inputs[0])
    axis = int(node.attr("axis", -1)) % rank
    value = ctx.plain(node.inputs[0])
    perm = (*(a for a in value.perm if a != axis), axis)
    tensor = permute(ctx, value, perm)
    smallest = not node.attr("largest", 1)
    if smallest:
        tensor = ctx.emit("NEG", [tensor], tensor.shape)
    shape = (*tensor.shape[:-1], (count or [1])[0])
    best, where = ctx.fresh(shape, tensor.dtype), ctx.fresh(shape, INT, suffix="/index")
    ctx.program.emit("TOPK_V2", [tensor, ctx.constant(np.array((count or [1])[0], dtype=np.int32))], [best, where])
    if smallest:
        best = ctx.emit("NEG", [best], shape)
    for name, found in zip(node.outputs, (best, where), strict=False):
        if name:
            ctx.put(name, found, perm)


@rule("OneHot")
def one_hot(ctx: Converter, node: Node) -> None:
    """ONE_HOT with constant depth and values, the new axis stored last."""
    depth, values = ctx.const(node.inputs[1]), ctx.const(node.inputs[2])
    if depth is None or values is None:
        raise UnsupportedError("its depth or values are computed at run time")
    index = ctx.plain(node.inputs[0])
    axis = int(node.attr("axis", -1)) % (index.rank + 1)
    count = int(np.asarray(depth).reshape(-1)[0])
    off, on = (ctx.constant(v) for v in values)
    size = ctx.constant(np.array(count, dtype=np.int32))
    tensor = ctx.emit("ONE_HOT", [index.tensor, size, on, off], (*index.tensor.shape, count), on.dtype, {"axis": -1})
    ctx.put(node.outputs[0], tensor, (*(a + (a >= axis) for a in index.perm), axis))


@rule("Trilu")
def trilu(ctx: Converter, node: Node) -> None:
    """A SELECT_V2 by a constant triangle."""
    shift = (ctx.ints(node, "k", 1) or [0])[0]
    rows, columns = (ctx.dim(node.inputs[0], axis, "Trilu") for axis in (-2, -1))
    triangle = np.triu if node.attr("upper", 1) else np.tril
    mask = triangle(np.ones((rows, columns), dtype=bool), shift)
    tensor = ctx.dense(node.inputs[0])
    zero = ctx.constant(np.zeros((), dtype=tensor.dtype))
    ctx.put(node.outputs[0], ctx.emit("SELECT_V2", [ctx.constant(mask), tensor, zero], tensor.shape, tensor.dtype))
