"""The facts about ONNX graphs: layout moves, casts, float inside integers, and what mobile delegates leave out with the reason."""

import copy

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_convert import CONTRACT, lively
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export.convert import module_source
from trimtab.export.onnx_audit import audit
from trimtab.export.onnx_int8 import quantised


def fixed(contract):
    """The same contract without a free dimension."""
    specs = {
        side: tuple(s.model_copy(update={"shape": (1, *s.shape[1:])}) for s in getattr(contract, side))
        for side in ("inputs", "outputs")
    }
    return contract.model_copy(update=specs)


def user_graph(contract):
    torch.manual_seed(0)
    return module_source(lively(make()), contract, label="user").graph


def reasons(found, delegate):
    return {(entry.op, entry.count): entry.reason for entry in found.delegates[delegate]}


def graph_of(nodes, *, inputs, outputs, weights=(), opset=18):
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(weights).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])


def test_a_float_network_with_a_free_batch():
    found = audit(user_graph(CONTRACT))
    assert (found.transposes, found.casts, found.islands) == (0, 0, {})
    assert reasons(found, "NNAPI")["Conv", 10] == "its sizes must be fixed in the file, the batch too"
    assert reasons(found, "NNAPI")["HardSwish", 2] == "it has no such operator"
    assert reasons(found, "Core ML") == dict.fromkeys((("HardSwish", 2), ("Flatten", 1)), "it has no such operator")
    # convolutions, the activations that follow them, and the last layer
    assert not {"Conv", "Relu", "Clip", "Gemm"} & {entry.op for entry in found.delegates["XNNPACK"]}


def test_fixed_sizes_are_what_nnapi_asks_for():
    found = audit(user_graph(fixed(CONTRACT)))
    assert reasons(found, "NNAPI") == {("HardSwish", 2): "it has no such operator"}


def test_free_height_and_width_lose_xnnpack():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, image):
            return self.conv(image).relu()

    contract = CONTRACT.model_copy(
        update={
            "inputs": (CONTRACT.inputs[0].model_copy(update={"shape": ("N", 3, "H", "W")}),),
            "outputs": (CONTRACT.outputs[0].model_copy(update={"shape": ("N", 4, "H", "W"), "layout": "NCHW"}),),
            "classes": (),
        }
    )
    found = audit(module_source(Net(), contract, label="net").graph)
    assert reasons(found, "XNNPACK") == {
        ("Conv", 1): "its channels, height and width must be fixed in the file",
        ("Relu", 1): "it is taken right after a convolution or pool only",
    }
    assert found.delegates["Core ML"] == ()


def test_an_integer_file_has_no_islands_and_suits_nnapi_not_xnnpack():
    graph, _ = quantised(user_graph(fixed(CONTRACT)), [{"image": image[None]} for image in images(16)])
    found = audit(graph)
    assert found.islands == {}
    assert {entry.op for entry in found.delegates["NNAPI"]} == {"HardSwish"}
    assert reasons(found, "XNNPACK")["Conv", 10] == "its activations and weights are integers of two kinds, unsigned and signed"
    assert {"QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"} <= {entry.op for entry in found.delegates["Core ML"]}


def test_layers_kept_in_float_are_islands_with_their_activations():
    kept = frozenset({"/mix/mix.0/Conv"})
    made, _ = quantised(user_graph(CONTRACT), [{"image": image[None]} for image in images(16)], keep_float=kept)
    assert audit(made).islands == {"Conv": 1, "Relu": 1}


def test_a_float_operator_whose_neighbours_round_is_none():
    """ONNX Runtime's own fusion computes it in integers, though the quantiser was told to leave it."""
    made, _ = quantised(user_graph(CONTRACT), [{"image": i[None]} for i in images(16)], keep_float=frozenset({"/inverted/Add"}))
    makers = {name: node.op_type for node in made.graph.node for name in node.output}
    (add,) = (node for node in made.graph.node if node.name == "/inverted/Add")
    assert [makers[name] for name in add.input] == ["DequantizeLinear"] * 2
    assert audit(made).islands == {}


