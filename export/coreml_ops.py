"""The MIL operations that carry a network's arithmetic, as torch functions: convolutions, pools, norms, products.

Every kernel follows the operation's page in the MIL specification (coremltools' `mil.ops.defs`). Shapes: N batch, C channels,
*D one to three spatial dimensions. Resizing, elementwise and shape operations lie in the neighbouring `coreml_ops_*` files;
all kernels file themselves in `KERNELS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.errors import UserError

Value = Tensor | str | list[Tensor] | None


class Args:
    """The inputs of one MIL operation by name: tensors, and constants read as Python values (the default when absent)."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self.values = values

    def tensor(self, name: str) -> Tensor:
        """The tensor input `name`. Raises UserError when the program leaves it out."""
        value = self.values.get(name)
        if not isinstance(value, Tensor):
            raise UserError(f"a MIL operation lacks its input {name!r}", hint="the package is damaged; export again")
        return value

    def maybe(self, name: str) -> Tensor | None:
        """The tensor input `name`, or None when it is left out."""
        value = self.values.get(name)
        return value if isinstance(value, Tensor) else None

    def tensors(self, name: str) -> list[Tensor]:
        """The tuple input `name`."""
        value = self.values.get(name)
        return list(value) if isinstance(value, (list, tuple)) else [self.tensor(name)]

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        """The integer vector `name`."""
        value = self.maybe(name)
        return list(default) if value is None else [int(v) for v in value.reshape(-1).tolist()]

    def integer(self, name: str, default: int) -> int:
        """The integer `name`."""
        value = self.maybe(name)
        return default if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        """The number `name`."""
        value = self.maybe(name)
        return default if value is None else float(value)

    def flag(self, name: str, default: bool) -> bool:
        """The boolean `name`."""
        value = self.maybe(name)
        return default if value is None else bool(value)

    def text(self, name: str, default: str) -> str:
        """The string `name`."""
        value = self.values.get(name)
        return value if isinstance(value, str) else default


Kernel = Callable[[Args], Tensor | tuple[Tensor, ...]]
KERNELS: dict[str, Kernel] = {}
"""MIL operation type → its kernel."""


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """A decorator that files a kernel under the MIL operation types it computes."""

    def file_it(function: Kernel) -> Kernel:
        for name in names:
            if name in KERNELS:
                raise ValueError(f"MIL operation {name!r} has two kernels")
            KERNELS[name] = function
        return function

    return file_it


