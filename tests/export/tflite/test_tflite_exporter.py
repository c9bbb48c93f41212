"""The exporter's door: its card, its refusals and messages, odd graphs, and user-filed rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")

from onnx import TensorProto, helper
from tflite_support import contract_of, export, make_model, reference

from trimtab.export.exporter import ExportRequest, exporters
from trimtab.export.tflite.registry import rule, rules, shape_rules
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError

F = np.float32
IMAGE = ("N", 3, "H", "W")


def relu_model() -> onnx.ModelProto:
    """x (N, 3, H, W) → Relu → y."""
    return make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": (IMAGE, F)}, ["y"])


def request(
    model: onnx.ModelProto | None, out: Path, contract: Contract | None = None, precision: str = "fp32"
) -> ExportRequest:
    """An export request with the model's own contract unless another is given."""
    contract = contract or contract_of(model or relu_model())
    return ExportRequest(contract=contract, precision=precision, out=out, graph=model)


def refused(model: onnx.ModelProto, folder: Path, contract: Contract | None = None) -> str:
    """The message of the UserError that the export raises; nothing may be written."""
    out = folder / "model.tflite"
    with pytest.raises(UserError) as caught:
        exporters.get("tflite").export(request(model, out, contract))
    assert not out.exists()
    return str(caught.value)


def test_the_module_imports_without_heavy_packages():
    script = (
        "import sys, trimtab.export.tflite.exporter as e; from trimtab.export.exporter import exporters as x\n"
        "heavy = [m for m in ('onnx', 'torch', 'ai_edge_litert', 'flatbuffers', 'tensorflow') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert e.CARD.source == 'onnx' and e.CARD.suffix == '.tflite' and e.CARD.extra == 'tflite'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_unknown_precision_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"TFLite has no precision 'int4'\n.*one of fp32, fp16, int8, int8-dynamic, int16x8"):
        exporters.get("tflite").export(request(relu_model(), tmp_path / "m.tflite", precision="int4"))


def test_a_request_without_a_graph_is_refused(tmp_path):
    with pytest.raises(UserError, match="none was given"):
        exporters.get("tflite").export(request(None, tmp_path / "m.tflite"))


def test_facts_name_layout_ops_versions_and_evaluator(tmp_path):
    converted = export(relu_model(), tmp_path)
    facts = converted.facts
    assert facts.contract.inputs[0].layout == facts.contract.outputs[0].layout == "NHWC"
    assert facts.contract.inputs[0].shape == ("N", "H", "W", 3)
    assert facts.ops == {"RELU": 1}
    assert facts.spec_version == "tflite schema 3"
    assert facts.evaluator.startswith("LiteRT ")
    assert set(facts.tool_versions) == {"ai-edge-litert", "flatbuffers"}


def test_all_unsupported_operators_are_named_at_once_with_their_modules(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Det", ["m"], ["b"], name="/head/sub/Det"),
        helper.make_node("Atan", ["a"], ["c"], name="node_atan"),
        helper.make_node("Asin", ["c"], ["d"]),
    ]
    nodes[2].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'neck', 'neck.angle', 'atan']")
    model = make_model(nodes, {"x": (IMAGE, F), "m": (("N", 3, 3), F)}, ["b", "d"])
    message = refused(model, tmp_path)
    assert "3 operators" in message
    assert "Det at node '/head/sub/Det' (module sub): no conversion rule" in message
    assert "Atan at node 'node_atan' (module neck.angle)" in message
    assert "Asin at node 'd'" in message
    assert "export --to onnx" in message


def test_a_long_list_of_unsupported_operators_is_cut(tmp_path):
    nodes = [helper.make_node("Atan", ["x"], [f"y{i}"]) for i in range(40)]
    message = refused(make_model(nodes, {"x": (IMAGE, F)}, [f"y{i}" for i in range(40)]), tmp_path)
    assert "40 operators" in message
    assert "and 10 more" in message


