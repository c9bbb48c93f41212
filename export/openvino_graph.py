"""What an OpenVINO model computes, and in what: integers, float, or float by oversight. And which operators an ONNX node became."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..models.errors import UserError
from .artifact import Audit

if TYPE_CHECKING:
    import onnx

COMPUTING = (
    *("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    *("MatMul", "ScaledDotProductAttention"),
)
"""The operators that integers are asked for."""
_MOVING = (
    *(
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Concat",
        "Split",
        "VariadicSplit",
        "StridedSlice",
        "Slice",
        "Gather",
        "Pad",
    ),
    *("MaxPool", "ReduceMax", "Tile", "Broadcast", "ShuffleChannels", "DepthToSpace", "SpaceToDepth", "Minimum", "Maximum"),
)
"""Operators whose results lie on the grid of their inputs: what is rounded before them is rounded after them."""
_TAILS = (
    *("Add", "Subtract", "Multiply", "Divide", "Relu", "PRelu", "Clamp", "Elu", "Sigmoid", "HSigmoid", "HardSigmoid"),
    *("Swish", "HSwish", "Mish", "Gelu", "Tanh", "Exp", "SoftPlus", "Abs", "Sqrt"),
)
"""Operators that the CPU plugin computes inside the kernel of the convolution or product before them."""
_PASSING = ("Parameter", "Result", "Convert")
_INTEGERS = ("i8", "u8", "i4", "u4")
_FLOATS = ("f32", "f16", "bf16", "f64")


def bodies(model: Any) -> Iterator[Any]:
    """The model itself, and the models in the branches of its decisions."""
    yield model
    for op in model.get_ops():
        if op.get_type_name() == "If":
            for branch in (0, 1):
                yield from bodies(op.get_function(branch))


def histogram(model: Any) -> dict[str, int]:
    """How often each operator is in the model, the most frequent first; constants and the doors are not counted."""
    found = Counter(op.get_type_name() for body in bodies(model) for op in body.get_ops())
    return {name: count for name, count in found.most_common() if name not in ("Constant", "Parameter", "Result")}


def audit(model: Any) -> Audit:
    """Layout moves, casts of values (not of stored weights), and, in an integer model, what computes in float."""
    counts: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for body in bodies(model):
        kinds = _kinds(body)
        counts.update(
            op.get_type_name() for op in body.get_ops() if kinds[op.get_friendly_name()] not in ("constant", "weight")
        )
        if "rounded" in kinds.values():
            left.update(op.get_type_name() for op in body.get_ops() if kinds[op.get_friendly_name()] == "island")
    return Audit(transposes=counts["Transpose"], casts=counts["Convert"], islands=dict(left.most_common()))


def split(model: Any) -> tuple[list[str], list[str]]:
    """The ONNX names of convolutions and products whose operands are both integers, and of the others."""
    kinds = _kinds(model)
    integer: list[str] = []
    floating: list[str] = []
    for op in model.get_ordered_ops():
        if op.get_type_name() in COMPUTING:
            both = all(
                kinds[source.get_node().get_friendly_name()] in ("rounded", "weight") for source in op.input_values()[:2]
            )
            (integer if both else floating).append(onnx_name(op))
    return integer, floating


def stored_in_integers(model: Any) -> tuple[list[str], list[str]]:
    """The ONNX names of convolutions and products that have a weight in integers, and of those that have one in float."""
    kinds = _kinds(model)
    integer: list[str] = []
    floating: list[str] = []
    for op in model.get_ordered_ops():
        if op.get_type_name() in COMPUTING:
            operands = {kinds[source.get_node().get_friendly_name()] for source in op.input_values()}
            if "weight" in operands:
                integer.append(onnx_name(op))
            elif "constant" in operands:
                floating.append(onnx_name(op))
    return integer, floating


def onnx_name(op: Any) -> str:
    """The name of the ONNX node that an operator was made of: a convolution's bias is an operator of its own here."""
    return str(op.get_friendly_name()).removesuffix("/WithoutBiases")


