"""What ONNX Runtime's mobile execution providers would leave to the CPU's own kernels: XNNPACK, NNAPI and Core ML.

Which operators NNAPI and Core ML (as an ML program) take is read from the tables that ONNX Runtime installs with its mobile checker
(`onnxruntime/tools/mobile_helpers/*_supported_ops.md`), so they are the installed version's; the conditions in those tables' notes
are checked here. XNNPACK's table is that of onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html; what
its page does not say (known sizes, constant weights, the types of integers, activations that are fused) is from its source.
Where a condition can't be decided from the file, the operator counts as left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import Unplaced
from .onnx_view import View, attribute, given

if TYPE_CHECKING:
    import onnx

Test = Callable[[View, Any], bool]

_NO_KERNEL = "it has no such operator"
_INNER = "it lies in a branch, and branches are not entered"
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_LOCAL_POOLS = ("MaxPool", "AveragePool")
_POOLS = (*_LOCAL_POOLS, "GlobalMaxPool", "GlobalAveragePool")
_BRIDGES = ("QuantizeLinear", "DequantizeLinear")
_COREML_RANK = 5


@dataclass(frozen=True)
class Rule:
    """What must be true of the nodes of these kinds (of all kinds, when it names none), and what to say when it is not."""

    ops: tuple[str, ...]
    test: Test
    reason: str


def unplaced(view: View) -> dict[str, tuple[Unplaced, ...]]:
    """By delegate, the operators that it would leave out with the reason, the most frequent first.

    NNAPI and Core ML are missing where ONNX Runtime comes without their tables.
    """
    found = {"XNNPACK": _grouped(view, lambda node: _xnnpack(view, node))}
    for delegate, file, rules in (
        ("NNAPI", "nnapi_supported_ops.md", _NNAPI),
        ("Core ML", "coreml_supported_mlprogram_ops.md", _COREML),
    ):
        if kernels := _table(file):
            found[delegate] = _grouped(view, partial(_listed, view, kernels=kernels, rules=rules))
    return found


def _grouped(view: View, reason_of: Callable[[onnx.NodeProto], str]) -> tuple[Unplaced, ...]:
    found = ((node.op_type, reason_of(node)) for node in view.nodes if node.op_type != "Constant")
    counts = Counter((op, reason) for op, reason in found if reason)
    return tuple(Unplaced(op=op, count=count, reason=reason) for (op, reason), count in counts.most_common())


def _table(file: str) -> frozenset[str]:
    """The lower-case names of the operators in one of ONNX Runtime's tables; empty when it is not there."""
    import onnxruntime

    path = Path(onnxruntime.__file__).parent / "tools" / "mobile_helpers" / file
    if not path.is_file():
        return frozenset()
    cells = [line.split("|")[1].strip() for line in path.read_text().splitlines() if line.startswith("|")]
    return frozenset(cell.lower() for cell in cells if ":" in cell)


def _listed(view: View, node: onnx.NodeProto, kernels: frozenset[str], rules: tuple[Rule, ...]) -> str:
    """The reason why a delegate with these kernels and rules leaves a node out, "" when it takes it."""
    if f"{node.domain or 'ai.onnx'}:{node.op_type}".lower() not in kernels:
        return _NO_KERNEL
    return _INNER if id(node) in view.inner else _broken(view, node, rules)


def _broken(view: View, node: onnx.NodeProto, rules: tuple[Rule, ...]) -> str:
    fitting = (rule for rule in rules if not rule.ops or node.op_type in rule.ops)
    return next((rule.reason for rule in fitting if not rule.test(view, node)), "")


def _xnnpack(view: View, node: onnx.NodeProto) -> str:
    if node.op_type in _BRIDGES:
        return ""  # they belong to the operator between them
    return _broken(view, node, _XNNPACK) if any(node.op_type in rule.ops for rule in _XNNPACK) else _NO_KERNEL


def _image(view: View, node: onnx.NodeProto) -> bool:
    return view.rank(node.input[0]) == 4


def _known_image(view: View, node: onnx.NodeProto) -> bool:
    return None not in (view.shape(node.input[0]) or (None,))[1:]


def _low(view: View, node: onnx.NodeProto) -> bool:
    ranks = [view.rank(name) for name in given(node)[:1]]
    return all(rank is not None and rank <= _COREML_RANK for rank in ranks)


def _known(view: View, node: onnx.NodeProto) -> bool:
    shapes = [view.shape(name) for name in given(node) if not view.constant(name)]
    return all(shape is not None and None not in shape for shape in shapes)


def _constant(start: int, *, dequantised: bool = False) -> Test:
    """Whether the inputs from `start` on are constants."""
    return lambda view, node: all(view.constant(name, dequantised=dequantised) for name in given(node, start))


def _in_float(view: View, node: onnx.NodeProto) -> bool:
    maker = view.makers.get(node.input[0])
    return maker is None or maker.op_type != "DequantizeLinear"


def _of_one_kind(view: View, node: onnx.NodeProto) -> bool:
    """Whether activations and weights are both signed integers, both unsigned ones, or float."""
    return len({_integer(view, name) for name in node.input[:2]}) == 1


