"""The MIL operations that move, pick or make elements, as torch functions: reshaping, slicing, gathering, padding, blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.errors import UserError
from .coreml_ops import Args, kernel


@kernel("reshape")
def reshape(args: Args) -> Tensor:
    """x in another shape; 0 keeps the dimension at that place, −1 takes the rest."""
    x = args.tensor("x")
    shape = args.ints("shape", ())
    return x.reshape([x.shape[axis] if n == 0 else n for axis, n in enumerate(shape)])


@kernel("reshape_like")
def reshape_like(args: Args) -> Tensor:
    """x in the shape made of slices of the reference tensors' shapes."""
    shape: list[int] = []
    begins, ends, open_ended = args.tensors("begins"), args.tensors("ends"), args.tensors("end_masks")
    for reference, begin, end, rest in zip(args.tensors("ref_tensors"), begins, ends, open_ended, strict=True):
        shape += list(reference.shape)[int(begin) : None if bool(rest) else int(end)]
    return args.tensor("x").reshape(shape)


@kernel("transpose")
def transpose(args: Args) -> Tensor:
    """x with its dimensions in the order `perm`."""
    x = args.tensor("x")
    return x.permute(args.ints("perm", range(x.ndim)))


@kernel("expand_dims")
def expand_dims(args: Args) -> Tensor:
    """x with dimensions of 1 at `axes`, places in the result."""
    x, axes = args.tensor("x"), args.ints("axes", ())
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@kernel("squeeze")
def squeeze(args: Args) -> Tensor:
    """x without those of `axes` (default: all) that are 1."""
    x = args.tensor("x")
    return x.squeeze(tuple(args.ints("axes", range(x.ndim))))


@kernel("flatten2d")
def flatten2d(args: Args) -> Tensor:
    """x as a matrix: dimensions before `axis` × dimensions from it on."""
    x = args.tensor("x")
    return x.reshape(math.prod(x.shape[: args.integer("axis", 1)]), -1)


@kernel("shape")
def shape(args: Args) -> Tensor:
    """The shape of x as integers."""
    return torch.tensor(args.tensor("x").shape, dtype=torch.int32)


@kernel("concat")
def concat(args: Args) -> Tensor:
    """The values joined along `axis`; `interleave` takes their slices in turn."""
    values, axis = [v.reshape(1) if v.ndim == 0 else v for v in args.tensors("values")], args.integer("axis", 0)
    if args.flag("interleave", False):
        axis %= values[0].ndim
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@kernel("stack")
def stack(args: Args) -> Tensor:
    """The values joined along a new `axis`."""
    return torch.stack(args.tensors("values"), args.integer("axis", 0))


@kernel("split")
def split(args: Args) -> tuple[Tensor, ...]:
    """x cut along `axis`: into `split_sizes`, or `num_splits` equal parts."""
    x, axis = args.tensor("x"), args.integer("axis", 0)
    sizes = args.ints("split_sizes", ())
    return x.split(sizes, axis) if sizes else x.split(x.shape[axis] // args.integer("num_splits", 1), axis)


def _pick(x: Tensor, axis: int, places: range) -> Tensor:
    """The elements of x at `places` along `axis`."""
    if places.step == 1:
        return x.narrow(axis, places.start, len(places))
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.long))


@kernel("slice_by_index")
def slice_by_index(args: Args) -> Tensor:
    """x[begin : end : stride] along every dimension, as NumPy counts; masked ends are open, squeezed dimensions are dropped."""
    x = args.tensor("x")
    no, rank = [0] * x.ndim, x.ndim
    begin, end, stride = args.ints("begin", no), args.ints("end", no), args.ints("stride", [1] * rank)
    open_begin, open_end, drop = (args.ints(name, no) for name in ("begin_mask", "end_mask", "squeeze_mask"))
    for axis in range(rank):
        size = x.shape[axis]
        start = None if open_begin[axis] else begin[axis]
        if drop[axis]:
            first = (start or 0) % size
            x = _pick(x, axis, range(first, first + 1))
        else:
            stop = None if open_end[axis] else end[axis]
            x = _pick(x, axis, range(size)[slice(start, stop, stride[axis])])
    return x.squeeze(tuple(axis for axis in range(rank) if drop[axis]))


@kernel("slice_by_size")
def slice_by_size(args: Args) -> Tensor:
    """`size` elements of x from `begin` along every dimension; −1 takes the rest."""
    x = args.tensor("x")
    for axis, (begin, size) in enumerate(zip(args.ints("begin", ()), args.ints("size", ()), strict=True)):
        first = begin % x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if size == -1 else size)
    return x


def _border(size: int, before: int, after: int, mode: str) -> Tensor:
    """The source index of every element along a side of `size` after padding."""
    i = torch.arange(-before, size + after)
    if mode == "replicate":
        return i.clamp(0, size - 1)
    if max(before, after) >= size:
        raise UserError(f"MIL reflect padding ({before}, {after}) needs a side above it, got {size}", hint="use a larger input")
    return (size - 1) - ((size - 1) - i.abs()).abs()


