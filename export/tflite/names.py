"""Which ONNX nodes an operator computes, and tensor names that tell which ONNX value a tensor holds."""

from __future__ import annotations

from collections.abc import Mapping

from .graph import Graph, Node
from .ir import Program

HIDDEN = "//"
"""In the name of every computed tensor that holds no ONNX value, or holds one in another order of entries."""


class Origins:
    """The nodes of a graph as they were before it is rewritten."""

    def __init__(self, graph: Graph) -> None:
        self._before = {out: (node.name, tuple(node.inputs)) for node in graph.nodes for out in node.outputs if out}

    def settle(self, graph: Graph, program: Program) -> None:
        """Replace the values in every operator's `origins` by the nodes behind them: those that the rewritten graph computes in one.

        A node of the rewritten graph stands for all old nodes between its outputs and the values that other nodes of it write.
        """
        owners = {out: node for node in graph.nodes for out in node.outputs if out}
        nodes = {node.outputs[0]: self._between(node, owners) for node in graph.nodes}
        for op in program.ops:
            op.origins = frozenset().union(*(nodes.get(value, frozenset()) for value in op.origins))

    def _between(self, node: Node, owners: Mapping[str, Node]) -> frozenset[str]:
        found, seen = set(), set(node.inputs)
        waiting = [name for name in node.outputs if name]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self._before:
                continue
            seen.add(name)
            label, inputs = self._before[name]
            found.add(label)
            waiting += [source for source in inputs if owners.get(source, node) is node]
        return frozenset(found - {""})


def name_tensors(program: Program) -> None:
    """Name every computed tensor after the ONNX value that it holds; the others get names with `HIDDEN` in them."""
    doors = {*program.inputs.values(), *program.outputs.values()}
    taken = {tensor.name for tensor in program.tensors() if tensor in doors or tensor.data is not None}
    names = {}
    for value, tensor in program.values.items():
        if tensor not in names and value not in taken:
            names[tensor] = value
            taken.add(value)
    for number, tensor in enumerate(program.tensors()):
        if tensor not in doors and tensor.data is None:
            tensor.name = names.get(tensor, f"{tensor.name}{HIDDEN}{number}")
