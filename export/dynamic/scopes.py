"""Graphs merged into one: scopes that nest as the subgraphs of `If` do, and values that are computed once.

A value is known by what computes it: the operation, its attributes and, recursively, its inputs, down to constants by their bits.
Two graphs that begin alike thus share their beginning, whatever their tensors are called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...models.errors import UserError
from .macs import node_macs

Key = bytes
"""A digest of what computes a value."""


class Part:
    """A graph to be merged. `keys` says of each of its values what computes it; `prefix` goes before its names.

    `macs` is the cost of each node by its first output.
    """

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self.model, self.graph, self.prefix = model, model.graph, prefix
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.keys: dict[str, Key] = {"": b""}
        for value in self.graph.input:
            self.keys[value.name] = _digest("input", value.name)
        for name, tensor in self.constants.items():
            self.keys[name] = constant_key(tensor)
        for node in self.graph.node:
            self._number(node)
        self.macs = node_macs(model)

    def _number(self, node: onnx.NodeProto) -> None:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise UserError(
                f"a branch decides inside already ({node.op_type} {node.name!r})",
                hint="route a network without control flow of its own",
            )
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        computed = _digest(node.domain, node.op_type, *attributes, *(self.keys[name] for name in node.input))
        for number, name in enumerate(node.output):
            if name:
                self.keys[name] = _digest("output", computed, str(number))

    @cached_property
    def computed(self) -> frozenset[Key]:
        """The keys of everything that a node computes."""
        return frozenset(self.keys[name] for node in self.graph.node for name in node.output if name)


class Scope:
    """One graph under construction, with all that the scopes around it know."""

    def __init__(self, around: Scope | None = None) -> None:
        self.around = around
        self.names: set[str] = around.names if around else set()
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[Key, onnx.TensorProto] = {}
        self.known: dict[Key, str] = {}
        self.macs = 0

    @property
    def macs_in_all(self) -> int:
        """The MACs of this scope and those around it."""
        return self.macs + (self.around.macs_in_all if self.around else 0)

    def find(self, key: Key) -> str | None:
        """The name of a value here or in a scope around, None when nothing has computed it."""
        return self.known.get(key) or (self.around.find(key) if self.around else None)

    def add(self, part: Part, wanted: Callable[[Key], bool] = lambda key: True) -> None:
        """None; the nodes of `part` whose values are wanted and not known yet, with their constants, come to lie here."""
        for node in part.graph.node:
            keys = [part.keys[name] for name in node.output if name]
            if not all(map(wanted, keys)) or all(self.find(key) for key in keys):
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{part.prefix}{node.name}"
            copy.input[:] = [self._input(part, name) for name in node.input]
            copy.output[:] = [self.fresh(f"{part.prefix}{name}") if name else "" for name in node.output]
            self.nodes.append(copy)
            self.macs += part.macs[node.output[0]]
            self.known |= {part.keys[name]: new for name, new in zip(node.output, copy.output, strict=True) if name}

    def _input(self, part: Part, name: str) -> str:
        if not name:
            return ""
        tensor = part.constants.get(name)
        if tensor is not None:
            return self.constant(tensor, f"{part.prefix}{name}")
        found = self.find(part.keys[name])
        if found is None:
            raise RuntimeError(f"{name} is read before it is computed")
        return found

    def constant(self, tensor: onnx.TensorProto, name: str) -> str:
        """The name of a constant of this very graph; each scope has its own, since runtimes prepare weights scope by scope."""
        key = constant_key(tensor)
        if key not in self.constants:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = self.fresh(name)
            self.constants[key] = copy
        return self.constants[key].name

    def number(self, values: int | Sequence[int], name: str) -> str:
        """The name of an int64 scalar or vector."""
        return self.constant(numpy_helper.from_array(np.array(values, dtype=np.int64)), name)

    def emit(self, kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """The name of what a new node of one output computes: `output`, or like it where that is taken."""
        output = self.fresh(output)
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def fresh(self, name: str) -> str:
        """`name`, or like it: names are unique over all scopes, since an inner one must not hide an outer one."""
        new, number = name, 1
        while new in self.names:
            new, number = f"{name}~{number}", number + 1
        self.names.add(new)
        return new

    def graph(
        self, name: str, outputs: Iterable[onnx.ValueInfoProto], inputs: Iterable[onnx.ValueInfoProto] = ()
    ) -> onnx.GraphProto:
        """The scope as a graph."""
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.constants.values()))


def constant_key(tensor: onnx.TensorProto) -> Key:
    """What a constant is known by: its type, shape and bits."""
    array = numpy_helper.to_array(tensor)
    return _digest("constant", str(tensor.data_type), str(array.shape), array.tobytes())


def shared_by_all(parts: Iterable[Part]) -> Callable[[Key], bool]:
    """Whether every one of `parts` computes a value."""
    common = frozenset.intersection(*(part.computed for part in parts))
    return common.__contains__


def _digest(*what: str | bytes) -> Key:
    digest = hashlib.sha256()
    for item in what:
        data = item.encode() if isinstance(item, str) else item
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
