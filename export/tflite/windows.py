"""Sliding windows: ONNX's explicit pads as TFLite's SAME or VALID, with a PAD before where neither is the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import Node
from .ir import FREE, Tensor
from .layout import Scramble, home
from .moves import reshape
from .registry import UnsupportedError

if TYPE_CHECKING:
    from .convert import Converter

SAME, VALID = 0, 1


@dataclass(frozen=True)
class Window:
    """A 2-D window: per spatial axis (height, width) its size, step, spacing and the pads before and after."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    begin: tuple[int, int]
    end: tuple[int, int]

    def reach(self, axis: int) -> int:
        """How many inputs one window spans."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def same(self, axis: int, sizes: np.ndarray) -> bool:
        """Whether TFLite's SAME (total pad by output ⌈H/s⌉, the odd one after) is this axis's padding at every size."""
        stride, fixed = self.strides[axis], bool(np.all(sizes == sizes[0]))
        if not fixed and stride > 1:
            return False
        out = -(-int(sizes[0]) // stride)
        total = max((out - 1) * stride + self.reach(axis) - int(sizes[0]), 0)
        return (self.begin[axis], self.end[axis]) == (total // 2, total - total // 2)

    def padding(self, sizes: np.ndarray) -> int | None:
        """`SAME` or `VALID` for input sizes (P, 2), or None when the input must be padded first."""
        if not any(self.begin) and not any(self.end):
            return VALID
        return SAME if all(self.same(axis, sizes[:, axis]) for axis in (0, 1)) else None


@dataclass(frozen=True)
class Images:
    """A feature map in NHWC, and whether it was a sequence (N, C, L), held as images of height 1."""

    tensor: Tensor
    sizes: np.ndarray
    line: bool
    scramble: dict[int, Scramble]


def images(ctx: Converter, name: str, *, keep: bool = False) -> Images:
    """A value (N, C, H, W) or (N, C, L) in NHWC, with its spatial sizes (P, 2) at the probes."""
    probe = ctx.probe(name)
    if probe.shape[1] == 4:
        value = ctx.images(name, keep)
        return Images(value.tensor, probe[:, 2:], False, dict(value.scramble))
    if probe.shape[1] != 3:
        raise UnsupportedError(f"it slides over {probe.shape[1] - 2} dimensions; TFLite kernels here take 1 or 2")
    tensor = ctx.dense(name, home(3))
    n, length, c = tensor.shape
    sizes = np.stack([np.ones(len(probe), dtype=np.int64), probe[:, 2]], axis=1)
    return Images(reshape(ctx, tensor, (n, 1, length, c)), sizes, True, {})


def put_images(ctx: Converter, name: str, tensor: Tensor, line: bool, scramble: dict[int, Scramble] | None = None) -> None:
    """Record an NHWC result as the ONNX value `name`."""
    if line:
        n, _, length, c = tensor.shape
        ctx.put(name, reshape(ctx, tensor, (n, length, c)), home(3))
    else:
        ctx.put(name, tensor, home(4), scramble)


def window(node: Node, kernel: tuple[int, ...], sizes: np.ndarray) -> Window:
    """The window of a Conv or pooling node over images of these sizes (P, 2). Raises UnsupportedError for SAME_LOWER on free sizes."""
    line = len(kernel) == 1
    strides = _pair(node.attr("strides", [1] * len(kernel)), line)
    dilations = _pair(node.attr("dilations", [1] * len(kernel)), line)
    shape = _pair(kernel, line)
    pads = [int(p) for p in node.attr("pads", [0] * (2 * len(kernel)))]
    begin, end = (pads[: len(kernel)], pads[len(kernel) :])
    mode = node.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        bare = Window(shape, strides, dilations, (0, 0), (0, 0))
        begin, end = _automatic(bare, sizes, lower=mode == "SAME_LOWER")
        return Window(shape, strides, dilations, (begin[0], begin[1]), (end[0], end[1]))
    if mode == "VALID":
        begin, end = [0] * len(kernel), [0] * len(kernel)
    if min(*begin, *end) < 0:
        raise UnsupportedError("its pads are negative")
    return Window(shape, strides, dilations, _pair(begin, line, 0), _pair(end, line, 0))


def _pair(values: Any, line: bool, missing: int = 1) -> tuple[int, int]:
    return (missing, int(values[0])) if line else (int(values[0]), int(values[1]))


def _automatic(bare: Window, sizes: np.ndarray, *, lower: bool) -> tuple[list[int], list[int]]:
    begin, end = [], []
    for axis in (0, 1):
        rows, stride = sizes[:, axis], bare.strides[axis]
        if stride > 1 and not np.all(rows == rows[0]):
            raise UnsupportedError("auto_pad with a stride above 1 needs a fixed image size; export explicit pads")
        total = max((-(-int(rows[0]) // stride) - 1) * stride + bare.reach(axis) - int(rows[0]), 0)
        small, large = total // 2, total - total // 2
        begin.append(large if lower else small)
        end.append(small if lower else large)
    return begin, end


def pad(
    ctx: Converter, tensor: Tensor, begin: tuple[int, int], end: tuple[int, int], *, value: float = 0.0, mirror: bool = False
) -> Tensor:
    """An NHWC tensor with rows and columns added around: a constant, or its own edge mirrored (the edge row repeated first)."""
    amounts = np.array([[0, 0], [begin[0], end[0]], [begin[1], end[1]], [0, 0]], dtype=np.int32)
    if not amounts.any():
        return tensor
    shape = [d if d == FREE else d + int(a.sum()) for d, a in zip(tensor.shape, amounts, strict=True)]
    table = ctx.constant(amounts)

    def make() -> Tensor:
        if mirror:
            return ctx.emit("MIRROR_PAD", [tensor, table], shape, options={"mode": 1})
        if value:
            return ctx.emit("PADV2", [tensor, table, ctx.constant(np.array(value, dtype=np.float32))], shape)
        return ctx.emit("PAD", [tensor, table], shape)

    return ctx.cached(("pad", tensor, begin, end, value, mirror), make)


def out_shape(ctx: Converter, name: str, line: bool) -> tuple[int, int, int, int]:
    """The NHWC shape of a value (N, C, H, W) or (N, C, L)."""
    dims = ctx.dims(name)
    return (dims[0], 1, dims[2], dims[1]) if line else (dims[0], dims[2], dims[3], dims[1])
