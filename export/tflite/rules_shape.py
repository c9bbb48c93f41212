"""Operators that relabel or rearrange axes: mostly free, since a value's layout is only a note about its tensor."""

from __future__ import annotations

import numpy as np

from .convert import INT, Converter, signature
from .graph import Node
from .ir import FREE, Tensor
from .layout import Perm, Scramble, Value, identity, place, refine, regroup, reshaped
from .moves import integers, reshape, runtime_shape, shape_of, shape_vector, symbolic_part
from .moves import transpose as turn
from .registry import UnsupportedError, rule

PIXELS = (1, 2, 0)
"""How DEPTH_TO_SPACE wants a channel axis that torch's PixelShuffle orders (C, r, r): stored (r, r, C)."""


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def relabel(ctx: Converter, node: Node) -> None:
    """RESHAPE of the data as it lies when the new axes can be read off it, else of the data in ONNX's order."""
    name, out = node.inputs[0], node.outputs[0]
    target = ctx.probe(out)
    value = ctx.raw(name)
    attempts = [lambda: _opened(ctx, name, value)]
    if value.scramble:
        attempts.append(lambda: _opened(ctx, name, ctx.plain(name)))
    for attempt in attempts:
        perm, source, tensor = attempt()
        found = reshaped(perm, source, target)
        if found is not None:
            moved = _reshape(ctx, node, tensor, source, target, (perm, found.perm))
            return ctx.put(out, moved, found.perm, found.scramble)
    source = ctx.probe(name)
    if (once := _moved_once(ctx, node, name)) is not None:
        return ctx.put(out, once.tensor, once.perm)
    before, after = identity(source.shape[1]), identity(target.shape[1])
    return ctx.put(out, _reshape(ctx, node, ctx.dense(name), source, target, (before, after)))


def _moved_once(ctx: Converter, node: Node, name: str) -> Value | None:
    """The result of a reshape whose data has to move, moved straight into the order that a Transpose right behind asks for.

    None when there is no such Transpose, or its order can't be had by one TRANSPOSE between two reshapes.
    """
    out = node.outputs[0]
    readers = ctx.consumers.get(out, [])
    value, target = ctx.plain(name), ctx.probe(out)
    factors = refine(ctx.probe(name), target)
    if len(readers) != 1 or readers[0].op != "Transpose" or out in ctx.graph.outputs or factors is None:
        return None
    after = tuple(int(axis) for axis in readers[0].attr("perm", range(target.shape[1] - 1, -1, -1)))
    source = np.stack([f for fs in factors for f in fs], axis=1)
    first = np.cumsum([0, *(len(fs) for fs in factors)])
    perm = tuple(int(first[axis]) + i for axis in value.perm for i in range(len(factors[axis])))
    groups = regroup(source, target) or []
    before = place([axes for axes, _ in sorted(groups, key=lambda group: after.index(group[1][0]))], source)
    found = reshaped(before, source, target)
    solid = [axis for axis in after if not np.all(target[:, axis] == 1)]
    if found is None or found.scramble or [axis for axis in found.perm if axis in solid] != solid:
        return None
    split = signature(source[:, perm])
    if (split.count(FREE) > 1 and split != value.tensor.shape) or len(split) > 6:
        return None
    opened = reshape(ctx, value.tensor, split)
    moved = turn(ctx, opened, [perm.index(axis) for axis in before])
    return Value(_reshape(ctx, node, moved, source, target, (before, after)), after)


def _opened(ctx: Converter, name: str, value: Value) -> tuple[Perm, np.ndarray, Tensor]:
    """The value seen with every scrambled axis split into the dimensions it was merged from: order, sizes, tensor."""
    probe = ctx.probe(name)
    columns: list[np.ndarray] = []
    axes: list[list[int]] = []
    for axis in range(value.rank):
        first = len(columns)
        if axis in value.scramble:
            dims = value.scramble[axis].dims
            columns += [np.full(len(probe), d, dtype=np.int64) for d in dims]
            axes.append([first + i for i in value.scramble[axis].perm])
        else:
            columns.append(probe[:, axis])
            axes.append([first])
    perm = tuple(new for axis in value.perm for new in axes[axis])
    source = np.stack(columns, axis=1) if columns else probe[:, :0]
    return perm, source, value.tensor


