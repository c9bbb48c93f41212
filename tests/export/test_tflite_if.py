"""Networks that decide in TFLite: nested If as IF with one subgraph per branch, against ONNX Runtime."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")
sys.path.insert(0, str(Path(__file__).parent / "tflite"))

from onnx import TensorProto, helper, numpy_helper
from routed_graphs import cascade, routed
from routed_nets import contract, routed_net, samples
from tflite_support import contract_of, export, reference

from trimtab.export.exporter import ExportRequest, exporters
from trimtab.export.onnx import to_graph
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError
from trimtab.models.routed import plain_branch

RNG = np.random.default_rng(0)
TOLERANCE = 2e-5
"""float32 sums of a few hundred products of order 1, in another order: 24 bits leave 1e-6 a sum."""

IMAGE = TensorSpec(name="image", shape=(1, 3, 16, 16), layout="NCHW")
LIMITS = TensorSpec(name="thresholds", shape=(2,))
LOGITS = TensorSpec(name="logits", shape=(1, 5), layout="NC")
SINGLE = Contract(inputs=(IMAGE,), outputs=(LOGITS,))
ROUTED = Contract(inputs=(IMAGE, LIMITS), outputs=(LOGITS,))
ALL_BRANCHES = ([-1.0, -1.0], [2.0, -1.0], [2.0, 2.0])
"""Thresholds that every score reaches, or none: the first, second and third branch answers."""


def parts(net) -> list[onnx.ModelProto]:
    example = (torch.zeros(1, 3, 16, 16),)
    return [to_graph(plain_branch(net, number), SINGLE, example) for number in range(len(net.branches))]


def router_graph(net) -> onnx.ModelProto:
    scores = Contract(inputs=(IMAGE,), outputs=(TensorSpec(name="scores", shape=(1, 2)),))
    return to_graph(net.router, scores, (torch.zeros(1, 3, 16, 16),))


def decided(rule: str):
    net = routed_net(rule, shared=False)
    model = cascade(parts(net), 5) if rule == "cascade" else routed(parts(net), router_graph(net), 5)
    return net, model


@pytest.mark.parametrize("rule", ["cascade", "router"])
def test_every_branch_of_a_routed_network_answers_as_in_torch(rule, tmp_path):
    net, model = decided(rule)
    converted = export(model, tmp_path, ROUTED)
    assert converted.facts.ops["IF"] == 2
    assert "TRANSPOSE" not in converted.facts.ops
    answered = set()
    for image in samples(6):
        for limits in (*ALL_BRANCHES, [0.47, 0.72], [0.5, 0.5]):
            thresholds = torch.tensor(limits)
            wanted = net(image, thresholds).detach().numpy()
            found = converted({"image": image.numpy(), "thresholds": thresholds.numpy()})["logits"]
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
            answered.add(int(net.taken[0]))
    assert answered == {0, 1, 2}


def test_a_decided_network_holds_its_weights_once(tmp_path):
    net, model = decided("cascade")
    export(model, tmp_path, ROUTED)
    weights = sum(t.numel() * 4 for branch in net.branches for t in branch.state_dict().values() if t.is_floating_point())
    assert (tmp_path / "model.tflite").stat().st_size < weights + 30_000  # the graph itself; a second copy is 20 kB more


def tensors(path: Path, subgraph: int, *, delegated: bool) -> dict[str, np.ndarray]:
    """What lies in a subgraph's computed feature maps after a run in which it was chosen."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.AUTO if delegated else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that keeping every tensor takes memory
        interpreter = Interpreter(
            model_path=str(path),
            num_threads=1,
            experimental_op_resolver_type=plain,
            experimental_preserve_all_tensors=True,
        )
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], np.full(entry["shape"], 2, dtype=entry["dtype"]))
    interpreter.invoke()
    details = interpreter.get_tensor_details(subgraph)
    maps = [e for e in details if e["name"].endswith("output_0") and len(e["shape"]) == 4]
    return {e["name"]: np.array(interpreter.get_tensor(e["index"], subgraph)) for e in maps}


def test_xnnpack_takes_the_branches_too(tmp_path):
    """XNNPACK sums in another order than LiteRT's own kernels, which would give the same bits again in a branch left to them."""
    _, model = decided("cascade")
    export(model, tmp_path, ROUTED)
    path = tmp_path / "model.tflite"
    for subgraph in (0, 2, 4):  # the first branch, then each else branch; 1 and 3 pass an answer on
        alone, taken = (tensors(path, subgraph, delegated=d) for d in (False, True))
        assert len(alone) >= 3
        assert all(np.any(array) for array in alone.values())
        assert any(not np.array_equal(alone[name], taken[name]) for name in alone)