@kernel("pad")
def pad(args: Args) -> Tensor:
    """x with its last dimensions padded by (before, after): constant, reflect (the edge not repeated) or replicate."""
    x, mode = args.tensor("x"), args.text("mode", "constant")
    sides = args.ints("pad", ())
    pairs = list(zip(sides[::2], sides[1::2], strict=True))
    if mode == "constant":
        return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=args.number("constant_val", 0.0))
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        if before or after:
            x = x.index_select(axis, _border(x.shape[axis], before, after, mode))
    return x


@kernel("tile")
def tile(args: Args) -> Tensor:
    """x repeated `reps` times along every dimension."""
    x = args.tensor("x")
    return x.repeat(args.ints("reps", [1] * x.ndim))


@kernel("reverse")
def reverse(args: Args) -> Tensor:
    """x backwards along `axes` (default: all)."""
    x = args.tensor("x")
    return x.flip(args.ints("axes", range(x.ndim)))


@kernel("fill")
def fill(args: Args) -> Tensor:
    """A tensor of the given shape full of `value`."""
    value = args.maybe("value")
    return (
        torch.full(args.ints("shape", ()), 0.0) if value is None else value.reshape(()).expand(args.ints("shape", ())).clone()
    )


@kernel("fill_like")
def fill_like(args: Args) -> Tensor:
    """A tensor of the reference's shape full of `value`."""
    value = args.maybe("value")
    like = args.tensor("ref_tensor")
    return torch.zeros(like.shape) if value is None else value.reshape(()).expand(like.shape).clone()


@kernel("range_1d")
def range_1d(args: Args) -> Tensor:
    """start, start + step … below end."""
    return torch.arange(args.tensor("start").item(), args.tensor("end").item(), args.tensor("step").item())


@kernel("one_hot")
def one_hot(args: Args) -> Tensor:
    """`on_value` at the indices along a new `axis`, `off_value` elsewhere."""
    size = args.integer("one_hot_vector_size", 1)
    hot = (args.tensor("indices").unsqueeze(-1) == torch.arange(size)).movedim(-1, args.integer("axis", -1))
    on, off = args.maybe("on_value"), args.maybe("off_value")
    return torch.where(hot, torch.tensor(1) if on is None else on, torch.tensor(0) if off is None else off)


@kernel("gather")
def gather(args: Args) -> Tensor:
    """The slices of x at `indices` along `axis`; the first `batch_dims` dimensions go pairwise."""
    x, axis, batch = args.tensor("x"), args.integer("axis", 0), args.integer("batch_dims", 0)
    axis %= x.ndim
    indices = args.tensor("indices").long()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    lead = math.prod(x.shape[:batch])
    rows, places = x.reshape((lead, *x.shape[batch:])), indices.reshape(lead, -1)
    picked = torch.stack([row.index_select(axis - batch, place) for row, place in zip(rows, places, strict=True)])
    return picked.reshape((*x.shape[:axis], *indices.shape[batch:], *x.shape[axis + 1 :]))


@kernel("gather_along_axis")
def gather_along_axis(args: Args) -> Tensor:
    """The elements of x whose place along `axis` is given by `indices`."""
    x, axis, indices = args.tensor("x"), args.integer("axis", 0), args.tensor("indices").long()
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@kernel("gather_nd")
def gather_nd(args: Args) -> Tensor:
    """The slices of x at the index tuples in the last dimension of `indices`; the first `batch_dims` dimensions go pairwise."""
    x, indices, batch = args.tensor("x"), args.tensor("indices").long(), args.integer("batch_dims", 0)
    lead = math.prod(x.shape[:batch])
    rows, places = x.reshape((lead, *x.shape[batch:])), indices.reshape(lead, -1, indices.shape[-1])
    picked = torch.stack([row[tuple(place.T)] for row, place in zip(rows, places, strict=True)])
    return picked.reshape((*indices.shape[:-1], *x.shape[batch + indices.shape[-1] :]))


@kernel("scatter_along_axis")
def scatter_along_axis(args: Args) -> Tensor:
    """data with `updates` written (or combined by `mode`) at the places along `axis` given by `indices`."""
    data, axis, updates = args.tensor("data"), args.integer("axis", 0), args.tensor("updates")
    indices = args.tensor("indices").long()
    return _scatter(
        data, axis, torch.where(indices < 0, indices + data.shape[axis], indices), updates, args.text("mode", "add")
    )


@kernel("scatter")
def scatter(args: Args) -> Tensor:
    """data with the slices of `updates` written (or combined by `mode`) at the `indices` (C) along `axis`."""
    data, axis, updates = args.tensor("data"), args.integer("axis", 0), args.tensor("updates")
    indices = args.tensor("indices").long()
    side = [1] * data.ndim
    side[axis] = -1
    places = torch.where(indices < 0, indices + data.shape[axis], indices).reshape(side).expand(updates.shape)
    return _scatter(data, axis, places, updates, args.text("mode", "add"))