def test_an_operator_after_the_last_rounding_is_an_island():
    graph, _ = quantised(user_graph(CONTRACT), [{"image": image[None]} for image in images(16)])
    output = graph.graph.output[0].name
    graph.graph.node.append(helper.make_node("Softmax", [output], ["probabilities"], name="late", axis=1))
    graph.graph.output[0].name = "probabilities"
    assert audit(graph).islands == {"Softmax": 1}


def test_moves_and_casts_are_counted_in_branches_too():
    branch = helper.make_graph(
        [
            helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0]),
            helper.make_node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [3, 2])],
    )
    other = copy.deepcopy(branch)
    for node in other.node:
        node.output[0] += "2"
        if node.input[0] == "a":
            node.input[0] = "a2"
    other.output[0].name = "b2"
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=other),
        helper.make_node("Add", ["t", "y"], ["z"]),
    ]
    found = audit(graph_of(nodes, inputs={"x": [2, 3]}, outputs={"z": [3, 2]}, weights={"yes": np.array(True)}))
    assert (found.transposes, found.casts) == (3, 2)
    assert reasons(found, "NNAPI")["Transpose", 2] == "it lies in a branch, and branches are not entered"
    assert reasons(found, "NNAPI")["If", 1] == "it has no such operator"


CASES = [
    ("Gemm", [4, 6], {"w": np.ones((6, 5), np.float32)}, {}, "XNNPACK", ""),
    ("MatMul", [2, 4, 6], {"w": np.ones((6, 5), np.float32)}, {}, "XNNPACK", "two dimensions"),
    ("Softmax", [2, 3, 4, 5], {}, {"axis": 1}, "XNNPACK", "last axis"),
    ("Softmax", [2, 3, 4, 5], {}, {"axis": 3}, "XNNPACK", ""),
    ("MaxPool", [1, 3, 8, 8], {}, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, "XNNPACK", "rounds sizes up"),
    ("MaxPool", [1, 3, 8], {}, {"kernel_shape": [2]}, "NNAPI", "four dimensions"),
    ("DepthToSpace", [1, 12, 4, 4], {}, {"blocksize": 2, "mode": "CRD"}, "NNAPI", "mode must be DCR"),
    ("DepthToSpace", [1, 12, 4, 4], {}, {"blocksize": 2, "mode": "CRD"}, "Core ML", ""),
    ("DepthToSpace", [1, 12, "H", 4], {}, {"blocksize": 2, "mode": "CRD"}, "Core ML", "sizes must be fixed"),
    ("Transpose", [1, 2, 3, 4, 5, 6], {}, {"perm": [5, 4, 3, 2, 1, 0]}, "Core ML", "more than 5 dimensions"),
    ("Pad", [1, 2], {"w": np.array([0, -1, 0, 0])}, {}, "NNAPI", "not negative"),
    ("Gather", [4, 2], {"w": np.array([1, 0])}, {"axis": 0}, "NNAPI", ""),
    (
        "ConvTranspose",
        [1, 3, 8, 8],
        {"w": np.ones((3, 4, 2, 2), np.float32)},
        {"output_padding": [1, 1], "strides": [2, 2]},
        "Core ML",
        "no output padding",
    ),
]


@pytest.mark.parametrize(("op", "shape", "weights", "attributes", "delegate", "message"), CASES)
def test_conditions(op, shape, weights, attributes, delegate, message):
    node = helper.make_node(op, ["x", *weights], ["y"], **attributes)
    found = audit(graph_of([node], inputs={"x": shape}, outputs={"y": None}, weights=weights))
    told = [entry.reason for entry in found.delegates[delegate]]
    assert len(told) == bool(message)
    assert all(message in reason for reason in told)


def test_the_tables_are_those_of_the_installed_runtime(monkeypatch, tmp_path):
    import onnxruntime

    folder = tmp_path / "tools" / "mobile_helpers"
    folder.mkdir(parents=True)
    (folder / "nnapi_supported_ops.md").write_text("|Operator|Note|\n|---|---|\n|ai.onnx:Relu||\n")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["y"])]
    found = audit(graph_of(nodes, inputs={"x": [2]}, outputs={"y": [2]}))
    assert set(found.delegates) == {"XNNPACK", "NNAPI"}
    assert reasons(found, "NNAPI") == {("Exp", 1): "it has no such operator"}
