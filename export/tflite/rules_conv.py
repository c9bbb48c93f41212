"""Convolutions: weights are laid out, grouped and re-ordered at conversion, so that no data moves at run time."""

from __future__ import annotations

from typing import Any

import numpy as np

from .convert import INT, Converter
from .graph import Node
from .ir import FREE, Tensor
from .layout import Scramble
from .moves import shape_of
from .registry import UnsupportedError, rule
from .windows import VALID, Images, Window, images, out_shape, pad, put_images, window


@rule("Conv")
def conv(ctx: Converter, node: Node) -> None:
    """Conv 1-D or 2-D → CONV_2D (grouped by the filter's depth) or DEPTHWISE_CONV_2D."""
    groups = int(node.attr("group", 1))
    weight = ctx.const(node.inputs[1])
    source = images(ctx, node.inputs[0], keep=True)
    if weight is None:
        return _conv_computed(ctx, node, source, groups)
    depth = weight.shape[1] * groups
    depthwise = weight.shape[1] == 1 and groups > 1
    kernel = tuple(int(k) for k in weight.shape[2:])
    out, per = weight.shape[0], weight.shape[0] // groups
    if source.scramble and (groups > 1 and not (depthwise and per == 1)):
        source = images(ctx, node.inputs[0])
    if source.line:
        weight = weight[:, :, None, :]
    bias = _bias(ctx, node, out)
    order: Scramble | None = node.attr("_order")
    if source.scramble:
        mixed = source.scramble[1]
        if depthwise:
            weight, bias, order = weight[mixed.order], bias[mixed.order], mixed
        else:
            weight = weight[:, mixed.order]
    if order is not None and not depthwise:
        weight, bias = weight[order.order], bias[order.order]
    frame = window(node, kernel, source.sizes)
    kind, extra = "CONV_2D", {}
    laid = weight.transpose(0, 2, 3, 1)
    if depthwise:
        kind, extra = "DEPTHWISE_CONV_2D", {"depthMultiplier": per}
        laid = weight[:, 0].transpose(1, 2, 0)[None]
    if source.tensor.shape[3] not in (FREE, depth):
        raise UnsupportedError(f"its weights take {depth} channels, its input has {source.tensor.shape[3]}")
    tensor = _window_op(ctx, kind, node.outputs[0], source, frame, [ctx.constant(laid), ctx.constant(bias)], extra)
    put_images(ctx, node.outputs[0], tensor, source.line, {1: order} if order else None)
    return None


def _conv_computed(ctx: Converter, node: Node, source: Images, groups: int) -> None:
    """A convolution whose weights are computed at run time (a hypernetwork, a gate)."""
    if groups != 1 or source.line:
        raise UnsupportedError("its weights are computed at run time, which works for ungrouped 2-D convolutions only")
    source = images(ctx, node.inputs[0])
    laid = ctx.dense(node.inputs[1], (0, 2, 3, 1))
    kernel = (ctx.dim(node.inputs[1], 2, "a window"), ctx.dim(node.inputs[1], 3, "a window"))
    out = ctx.dim(node.inputs[1], 0, "the bias")
    frame = window(node, kernel, source.sizes)
    bias = ctx.dense(node.input(2)) if node.input(2) else ctx.constant(np.zeros(out, dtype=np.float32))
    put_images(ctx, node.outputs[0], _window_op(ctx, "CONV_2D", node.outputs[0], source, frame, [laid, bias], {}), False)


def _window_op(
    ctx: Converter, kind: str, name: str, source: Images, frame: Window, weights: list[Tensor], extra: dict[str, Any]
) -> Tensor:
    padding = frame.padding(source.sizes)
    tensor = source.tensor
    if padding is None:
        tensor, padding = pad(ctx, tensor, frame.begin, frame.end), VALID
    options = {
        "padding": padding,
        "strideH": frame.strides[0],
        "strideW": frame.strides[1],
        "dilationHFactor": frame.dilations[0],
        "dilationWFactor": frame.dilations[1],
        **extra,
    }
    return ctx.emit(kind, [tensor, *weights], out_shape(ctx, name, source.line), options=options)


def _bias(ctx: Converter, node: Node, channels: int) -> np.ndarray:
    if not node.input(2):
        return np.zeros(channels, dtype=np.float32)
    bias = ctx.const(node.inputs[2])
    if bias is None:
        raise UnsupportedError("its bias is computed at run time though its weights are not")
    return bias.astype(np.float32)


