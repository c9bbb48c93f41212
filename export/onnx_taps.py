"""What an ONNX graph computes inside: every node's value, read in ONNX Runtime without its optimisations, so that none is fused away.

An int8 (QDQ) file is thus read as it is written: each value rounded to its integers, each operator computed in float between. ONNX
Runtime's integer kernels, which run when it optimises, differ from that by a rounding step at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.contract import Contract
from ..models.errors import UserError
from .exporter import Runner, Tensors

if TYPE_CHECKING:
    import onnx

FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_QUANTISED = "_QuantizeLinear_Output"
_DEQUANTISED = "_DequantizeLinear_Output"
_BEFORE = "_QuantizeLinear_Input"
"""What ONNX Runtime's quantiser appends to the names of values, the last one to a graph output before it is rounded."""


class InnerValues:
    """A graph that shows what its nodes compute. Raises UserError when ONNX Runtime rejects it."""

    def __init__(self, graph: onnx.ModelProto, *, what: str = "the graph") -> None:
        import onnx

        shown = onnx.ModelProto()
        shown.CopyFrom(graph)
        present = {value.name for value in shown.graph.output}
        inner = [name for name in varying(graph) if name not in present]
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)  # ONNX Runtime infers their types
        self._session = unoptimised(shown, what=what)
        self.outputs = tuple(value.name for value in graph.graph.output)
        self.names = tuple(o.name for o in self._session.get_outputs() if o.type in FLOATS or o.name in present)

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Every float value that depends on the inputs, and the graph's outputs, by name."""
        return dict(zip(self.names, self._session.run(list(self.names), dict(inputs)), strict=True))


def unoptimised(graph: onnx.ModelProto, *, what: str) -> Any:
    """An ONNX Runtime session (one thread) that runs the graph node by node. Raises UserError when it rejects the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"ONNX Runtime rejects {what}: {first}", hint="check the file with onnx.checker") from error


def varying(graph: onnx.ModelProto) -> list[str]:
    """The names of the values that depend on the graph's inputs, in an order in which they can be computed."""
    weights = {weight.name for weight in graph.graph.initializer}
    moved = {value.name for value in graph.graph.input} - weights
    found = []
    for node in in_order(graph):
        if moved.intersection(reads(node)):
            made = [name for name in node.output if name]
            moved.update(made)
            found.extend(made)
    return found


def in_order(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes, each after those that it reads; the order of the file is kept where it can be (converters append casts)."""
    makers = {name: i for i, node in enumerate(graph.graph.node) for name in node.output}
    done: dict[int, None] = {}
    for first in range(len(graph.graph.node)):
        waiting = [first]
        while waiting:
            i = waiting[-1]
            missing = [
                m for name in reads(graph.graph.node[i]) if (m := makers.get(name)) is not None and m not in done and m != i
            ]
            if i in done or not missing:
                done[waiting.pop()] = None
            else:
                waiting.extend(missing)
    return [graph.graph.node[i] for i in done]


def reads(node: onnx.NodeProto) -> Iterable[str]:
    """The names of the values that a node reads, those that its branches take from outside among them."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for inner in (node for graph in graphs for node in graph.node):
            yield from reads(inner)


def float_names(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`values` by the names they have in the float graph: rounded ones under the plain name, in place of what they were before."""
    found: dict[str, np.ndarray] = {}
    rounded: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if name.endswith(_DEQUANTISED):
            rounded[name.removesuffix(_DEQUANTISED)] = value
        elif not name.endswith((_QUANTISED, _BEFORE)):
            found[name] = value
    return found | rounded


def tapped(path: Path, contract: Contract) -> Runner:
    """Runs the saved file; besides its outputs, every inner float value in float32, by the name it has in the float graph.

    Raises UserError when ONNX Runtime rejects the file.
    """
    import onnx

    inner = InnerValues(onnx.load(path), what=path.name)
    outputs = [spec.name for spec in contract.outputs]

    def run(inputs: Tensors) -> dict[str, np.ndarray]:
        values = inner(inputs)
        shown = {name: np.asarray(value, dtype=np.float32) for name, value in float_names(values).items()}
        return shown | {name: values[name] for name in outputs}

    return run
