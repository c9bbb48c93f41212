"""Element-wise operators of one input: activations and arithmetic, composed exactly where LiteRT has no kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .convert import BOOL, FLOAT, INT, Converter
from .elementwise import spread
from .graph import Node
from .ir import Tensor
from .layout import Value
from .registry import UnsupportedError, rule

_DIRECT = {
    "Relu": "RELU",
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "Sqrt": "SQRT",
    "Exp": "EXP",
    "Log": "LOG",
    "Abs": "ABS",
    "Neg": "NEG",
    "Floor": "FLOOR",
    "Ceil": "CEIL",
    "Round": "ROUND",
    "Sign": "SIGN",
    "Sin": "SIN",
    "Cos": "COS",
    "Not": "LOGICAL_NOT",
}


class Pen:
    """Writes element-wise formulas over one stored tensor."""

    def __init__(self, ctx: Converter, tensor: Tensor) -> None:
        self.ctx, self.shape = ctx, tensor.shape

    def __call__(self, kind: str, *operands: Tensor | float, dtype: np.dtype | None = None, **options: Any) -> Tensor:
        """The output of an operator on tensors of this shape and scalar constants."""
        like = next(x for x in operands if isinstance(x, Tensor))
        tensors = [x if isinstance(x, Tensor) else self.ctx.constant(np.array(x, dtype=like.dtype)) for x in operands]
        return self.ctx.emit(kind, tensors, self.shape, dtype or like.dtype, options)


def unary(ctx: Converter, node: Node, write: Callable[[Pen, Tensor], Tensor]) -> None:
    """Record `write(pen, tensor)` as the node's output, in its input's layout."""
    value = ctx.raw(node.inputs[0])
    tensor = write(Pen(ctx, value.tensor), value.tensor)
    ctx.put(node.outputs[0], tensor, value.perm, value.scramble)


@rule(*_DIRECT)
def direct(ctx: Converter, node: Node) -> None:
    """One LiteRT operator of the same meaning; on integers the rounding operators change nothing."""
    kind = _DIRECT[node.op]
    if node.op in ("Floor", "Ceil", "Round") and ctx.dtype(node.inputs[0]) == INT:
        return identity(ctx, node)
    return unary(ctx, node, lambda pen, x: pen(kind, x))


@rule("Identity", "Dropout")
def identity(ctx: Converter, node: Node) -> None:
    """The same value under another name (Dropout in inference)."""
    if len([name for name in node.outputs if name]) > 1:
        raise UnsupportedError("its mask output is used")
    ctx.values[node.outputs[0]] = ctx.raw(node.inputs[0])


@rule("Cast")
def cast(ctx: Converter, node: Node) -> None:
    """CAST, or nothing when both types are held alike (int64 as int32, float16 as float32)."""
    from .convert import held_as
    from .graph import dtype_of

    target = held_as(dtype_of(int(node.attr("to"))))
    value = ctx.raw(node.inputs[0])
    if value.tensor.dtype == target:
        ctx.values[node.outputs[0]] = value
        return
    if target == BOOL:
        unary(ctx, node, lambda pen, x: pen("NOT_EQUAL", x, 0, dtype=BOOL))
        return
    unary(ctx, node, lambda pen, x: pen("CAST", x, dtype=target, inDataType=_type(x.dtype), outDataType=_type(target)))


def _type(dtype: np.dtype) -> int:
    """The schema's number of a dtype."""
    return {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int8": 9, "uint16": 16}[str(dtype)]


@rule("Clip")
def clip(ctx: Converter, node: Node) -> None:
    """RELU, RELU6, RELU_N1_TO_1 or RELU_0_TO_1 for their bounds, else MAXIMUM and MINIMUM."""
    bounds = [node.attr(key, ctx.const(node.input(i))) for i, key in ((1, "min"), (2, "max"))]
    if any(bound is None and node.input(i) for i, bound in enumerate(bounds, 1)):
        return _clip_computed(ctx, node)
    low, high = (None if b is None else np.asarray(b).item() for b in bounds)
    low = None if low is not None and low <= np.finfo(np.float32).min else low
    high = None if high is not None and high >= np.finfo(np.float32).max else high
    named: dict[tuple[float | None, float | None], str] = {
        (0, None): "RELU",
        (0, 6): "RELU6",
        (-1, 1): "RELU_N1_TO_1",
        (0, 1): "RELU_0_TO_1",
    }
    kind = named.get((low, high))

    def write(pen: Pen, x: Tensor) -> Tensor:
        if kind is not None and x.dtype == FLOAT:
            return pen(kind, x)
        x = x if low is None else pen("MAXIMUM", x, low)
        return x if high is None else pen("MINIMUM", x, high)

    if low is None and high is None:
        return identity(ctx, node)
    return unary(ctx, node, write)


def _clip_computed(ctx: Converter, node: Node) -> None:
    value = ctx.raw(node.inputs[0])
    tensor = value.tensor
    for index, kind in ((1, "MAXIMUM"), (2, "MINIMUM")):
        if node.input(index):
            tensor = ctx.emit(kind, [tensor, ctx.dense(node.inputs[index])], tensor.shape)
    ctx.put(node.outputs[0], tensor, value.perm, value.scramble)


@rule("LeakyRelu")
def leaky_relu(ctx: Converter, node: Node) -> None:
    """LEAKY_RELU."""
    unary(ctx, node, lambda pen, x: pen("LEAKY_RELU", x, alpha=float(node.attr("alpha", 0.01))))


@rule("PRelu")
def prelu(ctx: Converter, node: Node) -> None:
    """PRELU with the slope in the input's layout; a computed slope becomes max(x, 0) + slope·min(x, 0)."""
    x, slope = node.inputs
    if ctx.const(slope) is None:

        def write(tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
            pen = Pen(ctx, tensors[0])
            negative = ctx.emit("MUL", [tensors[1], pen("MINIMUM", tensors[0], 0.0)], shape)
            return ctx.emit("ADD", [pen("RELU", tensors[0]), negative], shape)

    else:

        def write(tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
            return ctx.emit("PRELU", tensors, shape)

    put(ctx, node, spread(ctx, [x, slope], write))


def put(ctx: Converter, node: Node, value: Value) -> None:
    """Record a broadcast result as the node's output."""
    ctx.put(node.outputs[0], value.tensor, value.perm, value.scramble)


@rule("Elu", "Celu", "Selu")
def elu(ctx: Converter, node: Node) -> None:
    """scale·(max(x, 0) + a·(exp(min(x, 0)/b) − 1)) by ELU, which uses expm1."""
    alpha = float(node.attr("alpha", {"Elu": 1.0, "Celu": 1.0, "Selu": 1.6732632423543772}[node.op]))
    scale = float(node.attr("gamma", 1.0507009873554805)) if node.op == "Selu" else 1.0
    inner = alpha if node.op == "Celu" else 1.0

    def write(pen: Pen, x: Tensor) -> Tensor:
        if alpha == 1 and scale == 1:
            return pen("ELU", x)
        negative = pen("MINIMUM", x, 0.0)
        negative = negative if inner == 1 else pen("MUL", negative, 1 / inner)
        negative = pen("MUL", pen("ELU", negative), alpha * scale)
        positive = pen("RELU", x)
        return pen("ADD", positive if scale == 1 else pen("MUL", positive, scale), negative)

    unary(ctx, node, write)


@rule("HardSigmoid", "HardSwish")
def hard_sigmoid(ctx: Converter, node: Node) -> None:
    """clip(a·x + b, 0, 1) as relu6(6a·x + 6b)/6; times x for HardSwish, or HARD_SWISH itself where it stays in float.

    XNNPACK takes HARD_SWISH as float alone; as int8 it takes these parts.
    """
    if node.op == "HardSwish" and not ctx.integer:
        unary(ctx, node, lambda pen, x: pen("HARD_SWISH", x))
        return
    alpha, beta = (1 / 6, 0.5) if node.op == "HardSwish" else (node.attr("alpha", 0.2), node.attr("beta", 0.5))
    slope = float(np.float32(6 * alpha))

    def write(pen: Pen, x: Tensor) -> Tensor:
        line = x if abs(slope - 1) < 1e-6 else pen("MUL", x, slope)
        gate = pen("MUL", pen("RELU6", pen("ADD", line, float(6 * beta))), 1 / 6)
        return pen("MUL", x, gate) if node.op == "HardSwish" else gate

    unary(ctx, node, write)


def softplus(pen: Pen, x: Tensor) -> Tensor:
    """log(1 + exp(x)) as max(x, 0) + log(1 + exp(−|x|)), which never overflows."""
    small = pen("EXP", pen("NEG", pen("ABS", x)))
    return pen("ADD", pen("RELU", x), pen("LOG", pen("ADD", small, 1.0)))


@rule("Softplus", "Mish", "Softsign", "Swish", "ThresholdedRelu")
def smooth(ctx: Converter, node: Node) -> None:
    """Activations composed of LiteRT's own operators."""
    alpha = float(node.attr("alpha", 1.0))

    def write(pen: Pen, x: Tensor) -> Tensor:
        if node.op == "Softplus":
            return softplus(pen, x)
        if node.op == "Mish":
            return pen("MUL", x, pen("TANH", softplus(pen, x)))
        if node.op == "Swish":
            return pen("MUL", x, pen("LOGISTIC", x if alpha == 1 else pen("MUL", x, alpha)))
        if node.op == "ThresholdedRelu":
            return pen("MUL", x, pen("CAST", pen("GREATER", x, alpha, dtype=BOOL), dtype=FLOAT, inDataType=6, outDataType=0))
        return pen("DIV", x, pen("ADD", pen("ABS", x), 1.0))

    unary(ctx, node, write)


@rule("Gelu")
def gelu(ctx: Converter, node: Node) -> None:
    """GELU, exact (erf) or by tanh."""
    unary(ctx, node, lambda pen, x: pen("GELU", x, approximate=node.attr("approximate", "none") == "tanh"))


@rule("Erf")
def erf(ctx: Converter, node: Node) -> None:
    """erf within 1.5e-7 by Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26; LiteRT has no kernel for it."""
    coefficients = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)

    def write(pen: Pen, x: Tensor) -> Tensor:
        size = pen("ABS", x)
        t = pen("DIV", 1.0, pen("ADD", pen("MUL", size, 0.3275911), 1.0))
        series = pen("MUL", t, coefficients[0])
        for value in coefficients[1:]:
            series = pen("MUL", pen("ADD", series, value), t)
        decay = pen("EXP", pen("NEG", pen("MUL", x, x)))
        return pen("MUL", pen("SIGN", x), pen("SUB", 1.0, pen("MUL", series, decay)))

    unary(ctx, node, write)


@rule("Reciprocal", "Tan", "IsNaN", "Sinh", "Cosh")
def quotients(ctx: Converter, node: Node) -> None:
    """1/x, sin/cos, x ≠ x, (eˣ ∓ e⁻ˣ)/2."""

    def write(pen: Pen, x: Tensor) -> Tensor:
        if node.op == "Reciprocal":
            return pen("DIV", 1.0, x)
        if node.op == "Tan":
            return pen("DIV", pen("SIN", x), pen("COS", x))
        if node.op == "IsNaN":
            return pen("NOT_EQUAL", x, x, dtype=BOOL)
        rising, falling = pen("EXP", x), pen("EXP", pen("NEG", x))
        return pen("MUL", pen("SUB" if node.op == "Sinh" else "ADD", rising, falling), 0.5)

    unary(ctx, node, write)


@rule("Softmax", "LogSoftmax")
def softmax(ctx: Converter, node: Node) -> None:
    """SOFTMAX or LOG_SOFTMAX over the last stored axis; before opset 13 ONNX flattens all axes from `axis` on."""
    from .moves import permute

    old = ctx.graph.opset < 13
    value = ctx.plain(node.inputs[0])
    axis = int(node.attr("axis", 1 if old else -1)) % max(value.rank, 1)
    dims = ctx.dims(node.inputs[0])
    if old and any(d != 1 for d in dims[axis + 1 :]):
        raise UnsupportedError(
            f"its axis {axis} flattens several dimensions in opset {ctx.graph.opset}; export with opset 13 or newer"
        )
    perm = value.perm
    if perm[-1] != axis:
        perm = (*(a for a in perm if a != axis), axis)
    tensor = (
        ctx.cached(("dense", node.inputs[0], perm), lambda: permute(ctx, value, perm)) if perm != value.perm else value.tensor
    )
    kind, options = ("SOFTMAX", {"beta": 1.0}) if node.op == "Softmax" else ("LOG_SOFTMAX", {})
    ctx.put(node.outputs[0], ctx.emit(kind, [tensor], tensor.shape, options=options), perm)
