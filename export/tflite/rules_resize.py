"""Resize and Upsample: LiteRT's two kernels where their sampling points are ONNX's, else the same linear map by matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .convert import FLOAT, INT, Converter
from .graph import Node
from .ir import FREE, Tensor
from .moves import integers, reshape, shape_of, shape_vector
from .registry import UnsupportedError, rule
from .windows import Images, images, put_images

_FLAGS = ((False, False), (False, True), (True, False))
"""(align_corners, half_pixel_centers) of LiteRT's kernels."""


@dataclass(frozen=True)
class Sampling:
    """How an ONNX Resize places its samples, and its scale per spatial axis (None: output size over input size)."""

    mode: str
    coordinates: str
    nearest: str
    scales: tuple[float | None, float | None]

    def points(self, axis: int, size: int, out: int) -> np.ndarray:
        """Where the `out` samples lie in an input of `size`, by ONNX's formulas, clipped to the input."""
        x = np.arange(out, dtype=np.float64)
        scale = self.scales[axis] or out / size
        if self.coordinates == "align_corners":
            found = x * (size - 1) / (out - 1) if out > 1 else x * 0
        elif self.coordinates == "asymmetric":
            found = x / scale
        elif self.coordinates == "half_pixel" or (self.coordinates == "pytorch_half_pixel" and out > 1):
            found = (x + 0.5) / scale - 0.5
        elif self.coordinates == "pytorch_half_pixel":
            found = x * 0
        elif self.coordinates == "half_pixel_symmetric":
            centre = size / 2 * (1 - out / (scale * size))
            found = centre + (x + 0.5) / scale - 0.5
        else:
            raise UnsupportedError(f"coordinate_transformation_mode {self.coordinates!r}")
        if self.mode == "nearest":
            shift = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(self.nearest, 0.0)
            upwards = self.nearest in ("ceil", "round_prefer_floor")
            found = np.ceil(found + shift) if upwards else np.floor(found + shift)
        return np.clip(found, 0, size - 1)


def kernel_points(mode: str, flags: tuple[bool, bool], size: int, out: int) -> np.ndarray:
    """Where LiteRT's RESIZE kernels sample, in their own float32 arithmetic, clipped to the input."""
    align, half = flags
    x = np.arange(out, dtype=np.float32)
    scale = np.float32((size - 1) / (out - 1) if align and out > 1 else size / out)
    if mode == "nearest":
        found = (x + np.float32(0.5 if half else 0)) * scale
        found = np.floor(found + np.float32(0.5)) if align else np.floor(found)
    else:
        found = (x + np.float32(0.5)) * scale - np.float32(0.5) if half else x * scale
    return np.clip(found, 0, size - 1).astype(np.float64)


def resized(
    shapes: Sequence[tuple[int, ...]], attrs: dict[str, Any], values: Sequence[np.ndarray | None]
) -> list[tuple[int, ...]]:
    """The output shape ⌊size · scale⌋ in float32, as ONNX Runtime computes it (exact arithmetic would make 10·1.3 a 12)."""
    rank = len(shapes[0])
    axes = [int(a) % rank for a in attrs.get("axes", range(rank))]
    asked = attrs.get("scales", values[-1] if len(values) > 1 else None)
    if asked is None:
        raise ValueError("its scales or sizes are computed from data")
    out = list(shapes[0])
    for axis, number in zip(axes, np.ravel(asked), strict=True):
        whole = np.asarray(asked).dtype.kind == "i" and "scales" not in attrs
        out[axis] = int(number) if whole else int(np.floor(np.float32(out[axis]) * np.float32(number)))
    return [tuple(out)]


