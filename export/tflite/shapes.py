"""Shapes of every value, found by walking the graph at several sizes of its free dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from ...models.errors import UserError
from .graph import Graph, Node, dtype_of
from .registry import shape_rules

_BATCH = (2, 3, 5, 1)
_SPACE = ((1344, 1920, 1347, 64), (1728, 2240, 1733, 96), (1152, 1408, 1155, 80), (1600, 1984, 1603, 112))
"""Two aligned sizes (multiples of 32) that any network takes; then one that is not, which tells `H` from `32·⌊H/32⌋`, and a
small one, which tells a fixed size from one that was clamped. The last two are left out where the network fails at them."""

_NOT_FOLDED = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"})
_DATA_LIMIT = 4096
"""Constants above this many elements are never a shape, so inference need not see their values."""


def infer(graph: Graph) -> None:
    """Fill in the graph's shapes, dtypes and shape-derived values; fold everything constant into its constants.

    Raises UserError when the graph contradicts itself at aligned sizes.
    """
    _fold_static(graph)
    probes = _probes(graph)
    walks = []
    for number, sizes in enumerate(probes):
        try:
            walks.append((sizes, _Walk(graph, sizes)))
        except _ShapeError as error:
            if number < 2:
                raise UserError(
                    f"the ONNX model's shapes do not fit together at {sizes or 'its own sizes'}: {error}",
                    hint="a traced size may be baked into it though the input's axis is free: export with that axis fixed, or with "
                    "the dynamo exporter",
                ) from None
    graph.symbols = {name: np.array([sizes[name] for sizes, _ in walks]) for name in probes[0]}
    first = walks[0][1]
    graph.dtypes = dict(first.dtypes)
    for name, shape in first.shapes.items():
        rows = [walk.shapes.get(name) for _, walk in walks]
        if all(row is not None and len(row) == len(shape) for row in rows):
            graph.shapes[name] = np.array(rows, dtype=np.int64).reshape(len(rows), len(shape))
    _settle_values(graph, [walk for _, walk in walks])


def _probes(graph: Graph) -> list[dict[str, int]]:
    """Sizes for the free dimensions: aligned, all other aligned, one row per symbol changed alone, odd ones, small ones."""
    axes: dict[str, int] = {}
    for shape in graph.inputs.values():
        for axis, dim in enumerate(shape):
            if isinstance(dim, str):
                axes.setdefault(dim, axis)
    if not axes:
        return [{}]
    table = {}
    space = iter(_SPACE * (1 + len(axes) // len(_SPACE)))
    for symbol, axis in axes.items():
        table[symbol] = _BATCH if axis == 0 else next(space)
    rows = [{symbol: sizes[k] for symbol, sizes in table.items()} for k in (0, 1)]
    if len(table) > 1:
        rows += [{s: sizes[s == changed] for s, sizes in table.items()} for changed in table]
    return [*rows, *({symbol: sizes[k] for symbol, sizes in table.items()} for k in (2, 3))]


def _fold_static(graph: Graph) -> None:
    """Evaluate the nodes whose inputs are all constant, once for all probes."""
    kept = []
    for node in graph.nodes:
        if node.op not in _NOT_FOLDED and all(name in graph.constants for name in node.inputs if name):
            graph.constants.update(evaluate(node, graph.constants, graph.opset))
        else:
            kept.append(node)
    graph.nodes = kept


def _settle_values(graph: Graph, walks: list[_Walk]) -> None:
    """Turn values that every probe computed alike into constants, and note those that vary."""
    for name, value in walks[0].values.items():
        if not all(name in walk.values for walk in walks):
            continue
        values = [walk.values[name] for walk in walks]
        if all(np.array_equal(value, other) for other in values[1:]):
            graph.constants[name] = value
        else:
            graph.varying[name] = values
    graph.nodes = [node for node in graph.nodes if not all(name in graph.constants for name in node.outputs if name)]


class _ShapeError(Exception):
    """Inference failed at a node."""


class _Walk:
    """One pass over the graph at concrete input sizes: the shape of every value, and the values that follow from shapes."""

    def __init__(self, graph: Graph, sizes: dict[str, int]) -> None:
        self.graph = graph
        self.values: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        for name, array in graph.constants.items():
            self._note(name, array.shape, array.dtype)
        for name, shape in graph.inputs.items():
            self._note(name, tuple(d if isinstance(d, int) else sizes[d] for d in shape), graph.dtypes[name])
        for node in graph.nodes:
            self._visit(node)

    def _note(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shapes[name], self.dtypes[name] = tuple(shape), np.dtype(dtype)

    def _visit(self, node: Node) -> None:
        if node.op in ("Shape", "Size"):
            if node.inputs[0] in self.shapes:
                found = {node.outputs[0]: self._measure(node)}
            else:
                return
        elif node.op not in _NOT_FOLDED and all(self._known(name) is not None for name in node.inputs if name):
            found = evaluate(node, self.graph.constants | self.values, self.graph.opset)
        elif node.blocks:
            self._branch(node)
            return
        else:
            self._infer(node)
            return
        for name, array in found.items():
            self.values[name] = array
            self._note(name, array.shape, array.dtype)

    def _known(self, name: str) -> np.ndarray | None:
        return self.values.get(name, self.graph.constants.get(name))

    def _measure(self, node: Node) -> np.ndarray:
        shape = self.shapes[node.inputs[0]]
        if node.op == "Size":
            return np.array(int(np.prod(shape)), dtype=np.int64)
        return np.array(shape[slice(node.attr("start", 0), node.attr("end"))], dtype=np.int64)

    def _branch(self, node: Node) -> None:
        """Infer both branches with what they read of this graph; an output has a shape where both give it the same."""
        for block in node.blocks:
            for name in block.free():
                known = self._known(name)
                if known is not None:
                    block.constants[name] = known
                elif name in self.shapes:
                    block.inputs[name], block.dtypes[name] = self.shapes[name], self.dtypes[name]
            infer(block)
        for number, name in enumerate(node.outputs):
            found = [block.form(block.outputs[number]) for block in node.blocks]
            if found[0] is not None and found[0] == found[1]:
                self._note(name, *found[0])

    def _infer(self, node: Node) -> None:
        if any(name and name not in self.shapes for name in node.inputs):
            return
        if node.op in shape_rules:
            given = [name for name in node.inputs if name]
            known = [self._known(name) for name in given]
            shapes = shape_rules[node.op]([self.shapes[name] for name in given], node.attrs, known)
            for name, shape in zip(node.outputs, shapes, strict=True):
                self._note(name, shape, self.dtypes[node.inputs[0]])
            return
        if node.proto is None or "." in node.op or not defs.has(node.op):
            return
        try:
            outputs = _infer_node(node, self)
        except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
            raise _ShapeError(f"{node.label}: {error}") from None
        for name, kind in outputs.items():
            tensor = kind.tensor_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self._note(name, tuple(dim.dim_value for dim in tensor.shape.dim), dtype_of(tensor.elem_type))
        if node.op == "Reshape" and node.outputs[0] in self.shapes:
            before, after = self.shapes[node.inputs[0]], self.shapes[node.outputs[0]]
            if np.prod(before) != np.prod(after):
                raise _ShapeError(f"{node.label}: {before} cannot become {after}")


def _infer_node(node: Node, walk: _Walk) -> dict[str, Any]:
    """The types of a node's outputs by ONNX's own inference, given concrete input types and small known values."""
    types, data = {}, {}
    for name in node.inputs:
        if name:
            elem = helper.np_dtype_to_tensor_dtype(walk.dtypes[name])
            types[name] = helper.make_tensor_type_proto(elem, walk.shapes[name])
            known = walk._known(name)
            if known is not None and known.size <= _DATA_LIMIT:
                data[name] = numpy_helper.from_array(np.ascontiguousarray(known), name)
    assert node.proto is not None  # noqa: S101 - checked by the caller
    opset = walk.graph.opset
    return shape_inference.infer_node_outputs(
        defs.get_schema(node.op, opset), node.proto, types, data, opset_imports=[helper.make_opsetid("", opset)]
    )


def evaluate(node: Node, values: dict[str, np.ndarray], opset: int) -> dict[str, np.ndarray]:
    """The outputs of a node whose inputs are all known, by ONNX's reference implementation.

    Raises UserError when the node itself is broken.
    """
    assert node.proto is not None  # noqa: S101 - only nodes of the file are evaluated
    names = [name for name in dict.fromkeys(node.inputs) if name]
    outputs = [name for name in node.outputs if name]
    feeds = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(values[n].dtype), values[n].shape) for n in names]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    model = helper.make_model(
        helper.make_graph([node.proto], "one", feeds, results), opset_imports=[helper.make_opsetid("", opset)]
    )
    try:
        found = ReferenceEvaluator(model).run(None, {name: values[name] for name in names})
    except Exception as error:
        raise UserError(
            f"{node.label} cannot be computed from its constant inputs: {error}", hint="check the model with onnx.checker"
        ) from error
    return {name: np.asarray(array) for name, array in zip(outputs, found, strict=True)}
