"""Reductions and normalisations, over stored axes."""

from __future__ import annotations

import numpy as np

from .convert import Converter
from .graph import Node
from .ir import Tensor
from .layout import Value, home
from .moves import reshape
from .registry import UnsupportedError, rule
from .rules_unary import Pen, identity

_KINDS = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
}


@rule(
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
)
def reduction(ctx: Converter, node: Node) -> None:
    """MEAN, SUM, REDUCE_MAX, REDUCE_MIN, REDUCE_PROD; norms and log-sum-exp from them."""
    axes = ctx.ints(node, "axes", 1)
    if not axes and node.attr("noop_with_empty_axes", 0):
        return identity(ctx, node)
    rank = ctx.rank(node.inputs[0])
    gone = sorted({a % rank for a in axes} if axes else range(rank))
    keep = bool(node.attr("keepdims", 1))
    value = ctx.unscrambled(node.inputs[0], keep=range(rank))
    x, pen = value.tensor, Pen(ctx, value.tensor)
    if node.op in _KINDS:
        out = over(ctx, _KINDS[node.op], x, value, gone, keep=keep)
    elif node.op == "ReduceL1":
        out = over(ctx, "SUM", pen("ABS", x), value, gone, keep=keep)
    elif node.op == "ReduceLogSumExp":
        top = over(ctx, "REDUCE_MAX", x, value, gone, keep=True)
        total = over(ctx, "SUM", pen("EXP", pen("SUB", x, top)), value, gone, keep=True)
        out = Pen(ctx, total)("ADD", Pen(ctx, total)("LOG", total), top)
        out = out if keep else reshape(ctx, out, [d for i, d in enumerate(out.shape) if value.perm[i] not in gone])
    else:
        out = over(ctx, "SUM", pen("SQUARE", x), value, gone, keep=keep)
        out = Pen(ctx, out)("SQRT", out) if node.op == "ReduceL2" else out
    left = {axis: s for axis, s in value.scramble.items() if axis not in gone}
    if keep:
        return ctx.put(node.outputs[0], out, value.perm, left)
    number = {axis: i for i, axis in enumerate(a for a in range(rank) if a not in gone)}
    perm = tuple(number[axis] for axis in value.perm if axis in number)
    return ctx.put(node.outputs[0], out, perm, {number[axis]: s for axis, s in left.items()})


def over(ctx: Converter, kind: str, tensor: Tensor, value: Value, axes: list[int], *, keep: bool) -> Tensor:
    """A reduction of `tensor`, which lies like `value`, over logical axes."""
    at = sorted(value.stored(axis) for axis in axes)
    shape = [1 if i in at else d for i, d in enumerate(tensor.shape) if keep or i not in at]
    return ctx.emit(kind, [tensor, ctx.constant(np.array(at, dtype=np.int32))], shape, options={"keepDims": keep})


def normalised(ctx: Converter, x: Tensor, value: Value, axes: list[int], epsilon: float) -> Tensor:
    """(x − mean)/√(variance + ε) over logical axes."""
    centred = Pen(ctx, x)("SUB", x, over(ctx, "MEAN", x, value, axes, keep=True))
    variance = over(ctx, "MEAN", Pen(ctx, centred)("MUL", centred, centred), value, axes, keep=True)
    pen = Pen(ctx, variance)
    return Pen(ctx, x)("MUL", centred, pen("RSQRT", pen("ADD", variance, epsilon)))


def scaled(ctx: Converter, tensor: Tensor, value: Value, parameter: str, first: int, kind: str) -> Tensor:
    """`tensor` times or plus a parameter whose axes are the value's logical axes from `first` on."""
    array = ctx.const(parameter)
    if array is None:
        raise UnsupportedError("its scale or bias is computed at run time")
    whole = np.reshape(array, [1] * (value.rank - array.ndim) + list(array.shape)) if first < 0 else array
    laid = whole.transpose(value.perm)
    while laid.ndim > 1 and laid.shape[0] == 1:
        laid = laid[0]
    return Pen(ctx, tensor)(kind, tensor, ctx.constant(laid))


@rule("LayerNormalization")
def layer_norm(ctx: Converter, node: Node) -> None:
    """Mean and variance over the last axes from `axis` on, then scale and bias."""
    if len([name for name in node.outputs if name]) > 1:
        raise UnsupportedError("its Mean or InvStdDev output is used")
    value = ctx.plain(node.inputs[0])
    axis = int(node.attr("axis", -1)) % value.rank
    out = normalised(ctx, value.tensor, value, list(range(axis, value.rank)), float(node.attr("epsilon", 1e-5)))
    for index, kind in ((1, "MUL"), (2, "ADD")):
        if node.input(index):
            out = scaled(ctx, out, value, node.inputs[index], -1, kind)
    ctx.put(node.outputs[0], out, value.perm)


def _channels(ctx: Converter, tensor: Tensor, value: Value, array: np.ndarray, kind: str) -> Tensor:
    side = [1] * value.rank
    side[value.stored(1)] = -1
    return Pen(ctx, tensor)(kind, tensor, ctx.constant(array.reshape(side)))


