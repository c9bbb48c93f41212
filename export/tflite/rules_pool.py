"""Pooling: windows, and reductions over the whole image."""

from __future__ import annotations

import numpy as np

from .convert import Converter
from .graph import Node
from .ir import FREE, Tensor
from .layout import home
from .registry import UnsupportedError, rule
from .windows import VALID, Images, Window, images, out_shape, pad, put_images, window

_POSITIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softplus", "Exp", "Abs", "Sqrt", "Softmax", "ReduceL2"})
_KEEPS_SIGN = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Dropout", "Identity"})


def nonnegative(ctx: Converter, name: str) -> bool:
    """Whether a value is known to hold no negative number, so that a zero pads a maximum."""
    node = ctx.producers.get(name)
    while node is not None and node.op in _KEEPS_SIGN:
        node = ctx.producers.get(node.inputs[0])
    if node is None:
        return False
    if node.op == "Clip":
        low = node.attr("min", ctx.const(node.input(1)))
        return low is not None and float(low) >= 0
    return node.op in _POSITIVE


def _frame(ctx: Converter, node: Node, source: Images) -> tuple[Window, tuple[int, int], Window]:
    """The window, how far `ceil_mode` lets it reach past the pads, and the window with that reach padded too."""
    kernel = tuple(int(k) for k in node.attr("kernel_shape"))
    frame = window(node, kernel, source.sizes)
    past = (0, 0)
    if node.attr("ceil_mode", 0):
        outs = ctx.probe(node.outputs[0])[:, 2:]
        if source.line:
            outs = np.concatenate([np.ones_like(outs), outs], axis=1)
        past = (_past(frame, 0, source.sizes, outs), _past(frame, 1, source.sizes, outs))
    longer = (frame.end[0] + past[0], frame.end[1] + past[1])
    return frame, past, Window(frame.kernel, frame.strides, frame.dilations, frame.begin, longer)


def _past(frame: Window, axis: int, sizes: np.ndarray, outs: np.ndarray) -> int:
    """How many inputs past the padded end the last window may cover under `ceil_mode`."""
    stride, reach = frame.strides[axis], frame.reach(axis)
    padded = sizes[:, axis] + frame.begin[axis] + frame.end[axis]
    over = (outs[:, axis] - 1) * stride + reach - padded
    if np.all(sizes[:, axis] == sizes[0, axis]):
        return max(int(over[0]), 0)
    if stride - 1 + frame.end[axis] > reach - 1:
        raise UnsupportedError("ceil_mode with a stride above the kernel needs a fixed image size")
    return stride - 1


@rule("MaxPool")
def max_pool(ctx: Converter, node: Node) -> None:
    """MaxPool → MAX_POOL_2D; padding outside SAME is done before, with values that never win."""
    if len([name for name in node.outputs if name]) > 1:
        raise UnsupportedError("its Indices output is used")
    source = images(ctx, node.inputs[0], keep=True)
    _, _, frame = _frame(ctx, node, source)
    if frame.dilations != (1, 1):
        raise UnsupportedError("MaxPool with dilations")
    shape = out_shape(ctx, node.outputs[0], source.line)
    padding, tensor = frame.padding(source.sizes), source.tensor
    if padding is None:
        tensor, padding = _pad_maximum(ctx, node, source, frame), VALID
    put_images(ctx, node.outputs[0], _pool(ctx, "MAX_POOL_2D", tensor, frame, padding, shape), source.line, source.scramble)


