"""TFLite operators as TensorFlow calls, by builtin name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tf_call import Call, activated, activation, function
from .tf_layers import conv, depthwise, linear, pool, transposed


def _plain(name: str) -> Callable[[Call], Any]:
    """A TensorFlow function of all inputs, then the fused activation."""

    def run(call: Call) -> Any:
        run_it = function(call.tf, name)
        named = dict(zip("xy", call.inputs, strict=False)) if name.startswith("raw_ops.") else {}
        return activated(call, run_it(**named) if named else run_it(*call.inputs))

    return run


def _clipped(kind: str) -> Callable[[Call], Any]:
    return lambda call: activation(call.tf, kind, call.inputs[0])


def _reduction(name: str) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        return function(call.tf, name)(call.inputs[0], axis=call.known(1), keepdims=bool(call.flag("keepDims")))

    return run


def _arg(name: str) -> Callable[[Call], Any]:
    return lambda call: function(call.tf, name)(call.inputs[0], axis=int(call.known(1)), output_type=call.tf.int32)


def _resize(name: str) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        return getattr(call.tf.raw_ops, name)(
            images=call.inputs[0],
            size=call.inputs[1],
            align_corners=bool(call.flag("alignCorners")),
            half_pixel_centers=bool(call.flag("halfPixelCenters")),
        )

    return run


def strided_slice(call: Call) -> Any:
    """Inputs: x, begin, end, strides."""
    masks = {"begin_mask": "beginMask", "end_mask": "endMask", "ellipsis_mask": "ellipsisMask"}
    masks |= {"new_axis_mask": "newAxisMask", "shrink_axis_mask": "shrinkAxisMask"}
    return call.tf.strided_slice(*call.inputs, **{name: call.flag(option) for name, option in masks.items()})


def prelu(call: Call) -> Any:
    """max(x, 0) − α·max(−x, 0), the form that the converter makes a PRELU of."""
    x, slope = call.inputs
    return call.tf.nn.relu(x) - slope * call.tf.nn.relu(-x)


def hard_swish(call: Call) -> Any:
    """x·relu6(x + 3)/6, the form that the converter makes a HARD_SWISH of."""
    return call.inputs[0] * call.tf.nn.relu6(call.inputs[0] + 3.0) * (1.0 / 6.0)


def one_hot(call: Call) -> Any:
    """Inputs: positions, depth, on, off."""
    index, depth, on, off = call.inputs
    return call.tf.one_hot(index, depth, on_value=on, off_value=off, axis=call.flag("axis"))


def local_response(call: Call) -> Any:
    """Normalisation over neighbouring channels."""
    options = {key: call.options[key] for key in ("bias", "alpha", "beta")}
    return call.tf.nn.local_response_normalization(call.inputs[0], depth_radius=call.options["radius"], **options)


def concatenation(call: Call) -> Any:
    """All inputs along one axis."""
    return activated(call, call.tf.concat(call.inputs, axis=call.options["axis"]))


def reshape(call: Call) -> Any:
    """The shape is an input, or an option."""
    return call.tf.reshape(call.inputs[0], call.inputs[1] if len(call.inputs) > 1 else call.options["newShape"])


def gather(call: Call) -> Any:
    """Entries by position along one axis."""
    return call.tf.gather(*call.inputs, axis=call.flag("axis"), batch_dims=call.flag("batchDims"))


def matmul(call: Call) -> Any:
    """(…, M, K) by (…, K, N), either stored transposed."""
    return call.tf.matmul(*call.inputs, transpose_a=bool(call.flag("adjX")), transpose_b=bool(call.flag("adjY")))


def split(call: Call) -> Any:
    """Inputs: axis, x."""
    return call.tf.split(call.inputs[1], call.options["numSplits"], axis=call.known(0))


def mirror_pad(call: Call) -> Any:
    """Without (0) or with (1) the edge repeated."""
    return call.tf.pad(*call.inputs, mode=("REFLECT", "SYMMETRIC")[call.flag("mode")])


def cumulative(call: Call) -> Any:
    """The running sum along one axis."""
    x, axis = call.inputs
    return call.tf.cumsum(x, axis, exclusive=bool(call.flag("exclusive")), reverse=bool(call.flag("reverse")))


TABLE: dict[str, Callable[[Call], Any]] = {
    "CONV_2D": conv,
    "DEPTHWISE_CONV_2D": depthwise,
    "TRANSPOSE_CONV": transposed,
    "FULLY_CONNECTED": linear,
    "BATCH_MATMUL": matmul,
    "MAX_POOL_2D": pool("max_pool2d"),
    "AVERAGE_POOL_2D": pool("avg_pool2d"),
    "ADD": _plain("add"),
    "SUB": _plain("subtract"),
    "MUL": _plain("multiply"),
    "DIV": _plain("raw_ops.Div"),  # not tf.divide: of integers that makes floats
    "MAXIMUM": _plain("maximum"),
    "MINIMUM": _plain("minimum"),
    "POW": _plain("pow"),
    "FLOOR_MOD": _plain("math.floormod"),
    "FLOOR_DIV": _plain("math.floordiv"),
    "EQUAL": _plain("equal"),
    "NOT_EQUAL": _plain("not_equal"),
    "GREATER": _plain("greater"),
    "GREATER_EQUAL": _plain("greater_equal"),
    "LESS": _plain("less"),
    "LESS_EQUAL": _plain("less_equal"),
    "LOGICAL_AND": _plain("logical_and"),
    "LOGICAL_OR": _plain("logical_or"),
    "LOGICAL_NOT": _plain("logical_not"),
    "SELECT_V2": _plain("where"),
    "ABS": _plain("abs"),
    "NEG": _plain("negative"),
    "SIGN": _plain("sign"),
    "FLOOR": _plain("floor"),
    "CEIL": _plain("math.ceil"),
    "ROUND": _plain("round"),
    "EXP": _plain("exp"),
    "LOG": _plain("math.log"),
    "SQRT": _plain("sqrt"),
    "RSQRT": _plain("math.rsqrt"),
    "SQUARE": _plain("square"),
    "SIN": _plain("sin"),
    "COS": _plain("cos"),
    "TANH": _plain("tanh"),
    "LOGISTIC": _plain("sigmoid"),
    "ELU": _plain("nn.elu"),
    "RELU": _clipped("RELU"),
    "RELU6": _clipped("RELU6"),
    "RELU_N1_TO_1": _clipped("RELU_N1_TO_1"),
    "RELU_0_TO_1": _clipped("RELU_0_TO_1"),
    "HARD_SWISH": hard_swish,
    "PRELU": prelu,
    "LEAKY_RELU": lambda call: call.tf.nn.leaky_relu(call.inputs[0], alpha=call.options["alpha"]),
    "GELU": lambda call: call.tf.nn.gelu(call.inputs[0], approximate=bool(call.flag("approximate"))),
    "SOFTMAX": lambda call: call.tf.nn.softmax(
        call.inputs[0] * call.options["beta"] if call.options["beta"] != 1 else call.inputs[0]
    ),
    "LOG_SOFTMAX": lambda call: call.tf.nn.log_softmax(call.inputs[0]),
    "MEAN": _reduction("reduce_mean"),
    "SUM": _reduction("reduce_sum"),
    "REDUCE_MAX": _reduction("reduce_max"),
    "REDUCE_MIN": _reduction("reduce_min"),
    "REDUCE_PROD": _reduction("reduce_prod"),
    "REDUCE_ANY": _reduction("reduce_any"),
    "REDUCE_ALL": _reduction("reduce_all"),
    "ARG_MAX": _arg("argmax"),
    "ARG_MIN": _arg("argmin"),
    "CUMSUM": cumulative,
    "TOPK_V2": lambda call: list(call.tf.math.top_k(call.inputs[0], k=call.inputs[1])),
    "LOCAL_RESPONSE_NORMALIZATION": local_response,
    "RESHAPE": reshape,
    "SQUEEZE": lambda call: call.tf.squeeze(call.inputs[0], axis=call.options["squeezeDims"]),
    "EXPAND_DIMS": lambda call: call.tf.expand_dims(call.inputs[0], axis=call.known(1)),
    "CONCATENATION": concatenation,
    "SPLIT": split,
    "SPLIT_V": lambda call: call.tf.split(call.inputs[0], call.known(1), axis=call.known(2)),
    "TRANSPOSE": lambda call: call.tf.transpose(call.inputs[0], call.known(1)),
    "SLICE": _plain("slice"),
    "STRIDED_SLICE": strided_slice,
    "GATHER": gather,
    "GATHER_ND": _plain("gather_nd"),
    "ONE_HOT": one_hot,
    "TILE": _plain("tile"),
    "BROADCAST_TO": _plain("broadcast_to"),
    "BROADCAST_ARGS": _plain("broadcast_dynamic_shape"),
    "FILL": _plain("fill"),
    "RANGE": _plain("range"),
    "SHAPE": _plain("shape"),
    "CAST": lambda call: call.tf.cast(call.inputs[0], call.dtype),
    "PAD": _plain("pad"),
    "PADV2": lambda call: call.tf.pad(call.inputs[0], call.inputs[1], constant_values=call.inputs[2]),
    "MIRROR_PAD": mirror_pad,
    "RESIZE_BILINEAR": _resize("ResizeBilinear"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("ResizeNearestNeighbor"),
    "DEPTH_TO_SPACE": lambda call: call.tf.nn.depth_to_space(call.inputs[0], call.options["blockSize"]),
    "SPACE_TO_DEPTH": lambda call: call.tf.nn.space_to_depth(call.inputs[0], call.options["blockSize"]),
}
