"""What lies in the file: fused and merged operators, shared aligned buffers, signatures, versions, and the delegate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from onnx import helper
from tflite_support import Converted, export, make_model, reference

from trimtab.export.tflite import writer
from trimtab.export.tflite.ir import Program, Tensor
from trimtab.models.errors import UserError

F = np.float32
IMAGE = ("N", 4, "H", "W")
FIXED = ("N", 4, 8, 8)


def normal(*shape: int) -> np.ndarray:
    """Seeded weights."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(F)


def same(converted: Converted, model: onnx.ModelProto, shape: tuple[int, ...], atol: float = 1e-4) -> None:
    """Assert that LiteRT and ONNX Runtime agree on one random image batch."""
    feeds = {"x": np.random.default_rng(5).normal(size=shape).astype(F)}
    wanted = reference(model, feeds)
    found = converted(feeds)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=atol, rtol=1e-4)


def chain(nodes, constants, tmp_path, shape=IMAGE, at=(2, 4, 8, 8), **options) -> dict[str, int]:
    """The operators that x → nodes → y becomes, once the numbers are proven."""
    model = make_model(nodes, {"x": (shape, F)}, ["y"], constants, **options)
    converted = export(model, tmp_path)
    same(converted, model, at)
    return dict(converted.facts.ops)


def node(op, *names, **attrs):
    """A node whose last name is its output."""
    return helper.make_node(op, list(names[:-1]), [names[-1]], **attrs)