@rule("Resize", "Upsample", shapes=resized)
def resize(ctx: Converter, node: Node) -> None:
    """RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR; matrices or a GATHER for what those can't say at a fixed size."""
    name, out = node.inputs[0], node.outputs[0]
    before, after = ctx.probe(name), ctx.probe(out)
    if before.shape[1] not in (3, 4) or not np.array_equal(before[:, :2], after[:, :2]):
        raise UnsupportedError("it resizes more than the spatial axes of (N, C, H, W) or (N, C, L)")
    source = images(ctx, name)
    outs = after[:, 2:] if not source.line else np.concatenate([np.ones((len(after), 1), dtype=np.int64), after[:, 2:]], axis=1)
    sampling = _sampling(ctx, node, source.line)
    n, _, _, c = source.tensor.shape
    free = [not np.all(outs[:, a] == outs[0, a]) for a in (0, 1)]
    shape = (n, *(FREE if free[a] else int(outs[0, a]) for a in (0, 1)), c)
    plain = node.attr("antialias", 0) == 0 and not node.attr("exclude_outside", 0) and sampling.mode != "cubic"
    flags = _matching(sampling, source.sizes, outs) if plain else None
    if flags is not None:
        size = _size(ctx, node, source, outs, sampling)
        kind = "RESIZE_NEAREST_NEIGHBOR" if sampling.mode == "nearest" else "RESIZE_BILINEAR"
        options = {"alignCorners": flags[0], "halfPixelCenters": flags[1]}
        tensor = ctx.emit(kind, [source.tensor, size], shape, options=options)
    elif any(free) or FREE in source.tensor.shape[1:3]:
        raise UnsupportedError(
            f"{sampling.mode} sampling by {sampling.coordinates} ({sampling.nearest}, antialias={node.attr('antialias', 0)}) "
            "is no LiteRT kernel at a free image size; give it a fixed size"
        )
    else:
        tensor = _by_matrices(ctx, node, source, sampling, shape)
    put_images(ctx, out, tensor, source.line)


def _sampling(ctx: Converter, node: Node, line: bool) -> Sampling:
    attr_scales = node.attr("scales")
    name = node.input(1 if node.op == "Upsample" or ctx.graph.opset < 11 else 2)
    scales = attr_scales if attr_scales is not None else (ctx.const(name) if name else None)
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        raise UnsupportedError(f"keep_aspect_ratio_policy {policy!r}")
    old = node.op == "Upsample" or ctx.graph.opset < 11
    found: list[float | None] = [None, None]
    if scales is not None and np.size(scales):
        rank = ctx.rank(node.inputs[0])
        axes = [int(a) % rank for a in node.attr("axes", range(rank))]
        by_axis = {axis: float(s) for axis, s in zip(axes, np.ravel(scales), strict=True)}
        found = [by_axis.get(axis, 1.0) for axis in range(2, rank)]
        found = [1.0, *found] if line else found
    mode = {"bilinear": "linear"}.get(node.attr("mode", "nearest"), node.attr("mode", "nearest"))
    return Sampling(
        mode,
        "asymmetric" if old else node.attr("coordinate_transformation_mode", "half_pixel"),
        "floor" if old else node.attr("nearest_mode", "round_prefer_floor"),
        (found[0], found[1]),
    )


def _matching(sampling: Sampling, sizes: np.ndarray, outs: np.ndarray) -> tuple[bool, bool] | None:
    """The kernel flags whose sampling points are ONNX's on both axes at every probe, within float32's rounding (1e-6 of the size)."""
    for flags in _FLAGS:
        if all(
            np.allclose(
                sampling.points(axis, int(size[axis]), int(out[axis])),
                kernel_points(sampling.mode, flags, int(size[axis]), int(out[axis])),
                rtol=0,
                atol=1e-6 * max(int(size[axis]), 10) if sampling.mode == "linear" else 0,
            )
            for size, out in zip(sizes, outs, strict=True)
            for axis in (0, 1)
        ):
            return flags
    return None