def _interleaved(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Padding (before, after) per spatial dimension in `F.pad`'s order: the last dimension first."""
    return [side for pair in reversed(pairs) for side in pair]


def _padding(args: Args, sizes: Sequence[int], extent: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) per spatial dimension for `pad_type`; `extent` is the dilated kernel's.

    "same" makes the output ceil(size / stride) long; an odd rest goes after the data, with "same_lower" before it.
    """
    kind = args.text("pad_type", "valid").lower()
    if kind == "custom":
        pad = args.ints("pad", [0] * 2 * len(sizes))
        return list(zip(pad[::2], pad[1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind not in ("same", "same_lower"):
        raise UserError(f"MIL pad_type {kind!r} is unknown", hint="known: valid, custom, same, same_lower")
    total = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, extent, strides, strict=True)]
    before = [t // 2 if kind == "same" else t - t // 2 for t in total]
    return [(b, t - b) for b, t in zip(before, total, strict=True)]


@kernel("conv")
def conv(args: Args) -> Tensor:
    """Convolution of x (N, C, *D) with weight (C_out, C / groups, *K)."""
    x, weight = args.tensor("x"), args.tensor("weight")
    rank = x.ndim - 2
    ones = [1] * rank
    strides, dilations = args.ints("strides", ones), args.ints("dilations", ones)
    extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = _padding(args, x.shape[2:], extent, strides)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    even = all(before == after for before, after in pads)
    if not even:
        x = F.pad(x, _interleaved(pads))
    return convolve(
        x,
        weight,
        args.maybe("bias"),
        stride=strides,
        padding=[before for before, _ in pads] if even else [0] * rank,
        dilation=dilations,
        groups=args.integer("groups", 1),
    )


@kernel("conv_transpose")
def conv_transpose(args: Args) -> Tensor:
    """Transposed convolution of x (N, C, *D) with weight (C, C_out / groups, *K): the full result, cropped to the output size.

    Where the asked size reaches past the full result (output padding), only the bias is there.
    """
    x, weight, bias = args.tensor("x"), args.tensor("weight"), args.maybe("bias")
    rank = x.ndim - 2
    ones = [1] * rank
    strides, groups = args.ints("strides", ones), args.integer("groups", 1)
    transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    full = transpose(x, weight, None, stride=strides, groups=groups, dilation=args.ints("dilations", ones))
    pad, kind = args.ints("pad", [0] * 2 * rank), args.text("pad_type", "valid").lower()
    asked = args.ints("output_shape", [])[2:]
    crops = []
    for axis, (size, length) in enumerate(zip(x.shape[2:], full.shape[2:], strict=True)):
        if kind == "same":
            out = asked[axis] if asked else size * strides[axis]
            before = max(length - out, 0) // 2
        else:
            before, after = (pad[2 * axis], pad[2 * axis + 1]) if kind == "custom" else (0, 0)
            out = asked[axis] if asked else length - before - after
        crops.append((-before, out - (length - before)))
    cropped = F.pad(full, _interleaved(crops))
    return cropped if bias is None else cropped + bias.reshape(-1, *ones)


def _windows(args: Args) -> tuple[Tensor, list[int], list[int], list[tuple[int, int]], list[tuple[int, int]]]:
    """x, kernel, strides, padding, and the overhang (0, extra) per dimension that ceil_mode adds behind the padding."""
    x = args.tensor("x")
    sizes = args.ints("kernel_sizes", ())
    strides = args.ints("strides", [1] * len(sizes))
    pads = _padding(args, x.shape[2:], sizes, strides)
    overhang = [(0, 0)] * len(sizes)
    if args.flag("ceil_mode", False):
        for axis, (n, k, s, pad) in enumerate(zip(x.shape[2:], sizes, strides, pads, strict=True)):
            out = math.ceil((n + sum(pad) - k) / s) + 1
            if (out - 1) * s >= n + pad[0] and sum(pad) > 0:
                out -= 1  # a window must start inside the data or its left padding; MIL asks this of padded sides only
            overhang[axis] = (0, max((out - 1) * s + k - n - sum(pad), 0))
    return x, sizes, strides, pads, overhang


@kernel("max_pool")
def max_pool(args: Args) -> Tensor:
    """The largest value in each window of x (N, C, *D); padding never wins."""
    x, sizes, strides, pads, overhang = _windows(args)
    sides = [(before, after + extra) for (before, after), (_, extra) in zip(pads, overhang, strict=True)]
    if any(map(sum, sides)):
        x = F.pad(x, _interleaved(sides), value=-math.inf)
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(sizes) - 1](x, sizes, strides)


def _window_means(x: Tensor, sizes: list[int], strides: list[int]) -> Tensor:
    return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(sizes) - 1](x, sizes, strides)


@kernel("avg_pool")
def avg_pool(args: Args) -> Tensor:
    """The mean of each window of x (N, C, *D).

    Padding counts as data unless `exclude_padding_from_average`; what hangs over the padding in ceil_mode never counts.
    """
    x, sizes, strides, pads, overhang = _windows(args)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    padded, mask = F.pad(x, _interleaved(pads)), F.pad(ones, _interleaved(pads))
    if not args.flag("exclude_padding_from_average", False):
        mask = torch.ones_like(mask)
    padded, mask = F.pad(padded, _interleaved(overhang)), F.pad(mask, _interleaved(overhang))
    means = _window_means(padded, sizes, strides)
    return means if bool(mask.all()) else means / _window_means(mask, sizes, strides)


@kernel("l2_pool")
def l2_pool(args: Args) -> Tensor:
    """The Euclidean norm of each window of x (N, C, *D)."""
    x, sizes, strides, pads, overhang = _windows(args)
    padded = F.pad(F.pad(x, _interleaved(pads)), _interleaved(overhang))
    return (_window_means(padded.square(), sizes, strides) * math.prod(sizes)).sqrt()


def _per_channel(values: Tensor | None, x: Tensor, default: float) -> Tensor:
    """A (C) vector shaped to multiply x (N, C, *D)."""
    side = [1, -1] + [1] * (x.ndim - 2)
    return torch.full((1,) * x.ndim, default) if values is None else values.reshape(side)


@kernel("batch_norm")
def batch_norm(args: Args) -> Tensor:
    """γ (x − mean) / √(variance + ε) + β per channel of x (N, C, *D)."""
    x = args.tensor("x")
    gamma, beta = _per_channel(args.maybe("gamma"), x, 1.0), _per_channel(args.maybe("beta"), x, 0.0)
    mean, variance = _per_channel(args.tensor("mean"), x, 0.0), _per_channel(args.tensor("variance"), x, 1.0)
    return gamma * (x - mean) / (variance + args.number("epsilon", 1e-5)).sqrt() + beta


@kernel("instance_norm")
def instance_norm(args: Args) -> Tensor:
    """γ (x − mean) / √(variance + ε) + β with the statistics of each sample's channel in x (N, C, *D)."""
    x = args.tensor("x")
    gamma, beta = _per_channel(args.maybe("gamma"), x, 1.0), _per_channel(args.maybe("beta"), x, 0.0)
    variance, mean = torch.var_mean(x, dim=list(range(2, x.ndim)), correction=0, keepdim=True)
    return gamma * (x - mean) / (variance + args.number("epsilon", 1e-5)).sqrt() + beta


@kernel("layer_norm")
def layer_norm(args: Args) -> Tensor:
    """γ (x − mean) / √(variance + ε) + β with the statistics over `axes`; γ and β have the shape of x along these axes."""
    x = args.tensor("x")
    axes = sorted(axis % x.ndim for axis in args.ints("axes", range(x.ndim)))
    side = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    out = (x - mean) / (variance + args.number("epsilon", 1e-5)).sqrt()
    gamma, beta = args.maybe("gamma"), args.maybe("beta")
    out = out if gamma is None else out * gamma.reshape(side)
    return out if beta is None else out + beta.reshape(side)


@kernel("l2_norm")
def l2_norm(args: Args) -> Tensor:
    """x / √(Σ x² + ε) with the sum over the last three dimensions."""
    x = args.tensor("x")
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + args.number("epsilon", 1e-6)).sqrt()