@pytest.mark.parametrize(
    ("node", "shapes", "constants", "part"),
    [
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], dilations=[2, 2]), [IMAGE], {}, "dilations"),
        (helper.make_node("Mod", ["x", "x1"], ["y"], fmod=1), [IMAGE, IMAGE], {}, "fmod=1"),
        (helper.make_node("Pad", ["x", "p"], ["y"], mode="wrap"), [IMAGE], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, "'wrap'"),
        (
            helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic"),
            [IMAGE],
            {"s": np.array([1, 1, 2, 2], dtype=F)},
            "give it a fixed size",
        ),
        (
            helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            [IMAGE],
            {},
            "need a fixed image size",
        ),
        (helper.make_node("Einsum", ["x", "x1"], ["y"], equation="abcd,abcd->a"), [(2, 3, 4, 5)] * 2, {}, None),
        (helper.make_node("Einsum", ["x", "x1"], ["y"], equation="ab,bc->c"), [(2, 3), (3, 4)], {}, "sums a letter"),
        (helper.make_node("ArgMax", ["x"], ["y"], select_last_index=1), [IMAGE], {}, "select_last_index=1"),
        (helper.make_node("Conv", ["x", "x1"], ["y"], group=3), [IMAGE, (3, 1, 3, 3)], {}, "computed at run time"),
        (
            helper.make_node("Conv", ["x", "w"], ["y"]),
            [("N", 2, 5, 5, 5)],
            {"w": np.zeros((2, 2, 3, 3, 3), F)},
            "slides over 3",
        ),
    ],
)
def test_an_attribute_that_no_kernel_has_is_refused_in_words(node, shapes, constants, part, tmp_path):
    inputs = {f"x{i}" if i else "x": (shape, F) for i, shape in enumerate(shapes)}
    model = make_model([node], inputs, ["y"], constants, opset=19)
    if part is None:
        feeds = {name: np.random.default_rng(1).normal(size=shape).astype(F) for name, (shape, _) in inputs.items()}
        np.testing.assert_allclose(export(model, tmp_path)(feeds)["y"], reference(model, feeds)["y"], rtol=1e-5, atol=1e-5)
    else:
        assert part in refused(model, tmp_path)


def test_contract_and_graph_must_agree(tmp_path):
    model = relu_model()
    other = Contract(inputs=(TensorSpec(name="image", shape=IMAGE),), outputs=(TensorSpec(name="y", shape=IMAGE),))
    assert "contract's input 'image' is not in the ONNX graph" in refused(model, tmp_path, other)
    wide = Contract(inputs=(TensorSpec(name="x", shape=("N", 4, "H", "W")),), outputs=(TensorSpec(name="y", shape=IMAGE),))
    assert "axis 1 of the input 'x' is 3 in the ONNX graph and 4" in refused(model, tmp_path, wide)
    flat = Contract(inputs=(TensorSpec(name="x", shape=("N", 3)),), outputs=(TensorSpec(name="y", shape=IMAGE),))
    assert "has shape ('N', 3, 'H', 'W') in the ONNX graph and ('N', 3) in the contract" in refused(model, tmp_path, flat)
    short = Contract(inputs=(TensorSpec(name="x", shape=IMAGE),), outputs=(TensorSpec(name="y", shape=("N", 3)),))
    assert "the output 'y' has 4 dimensions" in refused(model, tmp_path, short)
    fixed = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ((1, 3, 8, 8), F)}, ["y"])
    free = Contract(inputs=(TensorSpec(name="x", shape=("N", 3, 8, 8)),), outputs=(TensorSpec(name="y", shape=("N", 3, 8, 8)),))
    assert "export the ONNX graph with this axis dynamic" in refused(fixed, tmp_path, free)
    two = make_model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": (IMAGE, F), "z": (IMAGE, F)}, ["y"])
    assert "wants the input 'z', which the contract lacks" in refused(two, tmp_path, contract_of(model))


def test_a_contract_may_fix_what_the_graph_leaves_free(tmp_path):
    model = make_model([helper.make_node("ReduceMean", ["x"], ["y"])], {"x": (IMAGE, F)}, ["y"])
    fixed = Contract(
        inputs=(TensorSpec(name="x", shape=(2, 3, 4, 5), layout="NCHW"),), outputs=(TensorSpec(name="y", shape=(1,) * 4),)
    )
    converted = export(model, tmp_path, fixed)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(F)
    np.testing.assert_allclose(converted({"x": x})["y"].item(), x.mean(), atol=1e-6)
    with pytest.raises(UserError, match="LiteRT cannot run"):
        converted.run({"x": np.zeros((1, 4, 5, 3), F)})


def test_a_graph_whose_sizes_contradict_each_other_says_where(tmp_path):
    baked = make_model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": (("N", 4), F)}, ["y"], {"s": np.array([2, 2, 2])}
    )
    message = refused(baked, tmp_path)
    assert "Reshape at node 'y'" in message
    assert "baked" in message


def test_external_weights_that_were_not_loaded_are_refused(tmp_path):
    model = make_model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (("N", 4), F)}, ["y"], {"w": np.ones(4, F)})
    contract = contract_of(model)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    assert "the weights of 'w' lie in another file" in refused(model, tmp_path, contract)


