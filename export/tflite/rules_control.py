"""Control flow: an If whose branches become subgraphs.

TFLite's IF hands the same tensors to both branches. A branch that reads values of the graph around it gets them as inputs, in the
layout in which they lie there, so that nothing is moved at the border; constants are written into the branch itself (the file
stores equal ones once).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .convert import BOOL, Converter
from .graph import Graph, Node
from .ir import Program, Tensor
from .layout import Perm, Value
from .moves import own
from .registry import UnsupportedError, rule


@rule("If")
def branch(ctx: Converter, node: Node) -> None:
    """IF; the else branch returns its outputs in the axis order of the then branch's."""
    decision = ctx.raw(node.inputs[0]).tensor
    if decision.dtype != BOOL or any(d != 1 for d in decision.shape):
        raise UnsupportedError(f"its condition is {decision.dtype} {decision.shape}, not one truth value")
    values = {name: ctx.raw(name) for block in node.blocks for name in block.inputs}
    passed = [t for t in dict.fromkeys(value.tensor for value in values.values()) if t.data is None]
    sides = [
        _Side(name, block, values, passed, integer=ctx.integer)
        for name, block in zip(("then", "else"), node.blocks, strict=True)
    ]
    if failures := [line for side in sides for line in side.failures]:
        raise UnsupportedError(*failures)
    for name, *forms in zip(node.outputs, *(side.forms() for side in sides), strict=True):
        if forms[0] != forms[1]:
            raise UnsupportedError(f"its branches return {name!r} as {forms[0]} and as {forms[1]}; both must be alike")
    perms: list[Perm] | None = None
    for side in sides:
        perms = side.close(perms)
    first = list(sides[0].child.program.outputs.values())
    outs = [ctx.fresh(tensor.shape, tensor.dtype) for tensor in first]
    ctx.program.emit("IF", [decision, *passed], outs).blocks = tuple(side.child.program for side in sides)
    for name, out, perm in zip(node.outputs, outs, perms or [], strict=True):
        ctx.put(name, out, perm)


class _Side:
    """One branch, converted: `failures` holds what TFLite cannot hold in it, one line each."""

    def __init__(
        self, name: str, block: Graph, values: Mapping[str, Value], passed: Sequence[Tensor], *, integer: bool
    ) -> None:
        self.name, self.block, self.child = name, block, Converter(block, integer=integer)
        twins = {tensor: self._input(tensor) for tensor in passed}
        for inner in block.inputs:
            value = values[inner]
            self.child.put(inner, twins.get(value.tensor, value.tensor), value.perm, value.scramble)
        self.failures = [f"in its {name} branch, {line}" for line in self.child.walk()]

    def _input(self, tensor: Tensor) -> Tensor:
        self.child.stem = tensor.name
        twin = self.child.fresh(tensor.shape, tensor.dtype)
        self.child.program.inputs[twin.name] = twin
        return twin

    def forms(self) -> list[str]:
        """Dtype and shape of every output, in words."""
        return [f"{self.child.dtype(name)} {self.child.dims(name)}" for name in self.block.outputs]

    def close(self, perms: list[Perm] | None) -> list[Perm]:
        """The axis orders in which the branch returns its outputs: those asked for, else as they lie."""
        found = perms or [self.child.plain(name).perm for name in self.block.outputs]
        program: Program = self.child.program
        for number, (name, perm) in enumerate(zip(self.block.outputs, found, strict=True)):
            self.child.stem = name
            program.outputs[f"{name}#{number}"] = own(self.child, self.child.dense(name, perm))
        return found
