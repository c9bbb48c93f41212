"""ONNX graphs that decide, written node by node: cascades and one-shot routes of nested If, independent of trimtab's own writer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

F, B, I64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
SHARED = ("image", "thresholds")


def prefixed(graph: GraphProto, prefix: str, keep: Sequence[str] = SHARED) -> GraphProto:
    """A copy whose values are renamed, but for those in `keep`."""

    def name(old: str) -> str:
        return old if old in keep or not old else f"{prefix}{old}"

    new = GraphProto()
    new.CopyFrom(graph)
    for node in new.node:
        node.name = f"{prefix}{node.name}"
        node.input[:] = [name(n) for n in node.input]
        node.output[:] = [name(n) for n in node.output]
    for entry in (*new.initializer, *new.output, *new.value_info):
        entry.name = name(entry.name)
    return new


def block(name: str, nodes: Sequence[NodeProto], output: str, constants: Sequence[TensorProto], classes: int) -> GraphProto:
    """A branch: no inputs, one output (1, classes)."""
    out = helper.make_tensor_value_info(output, F, [1, classes])
    return helper.make_graph(list(nodes), name, [], [out], list(constants))


def score(logits: str, prefix: str) -> list[NodeProto]:
    """`{prefix}score`: the largest softmax probability, (1,)."""
    return [
        helper.make_node("Softmax", [logits], [f"{prefix}soft"], axis=-1),
        helper.make_node("ReduceMax", [f"{prefix}soft", "axis_one"], [f"{prefix}score"], keepdims=0),
    ]


def reaches(value: str, number: int, prefix: str) -> list[NodeProto]:
    """`{prefix}enough`: whether a score (1,) reaches the threshold of this number."""
    return [
        helper.make_node("Gather", ["thresholds", f"at_{number}"], [f"{prefix}limit"], axis=0),
        helper.make_node("GreaterOrEqual", [value, f"{prefix}limit"], [f"{prefix}raw"]),
        helper.make_node("Squeeze", [f"{prefix}raw"], [f"{prefix}enough"]),
    ]


def numbers(count: int) -> list[TensorProto]:
    """The constants that scores and limits use, kept in the outermost graph."""
    found = [numpy_helper.from_array(np.array([1]), "axis_one")]
    return found + [numpy_helper.from_array(np.array([n]), f"at_{n}") for n in range(count)]


def cascade(branches: Sequence[ModelProto], classes: int = 10) -> ModelProto:
    """image, thresholds (K−1,) → logits: the first branch whose confidence reaches its threshold, else the last."""
    graphs = [prefixed(b.graph, f"b{k}_") for k, b in enumerate(branches)]

    def rest(k: int) -> tuple[list[NodeProto], str, list[TensorProto]]:
        graph = graphs[k]
        nodes, logits = list(graph.node), graph.output[0].name
        if k + 1 == len(graphs):
            return nodes, logits, list(graph.initializer)
        stop = block(f"stop{k}", [helper.make_node("Identity", [logits], [f"answer{k}"])], f"answer{k}", [], classes)
        later, its, constants = rest(k + 1)
        going = block(f"go{k}", later, its, constants, classes)
        choice = helper.make_node("If", [f"s{k}_enough"], [f"out{k}"], then_branch=stop, else_branch=going, name=f"choose{k}")
        nodes += [*score(logits, f"s{k}_"), *reaches(f"s{k}_score", k, f"s{k}_"), choice]
        return nodes, f"out{k}", list(graph.initializer)

    nodes, last, constants = rest(0)
    return whole(nodes, last, [*constants, *numbers(len(graphs) - 1)], branches[0].graph.input[0], len(graphs) - 1, classes)


def routed(branches: Sequence[ModelProto], router: ModelProto, classes: int = 10) -> ModelProto:
    """image, thresholds (K−1,) → logits: the router's scores (1, K−1) name the branch; nested If."""
    graphs = [prefixed(b.graph, f"b{k}_") for k, b in enumerate(branches)]
    route = prefixed(router.graph, "r_")
    scores = route.output[0].name
    nodes = list(route.node)
    for k in range(len(graphs) - 1):
        nodes.append(helper.make_node("Gather", [scores, f"at_{k}"], [f"s{k}_two"], axis=1))
        nodes.append(helper.make_node("Squeeze", [f"s{k}_two", "axis_one"], [f"s{k}_score"]))
        nodes += reaches(f"s{k}_score", k, f"s{k}_")

    def choose(k: int) -> tuple[list[NodeProto], str, list[TensorProto]]:
        graph = graphs[k]
        if k + 1 == len(graphs):
            return list(graph.node), graph.output[0].name, list(graph.initializer)
        taken = block(f"take{k}", graph.node, graph.output[0].name, graph.initializer, classes)
        later, its, constants = choose(k + 1)
        going = block(f"go{k}", later, its, constants, classes)
        node = helper.make_node("If", [f"s{k}_enough"], [f"out{k}"], then_branch=taken, else_branch=going, name=f"choose{k}")
        return [node], f"out{k}", []

    inner, last, constants = choose(0)
    constants = [*constants, *route.initializer, *numbers(len(graphs) - 1)]
    return whole([*nodes, *inner], last, constants, branches[0].graph.input[0], len(graphs) - 1, classes)


def whole(
    nodes: Sequence[NodeProto],
    last: str,
    constants: Sequence[TensorProto],
    image: onnx.ValueInfoProto,
    thresholds: int,
    classes: int,
) -> ModelProto:
    """The checked model around the nodes; its output is "logits"."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", [last], ["logits"])],
        "routed",
        [image, helper.make_tensor_value_info("thresholds", F, [thresholds])],
        [helper.make_tensor_value_info("logits", F, [1, classes])],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model