def read(path: Path):
    """The flatbuffer's object tree."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


@pytest.mark.parametrize(
    ("middle", "constants", "ops"),
    [
        ([node("Relu", "a", "y")], {}, {"CONV_2D": 1}),
        ([node("Clip", "a", "lo", "hi", "y")], {"lo": np.array(0, F), "hi": np.array(6, F)}, {"CONV_2D": 1}),
        ([node("Add", "a", "k", "y")], {"k": normal(6, 1, 1)}, {"CONV_2D": 1}),
        ([node("Sub", "k", "a", "y")], {"k": normal(6, 1, 1)}, {"CONV_2D": 1}),
        ([node("Div", "a", "k", "b"), node("Relu", "b", "y")], {"k": np.array(3, F)}, {"CONV_2D": 1}),
        ([node("Mul", "a", "k", "b"), node("Add", "b", "k", "y")], {"k": normal(1, 6, 1, 1)}, {"CONV_2D": 1}),
        (
            [node("BatchNormalization", "a", "g", "b", "m", "v", "y")],
            {"g": normal(6), "b": normal(6), "m": normal(6), "v": normal(6) ** 2},
            {"CONV_2D": 1},
        ),
        ([node("Add", "a", "k", "y")], {"k": normal(1, 8)}, {"ADD": 1, "CONV_2D": 1}),
        ([node("Relu", "a", "b"), node("Add", "a", "b", "y")], {}, {"ADD": 1, "CONV_2D": 1, "RELU": 1}),
        ([node("Relu", "a", "b"), node("Relu", "b", "y")], {}, {"CONV_2D": 1, "RELU": 1}),
    ],
    ids=["relu", "relu6", "bias", "from-constant", "scale-relu", "scale-bias", "batch-norm", "columns", "two-readers", "twice"],
)
def test_what_follows_a_convolution_goes_into_it(middle, constants, ops, tmp_path):
    weights = {"w": normal(6, 4, 3, 3), "c": normal(6)}
    conv = node("Conv", "x", "w", "c", "a", pads=[1, 1, 1, 1])
    assert chain([conv, *middle], weights | constants, tmp_path, FIXED) == ops


def test_an_activation_reaches_its_layer_past_moved_data(tmp_path):
    nodes = [node("Conv", "x", "w", "a"), node("DepthToSpace", "a", "b", blocksize=2, mode="CRD"), node("Relu", "b", "y")]
    assert chain(nodes, {"w": normal(8, 4, 1, 1)}, tmp_path) == {"CONV_2D": 1, "DEPTH_TO_SPACE": 1}


def test_a_seen_value_keeps_its_activation_apart(tmp_path):
    model = make_model(
        [node("Conv", "x", "w", "a"), node("Relu", "a", "y")], {"x": (IMAGE, F)}, ["a", "y"], {"w": normal(6, 4, 3, 3)}
    )
    converted = export(model, tmp_path)
    assert converted.facts.ops == {"CONV_2D": 1, "RELU": 1}
    same(converted, model, (2, 4, 8, 8))


def test_a_pad_before_a_convolution_becomes_its_own(tmp_path):
    nodes = [node("Pad", "x", "p", "a"), node("Conv", "a", "w", "y")]
    weights = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": normal(6, 4, 3, 3)}
    assert chain(nodes, weights, tmp_path) == {"CONV_2D": 1}


def test_stride_two_is_same_only_where_tensorflow_pads_alike(tmp_path):
    """Pads (1, 1) with kernel 3 and stride 2 are SAME for 9 inputs (TF pads 1, 1) and not for 8 (TF pads 0, 1)."""
    nodes = [node("Conv", "x", "w", "y", pads=[1, 1, 1, 1], strides=[2, 2])]
    weights = {"w": normal(6, 4, 3, 3)}
    assert chain(nodes, weights, tmp_path, ("N", 4, 9, 9), (2, 4, 9, 9)) == {"CONV_2D": 1}
    assert chain(nodes, weights, tmp_path, FIXED) == {"CONV_2D": 1, "PAD": 1}
    assert chain(nodes, weights, tmp_path, IMAGE) == {"CONV_2D": 1, "PAD": 1}


def test_a_maximum_over_nothing_negative_is_padded_with_zeros(tmp_path):
    nodes = [node("Relu", "x", "a"), node("MaxPool", "a", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])]
    assert chain(nodes, {}, tmp_path) == {"MAX_POOL_2D": 1, "PAD": 1, "RELU": 1}


@pytest.mark.parametrize("order", ["outer", "inner", "early"])
def test_erf_gelu_is_one_operator(order, tmp_path):
    tail = {
        "outer": [node("Mul", "x", "d", "e"), node("Mul", "e", "half", "y")],
        "inner": [node("Mul", "d", "half", "e"), node("Mul", "x", "e", "y")],
        "early": [node("Mul", "x", "half", "e"), node("Mul", "e", "d", "y")],
    }[order]
    head = [node("Div", "x", "root", "a"), node("Erf", "a", "b"), node("Add", "b", "one", "d")]
    constants = {"root": np.array(2**0.5, F), "one": np.array(1, F), "half": np.array(0.5, F)}
    assert chain([*head, *tail], constants, tmp_path) == {"GELU": 1}


def test_a_formula_that_is_almost_gelu_stays_itself(tmp_path):
    nodes = [node("Div", "x", "root", "a"), node("Erf", "a", "b"), node("Add", "b", "one", "d"), node("Mul", "x", "d", "y")]
    constants = {"root": np.array(2**0.5, F), "one": np.array(1, F)}
    assert "GELU" not in chain(nodes, constants, tmp_path)


def test_pixel_shuffle_by_reshapes_is_depth_to_space(tmp_path):
    nodes = [
        node("Conv", "x", "w", "a"),
        node("Reshape", "a", "s1", "b"),
        node("Transpose", "b", "c", perm=[0, 1, 4, 2, 5, 3]),
        node("Reshape", "c", "s2", "y"),
    ]
    constants = {"w": normal(12, 4, 1, 1), "s1": np.array([-1, 3, 2, 2, 8, 8]), "s2": np.array([-1, 3, 16, 16])}
    assert chain(nodes, constants, tmp_path, FIXED) == {"CONV_2D": 1, "DEPTH_TO_SPACE": 1}


def test_flatten_costs_a_reshape_and_reordered_weights(tmp_path):
    nodes = [
        node("Conv", "x", "w", "a"),
        node("Flatten", "a", "b"),
        node("Mul", "b", "k", "c"),
        node("Gemm", "c", "f", "g", "d", transB=1),
        node("Relu", "d", "y"),
    ]
    constants = {"w": normal(6, 4, 1, 1), "f": normal(10, 6 * 64), "g": normal(10), "k": normal(6 * 64)}
    assert chain(nodes, constants, tmp_path, FIXED) == {"CONV_2D": 1, "FULLY_CONNECTED": 1, "MUL": 1, "RESHAPE": 1}


def test_a_scrambled_axis_is_put_in_order_for_whoever_needs_it(tmp_path):
    """Flattened features are read by a softmax-like sum (any order), a slice and the output (ONNX's order)."""
    nodes = [
        node("Conv", "x", "w", "a"),
        node("Flatten", "a", "b"),
        node("Slice", "b", "from", "to", "axes", "c"),
        node("CumSum", "c", "one", "y"),
    ]
    constants = {
        "w": normal(6, 4, 1, 1),
        "from": np.array([3]),
        "to": np.array([50]),
        "axes": np.array([1]),
        "one": np.array(1),
    }
    assert chain(nodes, constants, tmp_path, FIXED)["TRANSPOSE"] == 1


def test_two_reshapes_are_one_and_an_idle_one_is_none(tmp_path):
    nodes = [
        node("Reshape", "x", "s1", "a"),
        node("Relu", "a", "r"),
        node("Reshape", "r", "s2", "b"),
        node("Reshape", "b", "s3", "y"),
    ]
    constants = {"s1": np.array([-1, 24]), "s2": np.array([-1, 2, 12]), "s3": np.array([-1, 24])}
    assert chain(nodes, constants, tmp_path, ("N", 24), (3, 24)) == {"RELU": 1}


def test_equal_weights_share_one_aligned_buffer(tmp_path):
    weights = normal(4, 4, 3, 3)
    nodes = [node("Conv", "x", "w", "a", pads=[1, 1, 1, 1]), node("Conv", "a", "v", "y", pads=[1, 1, 1, 1])]
    model = make_model(nodes, {"x": (IMAGE, F)}, ["y"], {"w": weights, "v": weights.copy()})
    export(model, tmp_path)
    path = tmp_path / "model.tflite"
    data, tree = path.read_bytes(), read(path)
    laid = weights.transpose(0, 2, 3, 1).tobytes()
    assert data.count(laid) == 1
    root = schema.Model.GetRootAs(data, 0)
    for i in range(root.BuffersLength()):
        if root.Buffers(i).DataLength():
            blob = root.Buffers(i).DataAsNumpy()
            start = blob.__array_interface__["data"][0] - np.frombuffer(data, np.uint8).__array_interface__["data"][0]
            assert start % 16 == 0
    assert tree.buffers[0].data is None
    assert len({op.opcodeIndex for op in tree.subgraphs[0].operators}) == len(tree.operatorCodes) == 1


def test_signature_and_shapes_say_what_is_free(tmp_path):
    model = make_model([node("Conv", "x", "w", "y")], {"x": (IMAGE, F)}, ["y"], {"w": normal(6, 4, 3, 3)})
    export(model, tmp_path)
    path = tmp_path / "model.tflite"
    signature = Interpreter(model_path=str(path)).get_signature_list()
    assert signature == {"serving_default": {"inputs": ["x"], "outputs": ["y"]}}
    tensors = {t.name.decode(): t for t in read(path).subgraphs[0].tensors}
    assert list(tensors["x"].shapeSignature) == [-1, -1, -1, 4]
    assert list(tensors["x"].shape) == [1, 64, 64, 4]
    assert list(tensors["y"].shape) == [1, 62, 62, 6]


def test_operators_carry_the_lowest_version_that_has_their_features(tmp_path):
    nodes = [
        node("Conv", "x", "w", "a"),
        node("Conv", "a", "g", "b", group=2),
        node("MatMul", "b", "f", "c"),
        node("Resize", "c", "", "s", "y", mode="linear", coordinate_transformation_mode="half_pixel"),
    ]
    constants = {"w": normal(4, 4, 1, 1), "g": normal(4, 2, 1, 1), "f": normal(8, 8), "s": np.array([1, 1, 2, 2], F)}
    model = make_model(nodes, {"x": (FIXED, F)}, ["y"], constants)
    export(model, tmp_path)
    codes = {(c.builtinCode, c.version) for c in read(tmp_path / "model.tflite").operatorCodes}
    ops = schema.BuiltinOperator
    assert {(ops.CONV_2D, 1), (ops.CONV_2D, 6), (ops.FULLY_CONNECTED, 5), (ops.RESIZE_BILINEAR, 3)} <= codes


def test_the_delegate_takes_a_whole_network_of_free_size(tmp_path):
    nodes = [
        node("Conv", "x", "w", "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "a", "b"),
        node("Conv", "b", "d", "c", pads=[1, 1, 1, 1], group=6),
        node("Add", "b", "c", "e"),
        node("ConvTranspose", "e", "t", "f", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "f", "y"),
    ]
    constants = {"w": normal(6, 4, 3, 3), "d": normal(6, 1, 3, 3), "t": normal(6, 5, 4, 4)}
    model = make_model(nodes, {"x": (IMAGE, F)}, ["y"], constants)
    converted = export(model, tmp_path)
    same(converted, model, (3, 4, 16, 12))
    delegates = [op for op in converted.run.interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
    assert len(delegates) == 1
    assert list(delegates[0]["outputs"]) == [converted.run.outputs["y"]]


def test_constants_beyond_a_flatbuffer_are_refused(monkeypatch):
    monkeypatch.setattr(writer, "LIMIT", 1000)
    x, y = Tensor("x", (1,), np.dtype(F)), Tensor("y", (300,), np.dtype(F))
    program = Program(inputs={"x": x}, outputs={"y": y})
    program.emit("ADD", [x, Tensor("w", (300,), np.dtype(F), np.zeros(300, F))], [y])
    with pytest.raises(UserError, match="a TFLite file holds 2 GB"):
        writer.to_bytes(program, description="")