@kernel("local_response_norm")
def local_response_norm(args: Args) -> Tensor:
    """x / (k + α/size Σ x²)^β with the sum over `size` neighbouring channels of x (N, C, *D)."""
    return F.local_response_norm(
        args.tensor("x"),
        args.integer("size", 1),
        alpha=args.number("alpha", 1e-4),
        beta=args.number("beta", 0.75),
        k=args.number("k", 1.0),
    )


@kernel("linear")
def linear(args: Args) -> Tensor:
    """x (…, D_in) · weightᵀ + bias with weight (D_out, D_in)."""
    return F.linear(args.tensor("x"), args.tensor("weight"), args.maybe("bias"))


@kernel("matmul")
def matmul(args: Args) -> Tensor:
    """The batched matrix product x · y, each transposed first when asked."""
    x, y = args.tensor("x"), args.tensor("y")
    x = x.transpose(-1, -2) if args.flag("transpose_x", False) and x.ndim > 1 else x
    y = y.transpose(-1, -2) if args.flag("transpose_y", False) and y.ndim > 1 else y
    return x @ y


@kernel("einsum")
def einsum(args: Args) -> Tensor:
    """Einstein summation of the values, side-1 dimensions broadcast."""
    return torch.einsum(args.text("equation", ""), *args.tensors("values"))


@kernel("scaled_dot_product_attention")
def scaled_dot_product_attention(args: Args) -> Tensor:
    """softmax(Q Kᵀ / √E + mask) V for query (…, L, E), key (…, S, E), value (…, S, E_v); a boolean mask keeps where true."""
    query, key, value = args.tensor("query"), args.tensor("key"), args.tensor("value")
    return F.scaled_dot_product_attention(query, key, value, attn_mask=args.maybe("attn_mask"))
