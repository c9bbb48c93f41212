"""The MIL operations that resize height and width, as torch functions: separable linear interpolation and nearest neighbour.

The sampling grids are those on the page of MIL's `resize_bilinear`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.errors import UserError
from .coreml_ops import Args, kernel


def _grid(size: int, out: int, mode: str) -> Tensor:
    """The input coordinate of each of `out` output samples along a side of `size` (MIL's `resize_bilinear` page), float64."""
    i = torch.arange(out, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        lone = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0
        points = i * (size - 1) / (out - 1) if out > 1 else torch.full_like(i, lone)
    elif mode == "DEFAULT":
        points = i * size / out
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * size / out - 0.5
    elif mode == "OFFSET_CORNERS":
        points = (i + 0.5) * max(1, size - 1) / out
    else:
        raise UserError(f"MIL sampling_mode {mode!r} is unknown", hint="the package is damaged, or of a newer coremltools")
    return points.clamp(0, size - 1)


def _linear_along(x: Tensor, axis: int, out: int, mode: str) -> Tensor:
    size = x.shape[axis]
    if size == out and mode != "OFFSET_CORNERS":
        return x
    points = _grid(size, out, mode)
    low = points.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    side = [1] * x.ndim
    side[axis] = -1
    share = (points - low).to(x.dtype).reshape(side)
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """x (…, H, W) resized to (…, height, width) by separable linear interpolation."""
    return _linear_along(_linear_along(x, x.ndim - 2, height, mode), x.ndim - 1, width, mode)


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    """x (…, H, W) resized to (…, height, width): output i takes input ⌊i · size / out⌋."""
    for axis, out in ((x.ndim - 2, height), (x.ndim - 1, width)):
        size = x.shape[axis]
        x = x.index_select(axis, torch.arange(out) * size // out)
    return x


def _scaled(args: Args, x: Tensor) -> tuple[int, int]:
    """(H, W) times the scale factors, rounded down; the slack keeps a float32 factor like 1.1 from losing a row."""
    scales = args.number("scale_factor_height", 1.0), args.number("scale_factor_width", 1.0)
    height, width = (math.floor(n * s + 1e-5) for n, s in zip(x.shape[-2:], scales, strict=True))
    return height, width


@kernel("upsample_nearest_neighbor")
def upsample_nearest_neighbor(args: Args) -> Tensor:
    """x (…, H, W) enlarged by scale factors, nearest neighbour."""
    return _nearest(args.tensor("x"), *_scaled(args, args.tensor("x")))


@kernel("resize_nearest_neighbor")
def resize_nearest_neighbor(args: Args) -> Tensor:
    """x (…, H, W) resized to the target size, nearest neighbour."""
    return _nearest(args.tensor("x"), args.integer("target_size_height", 1), args.integer("target_size_width", 1))


@kernel("upsample_bilinear")
def upsample_bilinear(args: Args) -> Tensor:
    """x (…, H, W) enlarged by scale factors, bilinear."""
    half = "UNALIGN_CORNERS" if args.flag("half_pixel_centers", True) else "DEFAULT"
    mode = "STRICT_ALIGN_CORNERS" if args.flag("align_corners", True) else half
    return _bilinear(args.tensor("x"), *_scaled(args, args.tensor("x")), mode)


@kernel("resize_bilinear")
def resize_bilinear(args: Args) -> Tensor:
    """x (…, H, W) resized to the target size, bilinear, with the sampling mode's grid."""
    size = args.integer("target_size_height", 1), args.integer("target_size_width", 1)
    return _bilinear(args.tensor("x"), *size, args.text("sampling_mode", "DEFAULT"))


@kernel("resize")
def resize(args: Args) -> Tensor:
    """x with its last `resized_dims` (≤ 2) dimensions resized to the end of `shape`, where 0 keeps a dimension."""
    x, count = args.tensor("x"), args.integer("resized_dims", 2)
    mode = args.text("sampling_mode", "DEFAULT")
    if count > 2 or x.ndim < 2:
        raise UserError(f"MIL resize of {count} dimensions has no kernel", hint="resize height and width alone")
    target = args.ints("shape", ())[-count:]
    sides = [*x.shape[-2:-count], *(n or x.shape[x.ndim - count + i] for i, n in enumerate(target))]
    height, width = sides[-2], sides[-1]
    if args.text("interpolation_mode", "LINEAR") == "LINEAR":
        return _bilinear(x, height, width, mode)
    if mode != "DEFAULT":
        raise UserError(f"MIL nearest-neighbour resize with sampling_mode {mode!r} has no kernel", hint="use mode DEFAULT")
    return _nearest(x, height, width)