def value(name: str, shape, kind=TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def make(nodes, outputs, branches, constants=None, image=(1, 4, 8, 8)) -> onnx.ModelProto:
    """A model: image and "flag" (1,) bool in, `nodes` before and after an If called by its name in `branches`."""
    built = {
        side: helper.make_graph(
            body, side, [], [value(n, s) for n, s in outs], [numpy_helper.from_array(a, n) for n, a in (own or {}).items()]
        )
        for side, (body, outs, own) in branches.items()
    }
    for node in nodes:
        if node.op_type == "If" and not node.attribute:
            for side in ("then_branch", "else_branch"):
                node.attribute.append(helper.make_attribute(side, built[side]))
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", image), value("flag", [1], TensorProto.BOOL)],
        [value(n, s) for n, s in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def int_flag(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its flag given as int32, which contracts have, and cast inside."""
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT32
    model.graph.input[1].name = "flag_in"
    model.graph.node.insert(0, helper.make_node("Cast", ["flag_in"], ["flag"], to=TensorProto.BOOL))
    onnx.checker.check_model(model)
    return model


def both_ways(model: onnx.ModelProto, folder: Path, shape=(1, 4, 8, 8)):
    """The converted model, after it agreed with ONNX Runtime on either branch."""
    model = int_flag(model)
    converted = export(model, folder, contract_of(model))
    x = normal(*shape)
    for flag in (0, 1):
        feeds = {"x": x, "flag_in": np.array([flag], np.int32)}
        wanted, found = reference(model, feeds), converted(feeds)
        assert set(found) == set(wanted)
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], atol=TOLERANCE, err_msg=f"{name}, flag {flag}")
    return converted


NODE = helper.make_node


def test_feature_maps_cross_the_border_as_they_lie(tmp_path):
    """The branches read a shared feature map, slice a shared weight, and return a map that convolutions go on with."""
    wide = normal(8, 6, 3, 3)
    slim = [
        NODE("Slice", ["wide", "from", "to"], ["slim"]),
        NODE("Conv", ["shared", "slim"], ["narrow"], pads=[1, 1, 1, 1]),
        NODE("Conv", ["narrow", "grow"], ["a"]),
    ]
    full = [NODE("Conv", ["shared", "wide"], ["b0"], pads=[1, 1, 1, 1]), NODE("Relu", ["b0"], ["b"])]
    nodes = [
        NODE("Conv", ["x", "stem"], ["s"], pads=[1, 1, 1, 1]),
        NODE("Relu", ["s"], ["shared"]),
        NODE("If", ["flag"], ["picked"]),
        NODE("Conv", ["picked", "last"], ["y"]),
    ]
    constants = {
        "wide": wide,
        "stem": normal(6, 4, 3, 3),
        "last": normal(5, 8, 1, 1),
        "from": np.array([1]),
        "to": np.array([4]),
    }
    branches = {
        "then_branch": (slim, [("a", [1, 8, 8, 8])], {"grow": normal(8, 3, 1, 1)}),
        "else_branch": (full, [("b", [1, 8, 8, 8])], {}),
    }
    converted = both_ways(make(nodes, [("y", [1, 5, 8, 8])], branches, constants), tmp_path)
    assert converted.facts.ops == {"CONV_2D": 5, "IF": 1, "NOT_EQUAL": 1}


def test_a_branch_may_be_nothing_but_a_value_from_outside_or_a_constant(tmp_path):
    nodes = [NODE("Relu", ["x"], ["r"]), NODE("If", ["flag"], ["y", "z"])]
    branches = {
        "then_branch": (
            [NODE("Identity", ["r"], ["a"]), NODE("Identity", ["r"], ["b"])],
            [("a", [1, 4, 8, 8]), ("b", [1, 4, 8, 8])],
            {},
        ),
        "else_branch": (
            [NODE("Identity", ["c"], ["d"]), NODE("Neg", ["x"], ["e"])],
            [("d", [1, 4, 8, 8]), ("e", [1, 4, 8, 8])],
            {"c": normal(1, 4, 8, 8)},
        ),
    }
    both_ways(make(nodes, [("y", [1, 4, 8, 8]), ("z", [1, 4, 8, 8])], branches), tmp_path)


def test_flattened_features_keep_their_stored_order_across_the_border(tmp_path):
    """Flattened NHWC features lie in another order than ONNX's; the branches' weights absorb it, no data moves."""
    nodes = [NODE("Relu", ["x"], ["r"]), NODE("Flatten", ["r"], ["f"]), NODE("If", ["flag"], ["y"])]
    branches = {
        "then_branch": (
            [NODE("Gemm", ["f", "w", "c"], ["a"], transB=1)],
            [("a", [1, 5])],
            {"w": normal(5, 256), "c": normal(5)},
        ),
        "else_branch": (
            [NODE("Gemm", ["f", "v", "d"], ["b"], transB=1)],
            [("b", [1, 5])],
            {"v": normal(5, 256), "d": normal(5)},
        ),
    }
    converted = both_ways(make(nodes, [("y", [1, 5])], branches), tmp_path)
    assert "TRANSPOSE" not in converted.facts.ops
    assert "GATHER" not in converted.facts.ops


def test_an_inner_choice_reads_from_the_outermost_graph(tmp_path):
    inner = {
        side: helper.make_graph([NODE(op, ["shared", "k"], [f"in_{op}"])], side, [], [value(f"in_{op}", [1, 4, 8, 8])])
        for side, op in (("then_branch", "Add"), ("else_branch", "Mul"))
    }
    middle = [
        NODE("ReduceMax", ["x"], ["top"], keepdims=0),
        NODE("Less", ["top", "zero"], ["low"]),
        NODE("If", ["low"], ["m"], **inner),
    ]
    nodes = [NODE("Sigmoid", ["x"], ["shared"]), NODE("If", ["flag"], ["y"])]
    branches = {
        "then_branch": (middle, [("m", [1, 4, 8, 8])], {"zero": np.array(0, np.float32)}),
        "else_branch": ([NODE("Neg", ["x"], ["n"])], [("n", [1, 4, 8, 8])], {}),
    }
    model = make(nodes, [("y", [1, 4, 8, 8])], branches, {"k": normal(4, 1, 1)})
    converted = both_ways(model, tmp_path)
    assert converted.facts.ops["IF"] == 2


def test_what_neither_branch_reads_is_not_passed(tmp_path):
    """Both branches read a value only for its shape, which is known: nothing computes or passes the value."""
    nodes = [NODE("Sin", ["x"], ["unused"]), NODE("If", ["flag"], ["y"])]
    branches = {
        side: (
            [NODE("Shape", ["unused"], [f"s{side}"]), NODE("Reshape", [source, f"s{side}"], [f"o{side}"])],
            [(f"o{side}", [1, 4, 8, 8])],
            {},
        )
        for side, source in (("then_branch", "x"), ("else_branch", "c"))
    }
    converted = both_ways(make(nodes, [("y", [1, 4, 8, 8])], branches, {"c": normal(1, 4, 8, 8)}), tmp_path)
    assert "SIN" not in converted.facts.ops


def refused(model: onnx.ModelProto, folder: Path, given: Contract | None = None) -> str:
    out = folder / "model.tflite"
    with pytest.raises(UserError) as caught:
        exporters.get("tflite").export(
            ExportRequest(contract=given or contract_of(model), precision="fp32", out=out, graph=model)
        )
    assert not out.exists()
    return str(caught.value)


def small(then_nodes, else_nodes, then_shape=(1, 4, 8, 8), else_shape=(1, 4, 8, 8)) -> onnx.ModelProto:
    branches = {
        "then_branch": (then_nodes, [("a", then_shape)], {"t": np.array([1, 256])}),
        "else_branch": (else_nodes, [("b", else_shape)], {}),
    }
    return int_flag(make([NODE("If", ["flag"], ["y"], name="choice")], [("y", then_shape)], branches))


def test_operators_that_a_branch_cannot_hold_are_all_named_with_their_branch(tmp_path):
    model = small([NODE("Atan", ["x"], ["a"])], [NODE("Asin", ["x"], ["b"], name="inner")])
    message = refused(
        model, tmp_path, Contract(inputs=contract_of(model).inputs, outputs=(TensorSpec(name="y", shape=(1, 4, 8, 8)),))
    )
    assert "2 operators" in message
    assert "If at node 'choice': in its then branch, Atan at node 'a': no conversion rule" in message
    assert "in its else branch, Asin at node 'inner': no conversion rule" in message


def test_branches_of_different_shape_are_refused(tmp_path):
    model = small([NODE("Reshape", ["x", "t"], ["a"])], [NODE("Neg", ["x"], ["b"])], (1, 256))
    message = refused(
        model, tmp_path, Contract(inputs=contract_of(model).inputs, outputs=(TensorSpec(name="y", shape=(1, 256)),))
    )
    assert "its branches return 'y' as float32 (1, 256) and as float32 (1, 4, 8, 8); both must be alike" in message


def test_a_free_batch_is_refused(tmp_path):
    model = small([NODE("Neg", ["x"], ["a"])], [NODE("Abs", ["x"], ["b"])], ["N", 4, 8, 8], ["N", 4, 8, 8])
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[0].dim_param = "N"
    spec = TensorSpec(name="x", shape=("N", 4, 8, 8), layout="NCHW")
    given = Contract(
        inputs=(spec, contract_of(model).inputs[1]), outputs=(TensorSpec(name="y", shape=("N", 4, 8, 8), layout="NCHW"),)
    )
    message = refused(model, tmp_path, given)
    assert "decides for everything at once, and the contract leaves N free" in message
    assert "fix the batch at 1" in message


def test_the_contract_of_the_routed_nets_is_theirs():
    assert contract().inputs[0].shape[1:] == IMAGE.shape[1:]
