"""Matrix products: constant weights become FULLY_CONNECTED, everything else BATCH_MATMUL."""

from __future__ import annotations

import numpy as np

from .convert import Converter, signature
from .elementwise import broadcast
from .graph import Node
from .ir import FREE, Tensor
from .layout import Perm, Scramble, Value, identity
from .moves import permute, reshape
from .registry import UnsupportedError, rule


@rule("Gemm")
def gemm(ctx: Converter, node: Node) -> None:
    """α·A·B + β·C of computed matrices: BATCH_MATMUL, MUL, ADD (`fuse` makes a Linear of constant ones)."""
    a, b = ctx.dense(node.inputs[0]), ctx.dense(node.inputs[1])
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    shape = ctx.dims(node.outputs[0])
    options = {"adjX": bool(node.attr("transA", 0)), "adjY": bool(node.attr("transB", 0))}
    tensor = ctx.emit("BATCH_MATMUL", [a, b], shape, options=options)
    if alpha != 1:
        tensor = ctx.emit("MUL", [tensor, ctx.constant(np.array(alpha, dtype=np.float32))], shape)
    if node.input(2):
        offset = ctx.dense(node.inputs[2])
        if beta != 1:
            offset = ctx.emit("MUL", [offset, ctx.constant(np.array(beta, dtype=np.float32))], offset.shape)
        tensor = ctx.emit("ADD", [tensor, offset], shape)
    ctx.put(node.outputs[0], tensor)


@rule("Linear")
def linear_node(ctx: Converter, node: Node) -> None:
    """A product with a constant matrix (I, O) and the constant vector (O,) that is added to it; made by `fuse`."""
    weight, bias = ctx.const(node.inputs[1]), ctx.const(node.inputs[2])
    assert weight is not None  # noqa: S101 - `fuse` makes this node from constants only
    assert bias is not None  # noqa: S101
    linear(ctx, node, weight.T, bias)


