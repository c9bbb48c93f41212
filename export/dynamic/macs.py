"""What an ONNX graph costs: the multiply-accumulates of each of its nodes."""

from __future__ import annotations

import math

import onnx


def node_macs(model: onnx.ModelProto) -> dict[str, int]:
    """MACs by the name of each node's first output, for a graph of fixed sizes.

    Convolutions (plain, grouped, transposed), linear layers and matrix products count, as the field has it; additions of biases,
    normalisations, activations and pooling don't. A node whose shapes can't be inferred counts as nothing.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return {node.output[0]: _macs(node, shapes) for node in graph.node}


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    first, second, result = (shapes.get(name, (0,)) for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":  # every output element is a sum over the weight's (C_in / groups, k, k)
        return math.prod(result) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":  # every input element is spread by (C_out / groups, k, k) weights
        return math.prod(first) * math.prod(second[1:])
    attributes = {a.name: a.i for a in node.attribute}
    return math.prod(result) * (first[0] if attributes.get("transA") else first[-1])
