"""The operator table: every ONNX operator that the TFLite exporter takes, in the forms that differ inside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from tflite_support import Case

_RNG = np.random.default_rng(7)
F, INT64, B = np.float32, np.int64, np.bool_
IMAGE = ("N", 4, "H", "W")
FIXED = ("N", 4, 10, 14)
LINE = ("N", 4, "L")
ROWS = ("N", 6)
TOKENS = ("N", 5, 6)


def normal(*shape: int) -> np.ndarray:
    """Seeded normal weights."""
    return _RNG.normal(size=shape).astype(F)


def ints(*values: int) -> np.ndarray:
    """An int64 vector."""
    return np.array(values, dtype=INT64)


def scalar(value: float, dtype: Any = F) -> np.ndarray:
    """A rank-0 array."""
    return np.array(value, dtype=dtype)


def _conv(note: str, weight: np.ndarray, shape: Any = IMAGE, bias: bool = True, **attrs: Any) -> Case:
    constants = {1: weight} | ({2: normal(weight.shape[0])} if bias else {})
    return Case("Conv", [shape], attrs, constants, note=note, atol=1e-4)


CONVOLUTIONS = [
    _conv("same", normal(6, 4, 3, 3), pads=[1, 1, 1, 1]),
    _conv("valid-nobias", normal(6, 4, 3, 3), bias=False),
    _conv("stride2", normal(6, 4, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    _conv("stride2-even", normal(6, 4, 2, 2), strides=[2, 2]),
    _conv("asymmetric", normal(6, 4, 3, 3), pads=[0, 1, 2, 0]),
    _conv("tf-same-stride2", normal(6, 4, 3, 3), FIXED, pads=[0, 0, 1, 1], strides=[2, 2]),
    _conv("dilated", normal(6, 4, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    _conv("rectangular", normal(6, 4, 1, 5), pads=[0, 2, 0, 2], strides=[1, 2]),
    _conv("same-upper", normal(6, 4, 3, 3), FIXED, auto_pad="SAME_UPPER", strides=[2, 2]),
    _conv("same-lower", normal(6, 4, 3, 3), FIXED, auto_pad="SAME_LOWER", strides=[2, 2]),
    _conv("auto-valid", normal(6, 4, 3, 3), auto_pad="VALID"),
    _conv("pointwise", normal(6, 4, 1, 1)),
    _conv("grouped", normal(6, 2, 3, 3), pads=[1, 1, 1, 1], group=2),
    _conv("depthwise", normal(4, 1, 3, 3), pads=[1, 1, 1, 1], group=4),
    _conv("depthwise-multiplier", normal(12, 1, 3, 3), pads=[1, 1, 1, 1], group=4),
    _conv("depthwise-stride2-dilated", normal(4, 1, 3, 3), pads=[2, 2, 2, 2], strides=[2, 2], dilations=[2, 2], group=4),
    _conv("line", normal(6, 4, 3), LINE, pads=[1, 1]),
    _conv("line-stride2", normal(6, 4, 3), LINE, pads=[1, 1], strides=[2]),
    Case("Conv", [IMAGE, (6, 4, 3, 3)], {"pads": [1, 1, 1, 1]}, note="computed-weights", atol=1e-4),
]


def _transposed(note: str, weight: np.ndarray, shape: Any = IMAGE, **attrs: Any) -> Case:
    out = weight.shape[1] * attrs.get("group", 1)
    return Case("ConvTranspose", [shape], attrs, {1: weight, 2: normal(out)}, note=note, atol=1e-4)


CONVOLUTIONS += [
    _transposed("kernel-is-stride", normal(4, 5, 2, 2), strides=[2, 2]),
    _transposed("stride2", normal(4, 5, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]),
    _transposed("stride2-odd", normal(4, 5, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    _transposed("output-padding-beyond", normal(4, 5, 3, 3), strides=[2, 2], output_padding=[1, 1]),
    _transposed("stride1", normal(4, 5, 3, 3), pads=[1, 1, 1, 1]),
    _transposed("stride1-dilated", normal(4, 5, 3, 3), dilations=[2, 2]),
    _transposed("small-kernel", normal(4, 5, 2, 2), strides=[3, 3]),
    _transposed("fixed", normal(4, 5, 3, 3), (2, 4, 6, 7), strides=[2, 2], pads=[1, 0, 0, 1]),
    _transposed("unequal-strides", normal(4, 5, 3, 3), strides=[2, 3], pads=[1, 0, 0, 1]),
    _transposed("unequal-strides-fixed", normal(4, 5, 3, 2), (2, 4, 6, 7), strides=[2, 3], output_padding=[1, 2]),
    _transposed("grouped", normal(4, 3, 3, 3), strides=[2, 2], group=2),
    _transposed("output-shape", normal(4, 5, 3, 3), ("N", 4, 6, 7), strides=[2, 2], output_shape=[12, 14]),
    _transposed("line", normal(4, 5, 4), LINE, strides=[2], pads=[1, 1]),
]


def _pool(op: str, note: str, shape: Any = IMAGE, **attrs: Any) -> Case:
    return Case(op, [shape], {"kernel_shape": [3, 3], **attrs}, note=note)


POOLS = [
    _pool("MaxPool", "valid", strides=[2, 2]),
    _pool("MaxPool", "stride2-negative", strides=[2, 2], pads=[1, 1, 1, 1]),
    _pool("MaxPool", "same", pads=[1, 1, 1, 1]),
    _pool("MaxPool", "wide-pads", pads=[2, 2, 2, 2], strides=[2, 2]),
    _pool("MaxPool", "ceil", strides=[2, 2], ceil_mode=1),
    _pool("MaxPool", "ceil-fixed", FIXED, strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    _pool("MaxPool", "even", kernel_shape=[2, 2], strides=[2, 2]),
    _pool("MaxPool", "line", LINE, kernel_shape=[3], strides=[2], pads=[1, 1]),
    _pool("AveragePool", "valid", strides=[2, 2]),
    _pool("AveragePool", "same-excluded", pads=[1, 1, 1, 1]),
    _pool("AveragePool", "same-included", pads=[1, 1, 1, 1], count_include_pad=1),
    _pool("AveragePool", "stride2-included", pads=[1, 1, 1, 1], strides=[2, 2], count_include_pad=1),
    _pool("AveragePool", "stride2-excluded", FIXED, pads=[1, 1, 1, 1], strides=[2, 2]),
    _pool("AveragePool", "ceil-excluded", FIXED, strides=[2, 2], ceil_mode=1),
    _pool("AveragePool", "ceil-included", FIXED, strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1),
    _pool("AveragePool", "line", LINE, kernel_shape=[2], strides=[2]),
    Case("GlobalAveragePool"),
    Case("GlobalAveragePool", [LINE]),
    Case("GlobalMaxPool"),
    Case("LRN", attrs={"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}),
]
POOLS[13].opset = 19

UNARY = [
    *[
        Case(op)
        for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Floor", "Ceil", "Sin", "Cos", "Sign", "Erf", "Softplus")
    ],
    *[Case(op) for op in ("Softsign", "Selu", "HardSwish", "Mish", "Identity", "Round", "Dropout", "Sinh", "Cosh", "IsNaN")],
    *[Case(op, [ROWS]) for op in ("Relu", "Sigmoid", "Softplus")],
    Case("Tan", low=-1, high=1),
    Case("Sqrt", low=0.1),
    Case("Log", low=0.1),
    Case("Reciprocal", low=0.3),
    Case("Abs", [ROWS], dtypes=[np.int32], low=-9, high=9, note="int32"),
    Case("Elu"),
    Case("Elu", attrs={"alpha": 0.7}, note="alpha"),
    Case("Celu", attrs={"alpha": 1.6}),
    Case("ThresholdedRelu", attrs={"alpha": 0.4}),
    Case("LeakyRelu", attrs={"alpha": 0.2}),
    Case("HardSigmoid"),
    Case("HardSigmoid", attrs={"alpha": 1 / 6, "beta": 0.5}, note="torch"),
    Case("Gelu", opset=20, note="erf"),
    Case("Gelu", attrs={"approximate": "tanh"}, opset=20, note="tanh"),
    Case("PRelu", constants={1: normal(4, 1, 1)}),
    Case("PRelu", constants={1: normal(1)}, note="scalar"),
    Case("PRelu", [ROWS], constants={1: normal(6)}),
    Case("PRelu", [IMAGE, (4, 1, 1)], note="computed"),
    Case("Clip", constants={1: scalar(0), 2: scalar(6)}, high=9, note="relu6"),
    Case("Clip", constants={1: scalar(-1), 2: scalar(1)}, note="-1-1"),
    Case("Clip", constants={1: scalar(0), 2: scalar(1)}, note="0-1"),
    Case("Clip", constants={1: scalar(-0.3), 2: scalar(0.8)}, note="general"),
    Case("Clip", constants={1: scalar(0)}, note="below"),
    Case("Clip", [ROWS], constants={2: scalar(0.5)}, note="above"),
    Case("Clip", [ROWS, (), ()], note="computed", low=0, high=1),
    Case(
        "Clip",
        [ROWS],
        constants={1: scalar(-3, np.int32), 2: scalar(4, np.int32)},
        dtypes=[np.int32],
        low=-9,
        high=9,
        note="int32",
    ),
    Case("Cast", attrs={"to": 7}, low=-5, high=5, note="int64"),
    Case("Cast", attrs={"to": 9}, note="bool"),
    Case("Cast", dtypes=[INT64], attrs={"to": 1}, low=-5, high=5, note="float"),
    Case("Not", dtypes=[B]),
    Case("Softmax", attrs={"axis": 1}, note="channels"),
    Case("Softmax", attrs={"axis": -1}, note="columns"),
    Case("Softmax", [ROWS]),
    Case("Softmax", [TOKENS], attrs={"axis": 1}, note="middle"),
    Case("Softmax", [ROWS], opset=11, note="opset11"),
    Case("LogSoftmax", attrs={"axis": 1}),
    Case("LogSoftmax", [ROWS]),
    Case("BatchNormalization", constants={1: normal(4), 2: normal(4), 3: normal(4), 4: normal(4) ** 2}),
    Case("BatchNormalization", [ROWS], constants={1: normal(6), 2: normal(6), 3: normal(6), 4: normal(6) ** 2}),
]

BINARY = [
    *[Case(op, [IMAGE, IMAGE]) for op in ("Add", "Sub", "Mul", "Min", "Max", "Sum", "Mean")],
    *[Case(op, [IMAGE, ("N", 4, 1, 1)], note="spread") for op in ("Add", "Mul")],
    Case("Sum", [IMAGE, (4, 1, 1), ("H", "W")], note="three"),
    Case("Mean", [IMAGE, IMAGE, (1,)], note="three"),
    Case("Add", constants={1: normal(4, 1, 1)}, note="channels"),
    Case("Sub", constants={0: scalar(1.5)}, note="from-scalar"),
    Case("Mul", [TOKENS, ("N", 1, 6)]),
    Case("Add", [("N", 2, 3, 4, 5), (3, 1, 5)], note="rank5-spread"),
    Case("Mul", [("N", 2, 3, 4, 5), ("N", 2, 3, 4, 5)], note="rank5"),
    Case("Div", [IMAGE, IMAGE], low=0.5),
    Case("Div", [ROWS, ROWS], dtypes=[np.int32, np.int32], low=2, high=30, note="int32"),
    Case("Pow", constants={1: scalar(2)}, note="square"),
    Case("Pow", constants={1: scalar(0.5)}, low=0.1, note="root"),
    Case("Pow", constants={1: scalar(-0.5)}, low=0.1, note="inverse-root"),
    Case("Pow", constants={1: scalar(3)}, note="cube"),
    Case("Pow", constants={1: scalar(2, INT64)}, note="int-exponent"),
    Case("Pow", [ROWS, ROWS], low=0.2, note="computed"),
    Case("Mod", [ROWS, ROWS], dtypes=[np.int32, np.int32], low=1, high=30),
    *[Case(op, [IMAGE, IMAGE]) for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")],
    Case("Greater", constants={1: scalar(0.2)}, note="scalar"),
    Case("Equal", [ROWS, ROWS], dtypes=[INT64, INT64], low=-2, high=2, note="int64"),
    *[Case(op, [IMAGE, IMAGE], dtypes=[B, B]) for op in ("And", "Or", "Xor")],
    Case("Where", [IMAGE, IMAGE, IMAGE], dtypes=[B, F, F]),
    Case(
        "Where", [IMAGE], dtypes=[F], constants={0: np.array([[True], [False], [True], [False]]).reshape(4, 1, 1), 2: scalar(0)}
    ),
]

PRODUCTS = [
    Case("Gemm", [ROWS], {"transB": 1}, {1: normal(5, 6), 2: normal(5)}, note="torch"),
    Case("Gemm", [ROWS], {"alpha": 0.5, "beta": 2.0}, {1: normal(6, 5), 2: normal(5)}, note="scaled"),
    Case("Gemm", [ROWS], {}, {1: normal(6, 5)}, note="nobias"),
    Case("Gemm", [("K", 4), ("K", 5), (5,)], {"transA": 1, "alpha": 0.5, "beta": 0.3}, note="computed"),
    Case("MatMul", [ROWS], constants={1: normal(6, 5)}),
    Case("MatMul", [TOKENS], constants={1: normal(6, 7)}),
    Case("MatMul", [("N", 4, "H", 6)], constants={1: normal(6, 7)}, note="images"),
    Case("MatMul", [TOKENS, ("N", 6, 7)]),
    Case("MatMul", [("N", 2, 5, 6), ("N", 2, 6, 7)]),
    Case("MatMul", [("N", 2, 5, 6), (6, 7)], note="spread"),
    Case("MatMul", [TOKENS, (6,)], note="vector"),
    Case("MatMul", [TOKENS], constants={0: normal(4, 5)}, note="constant-left"),
    Case("MatMul", [TOKENS], constants={1: normal(1, 6, 4)}, note="constant-rank3"),
    Case("Einsum", [("N", 2, 5, 6), ("N", 2, 7, 6)], {"equation": "bhqd,bhkd->bhqk"}, note="scores"),
    Case("Einsum", [("N", 5, 2, 6), ("N", 7, 2, 6)], {"equation": "bqhd,bkhd->bhqk"}, note="scores-late-heads"),
    Case("Einsum", [("N", 2, 5, 7), ("N", 7, 2, 6)], {"equation": "bhqk,bkhd->bqhd"}, note="values"),
    Case("Einsum", [TOKENS], {"equation": "bnd,de->bne"}, {1: normal(6, 4)}, note="linear"),
    Case("Einsum", [(5,), (6,)], {"equation": "i,j"}, note="outer"),
]
for case in PRODUCTS:
    case.atol = 5e-5

REDUCTIONS = [
    *[
        Case(op, [IMAGE], {"axes": [2, 3], "keepdims": 1}, opset=13, note="image")
        for op in ("ReduceMean", "ReduceMax", "ReduceMin")
    ],
    *[
        Case(op, [FIXED], {"axes": [2, 3], "keepdims": 0}, opset=13, note="drop", atol=1e-4)
        for op in ("ReduceMean", "ReduceMax", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
    ],
    Case("ReduceProd", [ROWS], {"axes": [1]}, opset=13),
    Case("ReduceSum", [IMAGE], {"keepdims": 0}, {1: ints(1)}, note="channels"),
    Case("ReduceSum", [ROWS], {"noop_with_empty_axes": 1}, note="noop"),
    Case("ReduceMean", [TOKENS], {"keepdims": 0}, {1: ints(-1)}, note="axes-input"),
    Case("ReduceMean", [TOKENS], {"keepdims": 1}, note="all"),
    Case("ReduceLogSumExp", [ROWS], {"keepdims": 1}, {1: ints(1)}, note="keep"),
    Case("ArgMax", [IMAGE], {"axis": 1, "keepdims": 0}),
    Case("ArgMax", [ROWS], {"axis": 1, "keepdims": 1}),
    Case("ArgMin", [IMAGE], {"axis": 3, "keepdims": 1}),
    Case("TopK", [ROWS], {"axis": -1}, {1: ints(3)}, outputs=2),
    Case("TopK", [IMAGE], {"axis": 1, "largest": 0}, {1: ints(2)}, outputs=2, note="smallest-channels"),
    Case("CumSum", [IMAGE], {}, {1: scalar(1, INT64)}),
    Case("CumSum", [ROWS], {"exclusive": 1, "reverse": 1}, {1: scalar(1, INT64)}, note="exclusive-reverse"),
    Case("InstanceNormalization", [IMAGE], {"epsilon": 1e-4}, {1: normal(4), 2: normal(4)}),
    Case("InstanceNormalization", [LINE], {}, {1: normal(4), 2: normal(4)}),
    Case("LayerNormalization", [TOKENS], {"axis": -1}, {1: normal(6), 2: normal(6)}),
    Case("LayerNormalization", [FIXED], {"axis": 1}, {1: normal(4, 10, 14), 2: normal(4, 10, 14)}, note="whole"),
    Case("LayerNormalization", [ROWS], {}, {1: normal(6)}, note="nobias"),
    Case("GroupNormalization", [IMAGE], {"num_groups": 2}, {1: normal(4), 2: normal(4)}, opset=21),
    Case("GroupNormalization", [IMAGE], {"num_groups": 4}, {1: normal(4), 2: normal(4)}, opset=21, note="per-channel"),
    Case("GroupNormalization", [LINE], {"num_groups": 2}, {1: normal(4), 2: normal(4)}, opset=21),
    Case("LpNormalization", [IMAGE], {"axis": 1, "p": 2}),
    Case("LpNormalization", [ROWS], {"axis": -1, "p": 1}, note="p1"),
]

SHAPES = [
    Case("Reshape", [FIXED], {}, {1: ints(0, -1)}, note="flatten"),
    Case("Reshape", [IMAGE], {}, {1: ints(0, 4, -1)}, note="spatial"),
    Case("Reshape", [FIXED], {}, {1: ints(-1, 2, 2, 10, 14)}, note="split-channels"),
    Case("Reshape", [ROWS], {}, {1: ints(-1, 6, 1, 1)}, note="gate"),
    Case("Reshape", [("N", 24)], {}, {1: ints(-1, 4, 2, 3)}, note="to-image"),
    Case("Reshape", [TOKENS], {}, {1: ints(-1, 5, 2, 3)}, note="heads"),
    Case("Reshape", [("N", 4, 6)], {}, {1: ints(0, 8, 3)}, note="cross"),
    Case("Flatten", [FIXED], {"axis": 1}),
    Case("Flatten", [TOKENS], {"axis": 2}, note="axis2"),
    Case("Squeeze", [("N", 4, 1, 1)], {}, {1: ints(2, 3)}),
    Case("Squeeze", [("N", 1, "H", "W")], {"axes": [1]}, opset=11, note="attribute"),
    Case("Unsqueeze", [ROWS], {}, {1: ints(2, 3)}),
    Case("Unsqueeze", [("N", "H", "W")], {}, {1: ints(1)}, note="free"),
    Case("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}),
    Case("Transpose", [TOKENS], {"perm": [0, 2, 1]}),
    Case("Transpose", [("N", 2, 3, 4, 5)], {"perm": [2, 0, 3, 1, 4]}, note="rank5"),
    Case("DepthToSpace", [("N", 8, "H", "W")], {"blocksize": 2, "mode": "DCR"}),
    Case("DepthToSpace", [("N", 8, "H", "W")], {"blocksize": 2, "mode": "CRD"}, note="crd"),
    Case("DepthToSpace", [("N", 4, "H", "W")], {"blocksize": 2, "mode": "CRD"}, note="crd-grey"),
    Case("SpaceToDepth", [IMAGE], {"blocksize": 2}),
    Case("Concat", [IMAGE, ("N", 2, "H", "W")], {"axis": 1}),
    Case("Concat", [FIXED, FIXED], {"axis": -1}, note="columns"),
    Case("Concat", [TOKENS, ("N", 1, 6)], {"axis": 1}),
    Case("Split", [IMAGE], {"axis": 1}, {1: ints(2, 2)}, outputs=2),
    Case("Split", [IMAGE], {"axis": 1}, {1: ints(1, 3)}, outputs=2, note="uneven"),
    Case("Split", [ROWS], {"axis": 1, "split": [1, 2, 3]}, outputs=3, opset=11, note="attribute"),
    Case("Split", [TOKENS], {"axis": -1, "num_outputs": 3}, outputs=3, note="count"),
    Case("Slice", [IMAGE], {}, {1: ints(1), 2: ints(3), 3: ints(1)}, note="channels"),
    Case("Slice", [IMAGE], {}, {1: ints(0, 1), 2: ints(2**63 - 1, -2), 3: ints(2, 3), 4: ints(2, 1)}, note="steps"),
    Case("Slice", [FIXED], {}, {1: ints(-1), 2: ints(-(2**63)), 3: ints(2), 4: ints(-1)}, note="flip"),
    Case("Slice", [ROWS], {"starts": [1], "ends": [100], "axes": [1]}, opset=9, note="attributes"),
    Case("Pad", [IMAGE], {}, {1: ints(0, 0, 1, 2, 0, 0, 3, 0)}),
    Case("Pad", [IMAGE], {}, {1: ints(0, 1, 1, 2, 0, 0, 3, 0), 2: scalar(1.5)}, note="value"),
    Case("Pad", [IMAGE], {"mode": "reflect"}, {1: ints(0, 0, 2, 1, 0, 0, 1, 2)}, note="reflect"),
    Case("Pad", [IMAGE], {"mode": "edge"}, {1: ints(0, 0, 3, 1, 0, 0, 1, 2)}, note="edge"),
    Case("Pad", [IMAGE], {}, {1: ints(0, 0, -1, 1, 0, 0, 2, -2)}, note="negative"),
    Case("Pad", [ROWS], {"pads": [0, 1, 0, 2], "value": -1.0}, opset=9, note="attributes"),
    Case("Pad", [IMAGE], {}, {1: ints(1, 2), 2: scalar(0), 3: ints(-1)}, note="axes"),
    Case("Gather", [IMAGE], {"axis": 1}, {1: ints(2, 0, -1)}),
    Case("Gather", [TOKENS], {"axis": 1}, {1: scalar(0, INT64)}, note="token"),
    Case("Gather", [IMAGE], {"axis": 3}, {1: scalar(-2, INT64)}, note="from-end"),
    Case("Gather", [("N", 3)], {"axis": 0}, {0: normal(9, 5)}, dtypes=[INT64], low=0, high=8, note="embedding"),
    Case("Gather", [TOKENS], {"axis": 2}, {1: np.array([[0, 3], [5, 1]], dtype=INT64)}, note="matrix"),
    Case("GatherElements", [ROWS, ("N", 3)], {"axis": 1}, dtypes=[F, INT64], low=0, high=5),
    Case("GatherElements", [TOKENS, ("N", 2, 6)], {"axis": 1}, dtypes=[F, INT64], low=0, high=4, note="middle"),
    Case("GatherND", [(4, 5)], {}, {1: np.array([[0, 1], [3, 2]], dtype=INT64)}),
    Case("Tile", [IMAGE], {}, {1: ints(1, 2, 1, 3)}),
    Case("Expand", [("N", 4, 1, 1)], {}, {1: ints(1, 4, 3, 5)}),
    Case("Expand", [ROWS], {}, {1: ints(2, 1, 6)}, note="rank"),
    Case("Trilu", [TOKENS], {"upper": 0}),
    Case("Trilu", [TOKENS], {"upper": 1}, {1: scalar(1, INT64)}, note="upper"),
    Case("OneHot", [ROWS], {"axis": 1}, {1: scalar(5, INT64), 2: np.array([0.5, 2.0], dtype=F)}, dtypes=[INT64], low=0, high=4),
    Case("Shape", [IMAGE]),
    Case("Size", [IMAGE]),
]


def _resize(note: str, scales: tuple[float, ...] = (1, 1, 2, 2), shape: Any = IMAGE, **attrs: Any) -> Case:
    return Case("Resize", [shape], attrs, {2: np.array(scales, dtype=F)}, note=note, atol=1e-4)


def _resize_to(note: str, size: tuple[int, int], shape: Any = FIXED, **attrs: Any) -> Case:
    return Case("Resize", [shape], attrs, {3: ints(1, 4, *size)}, note=note, atol=1e-4)


_TORCH_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_HALF = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
_CORNERS = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
RESIZES = [
    _resize("nearest", **_TORCH_NEAREST),
    _resize("nearest-fraction", (1, 1, 1.5, 2.5), **_TORCH_NEAREST),
    _resize("nearest-half-pixel", mode="nearest", coordinate_transformation_mode="half_pixel"),
    _resize("nearest-down", (1, 1, 0.5, 0.5), **_TORCH_NEAREST),
    _resize("bilinear", **_HALF),
    _resize("bilinear-corners", **_CORNERS),
    _resize("bilinear-asymmetric", mode="linear", coordinate_transformation_mode="asymmetric"),
    _resize("bilinear-down", (1, 1, 0.5, 0.5), FIXED, **_HALF),
    _resize("bilinear-fraction", (1, 1, 1.3, 1.7), FIXED, **_HALF),
    _resize("line", (1, 1, 2), LINE, mode="linear", coordinate_transformation_mode="half_pixel"),
    _resize("cubic", (1, 1, 2, 2), FIXED, mode="cubic", coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.75),
    _resize("antialias", (1, 1, 0.5, 0.5), FIXED, antialias=1, **_HALF),
    _resize("nearest-ceil", (1, 1, 1.6, 1.6), FIXED, mode="nearest", nearest_mode="ceil"),
    _resize("opset11", **_HALF),
    Case("Upsample", [IMAGE], {"mode": "nearest"}, {1: np.array([1, 1, 2, 2], dtype=F)}, opset=9),
    Case("Upsample", [IMAGE], {"mode": "linear"}, {1: np.array([1, 1, 2, 2], dtype=F)}, opset=9, note="linear"),
]
RESIZES[13].opset = 11
RESIZES[13].constants[1] = np.zeros(0, dtype=F)
FIXED_SIZES = [
    Case("Resize", [(2, 4, 10, 14)], _HALF, {3: ints(2, 4, 25, 31)}, note="sizes", atol=1e-4),
    Case("Resize", [(2, 4, 10, 14)], _CORNERS, {3: ints(2, 4, 1, 31)}, note="sizes-to-one", atol=1e-4),
    Case("Resize", [(2, 4, 10, 14)], _TORCH_NEAREST, {3: ints(2, 4, 7, 31)}, note="sizes-nearest", atol=0),
    Case("Resize", [FIXED], _HALF | {"axes": [2, 3]}, {3: ints(20, 28)}, note="axes", atol=1e-4),
]

CASES = [*CONVOLUTIONS, *POOLS, *UNARY, *BINARY, *PRODUCTS, *REDUCTIONS, *SHAPES, *RESIZES, *FIXED_SIZES]