def _scatter(data: Tensor, axis: int, indices: Tensor, updates: Tensor, mode: str) -> Tensor:
    if mode == "update":
        return data.scatter(axis, indices, updates)
    if mode == "sub":
        mode, updates = "add", -updates
    if mode == "div":
        mode, updates = "mul", updates.reciprocal()
    known = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    if mode not in known:
        raise UserError(f"MIL scatter mode {mode!r} is unknown", hint="the package is damaged, or of a newer coremltools")
    return data.scatter_reduce(axis, indices, updates, reduce=known[mode])


@kernel("topk")
def topk(args: Args) -> tuple[Tensor, ...]:
    """(values, indices) of the k largest elements along `axis` (smallest when `ascending`), in order, first of equals first."""
    axis, k = args.integer("axis", -1), args.integer("k", 1)
    values, indices = args.tensor("x").sort(dim=axis, descending=not args.flag("ascending", False), stable=True)
    k = values.shape[axis] if k == -1 else k
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


@kernel("argsort")
def argsort(args: Args) -> Tensor:
    """The indices that sort x along `axis`, largest first unless `ascending`."""
    return args.tensor("x").argsort(dim=args.integer("axis", -1), descending=not args.flag("ascending", False), stable=True)


@kernel("non_zero")
def non_zero(args: Args) -> Tensor:
    """The index tuples of x's elements that are not 0, one a row."""
    return args.tensor("x").nonzero()


@kernel("band_part")
def band_part(args: Args) -> Tensor:
    """x (…, M, N) with 0 outside the band of `lower` diagonals below and `upper` above; a negative count keeps them all."""
    x, lower, upper = args.tensor("x"), args.integer("lower", -1), args.integer("upper", -1)
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    keep = ((below <= lower) if lower >= 0 else below > -math.inf) & ((-below <= upper) if upper >= 0 else below > -math.inf)
    return torch.where(keep, x, torch.zeros_like(x))


@kernel("sliding_windows")
def sliding_windows(args: Args) -> Tensor:
    """All windows of `size` elements along `axis`, `stride` apart, in a new dimension behind it."""
    x = args.tensor("x")
    axis = args.integer("axis", 0) % x.ndim
    return x.unfold(axis, args.integer("size", 1), args.integer("stride", 1)).movedim(-1, axis + 1)


@kernel("pixel_shuffle")
def pixel_shuffle(args: Args) -> Tensor:
    """x (N, C f², H, W) → (N, C, H f, W f), the channel's own block spread out."""
    return F.pixel_shuffle(args.tensor("x"), args.integer("upscale_factor", 1))


@kernel("pixel_unshuffle")
def pixel_unshuffle(args: Args) -> Tensor:
    """x (N, C, H f, W f) → (N, C f², H, W): the inverse of pixel_shuffle."""
    return F.pixel_unshuffle(args.tensor("x"), args.integer("downscale_factor", 1))


@kernel("depth_to_space")
def depth_to_space(args: Args) -> Tensor:
    """x (N, b² C, H, W) → (N, C, H b, W b); the block offset is the *outer* part of the channel, as in TensorFlow."""
    x, b = args.tensor("x"), args.integer("block_size", 1)
    n, c, h, w = x.shape
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@kernel("space_to_depth")
def space_to_depth(args: Args) -> Tensor:
    """x (N, C, H b, W b) → (N, b² C, H, W): the inverse of depth_to_space."""
    x, b = args.tensor("x"), args.integer("block_size", 1)
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@kernel("space_to_batch")
def space_to_batch(args: Args) -> Tensor:
    """x (N, C, H, W), padded, → (N b_h b_w, C, H / b_h, W / b_w); the block offset is the outer part of the batch."""
    (top, bottom, left, right), (bh, bw) = args.ints("paddings", [0] * 4), args.ints("block_shape", [1, 1])
    x = F.pad(args.tensor("x"), [left, right, top, bottom])
    n, c, h, w = x.shape
    return x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4).reshape(n * bh * bw, c, h // bh, w // bw)


@kernel("batch_to_space")
def batch_to_space(args: Args) -> Tensor:
    """x (N b_h b_w, C, H, W) → (N, C, H b_h, W b_w), cropped: the inverse of space_to_batch."""
    x, (bh, bw) = args.tensor("x"), args.ints("block_shape", [1, 1])
    n, c, h, w = x.shape[0] // (bh * bw), *x.shape[1:]
    out = x.reshape(bh, bw, n, c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n, c, h * bh, w * bw)
    return _crop(out, args.ints("crops", [0] * 4))


def _crop(x: Tensor, crops: Sequence[int]) -> Tensor:
    top, bottom, left, right = crops
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