def _reshape(
    ctx: Converter, node: Node, tensor: Tensor, source: np.ndarray, target: np.ndarray, perms: tuple[Perm, Perm]
) -> Tensor:
    """The tensor in the target's stored shape; free dimensions are copied from the source's where one axis becomes one axis."""
    before, after = perms
    shape = signature(target[:, after])
    if shape.count(FREE) < 2:
        return reshape(ctx, tensor, shape)
    if [d for d in shape if d != 1] == [d for d in tensor.shape if d != 1]:
        return reshape(ctx, tensor, shape)
    known: dict[int, tuple[Tensor, int]] = {}
    stored = [axis for axis in before if not np.all(source[:, axis] == 1)]
    if len(stored) == sum(d != 1 for d in tensor.shape):
        places = [i for i, d in enumerate(tensor.shape) if d != 1]
        at = dict(zip(stored, places, strict=True))
        groups = regroup(source, target) or []
        known = {news[0]: (tensor, at[axes[0]]) for axes, news in groups if len(axes) == 1 and len(news) == 1}
    parts: list[int | tuple[Tensor, int, int]] = []
    for axis in after:
        part = (*known[axis], 1) if axis in known else symbolic_part(ctx, target[:, axis])
        parts.append(-1 if part is None else part)
    if parts.count(-1) > 1:
        if node.op != "Reshape":
            raise UnsupportedError("several of its free dimensions are known at run time only")
        whole = integers(ctx, node.inputs[1])
        runtime = whole if after == identity(len(after)) else _picked(ctx, whole, after)
    else:
        runtime = shape_vector(ctx, parts)
    return reshape(ctx, tensor, shape, runtime=runtime)


def _picked(ctx: Converter, vector: Tensor, order: Perm) -> Tensor:
    return ctx.emit("GATHER", [vector, ctx.constant(np.array(order, dtype=np.int32))], (len(order),), options={"axis": 0})


@rule("Transpose")
def transpose(ctx: Converter, node: Node) -> None:
    """Nothing: the same tensor with its axes named differently."""
    value = ctx.raw(node.inputs[0])
    order = [int(axis) for axis in node.attr("perm", range(value.rank - 1, -1, -1))]
    new = {old: axis for axis, old in enumerate(order)}
    perm = tuple(new[axis] for axis in value.perm)
    ctx.put(node.outputs[0], value.tensor, perm, {new[axis]: s for axis, s in value.scramble.items()})