def _kinds(model: Any) -> dict[str, str]:
    """What each operator's result is, by its name.

    "constant" or "weight" (a constant stored in integers); "index": a shape, index or mask, no data; "rounded": on a grid of
    integers; "sum": what a convolution, product or element-wise operator makes of integers, or its kernel makes of that; "float": what
    others make of integers; "island": made of float.
    """
    kinds: dict[str, str] = {}
    for op in model.get_ordered_ops():
        kinds[op.get_friendly_name()] = _kind(op, kinds)
    return kinds


def _kind(op: Any, kinds: dict[str, str]) -> str:
    name = op.get_type_name()
    if name == "Constant":
        return "weight" if op.get_output_element_type(0).get_type_name() in _INTEGERS else "constant"
    inputs = [kinds[source.get_node().get_friendly_name()] for source in op.input_values()]
    if inputs and all(kind in ("constant", "weight") for kind in inputs):
        return "weight" if "weight" in inputs else "constant"
    if not _is_float(op):
        return "index"
    data = [kind for kind in inputs if kind not in ("constant", "weight", "index")]
    if name == "FakeQuantize":
        return "rounded"
    return _kind_of_float(op, name, inputs, data)


def _kind_of_float(op: Any, name: str, inputs: list[str], data: list[str]) -> str:
    on_grid = all(kind == "rounded" for kind in data)
    if name in _PASSING:
        return data[0] if data else "float"
    if name in _MOVING:
        return "rounded" if on_grid else "float"
    if name in COMPUTING:
        return "sum" if all(kind in ("rounded", "weight") for kind in inputs[:2]) else "island"
    if name in _TAILS and "sum" in data and all(kind in ("rounded", "sum") for kind in data):
        sums = [source for source, kind in zip(op.input_values(), inputs, strict=True) if kind == "sum"]
        return "sum" if any(len(source.get_target_inputs()) == 1 for source in sums) else "island"
    if not on_grid:
        return "island"
    return "sum" if name in _TAILS else "float"


def _is_float(op: Any) -> bool:
    return not op.get_output_size() or op.get_output_element_type(0).get_type_name() in _FLOATS


def operators_of(model: Any, graph: onnx.ModelProto, names: Iterable[str]) -> dict[str, list[str]]:
    """The names of the operators that ONNX nodes became, by the node's name.

    They are what computes the node's value from other values that ONNX knows. A node that was fused with those after it is all of them.
    Raises UserError for a node that nothing was left of.
    """
    ops = [op for op in model.get_ordered_ops() if op.get_type_name() not in ("Constant", "Result")]
    ports = {name: output for op in ops for output in op.outputs() for name in output.get_names()}
    nodes = {node.name: node for node in graph.graph.node}
    found = {}
    for name in names:
        value = _surviving(graph, nodes[name].output, ports.keys())
        if value is None:
            raise UserError(f"{name!r} can't be kept in float: OpenVINO has folded it away", hint="leave it out")
        found[name] = _between(ports[value])
    return found


def _surviving(graph: onnx.ModelProto, outputs: Sequence[str], known: Iterable[str]) -> str | None:
    """The first value from `outputs` on, downwards, that the model still has."""
    left, known = list(outputs), set(known)
    while left:
        value = left.pop(0)
        if value in known:
            return value
        left += [name for node in graph.graph.node if value in node.input for name in node.output]
    return None


def _between(port: Any) -> list[str]:
    """The operators that compute `port` from values with names of their own, constants left out."""
    found: list[str] = []
    left = [port.get_node()]
    while left:
        op = left.pop()
        if op.get_type_name() in ("Constant", "Parameter") or op.get_friendly_name() in found:
            continue
        found.append(op.get_friendly_name())
        left += [source.get_node() for source in op.input_values() if not source.get_names()]
    return found
