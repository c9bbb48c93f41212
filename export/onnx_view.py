"""An ONNX graph to ask questions: who makes a value, who uses it, its shape and type, and whether it is a constant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx


class View:
    """All nodes of a model, those of branches after the node that holds them; values by name (traced graphs never reuse one)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        with contextlib.suppress(Exception):  # without shapes the answers are only more careful
            model = onnx.shape_inference.infer_shapes(model)
        self.nodes: list[onnx.NodeProto] = []
        self.inner: set[int] = set()
        self.makers: dict[str, onnx.NodeProto] = {}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        self.outputs: set[str] = set()
        self._values: dict[str, Any] = {}
        self._stored: dict[str, onnx.TensorProto] = {}
        for depth, graph in _graphs(model.graph):
            self._add(graph, inner=depth > 0)

    def _add(self, graph: onnx.GraphProto, *, inner: bool) -> None:
        self._stored.update({weight.name: weight for weight in graph.initializer})
        self._values.update({v.name: v.type.tensor_type for v in (*graph.input, *graph.output, *graph.value_info)})
        self.outputs.update(value.name for value in graph.output)
        for node in graph.node:
            self.nodes.append(node)
            if inner:
                self.inner.add(id(node))
            self.makers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The sizes of a value, None for a free one; None for a value of unknown rank."""
        if name in self._stored:
            return tuple(self._stored[name].dims)
        kind = self._values.get(name)
        if kind is None or not kind.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)

    def rank(self, name: str) -> int | None:
        """How many dimensions a value has, None when that is unknown."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def type(self, name: str) -> int | None:
        """The number of a value's element type, None when it is unknown."""
        if name in self._stored:
            return self._stored[name].data_type
        kind = self._values.get(name)
        return kind.elem_type if kind is not None and kind.elem_type else None

    def is_float(self, name: str) -> bool:
        """Whether a value is of a float type, or of an unknown one."""
        import onnx

        proto = onnx.TensorProto
        return self.type(name) in (None, proto.FLOAT, proto.FLOAT16, proto.BFLOAT16, proto.DOUBLE)

    def constant(self, name: str, *, dequantised: bool = False) -> bool:
        """Whether a value is stored in the file; with `dequantised`, as integers too."""
        if name in self._stored:
            return True
        maker = self.makers.get(name)
        if maker is None:
            return False
        if dequantised and maker.op_type == "DequantizeLinear":
            return self.constant(maker.input[0])
        return maker.op_type == "Constant"

    def array(self, name: str) -> Any:
        """A stored value as an array, None for others."""
        import onnx

        maker = self.makers.get(name)
        if name in self._stored:
            return onnx.numpy_helper.to_array(self._stored[name])
        if maker is not None and maker.op_type == "Constant" and maker.attribute[0].name == "value":
            return onnx.numpy_helper.to_array(maker.attribute[0].t)
        return None


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, strings decoded."""
    import onnx

    for each in node.attribute:
        if each.name == name:
            value = onnx.helper.get_attribute_value(each)
            return value.decode() if isinstance(value, bytes) else value
    return default


def given(node: onnx.NodeProto, start: int = 0) -> Sequence[str]:
    """The names of a node's inputs from `start` on, those that are there."""
    return [name for name in node.input[start:] if name]


def _graphs(graph: onnx.GraphProto, depth: int = 0) -> Iterator[tuple[int, onnx.GraphProto]]:
    yield depth, graph
    for node in graph.node:
        for each in node.attribute:
            if each.HasField("g"):
                yield from _graphs(each.g, depth + 1)
