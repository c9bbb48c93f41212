"""Why a delegate would not take an operator, in words.

What the delegates of phones take is written down here from public sources, and only what those state plainly: of NNAPI, the
operators that TensorFlow's `lite/delegates/nnapi/nnapi_delegate.cc` maps and those it maps as int8 (`NeedInt8Conversion`); of
Core ML, the list in the guide "TensorFlow Lite Core ML delegate" and the checks in `lite/delegates/coreml/coreml_delegate.mm`.
Drivers take less still: a device's own log has the last word.
"""

from __future__ import annotations

from .anatomy import BRIDGES, FLOATS, Anatomy, Step

_WEIGHTED = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}
"""Where the weights are among the inputs."""

_SHAPED = {
    "RESHAPE": (1,),
    "SLICE": (1, 2),
    "STRIDED_SLICE": (1, 2, 3),
    "PAD": (1,),
    "PADV2": (1,),
    "MIRROR_PAD": (1,),
    "TRANSPOSE": (1,),
    "TRANSPOSE_CONV": (0,),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
    "TILE": (1,),
    "BROADCAST_TO": (1,),
    "FILL": (0,),
    "EXPAND_DIMS": (1,),
    "MEAN": (1,),
    "SUM": (1,),
    "TOPK_V2": (1,),
}
"""Which inputs decide the output's shape."""


def _named(kinds: str) -> frozenset[str]:
    return frozenset(kinds.split())


_NNAPI_INT8 = _named(
    """
    ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_TO_SPACE_ND CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE
    DEQUANTIZE EQUAL EXPAND_DIMS FULLY_CONNECTED GATHER GREATER GREATER_EQUAL HARD_SWISH L2_NORMALIZATION LEAKY_RELU LESS
    LESS_EQUAL LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NOT_EQUAL PAD PADV2 PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU
    RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SELECT SLICE SOFTMAX SPACE_TO_BATCH_ND
    SPACE_TO_DEPTH STRIDED_SLICE SUB TANH TILE TOPK_V2 TRANSPOSE TRANSPOSE_CONV
    """
)
_NNAPI_FLOAT = _NNAPI_INT8 | _named(
    """
    ABS CAST DIV ELU EXP FILL FLOOR LOG LOG_SOFTMAX LOGICAL_AND LOGICAL_NOT LOGICAL_OR NEG POW REDUCE_ANY REDUCE_PROD RSQRT SIN
    SPLIT SQRT SQUEEZE SUM
    """
)
_NNAPI_VERSIONS = {"CONV_2D": 5}
"""The highest version of an operator that NNAPI's delegate reads; a grouped convolution is version 6."""

_COREML = _named(
    """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED HARD_SWISH LOGISTIC MAX_POOL_2D MEAN
    MIRROR_PAD MUL PAD PADV2 RELU RELU6 RELU_N1_TO_1 RESIZE_BILINEAR SOFTMAX TANH TRANSPOSE_CONV
    """
)
_COREML_VERSIONS = {"DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 6}
"""The highest version of an operator that the Core ML delegate reads; 1 of the others."""


def xnnpack_reason(found: Anatomy, step: Step) -> str:
    """Why LiteRT did not hand this operator over, as far as its tensors tell."""
    dtype = _widest(found, step)
    if step.kind == "IF":
        return "XNNPACK takes no control flow"
    if reason := _at_run_time(found, step):
        return reason
    if _mixed(found, step):
        return "XNNPACK has no kernel for it with int8 weights and float activations"
    if dtype in FLOATS:
        return "XNNPACK has no float kernel for it, or not for these attributes or sizes"
    if dtype in ("int8", "uint8"):
        return f"XNNPACK has no {dtype} kernel for it"
    return f"XNNPACK does not compute in {dtype}"


def nnapi_reason(found: Anatomy, step: Step) -> str:
    """Why NNAPI would not take this operator, or ""."""
    dtype = _widest(found, step)
    checks = (
        (step.kind not in _NNAPI_FLOAT, "has no such operator"),
        (dtype in ("int16", "int64"), f"does not compute in {dtype}"),
        (step.version > _NNAPI_VERSIONS.get(step.kind, step.version), f"does not read version {step.version} of it"),
        (dtype in ("int8", "uint8") and step.kind not in _NNAPI_INT8, f"does not take it in {dtype}"),
        (_mixed(found, step), "is not known to take int8 weights with float activations"),
    )
    reason = next((reason for applies, reason in checks if applies), "")
    return f"NNAPI {reason}" if reason else _shape_at_run_time(found, step)


def coreml_reason(found: Anatomy, step: Step) -> str:
    """Why the Core ML delegate would not take this operator, or ""."""
    dtype = found.dtype(step)
    checks = (
        (step.kind == "RESHAPE", "takes it for Core ML 2 alone"),
        (step.kind not in _COREML, "has no such operator"),
        (dtype not in FLOATS, f"computes in float alone, this is {dtype}"),
        (step.version > _COREML_VERSIONS.get(step.kind, 1), f"does not read version {step.version} of it"),
        (step.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D") and step.activation != 0, "takes it without a fused activation alone"),
        (_mixed(found, step), "does not take int8 weights with float activations"),
    )
    reason = next((reason for applies, reason in checks if applies), "")
    return f"the Core ML delegate {reason}" if reason else _at_run_time(found, step)


def _widest(found: Anatomy, step: Step) -> str:
    """The dtype that an operator computes in; int16 or int64 when it only turns numbers to float or from it."""
    if step.kind in BRIDGES:
        ends = [found.dtypes[step.subgraph, t] for t in (*step.inputs, *step.outputs)]
        return next((dtype for dtype in ends if dtype in ("int16", "int64")), found.dtype(step))
    return found.dtype(step)


def _mixed(found: Anatomy, step: Step) -> bool:
    """Whether weights are integers and activations are not."""
    weights = step.inputs[_WEIGHTED[step.kind]] if step.kind in _WEIGHTED else -1
    return weights >= 0 and found.dtypes[step.subgraph, weights] == "int8" and found.dtype(step) in FLOATS


def _at_run_time(found: Anatomy, step: Step) -> str:
    if step.kind in _WEIGHTED and found.computed(step, _WEIGHTED[step.kind]):
        return "its weights are computed at run time"
    return _shape_at_run_time(found, step)


def _shape_at_run_time(found: Anatomy, step: Step) -> str:
    if any(found.computed(step, index) for index in _SHAPED.get(step.kind, ())):
        return "its output's shape is computed at run time"
    return ""
