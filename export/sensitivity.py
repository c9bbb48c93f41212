"""Which layers suffer most from integers: each one quantised alone, everything else in float, the error seen at the outputs.

The simulation is of the ONNX graph, in ONNX Runtime: weights signed per channel, activations unsigned per tensor with min/max
ranges. Every integer format here quantises so or nearly so, and the ranking is only where the search for layers to keep begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .parity import sqnr_db

if TYPE_CHECKING:
    import onnx

CANDIDATES = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul"),
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Concat",
        "Softmax",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Erf",
        "Tanh",
        "LayerNormalization",
    ),
    *("GlobalAveragePool", "AveragePool", "ReduceMean", "Resize", "PRelu", "LeakyRelu"),
)
"""Operators that may be kept in float one by one. The others (reshapes, maxima, clipping) keep the ranges of their inputs."""
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}


@dataclass(frozen=True)
class Sensitivity:
    """The outputs' SQNR in dB when this node alone computes on integers."""

    node: str
    op: str
    sqnr_db: float


def sensitivities(graph: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[Sensitivity]:
    """Every candidate node of `graph`, the most sensitive first. `feeds` are inputs by name; 16 to 32 of them say enough."""
    weights = {w.name: w for w in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type in CANDIDATES]
    wanted = {name for node in nodes for name in (*node.input, *node.output) if name and name not in weights}
    ranges = _ranges(graph, feeds, sorted(wanted))
    reference = _run(graph, feeds)
    found = []
    for node in nodes:
        simulated = _alone(graph, node, ranges)
        if simulated is not None:
            found.append(Sensitivity(node.name, node.op_type, sqnr_db(reference, _run(simulated, feeds))))
    return sorted(found, key=lambda each: each.sqnr_db)


def _session(model: onnx.ModelProto) -> object:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(model: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """All outputs for all feeds in one row."""
    session = _session(model)
    outputs = [out.reshape(-1) for feed in feeds for out in session.run(None, dict(feed))]  # type: ignore[attr-defined]
    return np.concatenate(outputs)


def _ranges(
    graph: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of each float tensor over the feeds, zero included."""
    import onnx

    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph)
    own = {value.name for value in (*tapped.graph.input, *tapped.graph.output)}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    session = _session(tapped)
    outputs = [value.name for value in session.get_outputs()]  # type: ignore[attr-defined]
    found: dict[str, tuple[float, float]] = {}
    for feed in feeds:
        values = {**feed, **dict(zip(outputs, session.run(None, dict(feed)), strict=True))}  # type: ignore[attr-defined]
        for name in names:
            array = values.get(name)
            if array is None or array.dtype != np.float32 or not array.size:
                continue
            low, high = found.get(name, (0.0, 0.0))
            found[name] = min(low, float(array.min())), max(high, float(array.max()))
    return found


def _alone(graph: onnx.ModelProto, node: onnx.NodeProto, ranges: Mapping[str, tuple[float, float]]) -> onnx.ModelProto | None:
    """`graph` with rounding around one node: its float inputs, its weight and its output. None where nothing of it is rounded."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    weights = {w.name: w for w in model.graph.initializer}
    nodes = list(model.graph.node)
    place = next(i for i, each in enumerate(nodes) if each.name == node.name)
    mine, before, after = nodes[place], [], []
    for slot, name in enumerate(mine.input):
        if name in weights and slot == 1 and weights[name].data_type == onnx.TensorProto.FLOAT:
            rounded = onnx.numpy_helper.from_array(
                _rounded_weight(onnx.numpy_helper.to_array(weights[name]), mine), f"{name}#q"
            )
            model.graph.initializer.append(rounded)
            mine.input[slot] = rounded.name
        elif name in ranges:
            mine.input[slot] = f"{name}#q{slot}"
            before += _rounding(model, name, mine.input[slot], ranges[name])
    output = mine.output[0]
    if output in ranges:
        mine.output[0] = f"{output}#f"
        after = _rounding(model, mine.output[0], output, ranges[output])
    if not (before or after):
        return None
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *before, mine, *after, *nodes[place + 1 :]])
    return model


def _rounded_weight(weight: np.ndarray, node: onnx.NodeProto) -> np.ndarray:
    """The weight on the grid of signed 8-bit integers, a scale per output channel."""
    axis = _CHANNEL_AXIS.get(node.op_type, weight.ndim - 1 if weight.ndim else 0)
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        axis = 0
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others, keepdims=True) / 127
    scale[scale == 0] = 1
    return (np.round(weight / scale).clip(-127, 127) * scale).astype(np.float32)


def _rounding(model: onnx.ModelProto, name: str, result: str, bounds: tuple[float, float]) -> list[onnx.NodeProto]:
    """Nodes that make `result` of `name`, rounded to 256 levels between the bounds."""
    import onnx

    low, high = bounds
    scale = max((high - low) / 255, 1e-12)
    zero = int(np.clip(round(-low / scale), 0, 255))
    constants = {f"{result}#s": np.float32(scale), f"{result}#z": np.uint8(zero)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    levels = f"{result}#i"
    return [
        onnx.helper.make_node("QuantizeLinear", [name, *constants], [levels]),
        onnx.helper.make_node("DequantizeLinear", [levels, *constants], [result]),
    ]
