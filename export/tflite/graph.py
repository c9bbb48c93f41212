"""An ONNX model as plain nodes, constants and shapes: what the conversion rules read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...models.errors import UserError

LOWEST_OPSET = 9
"""Below this, attributes mean other things than the rules read."""


@dataclass(eq=False)
class Node:
    """One ONNX node: attributes as Python values (tensors as arrays), absent optional inputs as "".

    An `If` has its two branches in `blocks` (then, else), and the outer values that they read follow the condition in `inputs`,
    so that whoever looks for readers of a value finds them.
    """

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    module: str = ""
    proto: onnx.NodeProto | None = None
    blocks: list[Graph] = field(default_factory=list)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the default."""
        return self.attrs.get(name, default)

    def input(self, index: int) -> str:
        """The name of an input, "" when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    @property
    def label(self) -> str:
        """How a message names this node: the operator, the node, and the module that made it when the file says so."""
        where = f" (module {self.module})" if self.module else ""
        return f"{self.op} at node {self.name or self.outputs[0]!r}{where}"


@dataclass
class Graph:
    """A model's nodes in topological order, with what is known about its values.

    Shapes hold one row per probe: the model is walked at several sizes of its free dimensions, so that a column which
    never changes is a static dimension and two columns which always agree are the same dimension. `varying` holds values
    computed from shapes alone that differ between the probes.
    """

    opset: int
    nodes: list[Node]
    constants: dict[str, np.ndarray]
    inputs: dict[str, tuple[int | str, ...]]
    outputs: list[str]
    dtypes: dict[str, np.dtype]
    shapes: dict[str, np.ndarray] = field(default_factory=dict)
    varying: dict[str, list[np.ndarray]] = field(default_factory=dict)
    symbols: dict[str, np.ndarray] = field(default_factory=dict)

    def consumers(self) -> dict[str, list[Node]]:
        """For every value, the nodes that read it (once per reading slot)."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def producers(self) -> dict[str, Node]:
        """For every computed value, the node that writes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def free(self) -> list[str]:
        """The names that the graph reads and nothing in it defines: a branch's values of the graph around it."""
        own = {name for node in self.nodes for name in node.outputs} | set(self.constants) | set(self.inputs)
        used = [name for node in self.nodes for name in node.inputs if name] + self.outputs
        return list(dict.fromkeys(name for name in used if name not in own))

    def form(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """The shape (of the first probe) and dtype of a value, or None where they are not known."""
        if name in self.constants:
            return self.constants[name].shape, self.constants[name].dtype
        if name not in self.shapes or name not in self.dtypes:
            return None
        return tuple(int(d) for d in self.shapes[name][0]), self.dtypes[name]

    def prune(self) -> None:
        """Drop the nodes that no output depends on."""
        wanted = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if any(name in wanted for name in node.outputs):
                wanted.update(name for name in node.inputs if name)
                kept.append(node)
        self.nodes = kept[::-1]


def read_graph(model: onnx.ModelProto) -> Graph:
    """The graph of a model with local functions inlined and `Constant` nodes turned into constants; no shapes yet.

    The branches of an `If` are graphs of their own.

    Raises UserError for a model without a usable opset, with sparse constants, or with weights that were not loaded.
    """
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    return _body(model.graph, opset_of(model))


def _body(proto: onnx.GraphProto, opset: int) -> Graph:
    if proto.sparse_initializer:
        raise UserError("the ONNX model holds sparse initialisers", hint="store its weights as dense tensors")
    constants = {tensor.name: _array(tensor) for tensor in proto.initializer}
    inputs, dtypes = _inputs(proto.input, constants)
    nodes = []
    for item in proto.node:
        node = _node(item)
        if node.op == "Constant":
            constants[node.outputs[0]] = _constant(node)
        else:
            if node.op == "If":
                _open_branches(node, opset)
            nodes.append(node)
    graph = Graph(opset, nodes, constants, inputs, [value.name for value in proto.output], dtypes)
    graph.prune()
    return graph


def _open_branches(node: Node, opset: int) -> None:
    """None; both branches of an If become its blocks, and what they read of the graph around them its inputs."""
    node.blocks = [_body(node.attrs.pop(side), opset) for side in ("then_branch", "else_branch")]
    node.inputs += dict.fromkeys(name for block in node.blocks for name in block.free())


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set. Raises UserError when there is none or it is too old."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise UserError("the ONNX model imports no standard operator set", hint="the file is damaged; export it again")
    if versions[0] < LOWEST_OPSET:
        raise UserError(f"the ONNX model uses opset {versions[0]}", hint=f"export it with opset {LOWEST_OPSET} or newer")
    return versions[0]


def dtype_of(elem_type: int) -> np.dtype:
    """The numpy dtype of an ONNX element type."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    if tensor.data_location == onnx.TensorProto.EXTERNAL and not tensor.HasField("raw_data"):
        raise UserError(
            f"the weights of {tensor.name!r} lie in another file and were not loaded",
            hint="read the model with onnx.load(path), which loads external data",
        )
    return numpy_helper.to_array(tensor)


def _inputs(
    values: Sequence[onnx.ValueInfoProto], constants: dict[str, np.ndarray]
) -> tuple[dict[str, tuple[int | str, ...]], dict[str, np.dtype]]:
    shapes: dict[str, tuple[int | str, ...]] = {}
    dtypes: dict[str, np.dtype] = {}
    for value in values:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise UserError(f"the input {value.name!r} of the ONNX model has no tensor shape", hint="export it with shapes")
        shapes[value.name] = tuple(
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"{value.name}_{axis}"
            for axis, dim in enumerate(kind.shape.dim)
        )
        dtypes[value.name] = dtype_of(kind.elem_type)
    return shapes, dtypes


def _node(item: onnx.NodeProto) -> Node:
    attrs = {}
    for attribute in item.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = _array(value)
        elif isinstance(value, bytes):
            value = value.decode()
        attrs[attribute.name] = value
    op = item.op_type if item.domain in ("", "ai.onnx") else f"{item.domain}.{item.op_type}"
    return Node(op, item.name, list(item.input), list(item.output), attrs, _module(item), item)


def _module(item: onnx.NodeProto) -> str:
    """The dotted path of the torch module that made a node, from the exporter's metadata or its node name, else ""."""
    for entry in item.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = [part.strip(" '\"") for part in entry.value.strip("[]").split(",")]
            named = [scope for scope in scopes[:-1] if scope]
            return named[-1] if named else ""
    if item.name.startswith("/"):
        parts = item.name.strip("/").split("/")[:-1]
        return parts[-1] if parts else ""
    return ""


def _constant(node: Node) -> np.ndarray:
    """The array of a `Constant` node, in whichever attribute it is."""
    for key, dtype in (
        ("value_float", "float32"),
        ("value_floats", "float32"),
        ("value_int", "int64"),
        ("value_ints", "int64"),
    ):
        if key in node.attrs:
            return np.asarray(node.attrs[key], dtype=dtype)
    if "value" not in node.attrs:
        raise UserError(f"{node.label} holds neither numbers nor a tensor", hint="TFLite networks take numbers only")
    return node.attrs["value"]
