"""What an ONNX file holds besides its arithmetic: layout moves, casts, float inside integers, and what delegates would leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .artifact import Audit
from .onnx_view import View

if TYPE_CHECKING:
    import onnx

COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOVING = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Gather", "Pad", "Expand", "Tile"),
    *("MaxPool", "DepthToSpace", "SpaceToDepth", "Identity"),
)
"""Operators whose results lie on the grid of their inputs."""
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", *COMPUTING)
"""Operators that want every operand in integers, constants too."""
_BRIDGES = ("QuantizeLinear", "DequantizeLinear", "Constant", "Cast")
_CLIPPING = ("Relu", "Clip")
"""What disappears into the rounding after it."""


def audit(model: onnx.ModelProto) -> Audit:
    """The facts about a graph as it is saved, branches included.

    In a file with QuantizeLinear and DequantizeLinear an operator computes in integers when its data come from dequantised values and
    its result is rounded (a product's need not be: ONNX Runtime has kernels from integers to float); `islands` counts the others.
    Delegates are the mobile execution providers of ONNX Runtime, see `onnx_delegates`.
    """
    from .onnx_delegates import unplaced

    view = View(model)
    counts = Counter(node.op_type for node in view.nodes)
    return Audit(
        transposes=counts["Transpose"],
        casts=counts["Cast"],
        islands=dict(Counter(node.op_type for node in _islands(view)).most_common()),
        delegates=unplaced(view),
    )


def _islands(view: View) -> Iterator[onnx.NodeProto]:
    """The nodes that compute on float in a graph of integers."""
    if not any(node.op_type == "QuantizeLinear" for node in view.nodes):
        return
    for node in view.nodes:
        if node.op_type in _BRIDGES or node.op_type in _MOVING or not _floats(view, node):
            continue
        if not _in_integers(view, node):
            yield node


def _floats(view: View, node: onnx.NodeProto) -> bool:
    """Whether a node computes float values; control flow is told by what is in it."""
    return not any(a.HasField("g") for a in node.attribute) and any(view.is_float(name) for name in node.output)


def _in_integers(view: View, node: onnx.NodeProto) -> bool:
    strict = node.op_type in _ARITHMETIC
    operands = node.input[:2] if node.op_type in COMPUTING else node.input
    data = [name for name in operands if name and view.is_float(name) and (strict or not view.constant(name))]
    rounded = all(_rounded(view, name) for name in node.output)
    if node.op_type in _CLIPPING and rounded:
        maker = view.makers.get(node.input[0])
        if maker is not None and maker.op_type in COMPUTING:
            return _in_integers(view, maker)
    on_grid = bool(data) and all(_on_grid(view, name) for name in data)
    return on_grid and (rounded or node.op_type in ("Gemm", "MatMul"))


def _on_grid(view: View, name: str) -> bool:
    """Whether a value comes from DequantizeLinear, through operators that only move."""
    maker = view.makers.get(name)
    if maker is None:
        return False
    if maker.op_type in _MOVING:
        data = [each for each in maker.input if each and view.is_float(each) and not view.constant(each)]
        return all(_on_grid(view, each) for each in data)
    return maker.op_type == "DequantizeLinear"


def _rounded(view: View, name: str) -> bool:
    """Whether a value goes to QuantizeLinear and nowhere else, through operators that move or clip."""
    users = view.users.get(name, [])
    if not users or name in view.outputs:
        return False
    return all(
        user.op_type == "QuantizeLinear"
        or (user.op_type in (*_MOVING, *_CLIPPING) and all(_rounded(view, each) for each in user.output))
        for user in users
    )
