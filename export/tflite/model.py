"""From an ONNX model to a finished TFLite program."""

from __future__ import annotations

import numpy as np
import onnx

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError, did_you_mean
from . import (  # noqa: F401 - importing a rules module files its rules
    rules_binary,
    rules_control,
    rules_conv,
    rules_index,
    rules_matmul,
    rules_pool,
    rules_reduce,
    rules_resize,
    rules_shape,
    rules_unary,
)
from .convert import Converter, held_as, refusal
from .fuse import fuse
from .graph import Graph, read_graph
from .ir import FREE, Program, Tensor
from .layout import NHWC, Perm, identity
from .moves import own, transpose
from .names import Origins, name_tensors
from .peephole import polish
from .registry import UnsupportedError
from .shapes import infer

_TYPE_NUMBER = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int8": 9, "uint16": 16}


def build(model: onnx.ModelProto, contract: Contract, *, integer: bool = False) -> Program:
    """The program of an ONNX model whose inputs and outputs lie as `contract` says (images NHWC or NCHW, other tensors as in ONNX).

    Inside, images are NHWC. `integer`: it will be quantised. Raises UserError when names or shapes differ from the contract's, and
    for operators that TFLite cannot hold.
    """
    graph = read_graph(model)
    _check(graph, contract)
    origins = Origins(graph)
    infer(graph)
    fuse(graph)
    ctx = Converter(graph, integer=integer)
    for spec in contract.inputs:
        _enter(ctx, spec)
    ctx.run()
    failures = []
    for spec in contract.outputs:
        try:
            _leave(ctx, spec)
        except UnsupportedError as reason:
            failures.append(f"output {spec.name!r}: {reason}")
    if failures:
        raise refusal(failures)
    ctx.program.values = {name: value.tensor for name, value in ctx.values.items() if not value.scramble}
    polish(ctx.program)
    origins.settle(graph, ctx.program)
    name_tensors(ctx.program)
    return ctx.program


def _check(graph: Graph, contract: Contract) -> None:
    """Raise UserError unless the graph has the contract's tensors, as free as the contract says."""
    named: tuple[tuple[str, tuple[TensorSpec, ...], list[str]], ...] = (
        ("input", contract.inputs, list(graph.inputs)),
        ("output", contract.outputs, graph.outputs),
    )
    for side, specs, known in named:
        for spec in specs:
            if spec.name not in known:
                raise UserError(
                    f"the contract's {side} {spec.name!r} is not in the ONNX graph", hint=did_you_mean(spec.name, known)
                )
    extra = set(graph.inputs) - {spec.name for spec in contract.inputs}
    if extra:
        raise UserError(f"the ONNX graph wants the input {min(extra)!r}, which the contract lacks", hint="add it there")
    for spec in contract.inputs:
        logical = spec.as_layout("NCHW").shape
        found = graph.inputs[spec.name]
        if len(found) != len(logical):
            raise UserError(
                f"the input {spec.name!r} has shape {found} in the ONNX graph and {logical} in the contract",
                hint="make the contract from this graph",
            )
        for axis, (mine, theirs) in enumerate(zip(logical, found, strict=True)):
            if isinstance(theirs, int) and theirs != mine:
                raise UserError(
                    f"axis {axis} of the input {spec.name!r} is {theirs} in the ONNX graph and {mine!r} in the contract",
                    hint="export the ONNX graph with this axis dynamic" if isinstance(mine, str) else "correct the contract",
                )
        graph.inputs[spec.name] = logical
    free = [dim for shape in graph.inputs.values() for dim in shape if isinstance(dim, str)]
    if free and (branching := next((node for node in graph.nodes if node.blocks), None)):
        raise UserError(
            f"{branching.label} decides for everything at once, and the contract leaves {', '.join(dict.fromkeys(free))} free",
            hint="fix the batch at 1 (and the image's size) in the contract of a network that decides",
        )


def _order(spec: TensorSpec) -> Perm:
    """The axis order of a tensor at the program's door."""
    return NHWC if spec.layout == "NHWC" else identity(len(spec.shape))


def _inside(spec: TensorSpec) -> Perm:
    return NHWC if spec.layout in ("NCHW", "NHWC") else identity(len(spec.shape))


def _enter(ctx: Converter, spec: TensorSpec) -> None:
    """The program's input for a tensor of the contract, cast to the dtype that the program holds it as."""
    shape = tuple(FREE if isinstance(d, str) else d for d in spec.shape)
    ctx.stem = spec.name
    tensor = ctx.fresh(shape, np.dtype(spec.dtype))
    ctx.program.inputs[spec.name] = tensor
    held = _cast(ctx, tensor, held_as(ctx.graph.dtypes[spec.name]))
    if spec.layout == "NCHW":  # turned once, here: every layer wants NHWC
        held = transpose(ctx, held, NHWC)
    ctx.put(spec.name, held, _inside(spec))


def _leave(ctx: Converter, spec: TensorSpec) -> None:
    """The program's output for a tensor of the contract: laid out, cast, and a tensor of its own."""
    ctx.stem = spec.name
    if ctx.rank(spec.name) != len(spec.shape):
        raise UserError(
            f"the output {spec.name!r} has {ctx.rank(spec.name)} dimensions in the ONNX graph and {len(spec.shape)} in the contract",
            hint="make the contract from this graph",
        )
    tensor = _cast(ctx, ctx.dense(spec.name, _order(spec)), np.dtype(spec.dtype))
    tensor = own(ctx, tensor)
    tensor.name = spec.name
    ctx.program.outputs[spec.name] = tensor


def _cast(ctx: Converter, tensor: Tensor, dtype: np.dtype) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    numbers = {"inDataType": _TYPE_NUMBER[str(tensor.dtype)], "outDataType": _TYPE_NUMBER[str(dtype)]}
    return ctx.emit("CAST", [tensor], tensor.shape, dtype, numbers)
