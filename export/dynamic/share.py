"""Weights stored once in a graph that decides: one full tensor in the outermost graph, and a constant slice of it in every branch.

ONNX Runtime 1.32 and OpenVINO 2026.4 compute such slices when they load the file, so that a branch runs as fast as with a tensor of
its own (measured: ×0.99…1.01 in both). The full branch has a slice too, one that takes everything: a convolution that reads its
weight straight from the graph around it loses ONNX Runtime's layout optimisation (measured: ×0.76).

A narrow branch of a nested network holds rows and columns of the full weight, but batch norm, folded into the weight, scales every
output channel in its own way: what is stored for it is that scale alone. Slices are checked against the branch's own weight value by
value; one that does not give it back, to float32 rounding, is not used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...models.routed import RoutedNet
from .scopes import constant_key

LEAST_BYTES = 2048
"""Below this a slice's own nodes outweigh what they save."""
ROUNDING = 1e-6
"""Relative: four roundings to float32 (the full weight, the scale, their product, the branch's own weight) are 2.4e-7 at most."""


@dataclass(frozen=True)
class Slice:
    """A node's weight as part of another node's (`of`): kept output and input channels, None for all."""

    of: str
    rows: np.ndarray | None
    columns: np.ndarray | None


def share(model: onnx.ModelProto, slices: Mapping[str, Slice]) -> onnx.ModelProto:
    """A copy of `model` in which equal tensors, and those that `slices` (by node name) says are parts of others, lie there once."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    work = _Sharing(copy.graph)
    for name, slice_ in slices.items():
        work.slice(name, slice_)
    work.unify()
    work.finish()
    return copy


def slices_of(net: RoutedNet, model: onnx.ModelProto) -> dict[str, Slice]:
    """The weights of a nested network's smaller branches as slices of the largest one's, as its edits say.

    Nodes of `model` are found by their names, `branch<number>/<path of the module>/<operator>`.
    """
    if not net.spec.nested:
        return {}
    found: dict[tuple[str, int], str] = {}
    for graph in graphs(model.graph):
        for node in graph.node:
            prefix, _, rest = node.name.partition("/")
            if node.op_type in ("Conv", "Gemm", "MatMul") and prefix.startswith("branch"):
                found[module_path(rest), int(prefix.removeprefix("branch"))] = node.name
    slices = {}
    last = len(net.branches) - 1
    for (path, number), name in found.items():
        of = next((found[path, n] for n in range(last, number, -1) if (path, n) in found), None)
        if of:
            slices[name] = Slice(of, *(_within(net, number, path, side) for side in ("out", "in")))
    return slices


def module_path(node: str) -> str:
    """The module that an ONNX node came from: "/layer1/layer1.0/conv1/Conv" is layer1.0.conv1."""
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def _within(net: RoutedNet, number: int, path: str, side: str) -> np.ndarray | None:
    """The positions that a branch keeps among those that the largest keeps."""
    mine, theirs = (
        next((e for e in net.spec.branches[n] if e.path == path and e.side == side), None)
        for n in (number, len(net.branches) - 1)
    )
    if mine is None:
        return None
    index = {channel: i for i, channel in enumerate(theirs.kept if theirs else range(mine.size))}
    return np.array([index[channel] for channel in mine.kept], dtype=np.int32)


@dataclass
class _Home:
    """Where a constant lies, and its values."""

    graph: onnx.GraphProto
    tensor: onnx.TensorProto
    array: np.ndarray


class _Sharing:
    """The constants of a graph and its inner graphs, on their way to where they are shared."""

    def __init__(self, outer: onnx.GraphProto) -> None:
        self.outer = outer
        self.homes: dict[str, _Home] = {}
        self.nodes: dict[str, onnx.NodeProto] = {}
        for graph in graphs(outer):
            self.homes |= {t.name: _Home(graph, t, numpy_helper.to_array(t)) for t in graph.initializer}
            self.nodes |= {node.name: node for node in graph.node}
        self.added: dict[bytes, onnx.TensorProto] = {}
        self.wholes: dict[str, str] = {}
        self.made: dict[str, list[onnx.NodeProto]] = {}

    def slice(self, name: str, slice_: Slice) -> None:
        """None; the weight of the node `name` becomes a slice, if that gives its values back and saves something."""
        node, full = self.nodes[name], self.nodes[slice_.of]
        weight, whole = (n.input[1] for n in (node, full))
        if weight not in self.homes or whole not in self.homes or weight in self.made or weight == whole:
            return
        axes = (0, 1) if _rows_first(node) else (1, 0)
        kept = {axis: index for axis, index in zip(axes, (slice_.rows, slice_.columns), strict=True) if index is not None}
        values, part = self.homes[weight].array, self.homes[whole].array
        if values.nbytes < LEAST_BYTES or any(axis >= part.ndim or i.max() >= part.shape[axis] for axis, i in kept.items()):
            return
        for axis, index in kept.items():
            part = part.take(index, axis)
        scale = _scale(values, part, axes[0])
        if scale is None or (not kept and scale.size == 1 and self.homes[weight].array is part):
            return
        self._replace(weight, self._whole(whole), kept, scale if np.any(scale != 1) else None)

    def unify(self) -> None:
        """None; constants that are equal to the last bit lie in the outermost graph once."""
        alike: dict[bytes, list[str]] = defaultdict(list)
        for name, home in self.homes.items():
            if name not in self.made and home.array.nbytes >= LEAST_BYTES:
                alike[constant_key(home.tensor)].append(name)
        for names in alike.values():
            first = next((name for name in names if self.homes[name].graph is self.outer), names[0])
            for name in names:
                if name != first:
                    self._replace(name, self._whole(first), {}, None)

    def finish(self) -> None:
        """None; the graphs get the nodes that make their constants, and lose those constants."""
        for graph in reversed(list(graphs(self.outer))):  # inner ones first: writing an outer one copies those inside
            own = [t.name for t in graph.initializer]
            gone = [name for name in own if name in self.made]
            kept = [t for t in graph.initializer if t.name not in self.made]
            nodes = [node for name in gone for node in self.made[name]] + list(graph.node)
            del graph.initializer[:], graph.node[:]
            graph.initializer.extend(kept)
            graph.node.extend(nodes)
        self.outer.initializer.extend(self.added.values())

    def _whole(self, name: str) -> str:
        """The name in the outermost graph of a full tensor; where it lay further in, a slice that takes everything stays."""
        if self.homes[name].graph is self.outer:
            return name
        if name not in self.wholes:
            self.wholes[name] = self._constant(self.homes[name].array, f"whole/{name}")
            self._replace(name, self.wholes[name], {}, None)
        return self.wholes[name]

    def _replace(self, name: str, whole: str, kept: Mapping[int, np.ndarray], scale: np.ndarray | None) -> None:
        """The constant `name` made by nodes from the outermost graph's `whole`."""
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Gather", [self._constant(index, f"kept/{name}/{axis}")], {"axis": axis}) for axis, index in kept.items()
        ]
        if scale is not None:
            steps.append(("Mul", [self._constant(scale, f"scale/{name}")], {}))
        if not steps:
            size = self.homes[name].array.shape[0]
            steps.append(("Slice", [self._constant(np.array([v]), f"number/{v}") for v in (0, size, 0)], {}))
        self.made[name] = []
        for number, (kind, inputs, attributes) in enumerate(steps):
            output = name if number + 1 == len(steps) else f"{name}/{number}"
            self.made[name].append(
                helper.make_node(kind, [whole, *inputs], [output], name=f"{name}/{kind}{number}", **attributes)
            )
            whole = output

    def _constant(self, array: np.ndarray, name: str) -> str:
        """The name of a constant in the outermost graph, one for all that are equal."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return self.added.setdefault(constant_key(tensor), tensor).name


def _rows_first(node: onnx.NodeProto) -> bool:
    """Whether the output channels are the weight's first axis."""
    return node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)


def _scale(values: np.ndarray, part: np.ndarray, axis: int) -> np.ndarray | None:
    """The factor of each output channel with which `part` becomes `values`, shaped to multiply; None when there is none."""
    if values.shape != part.shape or values.dtype != np.float32:
        return None
    others = tuple(i for i in range(values.ndim) if i != axis)
    wide = part.astype(np.float64)
    power = np.square(wide).sum(others, keepdims=True)
    scale = ((wide * values).sum(others, keepdims=True) / np.where(power == 0, 1, power)).astype(np.float32)
    return scale if np.all(np.abs(part * scale - values) <= ROUNDING * np.abs(values)) else None
