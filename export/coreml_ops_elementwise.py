"""The MIL operations that work element by element or reduce along axes, as torch functions: activations, arithmetic, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.errors import UserError
from .coreml_ops import Args, Kernel, kernel

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": torch.clone,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.true_divide,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,  # the result takes the divisor's sign, as Python's
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Kernel:
    return lambda args: function(args.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Kernel:
    return lambda args: function(args.tensor("x"), args.tensor("y"))


for _name, _function in _UNARY.items():
    kernel(_name)(_unary(_function))
for _name, _operator in _BINARY.items():
    kernel(_name)(_binary(_operator))


@kernel("clip")
def clip(args: Args) -> Tensor:
    """min(max(x, α), β)."""
    return args.tensor("x").clamp(args.number("alpha", -math.inf), args.number("beta", math.inf))


@kernel("threshold")
def threshold(args: Args) -> Tensor:
    """max(x, α)."""
    return args.tensor("x").clamp(min=args.number("alpha", -math.inf))


@kernel("inverse")
def inverse(args: Args) -> Tensor:
    """1 / (x + ε)."""
    return (args.tensor("x") + args.number("epsilon", 1e-4)).reciprocal()


@kernel("log")
def log(args: Args) -> Tensor:
    """ln(x + ε)."""
    return (args.tensor("x") + args.number("epsilon", 1e-45)).log()


@kernel("rsqrt")
def rsqrt(args: Args) -> Tensor:
    """1 / √(x + ε)."""
    return (args.tensor("x") + args.number("epsilon", 1e-12)).rsqrt()


@kernel("leaky_relu")
def leaky_relu(args: Args) -> Tensor:
    """x where positive, else α x."""
    x = args.tensor("x")
    return torch.where(x >= 0, x, x * args.number("alpha", 0.01))


@kernel("prelu")
def prelu(args: Args) -> Tensor:
    """x where positive, else α_c x, with one α per channel of x (N, C, *D)."""
    return F.prelu(args.tensor("x"), args.tensor("alpha").reshape(-1))


@kernel("elu")
def elu(args: Args) -> Tensor:
    """x where positive, else α (eˣ − 1)."""
    return F.elu(args.tensor("x"), alpha=args.number("alpha", 1.0))


@kernel("gelu")
def gelu(args: Args) -> Tensor:
    """The Gaussian error linear unit: exact, by tanh, or x · sigmoid(1.702 x)."""
    x, mode = args.tensor("x"), args.text("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise UserError(f"MIL gelu mode {mode!r} is unknown", hint="known: EXACT, TANH_APPROXIMATION, SIGMOID_APPROXIMATION")
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@kernel("sigmoid_hard")
def sigmoid_hard(args: Args) -> Tensor:
    """min(max(α x + β, 0), 1)."""
    return (args.number("alpha", 0.2) * args.tensor("x") + args.number("beta", 0.5)).clamp(0, 1)


@kernel("clamped_relu")
def clamped_relu(args: Args) -> Tensor:
    """min(x, β) where x is positive, else min(α x, β)."""
    x = args.tensor("x")
    return torch.where(x >= 0, x, x * args.number("alpha", 0.0)).clamp(max=args.number("beta", math.inf))


@kernel("thresholded_relu")
def thresholded_relu(args: Args) -> Tensor:
    """x where it reaches α, else 0."""
    x = args.tensor("x")
    return torch.where(x >= args.number("alpha", 1.0), x, torch.zeros_like(x))


@kernel("linear_activation")
def linear_activation(args: Args) -> Tensor:
    """α x + β."""
    return args.number("alpha", 1.0) * args.tensor("x") + args.number("beta", 0.0)


@kernel("scaled_tanh")
def scaled_tanh(args: Args) -> Tensor:
    """α tanh(β x)."""
    return args.number("alpha", 1.0) * torch.tanh(args.number("beta", 1.0) * args.tensor("x"))


@kernel("softplus_parametric")
def softplus_parametric(args: Args) -> Tensor:
    """α_c ln(1 + e^(β_c x)) with one α and β per channel of x (N, C, *D)."""
    x = args.tensor("x")
    side = [1, -1] + [1] * (x.ndim - 2)
    return args.tensor("alpha").reshape(side) * F.softplus(args.tensor("beta").reshape(side) * x)


@kernel("softmax")
def softmax(args: Args) -> Tensor:
    """eˣ / Σ eˣ along `axis`."""
    return torch.softmax(args.tensor("x"), dim=args.integer("axis", -1))


@kernel("select")
def select(args: Args) -> Tensor:
    """a where cond holds, else b."""
    return torch.where(args.tensor("cond").bool(), args.tensor("a"), args.tensor("b"))


@kernel("cast")
def cast(args: Args) -> Tensor:
    """x; the evaluator gives every result the type that the program declares for it, here the one asked for."""
    return args.tensor("x")


@kernel("dequantize")
def dequantize(args: Args) -> Tensor:
    """scale · (input − zero_point), with scale and zero_point scalars or vectors along `axis`."""
    x, scale, zero = args.tensor("input"), args.tensor("scale"), args.maybe("zero_point")
    side = [1] * x.ndim
    if scale.ndim:
        side[args.integer("axis", 0)] = -1
    shifted = x.float() if zero is None else x.float() - zero.float().reshape(side if zero.ndim else [1] * x.ndim)
    return scale.reshape(side) * shifted


@kernel("cumsum")
def cumsum(args: Args) -> Tensor:
    """The running sum along `axis`, from the end when `reverse`, without the element itself when `exclusive`."""
    x, axis = args.tensor("x"), args.integer("axis", 0)
    reverse = args.flag("reverse", False)
    run = (x.flip(axis) if reverse else x).cumsum(axis)
    if args.flag("exclusive", False):
        run = run - (x.flip(axis) if reverse else x)
    return run.flip(axis) if reverse else run


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep) if x.is_floating_point() else x.double().mean(axes, keepdim=keep)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_mean": _mean,
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_prod": _prod,
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _over_axes(function: Callable[[Tensor, list[int], bool], Tensor]) -> Kernel:
    """A kernel that reduces over `axes` (all when left out)."""

    def reduce(args: Args) -> Tensor:
        x = args.tensor("x")
        return function(x, args.ints("axes", range(x.ndim)), args.flag("keep_dims", False)) if x.ndim else x

    return reduce


for _name, _reduction in _REDUCTIONS.items():
    kernel(_name)(_over_axes(_reduction))


@kernel("reduce_argmax")
def reduce_argmax(args: Args) -> Tensor:
    """The index of the largest value along `axis`, the first of equals."""
    return args.tensor("x").argmax(args.integer("axis", -1), keepdim=args.flag("keep_dims", False))


@kernel("reduce_argmin")
def reduce_argmin(args: Args) -> Tensor:
    """The index of the smallest value along `axis`, the first of equals."""
    return args.tensor("x").argmin(args.integer("axis", -1), keepdim=args.flag("keep_dims", False))
