"""Element-wise operators of several inputs: arithmetic, comparison, choice."""

from __future__ import annotations

from functools import reduce

import numpy as np

from .convert import BOOL, FLOAT, INT, Converter
from .elementwise import broadcast, spread
from .graph import Node
from .ir import Tensor
from .registry import UnsupportedError, rule
from .rules_unary import Pen, identity, put, unary

_ARITHMETIC = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Sum": "ADD", "Min": "MINIMUM", "Max": "MAXIMUM"}
_COMPARISON = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "Less": "LESS",
    "GreaterOrEqual": "GREATER_EQUAL",
    "LessOrEqual": "LESS_EQUAL",
    "And": "LOGICAL_AND",
    "Or": "LOGICAL_OR",
    "Xor": "NOT_EQUAL",
}


def chain(ctx: Converter, kind: str, tensors: list[Tensor]) -> Tensor:
    """`kind` applied from left to right."""

    def step(a: Tensor, b: Tensor) -> Tensor:
        return ctx.emit(kind, [a, b], broadcast([a.shape, b.shape], max(a.rank, b.rank)))

    return reduce(step, tensors)


@rule("Add", "Sub", "Mul", "Div", "Sum", "Min", "Max")
def arithmetic(ctx: Converter, node: Node) -> None:
    """ADD, SUB, MUL, DIV, MINIMUM or MAXIMUM over all inputs."""
    if len(node.inputs) == 1:
        return identity(ctx, node)
    kind = _ARITHMETIC[node.op]
    return put(ctx, node, spread(ctx, node.inputs, lambda tensors, _: chain(ctx, kind, tensors)))


@rule("Mean")
def mean(ctx: Converter, node: Node) -> None:
    """The sum of all inputs times 1/count."""
    share = ctx.constant(np.array(1 / len(node.inputs), dtype=np.float32))
    put(ctx, node, spread(ctx, node.inputs, lambda tensors, _: chain(ctx, "MUL", [chain(ctx, "ADD", tensors), share])))


@rule(*_COMPARISON)
def comparison(ctx: Converter, node: Node) -> None:
    """A LiteRT comparison or logical operator."""
    kind = _COMPARISON[node.op]
    put(ctx, node, spread(ctx, node.inputs, lambda tensors, shape: ctx.emit(kind, tensors, shape, BOOL)))


@rule("Pow")
def power(ctx: Converter, node: Node) -> None:
    """SQUARE, SQRT or RSQRT for those exponents, else POW."""
    exponent = ctx.const(node.inputs[1])
    simple = {2.0: "SQUARE", 0.5: "SQRT", -0.5: "RSQRT"}
    held = ctx.dtype(node.inputs[0])
    if exponent is not None and exponent.size == 1 and held == FLOAT and exponent.ndim <= ctx.rank(node.inputs[0]):
        kind = simple.get(float(exponent.item()))
        if float(exponent.item()) == 1.0:
            return identity(ctx, node)
        if kind:
            return unary(ctx, node, lambda pen, x: pen(kind, x))

    def write(tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        base, power_of = tensors
        if base.dtype != power_of.dtype:
            options = {"inDataType": 2 if power_of.dtype == INT else 0, "outDataType": 0 if base.dtype == FLOAT else 2}
            power_of = ctx.emit("CAST", [power_of], power_of.shape, base.dtype, options)
        return ctx.emit("POW", [base, power_of], shape)

    return put(ctx, node, spread(ctx, node.inputs, write))


@rule("Mod")
def modulo(ctx: Converter, node: Node) -> None:
    """FLOOR_MOD, the sign of the divisor as in Python."""
    if node.attr("fmod", 0):
        raise UnsupportedError("fmod=1 (C's remainder) has no kernel")
    put(ctx, node, spread(ctx, node.inputs, lambda tensors, shape: ctx.emit("FLOOR_MOD", tensors, shape)))


@rule("Where")
def where(ctx: Converter, node: Node) -> None:
    """SELECT_V2."""

    def write(tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        return ctx.emit("SELECT_V2", tensors, shape, tensors[1].dtype)

    put(ctx, node, spread(ctx, node.inputs, write))


@rule("BatchNormalization")
def batch_norm(ctx: Converter, node: Node) -> None:
    """x·(γ/√(σ² + ε)) + (β − μ·γ/√(σ² + ε)), for the ones that no convolution before them absorbed."""
    scale, shift = batch_norm_affine(ctx, node)
    value = ctx.raw(node.inputs[0])
    if 1 in value.scramble:
        scale, shift = scale[value.scramble[1].order], shift[value.scramble[1].order]
    side = [1] * value.tensor.rank
    side[value.stored(1)] = -1
    while len(side) > 1 and side[0] == 1 and value.stored(1) == value.tensor.rank - 1:
        side.pop(0)
    pen = Pen(ctx, value.tensor)
    scaled = pen("MUL", value.tensor, ctx.constant(scale.reshape(side)))
    ctx.put(node.outputs[0], pen("ADD", scaled, ctx.constant(shift.reshape(side))), value.perm, value.scramble)


def batch_norm_affine(ctx: Converter, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """The factor and offset per channel of a BatchNormalization in inference, each (C,)."""
    if len([name for name in node.outputs if name]) > 1 or node.attr("training_mode", 0):
        raise UnsupportedError("it is in training mode; export the module after .eval()")
    found = [array for name in node.inputs[1:5] if (array := ctx.const(name)) is not None]
    if len(found) < 4:
        raise UnsupportedError("its statistics are computed at run time")
    return affine(found[0], found[1], found[2], found[3], float(node.attr("epsilon", 1e-5)))


def affine(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """(γ/√(σ² + ε), β − μ·γ/√(σ² + ε)), computed in double precision, float32."""
    gamma, beta, mean, variance = (v.astype(np.float64) for v in (gamma, beta, mean, variance))
    scale = gamma / np.sqrt(variance + epsilon)
    return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)