@rule("ConvTranspose")
def conv_transpose(ctx: Converter, node: Node) -> None:
    """ConvTranspose → CONV_2D (stride 1), CONV_2D + DEPTH_TO_SPACE (equal strides), else TRANSPOSE_CONV; then a crop."""
    weight = ctx.const(node.inputs[1])
    if weight is None:
        raise UnsupportedError("its weights are computed at run time")
    source = images(ctx, node.inputs[0])
    kernel = tuple(int(k) for k in weight.shape[2:])
    if source.line:
        weight = weight[:, :, None, :]
    groups = int(node.attr("group", 1))
    out = weight.shape[1] * groups
    bias = _bias(ctx, node, out)
    frame, grow = _transposed_window(ctx, node, kernel, source)
    parts = np.split(weight, groups, axis=0)
    biases = np.split(bias, groups)
    tensors = [source.tensor]
    n, h, w, depth = source.tensor.shape
    if groups > 1:
        axis = ctx.constant(np.array(3, dtype=np.int32))
        outs = [ctx.fresh((n, h, w, depth // groups), source.tensor.dtype) for _ in range(groups)]
        ctx.program.emit("SPLIT", [axis, source.tensor], outs, {"numSplits": groups})
        tensors = outs
    shape = out_shape(ctx, node.outputs[0], source.line)
    done = [
        _deconvolve(ctx, x, p, b, frame=frame, grow=grow, shape=(*shape[:3], out // groups), sizes=source.sizes)
        for x, p, b in zip(tensors, parts, biases, strict=True)
    ]
    whole = done[0] if groups == 1 else ctx.emit("CONCATENATION", done, shape, options={"axis": 3})
    put_images(ctx, node.outputs[0], whole, source.line)


def _transposed_window(ctx: Converter, node: Node, kernel: tuple[int, ...], source: Images) -> tuple[Window, tuple[int, int]]:
    """The window and the output padding; an explicit `output_shape` or `auto_pad` is turned into pads by the ONNX formula."""
    line = len(kernel) == 1
    grow = [int(v) for v in node.attr("output_padding", [0] * len(kernel))]
    plain = Node(node.op, node.name, node.inputs, node.outputs, {k: v for k, v in node.attrs.items() if k != "auto_pad"})
    mode = node.attr("auto_pad", "NOTSET")
    if "output_shape" in node.attrs or mode.startswith("SAME"):
        bare = Node(node.op, "", [], [], {k: v for k, v in plain.attrs.items() if k != "pads"})
        frame = window(bare, kernel, source.sizes)
        outs = ctx.probe(node.outputs[0])[:, 2:]
        begin, end = [], []
        for i in range(len(kernel)):
            axis = i + line
            totals = (source.sizes[:, axis] - 1) * frame.strides[axis] + grow[i] + frame.reach(axis) - outs[:, i]
            if not np.all(totals == totals[0]):
                raise UnsupportedError("its output_shape is fixed though its input's size is free")
            total = int(totals[0])
            begin.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
            end.append(total - begin[-1])
        plain.attrs["pads"] = [*begin, *end]
    frame = window(plain, kernel, source.sizes)
    return frame, ((0, grow[0]) if line else (grow[0], grow[1]))


def _deconvolve(
    ctx: Converter,
    x: Tensor,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    frame: Window,
    grow: tuple[int, int],
    shape: tuple[int, ...],
    sizes: np.ndarray,
) -> Tensor:
    """One group's transposed convolution of x (N, H, W, I) with weight (I, O, kh, kw)."""
    if frame.strides == (1, 1):
        return _by_convolution(ctx, x, weight, bias, frame=frame, grow=grow, shape=shape)
    if frame.dilations != (1, 1):
        raise UnsupportedError("it is strided and dilated at once")
    if frame.strides[0] == frame.strides[1]:
        return _by_pixels(ctx, x, weight, bias, frame=frame, grow=grow, shape=shape)
    full = [
        (s * st + max(k - st, 0) if k >= st else s * st - (st - k)) if s != FREE else FREE
        for s, st, k in zip(x.shape[1:3], frame.strides, frame.kernel, strict=True)
    ]
    spare = [max(g - e, 0) for g, e in zip(grow, frame.end, strict=True)]
    full = [f if f == FREE else f + s for f, s in zip(full, spare, strict=True)]
    laid, flat = ctx.constant(weight.transpose(1, 2, 3, 0)), ctx.constant(bias)
    size = _full_size(ctx, x, frame, spare, (x.shape[0], *full, shape[3]))
    options = {"padding": VALID, "strideH": frame.strides[0], "strideW": frame.strides[1]}
    big = ctx.emit("TRANSPOSE_CONV", [size, laid, x, flat], (x.shape[0], *full, shape[3]), x.dtype, options)
    ends = [max(e - g, 0) for e, g in zip(frame.end, grow, strict=True)]
    return crop(ctx, big, frame.begin, (ends[0], ends[1]), shape)


def _full_size(ctx: Converter, x: Tensor, frame: Window, spare: list[int], shape: tuple[int, ...]) -> Tensor:
    """The uncropped output's shape as the operator's input: constant, or (N, H, W, ·)·(1, s, s, 0) + (0, k − s, k − s, O)."""
    if FREE not in shape:
        return ctx.constant(np.array(shape, dtype=np.int32))
    (sh, sw), (kh, kw) = frame.strides, frame.kernel
    scaled = ctx.emit("MUL", [shape_of(ctx, x), ctx.constant(np.array([1, sh, sw, 0], dtype=np.int32))], (4,), INT)
    offset = np.array([0, kh - sh + spare[0], kw - sw + spare[1], shape[3]], dtype=np.int32)
    return ctx.emit("ADD", [scaled, ctx.constant(offset)], (4,), INT)


def _by_convolution(
    ctx: Converter,
    x: Tensor,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    frame: Window,
    grow: tuple[int, int],
    shape: tuple[int, ...],
) -> Tensor:
    """Stride 1: the ordinary convolution with the flipped kernel and pads k − 1 − p."""
    begin = [frame.reach(a) - 1 - frame.begin[a] for a in (0, 1)]
    end = [frame.reach(a) - 1 - frame.end[a] + grow[a] for a in (0, 1)]
    if min(*begin, *end) < 0:
        raise UnsupportedError("its pads are larger than its kernel")
    flipped = weight[:, :, ::-1, ::-1].transpose(1, 2, 3, 0)
    turned = Window(frame.kernel, (1, 1), frame.dilations, (begin[0], begin[1]), (end[0], end[1]))
    free = np.array([[1 << 20, 1 << 20]], dtype=np.int64)
    padding = turned.padding(free)
    if padding is None:
        x, padding = pad(ctx, x, turned.begin, turned.end), VALID
    dilations = {"dilationHFactor": frame.dilations[0], "dilationWFactor": frame.dilations[1]}
    options = {"padding": padding, "strideH": 1, "strideW": 1, **dilations}
    return ctx.emit("CONV_2D", [x, ctx.constant(flipped), ctx.constant(bias)], shape, options=options)


def _by_pixels(
    ctx: Converter,
    x: Tensor,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    frame: Window,
    grow: tuple[int, int],
    shape: tuple[int, ...],
) -> Tensor:
    """Stride s: output pixel q·s + r is a convolution of its own with every s-th weight, so all s² of them are the channels of
    one convolution, and DEPTH_TO_SPACE deals them out (Shi et al., 2016, arXiv:1609.07009).

    Unlike TRANSPOSE_CONV it needs no output shape, so a free batch stays inside the delegate.
    """
    s, (depth, out) = frame.strides[0], weight.shape[:2]
    taps = [-(-(k + max(g - e, 0)) // s) for k, g, e in zip(frame.kernel, grow, frame.end, strict=True)]
    whole = np.zeros((depth, out, taps[0] * s, taps[1] * s), dtype=weight.dtype)
    whole[:, :, : frame.kernel[0], : frame.kernel[1]] = weight
    phases = whole.reshape(depth, out, taps[0], s, taps[1], s)[:, :, ::-1, :, ::-1]
    laid = phases.transpose(3, 5, 1, 2, 4, 0).reshape(s * s * out, *taps, depth)
    around = (taps[0] - 1, taps[1] - 1)
    padded = pad(ctx, x, around, around)
    grid = [d if d == FREE else d - t + 1 for d, t in zip(padded.shape[1:3], taps, strict=True)]
    weights = [ctx.constant(laid), ctx.constant(np.tile(bias, s * s))]
    options = {"padding": VALID, "strideH": 1, "strideW": 1}
    pixels = ctx.emit("CONV_2D", [padded, *weights], (x.shape[0], *grid, s * s * out), options=options)
    full = [d if d == FREE else d * s for d in grid]
    image = ctx.emit("DEPTH_TO_SPACE", [pixels], (x.shape[0], *full, out), options={"blockSize": s})
    ends = [t * s - k + e - g for t, k, e, g in zip(taps, frame.kernel, frame.end, grow, strict=True)]
    return crop(ctx, image, frame.begin, (ends[0], ends[1]), shape)


def crop(ctx: Converter, x: Tensor, begin: tuple[int, int], end: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """An NHWC tensor without its first `begin` and last `end` rows and columns."""
    if not any((*begin, *end)):
        return x
    starts = np.array([0, *begin, 0], dtype=np.int32)
    stops = np.array([0, -end[0], -end[1], 0], dtype=np.int32)
    mask = sum(1 << axis for axis in range(4) if stops[axis] == 0)
    inputs = [x, ctx.constant(starts), ctx.constant(stops), ctx.constant(np.ones(4, dtype=np.int32))]
    return ctx.emit("STRIDED_SLICE", inputs, shape, options={"beginMask": 0, "endMask": mask})
