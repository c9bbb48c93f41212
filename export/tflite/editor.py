"""Look-ups and replacements on an ONNX graph, for the passes that rewrite it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .graph import Graph, Node


class Editor:
    """A graph with look-ups that hold while one pass runs."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = graph.producers()
        self.consumers = graph.consumers()

    def const(self, name: str) -> np.ndarray | None:
        return self.graph.constants.get(name)

    def number(self, name: str) -> float | None:
        """A constant scalar's value."""
        found = self.const(name)
        return float(found.item()) if found is not None and found.size == 1 and found.dtype != bool else None

    def only(self, name: str) -> Node | None:
        """The one node that reads a value, if nothing else needs it."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def add(self, name: str, array: np.ndarray) -> str:
        """The name of a new constant."""
        while name in self.graph.constants:
            name += "_"
        self.graph.constants[name] = array
        return name

    def replace(self, old: Node, op: str, inputs: list[str], attrs: dict[str, Any], outputs: list[str] | None = None) -> Node:
        """Put a new node at an old one's place, writing the same values."""
        new = Node(op, old.name, inputs, outputs or list(old.outputs), attrs, old.module)
        self.graph.nodes[self.graph.nodes.index(old)] = new
        return new

    def probe(self, name: str) -> np.ndarray | None:
        return self.graph.shapes.get(name)

    def drop(self, node: Node) -> None:
        self.graph.nodes.remove(node)