def _size(ctx: Converter, node: Node, source: Images, outs: np.ndarray, sampling: Sampling) -> Tensor:
    """The output's (height, width), int32: constant, a multiple of the input's, or computed as ONNX computes it."""
    parts: list[int | tuple[Tensor, int, int]] = []
    for axis in (0, 1):
        column, size = outs[:, axis], source.sizes[:, axis]
        factor = int(column[0] // size[0])
        if np.all(column == column[0]):
            parts.append(int(column[0]))
        elif factor and np.array_equal(column, factor * size):
            parts.append((source.tensor, 1 + axis, factor))
    if len(parts) == 2:
        return shape_vector(ctx, parts)
    if all(scale is not None for scale in sampling.scales):
        return _scaled_size(ctx, source, sampling)
    name = node.input(3)
    if not name or source.line:
        raise UnsupportedError("its output size cannot be computed at run time")
    sizes = integers(ctx, name)
    picks = np.array([sizes.shape[0] - 2, sizes.shape[0] - 1], dtype=np.int32)
    return ctx.emit("GATHER", [sizes, ctx.constant(picks)], (2,), INT, {"axis": 0})


def _scaled_size(ctx: Converter, source: Images, sampling: Sampling) -> Tensor:
    """⌊size · scale⌋, ONNX's own formula."""
    picks = ctx.constant(np.array([1, 2], dtype=np.int32))
    size = ctx.emit("GATHER", [shape_of(ctx, source.tensor), picks], (2,), INT, {"axis": 0})
    real = ctx.emit("CAST", [size], (2,), FLOAT, {"inDataType": 2, "outDataType": 0})
    grown = ctx.emit("MUL", [real, ctx.constant(np.array(sampling.scales, dtype=np.float32))], (2,))
    whole = ctx.emit("FLOOR", [grown], (2,))
    return ctx.emit("CAST", [whole], (2,), INT, {"inDataType": 0, "outDataType": 2})


def _by_matrices(ctx: Converter, node: Node, source: Images, sampling: Sampling, shape: tuple[int, ...]) -> Tensor:
    """Resampling is linear and separable, so each axis is a product with the matrix that ONNX Runtime's Resize makes of the unit
    vectors; nearest neighbours are a GATHER."""
    tensor = source.tensor
    for axis in (0, 1):
        size, out = tensor.shape[1 + axis], shape[1 + axis]
        if size == out and sampling.scales[axis] in (None, 1.0):
            continue
        if sampling.mode == "nearest":
            picks = ctx.constant(sampling.points(axis, size, out).astype(np.int32))
            grown = [*tensor.shape]
            grown[1 + axis] = out
            tensor = ctx.emit("GATHER", [tensor, picks], grown, tensor.dtype, {"axis": 1 + axis})
            continue
        matrix = ctx.constant(_matrix(ctx, node, sampling, axis, size, out))
        n, h, w, c = tensor.shape
        if axis == 0:
            flat = reshape(ctx, tensor, (n, h, w * c))
            tensor = ctx.emit("BATCH_MATMUL", [matrix, flat], (n, out, w * c), options={"adjX": False, "adjY": False})
            tensor = reshape(ctx, tensor, (n, out, w, c))
        else:
            tensor = ctx.emit("BATCH_MATMUL", [matrix, tensor], (n, h, out, c), options={"adjX": False, "adjY": False})
    return tensor


def _matrix(ctx: Converter, node: Node, sampling: Sampling, axis: int, size: int, out: int) -> np.ndarray:
    """(out, size) for the height, (1, 1, out, size) for the width: what ONNX Runtime's Resize makes of an identity matrix."""
    import onnxruntime

    attrs = {k: v for k, v in node.attrs.items() if k not in ("axes", "keep_aspect_ratio_policy", "scales")}
    attrs |= {"mode": sampling.mode, "coordinate_transformation_mode": sampling.coordinates}
    scale = sampling.scales[axis]
    proto = helper.make_node("Resize", ["eye", "", "scales"] if scale else ["eye", "", "", "sizes"], ["matrix"], **attrs)
    amount = np.array([1, 1, scale, 1], np.float32) if scale else np.array([1, 1, out, size], np.int64)
    graph = helper.make_graph(
        [proto],
        "matrix",
        [helper.make_tensor_value_info("eye", TensorProto.FLOAT, [1, 1, size, size])],
        [helper.make_tensor_value_info("matrix", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(amount, "scales" if scale else "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", max(ctx.graph.opset, 18))], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (matrix,) = session.run(None, {"eye": np.eye(size, dtype=np.float32)[None, None]})
    if matrix.shape[2] != out:
        raise UnsupportedError(f"its output of {out} does not follow from its scale {scale} and the size {size}")
    return matrix[0, 0] if axis == 0 else matrix