def linear(ctx: Converter, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> None:
    """FULLY_CONNECTED with weight (O, I): its columns follow a scrambled input, its rows a wanted output order.

    Any axis may be stored anywhere except the last logical one, which must be last.
    """
    name = node.inputs[0]
    axis = ctx.rank(name) - 1
    value = ctx.unscrambled(name, keep=[axis])
    if value.perm[-1] != axis:
        value = _with_last(ctx, ctx.plain(name), name, axis)
    if axis in value.scramble:
        weight = weight[:, value.scramble[axis].order]
    order: Scramble | None = node.attr("_order")
    if order is not None:
        weight, bias = weight[order.order], None if bias is None else bias[order.order]
    shape = (*value.tensor.shape[:-1], weight.shape[0])
    inputs = [value.tensor, ctx.constant(weight, np.dtype("float32"))]
    inputs.append(ctx.constant(np.zeros(weight.shape[0]) if bias is None else bias, np.dtype("float32")))
    options = {"keepNumDims": True} if value.rank > 2 else {}
    ctx.put(
        node.outputs[0],
        ctx.emit("FULLY_CONNECTED", inputs, shape, options=options),
        value.perm,
        {axis: order} if order else None,
    )


def _with_last(ctx: Converter, value: Value, name: str, axis: int) -> Value:
    """The value with a logical axis stored last, the others as they are."""
    perm = (*(a for a in value.perm if a != axis), axis)
    if value.perm == perm:
        return value
    return Value(ctx.cached(("dense", name, perm), lambda: permute(ctx, value, perm)), perm)


@rule("MatMul")
def matmul(ctx: Converter, node: Node) -> None:
    """FULLY_CONNECTED for a constant right matrix, else BATCH_MATMUL."""
    left, right = node.inputs
    weight = ctx.const(right)
    if weight is not None and weight.ndim == 2 and ctx.rank(left) >= 2 and ctx.const(left) is None:
        return linear(ctx, node, weight.T, None)
    shape = ctx.dims(node.outputs[0])
    if ctx.rank(left) == 1 or ctx.rank(right) == 1:
        a, b = ctx.dense(left), ctx.dense(right)
        a = reshape(ctx, a, (1, *a.shape)) if a.rank == 1 else a
        b = reshape(ctx, b, (*b.shape, 1)) if b.rank == 1 else b
        return ctx.put(node.outputs[0], reshape(ctx, product(ctx, a, b), shape))
    a, adj_x = _operand(ctx, left)
    b, adj_y = _operand(ctx, right)
    return ctx.put(node.outputs[0], product(ctx, a, b, adj_x=adj_x, adj_y=adj_y))


def _operand(ctx: Converter, name: str) -> tuple[Tensor, bool]:
    """A matrix operand with batch axes in order, and whether its two last axes are stored the other way round.

    When data has to move anyway, the rows-by-columns order comes out, or its transpose where that saves nothing less:
    XNNPACK multiplies by a right operand stored transposed.
    """
    rank = ctx.rank(name)
    swapped: Perm = (*range(rank - 2), rank - 1, rank - 2)
    if ctx.const(name) is not None:
        return ctx.dense(name), False
    perm = ctx.plain(name).perm
    if perm == identity(rank):
        return ctx.dense(name), False
    turned = perm.index(rank - 1) < perm.index(rank - 2)
    return ctx.dense(name, swapped if turned else None), turned


def product(ctx: Converter, a: Tensor, b: Tensor, *, adj_x: bool = False, adj_y: bool = False) -> Tensor:
    """BATCH_MATMUL of (…, M, K) and (…, K, N), with broadcast batch axes. Raises UnsupportedError above rank 5."""
    rank = max(a.rank, b.rank)
    if rank > 5:
        raise UnsupportedError(f"it multiplies matrices over {rank - 2} batch dimensions; LiteRT takes 3")
    batch = broadcast([a.shape[:-2], b.shape[:-2]], rank - 2)
    shape = (*batch, a.shape[-1] if adj_x else a.shape[-2], b.shape[-2] if adj_y else b.shape[-1])
    return ctx.emit("BATCH_MATMUL", [a, b], shape, options={"adjX": adj_x, "adjY": adj_y})


@rule("Einsum")
def einsum(ctx: Converter, node: Node) -> None:
    """Two operands: batch letters (in both and the result), summed letters (in both only), free letters → BATCH_MATMUL."""
    equation = str(node.attr("equation")).replace(" ", "")
    if "." in equation:
        raise UnsupportedError(f"einsum {equation!r} uses an ellipsis")
    terms, _, result = equation.partition("->")
    parts = terms.split(",")
    if "->" not in equation:
        letters = terms.replace(",", "")
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if len(parts) != 2 or any(len(set(p)) != len(p) for p in [*parts, result]):
        raise UnsupportedError(f"einsum {equation!r}: only two operands without repeated letters are taken")
    a, b = parts
    batch = [c for c in result if c in a and c in b]
    summed = [c for c in a if c in b and c not in result]
    rows, columns = ([c for c in t if c not in (b if t is a else a)] for t in (a, b))
    if set(rows) | set(columns) | set(batch) != set(result):
        raise UnsupportedError(f"einsum {equation!r} sums a letter of one operand alone")
    _matrix_einsum(ctx, node, (a, b, result), batch, rows, columns, summed)


def _matrix_einsum(
    ctx: Converter,
    node: Node,
    terms: tuple[str, str, str],
    batch: list[str],
    rows: list[str],
    columns: list[str],
    summed: list[str],
) -> None:
    sizes: dict[str, np.ndarray] = {}
    for letters, name in zip(terms[:2], node.inputs, strict=True):
        for axis, letter in enumerate(letters):
            sizes[letter] = ctx.probe(name)[:, axis]

    def merged(letters: list[str]) -> int:
        found = signature(np.stack([np.prod([sizes[c] for c in letters], axis=0)], axis=1))[0] if letters else 1
        return int(found)

    def matrix(which: int, first: list[str], second: list[str]) -> Tensor:
        perm = tuple(terms[which].index(c) for c in [*batch, *first, *second])
        tensor = ctx.dense(node.inputs[which], perm)
        return reshape(ctx, tensor, (*tensor.shape[: len(batch)], merged(first), merged(second)))

    tensor = product(ctx, matrix(0, rows, summed), matrix(1, summed, columns))
    laid = [*batch, *rows, *columns]
    perm = tuple(terms[2].index(c) for c in laid)
    dims = signature(ctx.probe(node.outputs[0]))
    shape = tuple(dims[axis] for axis in perm)
    if shape.count(FREE) > 1 and shape != tensor.shape:
        raise UnsupportedError("its free dimensions would have to be split at run time")
    ctx.put(node.outputs[0], reshape(ctx, tensor, shape), perm)
