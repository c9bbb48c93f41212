"""Shapes computed at run time from the inputs' free sizes, against ONNX Runtime at several sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")

from onnx import helper
from tflite_support import contract_of, export, make_model, reference

from trimtab.models.contract import Contract
from trimtab.models.errors import UserError

F = np.float32
IMAGE = ("N", 4, "H", "W")
SIZES = ((2, 4, 6, 8), (1, 4, 12, 6), (3, 4, 7, 9))


def node(op, *names, **attrs):
    """A node whose last name is its output."""
    return helper.make_node(op, list(names[:-1]), [names[-1]], **attrs)


WIDTH = [node("Shape", "x", "shape"), node("Gather", "shape", "three", "w", axis=0)]
BATCH = [node("Shape", "x", "shape"), node("Slice", "shape", "zero1", "one1", "n")]
CONSTANTS = {
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "three": np.array(3),
    "axis3": np.array([3]),
    "zero1": np.array([0]),
    "one1": np.array([1]),
    "token": np.arange(4, dtype=F).reshape(1, 4, 1, 1),
    "rest": np.array([4, 1, 1]),
    "minus": np.array([-1]),
    "four": np.array([4]),
    "floats": np.array(1.5, F),
}

GRAPHS = {
    "range": [
        *WIDTH,
        node("Range", "zero", "w", "one", "steps"),
        node("Cast", "steps", "real", to=1),
        node("Add", "x", "real", "y"),
    ],
    "constant-of-shape": [
        node("Shape", "x", "shape"),
        node("ConstantOfShape", "shape", "ones", value=helper.make_tensor("v", 1, [1], [2.5])),
        node("Sub", "x", "ones", "y"),
    ],
    "slice-to-half": [
        *WIDTH,
        node("Div", "w", "two", "half"),
        node("Unsqueeze", "half", "zero1", "end"),
        node("Slice", "x", "zero1", "end", "axis3", "y"),
    ],
    "slice-from-half": [
        *WIDTH,
        *[node("Div", "w", "two", "half"), node("Unsqueeze", "half", "zero1", "start"), node("Unsqueeze", "w", "zero1", "end")],
        node("Slice", "x", "start", "end", "axis3", "y"),
    ],
    "expand-batch": [
        *BATCH,
        node("Concat", "n", "rest", "to", axis=0),
        node("Expand", "token", "to", "grown"),
        node("Concat", "grown", "grown", "y", axis=1),
    ],
    "reshape-merged": [
        node("Shape", "x", "shape"),
        *[node("Slice", "shape", "zero1", "one1", "n"), node("Concat", "n", "four", "minus", "to", axis=0)],
        node("Reshape", "x", "to", "flat"),
        node("Softmax", "flat", "y", axis=-1),
    ],
    "reshape-there-and-back": [
        *[node("Shape", "x", "shape"), node("Reshape", "x", "split", "a"), node("ReduceSum", "a", "axis2", "b", keepdims=1)],
        *[node("Sub", "a", "b", "c"), node("Reshape", "c", "shape", "y")],
    ],
    "tile-by-size": [
        *WIDTH,
        node("Unsqueeze", "w", "zero1", "w1"),
        node("Concat", "one1", "one1", "one1", "w1", "times", axis=0),
        node("ReduceMean", "x", "m", axes=[3]),
        node("Tile", "m", "times", "y"),
    ],
    "mean-by-size": [
        node("Size", "x", "count"),
        *[node("Cast", "count", "real", to=1), node("ReduceSum", "x", "sum", keepdims=0), node("Div", "sum", "real", "y")],
    ],
    "resize-to-another-map": [
        *[node("MaxPool", "x", "small", kernel_shape=[2, 2], strides=[2, 2]), node("Shape", "x", "shape")],
        *[
            node("Shape", "small", "nc"),
            node("Slice", "nc", "zero1", "two1", "front"),
            node("Slice", "shape", "two1", "four", "back"),
        ],
        node("Concat", "front", "back", "sizes", axis=0),
        node("Resize", "small", "", "", "sizes", "y", mode="linear", coordinate_transformation_mode="align_corners"),
    ],
}
CONSTANTS |= {"split": np.array([0, 2, 2, 0, -1]), "axis2": np.array([2]), "two1": np.array([2])}


def model_of(name: str) -> onnx.ModelProto:
    """One of the graphs, with the constants that it reads."""
    nodes = GRAPHS[name]
    read = {n for item in nodes for n in item.input}
    opset = 13 if any(a.name == "axes" for item in nodes for a in item.attribute) else 18
    return make_model(nodes, {"x": (IMAGE, F)}, ["y"], {k: v for k, v in CONSTANTS.items() if k in read}, opset=opset)


def free_outputs(model: onnx.ModelProto) -> Contract:
    """The model's contract, its output's free dimensions all under names of their own."""
    rank = len(model.graph.output[0].type.tensor_type.shape.dim)
    for axis in range(rank):
        dim = model.graph.output[0].type.tensor_type.shape.dim[axis]
        if dim.dim_value <= 0:
            dim.dim_param = f"y{axis}"
    return contract_of(model)


@pytest.mark.parametrize("name", GRAPHS)
def test_sizes_known_at_run_time_only_are_followed(name, tmp_path):
    model = model_of(name)
    converted = export(model, tmp_path, free_outputs(model))
    for shape in SIZES:
        feeds = {"x": np.random.default_rng(sum(shape)).normal(size=shape).astype(F)}
        wanted = reference(model, feeds)["y"]
        found = converted(feeds)["y"]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_size_that_was_clamped_is_not_taken_for_a_fixed_one(tmp_path):
    """min(W, 100) is 100 at every large size; the small probe shows that it is not a constant."""
    nodes = [
        *WIDTH,
        *[
            node("Min", "w", "cap", "short"),
            node("Unsqueeze", "short", "zero1", "end"),
            node("Slice", "x", "zero1", "end", "axis3", "z"),
        ],
        node("ReduceSum", "z", "axis3", "y"),
    ]
    constants = {"cap": np.array(100), **{k: CONSTANTS[k] for k in ("three", "zero1", "axis3")}}
    model = make_model(nodes, {"x": (IMAGE, F)}, ["y"], constants)
    converted = export(model, tmp_path)
    for width in (20, 100, 130):
        feeds = {"x": np.random.default_rng(width).normal(size=(1, 4, 3, width)).astype(F)}
        np.testing.assert_allclose(converted(feeds)["y"], reference(model, feeds)["y"], atol=2e-5)


def test_data_dependent_shapes_are_refused(tmp_path):
    nodes = [node("NonZero", "x", "where"), node("Cast", "where", "y", to=1)]
    model = make_model(nodes, {"x": (("N", 4), F)}, ["y"])
    with pytest.raises(UserError, match="NonZero at node 'where': no conversion rule"):
        export(model, tmp_path, free_outputs(model))


def test_swish_with_a_slope(tmp_path):
    model = make_model([node("Swish", "x", "y", alpha=1.5)], {"x": (IMAGE, F)}, ["y"], opset=24)
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(F)
    np.testing.assert_allclose(export(model, tmp_path)({"x": x})["y"], x / (1 + np.exp(-1.5 * x)), atol=1e-6)