@rule("InstanceNormalization")
def instance_norm(ctx: Converter, node: Node) -> None:
    """Mean and variance over the spatial axes of every sample and channel."""
    value = ctx.plain(node.inputs[0])
    scale, bias = ctx.const(node.inputs[1]), ctx.const(node.inputs[2])
    if scale is None or bias is None:
        raise UnsupportedError("its scale or bias is computed at run time")
    out = normalised(ctx, value.tensor, value, list(range(2, value.rank)), float(node.attr("epsilon", 1e-5)))
    out = _channels(ctx, out, value, scale, "MUL")
    ctx.put(node.outputs[0], _channels(ctx, out, value, bias, "ADD"), value.perm)


@rule("GroupNormalization", shapes=lambda shapes, attrs, values: shapes[:1])
def group_norm(ctx: Converter, node: Node) -> None:
    """Mean and variance per group, from the per-channel means: groups are equally large, so means of means are means.

    No reshape of the feature map itself, so any image size works.
    """
    groups = int(node.attr("num_groups"))
    rank = ctx.rank(node.inputs[0])
    tensor = ctx.dense(node.inputs[0], home(rank))
    channels = ctx.dim(node.inputs[0], 1, "GroupNormalization")
    value = Value(tensor, home(rank))
    scale, bias = ctx.const(node.inputs[1]), ctx.const(node.inputs[2])
    if scale is None or bias is None:
        raise UnsupportedError("its scale or bias is computed at run time")
    per = channels // groups
    scale, bias = (np.repeat(v, per) if len(v) == groups and groups != channels else v for v in (scale, bias))
    mean = _group_mean(ctx, tensor, value, groups, per)
    centred = Pen(ctx, tensor)("SUB", tensor, mean)
    variance = _group_mean(ctx, Pen(ctx, tensor)("MUL", centred, centred), value, groups, per)
    pen = Pen(ctx, variance)
    factor = pen("RSQRT", pen("ADD", variance, float(node.attr("epsilon", 1e-5))))
    factor = pen("MUL", factor, ctx.constant(scale))
    out = Pen(ctx, tensor)("ADD", Pen(ctx, tensor)("MUL", centred, factor), ctx.constant(bias))
    ctx.put(node.outputs[0], out, home(rank))


def _group_mean(ctx: Converter, tensor: Tensor, value: Value, groups: int, per: int) -> Tensor:
    """The mean of every group, repeated for each of its channels: (N, 1, …, 1, C)."""
    batch, spatial = tensor.shape[0], tensor.rank - 2
    means = over(ctx, "MEAN", tensor, value, list(range(2, tensor.rank)), keep=False)
    if per > 1:
        split = reshape(ctx, means, (batch, groups, per))
        axis = ctx.constant(np.array([2], dtype=np.int32))
        joint = ctx.emit("MEAN", [split, axis], (batch, groups, 1), options={"keepDims": True})
        means = ctx.emit("MUL", [joint, ctx.constant(np.ones((1, 1, per), dtype=np.float32))], (batch, groups, per))
    return reshape(ctx, means, (batch, *[1] * spatial, groups * per))


@rule("LpNormalization")
def lp_norm(ctx: Converter, node: Node) -> None:
    """x divided by its norm along an axis."""
    value = ctx.plain(node.inputs[0])
    axis, pen = int(node.attr("axis", -1)) % value.rank, Pen(ctx, value.tensor)
    if int(node.attr("p", 2)) == 1:
        size = over(ctx, "SUM", pen("ABS", value.tensor), value, [axis], keep=True)
    else:
        total = over(ctx, "SUM", pen("SQUARE", value.tensor), value, [axis], keep=True)
        size = Pen(ctx, total)("SQRT", total)
    ctx.put(node.outputs[0], pen("DIV", value.tensor, size), value.perm)


@rule("LRN")
def local_response(ctx: Converter, node: Node) -> None:
    """LOCAL_RESPONSE_NORMALIZATION over channels; ONNX divides alpha by the window's size."""
    size = int(node.attr("size"))
    if size % 2 == 0:
        raise UnsupportedError("LRN over an even number of channels")
    value = ctx.images(node.inputs[0])
    options = {
        "radius": size // 2,
        "bias": float(node.attr("bias", 1.0)),
        "alpha": float(node.attr("alpha", 1e-4)) / size,
        "beta": float(node.attr("beta", 0.75)),
    }
    out = ctx.emit("LOCAL_RESPONSE_NORMALIZATION", [value.tensor], value.tensor.shape, options=options)
    ctx.put(node.outputs[0], out, value.perm)


@rule("CumSum")
def cumulative_sum(ctx: Converter, node: Node) -> None:
    """CUMSUM along the stored axis."""
    axis = ctx.ints(node, "axis", 1)
    if axis is None:
        raise UnsupportedError("it has no axis")
    value = ctx.plain(node.inputs[0])
    options = {"exclusive": bool(node.attr("exclusive", 0)), "reverse": bool(node.attr("reverse", 0))}
    at = ctx.constant(np.array(value.stored(axis[0]), dtype=np.int32))
    ctx.put(node.outputs[0], ctx.emit("CUMSUM", [value.tensor, at], value.tensor.shape, options=options), value.perm)
