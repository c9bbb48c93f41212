"""Each layer's own error: the float graph cut at every layer, and fed there with what the artifact computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..exporter import Tensors
from ..onnx_taps import FLOATS, unoptimised, varying

if TYPE_CHECKING:
    import onnx

_LOCAL = "local::"


class Severed:
    """A graph in which the readers of every value in `doors` get a given one instead of the computed one.

    It tells what the nodes of those values make of it (`local`), or else the float values that are not in `doors`.
    """

    def __init__(self, graph: onnx.ModelProto, doors: Mapping[str, np.ndarray], *, local: bool = True) -> None:
        self.doors = frozenset(doors)
        self.inputs = {value.name for value in graph.graph.input} - {w.name for w in graph.graph.initializer}
        inner = [] if local else [name for name in varying(graph) if name not in doors]
        self._session = unoptimised(_cut(graph, doors, inner), what="the severed graph") if doors else None
        shown = self._session.get_outputs() if self._session else []
        self._names = [o.name for o in shown if o.type in FLOATS and o.name.startswith(_LOCAL) == local]

    def __call__(self, inputs: Tensors, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values told, by name; none where one of the doors is missing or the graph refuses a shape."""
        if self._session is None or not self._names or not self.doors <= values.keys():
            return {}
        given = {name: inputs[name] for name in self.inputs} | {name: values[name] for name in self.doors}
        try:
            made = self._session.run(self._names, given)
        except Exception:  # a figure that can't be had is left out: the walk itself stands
            return {}
        return {name.removeprefix(_LOCAL): value for name, value in zip(self._names, made, strict=True)}


def _cut(graph: onnx.ModelProto, doors: Mapping[str, np.ndarray], inner: Sequence[str]) -> onnx.ModelProto:
    import onnx

    cut = onnx.ModelProto()
    cut.CopyFrom(graph)
    del cut.graph.value_info[:], cut.graph.output[:]
    for node in cut.graph.node:
        for i, name in enumerate(node.output):
            if name in doors:
                node.output[i] = _LOCAL + name
                cut.graph.output.append(onnx.ValueInfoProto(name=_LOCAL + name))
    for name, value in doors.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        cut.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    return cut