def _pad_maximum(ctx: Converter, node: Node, source: Images, frame: Window) -> Tensor:
    """The input padded so that no maximum changes: zeros when nothing is negative, else the mirrored edge, else −3.4e38.

    A mirrored entry lies in every window that covers its image as long as 2·pad ≤ kernel, and keeps the value range, which
    a quantiser needs.
    """
    if nonnegative(ctx, node.inputs[0]):
        return pad(ctx, source.tensor, frame.begin, frame.end)
    inside = all(2 * max(frame.begin[a], frame.end[a]) <= frame.kernel[a] for a in (0, 1))
    fits = all(max(frame.begin[a], frame.end[a]) <= source.sizes[:, a].min() for a in (0, 1))
    if inside and fits and not node.attr("ceil_mode", 0):
        return pad(ctx, source.tensor, frame.begin, frame.end, mirror=True)
    return pad(ctx, source.tensor, frame.begin, frame.end, value=float(np.finfo(np.float32).min))


@rule("AveragePool")
def average_pool(ctx: Converter, node: Node) -> None:
    """AveragePool → AVERAGE_POOL_2D, whose SAME leaves pads out of the count; other counts are corrected by a constant map."""
    source = images(ctx, node.inputs[0], keep=True)
    frame, past, longer = _frame(ctx, node, source)
    if frame.dilations != (1, 1):
        raise UnsupportedError("AveragePool with dilations")
    shape = out_shape(ctx, node.outputs[0], source.line)
    counted = bool(node.attr("count_include_pad", 0))
    padding = longer.padding(source.sizes)
    padded = any((*frame.begin, *frame.end))
    if padding is not None and (padding == VALID or not counted or not padded):
        tensor = _pool(ctx, "AVERAGE_POOL_2D", source.tensor, longer, padding, shape)
    else:
        tensor = _pool(ctx, "AVERAGE_POOL_2D", pad(ctx, source.tensor, longer.begin, longer.end), longer, VALID, shape)
        if not counted or any(past):
            tensor = _recount(ctx, tensor, frame, past, source, counted)
    put_images(ctx, node.outputs[0], tensor, source.line, source.scramble)


def _recount(ctx: Converter, tensor: Tensor, frame: Window, past: tuple[int, int], source: Images, counted: bool) -> Tensor:
    """Averages over whole windows rescaled by (window size / entries that count); (1, H, W, 1) of factors."""
    factors = []
    for axis in (0, 1):
        size, out = int(source.sizes[0, axis]), tensor.shape[1 + axis]
        if out == FREE:
            raise UnsupportedError("pads left out of an average (count_include_pad=0, ceil_mode) need a fixed image size")
        starts = np.arange(out) * frame.strides[axis] - frame.begin[axis]
        low, high = (-frame.begin[axis], size + frame.end[axis]) if counted else (0, size)
        stops = np.minimum(starts + frame.kernel[axis], high)
        factors.append(frame.kernel[axis] / (stops - np.maximum(starts, low)))
    scale = np.outer(*factors)[None, :, :, None].astype(np.float32)
    return ctx.emit("MUL", [tensor, ctx.constant(scale)], tensor.shape)


def _pool(ctx: Converter, kind: str, tensor: Tensor, frame: Window, padding: int, shape: tuple[int, ...]) -> Tensor:
    (sh, sw), (kh, kw) = frame.strides, frame.kernel
    options = {"padding": padding, "strideH": sh, "strideW": sw, "filterHeight": kh, "filterWidth": kw}
    return ctx.emit(kind, [tensor], shape, options=options)


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(ctx: Converter, node: Node) -> None:
    """GlobalAveragePool → MEAN, GlobalMaxPool → REDUCE_MAX over the spatial axes."""
    name = node.inputs[0]
    rank = ctx.rank(name)
    value = ctx.images(name, keep=True) if rank == 4 else None
    tensor = value.tensor if value else ctx.dense(name, home(rank))
    axes = ctx.constant(np.arange(1, rank - 1, dtype=np.int32))
    kind = "MEAN" if node.op == "GlobalAveragePool" else "REDUCE_MAX"
    shape = (tensor.shape[0], *[1] * (rank - 2), tensor.shape[-1])
    out = ctx.emit(kind, [tensor, axes], shape, options={"keepDims": True})
    ctx.put(node.outputs[0], out, home(rank), value.scramble if value else None)