def _integer(view: View, name: str) -> int | None:
    """The integer type of a dequantised value, as its zero point has it."""
    maker = view.makers.get(name)
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    return view.type((given(maker, 2) or maker.input)[0])


def _fused(view: View, node: onnx.NodeProto) -> bool:
    maker = view.makers.get(node.input[0])
    return maker is not None and maker.op_type in ("Conv", *_LOCAL_POOLS) and not _xnnpack(view, maker)


def _along_last(view: View, node: onnx.NodeProto) -> bool:
    rank, axis = view.rank(node.input[0]), attribute(node, "axis", -1)
    return axis == -1 or (rank is not None and axis == rank - 1)


def _flat(view: View, node: onnx.NodeProto) -> bool:
    return all(view.rank(name) in (1, 2) for name in given(node))


def _plainly_padded(view: View, node: onnx.NodeProto) -> bool:
    pads = view.array(node.input[1]) if len(node.input) > 1 else None
    return attribute(node, "mode", "constant") == "constant" and pads is not None and not (pads < 0).any()


def _plainly_transposed(_: View, node: onnx.NodeProto) -> bool:
    moved = attribute(node, "output_shape", None) or any(attribute(node, "output_padding", ()))
    return not moved and attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")


def _gathered(view: View, node: onnx.NodeProto) -> bool:
    import onnx

    return view.constant(node.input[1]) or view.type(node.input[1]) == onnx.TensorProto.INT32


_IMAGES = "it is taken on images (four dimensions) only"
_FIXED = "its weight and bias must be constant"

_XNNPACK = (
    Rule((*_CONVOLUTIONS, *_LOCAL_POOLS, "Resize"), _image, _IMAGES),
    Rule((*_CONVOLUTIONS, *_LOCAL_POOLS), _known_image, "its channels, height and width must be fixed in the file"),
    Rule(_CONVOLUTIONS, _constant(1, dequantised=True), _FIXED),
    Rule(_CONVOLUTIONS, _of_one_kind, "its activations and weights are integers of two kinds, unsigned and signed"),
    Rule(_LOCAL_POOLS, lambda _, node: not attribute(node, "ceil_mode", 0), "it rounds sizes up"),
    Rule(("Relu", "Clip"), _fused, "it is taken right after a convolution or pool only"),
    Rule(("Gemm", "MatMul"), _in_float, "it is taken in float only"),
    Rule(("Gemm", "MatMul"), _flat, "it is taken with two dimensions only"),
    Rule(("Gemm", "MatMul"), _constant(1), _FIXED),
    Rule(("Softmax",), _along_last, "it is taken along the last axis only"),
    Rule(("Resize",), lambda _, node: attribute(node, "mode", "nearest") == "linear", "it is taken bilinear only"),
)
_NNAPI = (
    Rule((), _known, "its sizes must be fixed in the file, the batch too"),
    Rule(("Conv", "Resize", *_POOLS), _image, _IMAGES),
    Rule(("Conv",), _constant(1, dequantised=True), _FIXED),
    Rule(_BRIDGES, _constant(1), "its scale and zero point must be constant"),
    Rule(
        ("Gemm",),
        lambda view, node: view.constant(node.input[1], dequantised=True) or bool(attribute(node, "transB", 0)),
        "its weight must be constant or transposed",
    ),
    Rule(("DepthToSpace",), lambda _, node: attribute(node, "mode", "DCR") == "DCR", "its mode must be DCR"),
    Rule(("Gather",), _gathered, "its indices must be constant or int32"),
    Rule(("Squeeze", "Unsqueeze", "Split"), _constant(1), "its axes or sizes must be constant"),
    Rule(("Split",), lambda view, node: len({view.shape(name) for name in node.output}) == 1, "its parts must be of one size"),
    Rule(("Pad",), _plainly_padded, "it is taken with constant values, known and not negative sizes only"),
)
_COREML = (
    Rule((), _low, f"it has more than {_COREML_RANK} dimensions"),
    Rule((*_POOLS, "Resize", "GridSample"), _image, _IMAGES),
    Rule(("Conv",), lambda view, node: view.rank(node.input[0]) in (3, 4), "it is taken in one or two dimensions only"),
    Rule(("Conv",), _constant(2), "its bias must be constant"),
    Rule(("ConvTranspose",), _constant(1), _FIXED),
    Rule(("ConvTranspose",), _plainly_transposed, "it is taken with explicit padding and no output padding only"),
    Rule(("Gemm",), lambda view, node: view.constant(node.input[1]), "its weight must be constant"),
    Rule(
        ("DepthToSpace",),
        lambda view, node: attribute(node, "mode", "DCR") == "DCR" or _known(view, node),
        "its sizes must be fixed in the file",
    ),
    Rule(("Slice", "Split"), _constant(1), "its places and sizes must be constant"),
    Rule(("Pow",), lambda view, node: all(view.is_float(name) for name in node.input), "both of its inputs must be float"),
)