def test_an_ancient_opset_is_refused(tmp_path):
    model = relu_model()
    contract = contract_of(model)
    model.opset_import[0].version = 7
    assert "opset 7" in refused(model, tmp_path, contract)


def test_the_runner_refuses_files_that_are_absent_foreign_damaged_or_of_another_contract(tmp_path):
    exporter = exporters.get("tflite")
    contract = export(relu_model(), tmp_path).facts.contract
    with pytest.raises(UserError, match="does not exist"):
        exporter.runner(tmp_path / "gone.tflite", contract)
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(b"PK\x03\x04 not a model at all")
    with pytest.raises(UserError, match="is not a TFLite model"):
        exporter.runner(foreign, contract)
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes((tmp_path / "model.tflite").read_bytes()[:60])
    with pytest.raises(UserError, match="LiteRT cannot load"):
        exporter.runner(damaged, contract)
    other = Contract(inputs=(TensorSpec(name="zzz", shape=("N",)),), outputs=contract.outputs)
    with pytest.raises(UserError, match=r"has no tensor named 'zzz' \(it has x\)"):
        exporter.runner(tmp_path / "model.tflite", other)


def test_the_runner_wants_every_input(tmp_path):
    converted = export(relu_model(), tmp_path)
    with pytest.raises(UserError, match="needs the input 'x'"):
        converted.run({})


def test_outputs_that_are_inputs_constants_or_each_other_get_tensors_of_their_own(tmp_path):
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["w"], ["fixed"]),
        helper.make_node("Identity", ["s"], ["number"]),
    ]
    constants = {"w": np.arange(4, dtype=F), "s": np.array(3.5, F)}
    model = make_model(nodes, {"x": (IMAGE, F), "unused": (("N", 2), F)}, ["same", "a", "b", "fixed", "number"], constants)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(2, 3, 4, 5)).astype(F), "unused": np.zeros((2, 2), F)}
    found = export(model, tmp_path)(feeds)
    for name, array in reference(model, feeds).items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.int8, np.int32, np.int64])
def test_inputs_and_outputs_keep_the_dtypes_of_the_contract(dtype, tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "two"], ["g"]),
        helper.make_node("Cast", ["g"], ["y"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
    ]
    model = make_model(nodes, {"x": (IMAGE, dtype)}, ["y"], {"two": np.array(2, F)})
    x = np.random.default_rng(0).integers(0, 50, (2, 3, 4, 5)).astype(dtype)
    found = export(model, tmp_path)({"x": x})["y"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, x * 2)


def test_a_half_precision_graph_runs_in_single_precision(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    w = np.array([0.5, -2, 3], np.float16).reshape(3, 1, 1)
    model = make_model(nodes, {"x": (IMAGE, np.float16)}, ["y"], {"w": w})
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float16)
    found = export(model, tmp_path)({"x": x})["y"]
    np.testing.assert_allclose(found.astype(F), np.maximum(x.astype(F) * w.astype(F), 0), rtol=1e-3)


def test_a_user_can_file_a_rule_for_an_operator_of_their_own(tmp_path):
    model = relu_model()
    model.graph.node[0].op_type, model.graph.node[0].domain = "Twice", "my.ops"
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    assert "my.ops.Twice at node 'y'" in refused(model, tmp_path)

    @rule("my.ops.Twice", shapes=lambda shapes, attrs, values: [shapes[0]])
    def twice(ctx, node):
        value = ctx.raw(node.inputs[0])
        tensor = ctx.emit("ADD", [value.tensor, value.tensor], value.tensor.shape)
        ctx.put(node.outputs[0], tensor, value.perm, value.scramble)

    try:
        x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(F)
        np.testing.assert_array_equal(export(model, tmp_path)({"x": x})["y"], x * 2)
        with pytest.raises(ValueError, match=r"'my.ops.Twice' has two TFLite rules"):
            rule("my.ops.Twice")(twice)
    finally:
        del rules["my.ops.Twice"], shape_rules["my.ops.Twice"]


def test_local_functions_are_inlined(tmp_path):
    model = relu_model()
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    model.functions.append(helper.make_function("my", "NegRelu", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    model.graph.node[0].op_type, model.graph.node[0].domain = "NegRelu", "my"
    model.opset_import.append(helper.make_opsetid("my", 1))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(F)
    np.testing.assert_array_equal(export(model, tmp_path)({"x": x})["y"], -np.maximum(x, 0))