@rule("DepthToSpace")
def depth_to_space(ctx: Converter, node: Node) -> None:
    """DEPTH_TO_SPACE; CRD order (PixelShuffle) needs its channels stored (r, r, C), which the layer before provides."""
    block = int(node.attr("blocksize"))
    crd = node.attr("mode", "DCR") == "CRD"
    channels = ctx.dim(node.inputs[0], 1, "DepthToSpace")
    wanted = Scramble((channels // block**2, block, block), PIXELS)
    value = ctx.images(node.inputs[0], keep=True)
    if value.scramble.get(1) != (wanted if crd else None):
        value = ctx.images(node.inputs[0])
        if crd and channels != block**2:
            picks = ctx.constant(wanted.order.astype(np.int32))
            tensor = ctx.emit("GATHER", [value.tensor, picks], value.tensor.shape, options={"axis": 3})
            value = Value(tensor, value.perm)
    shape = signature(ctx.probe(node.outputs[0])[:, value.perm])
    ctx.put(node.outputs[0], ctx.emit("DEPTH_TO_SPACE", [value.tensor], shape, options={"blockSize": block}), value.perm)


@rule("SpaceToDepth", "PixelUnshuffle")
def space_to_depth(ctx: Converter, node: Node) -> None:
    """SPACE_TO_DEPTH; torch's PixelUnshuffle (made by `fuse`) is the same with its channel axis scrambled."""
    block = int(node.attr("blocksize"))
    value = ctx.images(node.inputs[0])
    channels = ctx.dim(node.inputs[0], 1, node.op)
    shape = signature(ctx.probe(node.outputs[0])[:, value.perm])
    tensor = ctx.emit("SPACE_TO_DEPTH", [value.tensor], shape, options={"blockSize": block})
    mixed = {1: Scramble((channels, block, block), PIXELS)} if node.op == "PixelUnshuffle" and channels > 1 else None
    ctx.put(node.outputs[0], tensor, value.perm, mixed)


@rule("Shape")
def shape(ctx: Converter, node: Node) -> None:
    """SHAPE of the stored tensor, picked in ONNX's axis order."""
    value = ctx.raw(node.inputs[0])
    axes = list(range(value.rank))[slice(node.attr("start", 0), node.attr("end"))]
    whole = shape_of(ctx, value.tensor)
    picks = tuple(value.stored(axis) for axis in axes)
    ctx.put(node.outputs[0], whole if picks == identity(value.rank) else _picked(ctx, whole, picks))


@rule("Size")
def size(ctx: Converter, node: Node) -> None:
    """REDUCE_PROD of the SHAPE."""
    whole = shape_of(ctx, ctx.raw(node.inputs[0]).tensor)
    axis = ctx.constant(np.array([0], dtype=np.int32))
    ctx.put(node.outputs[0], ctx.emit("REDUCE_PROD", [whole, axis], (), INT, {"keepDims": False}))


def target_shape(ctx: Converter, name: str) -> Tensor:
    """The shape (in ONNX's axis order) that a value will have at run time. Raises UnsupportedError when it can't be traced."""
    found = runtime_shape(ctx, ctx.probe(name))
    if found is None:
        raise UnsupportedError("its output's size cannot be traced to the sizes of the inputs")
    return found


@rule("Expand")
def expand(ctx: Converter, node: Node) -> None:
    """BROADCAST_TO; nothing when the shape stays."""
    source, out = node.inputs[0], node.outputs[0]
    probe, target = ctx.probe(source), ctx.probe(out)
    if probe.shape == target.shape and np.array_equal(probe, target):
        ctx.values[out] = ctx.raw(source)
        return
    shape = signature(target)
    whole = runtime_shape(ctx, target)
    if whole is None:
        whole = _broadcast_args(ctx, node, probe, target)
    ctx.put(out, ctx.emit("BROADCAST_TO", [ctx.dense(source), whole], shape))


def _broadcast_args(ctx: Converter, node: Node, probe: np.ndarray, target: np.ndarray) -> Tensor:
    """The result's shape at run time, from the data's shape and the asked one."""
    asked = integers(ctx, node.inputs[1])
    own = shape_of(ctx, ctx.dense(node.inputs[0]))
    return ctx.emit("BROADCAST_ARGS", [own, asked], (target.shape[1],), INT)


@rule("Tile")
def tile(ctx: Converter, node: Node) -> None:
    """TILE with constant repeats, in the stored order; computed repeats go through ONNX's order."""
    repeats = ctx.const(node.inputs[1])
    if repeats is None:
        counts = integers(ctx, node.inputs[1])
        ctx.put(node.outputs[0], ctx.emit("TILE", [ctx.dense(node.inputs[0]), counts], ctx.dims(node.outputs[0])))
        return
    value = ctx.plain(node.inputs[0])
    shape = signature(ctx.probe(node.outputs[0])[:, value.perm])
    counts = ctx.constant(repeats[list(value.perm)])
    ctx.put(node.outputs[0], ctx.emit("TILE", [value.tensor, counts], shape), value.perm)


@rule("ConstantOfShape")
def constant_of_shape(ctx: Converter, node: Node) -> None:
    """FILL."""
    filler = np.asarray(node.attr("value", np.zeros(1, dtype=np.float32))).reshape(())
    whole = integers(ctx, node.inputs[0])
    ctx.put(
        node.outputs[0], ctx.emit("FILL", [whole, ctx.constant(filler)], ctx.dims(node.outputs[0]), ctx.constant(filler).dtype)
    )


@rule("Range")
def range_of(ctx: Converter, node: Node) -> None:
    """RANGE over scalars."""
    bounds = [reshape(ctx, integers(ctx, n), ()) if ctx.dtype(n) == INT else ctx.dense(n) for n in node.inputs]
    ctx.put(node.outputs[0], ctx.emit("RANGE", bounds, ctx.dims(node.outputs[0])))
