"""What a file makes runtimes do unasked, and what delegates would leave to slower kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")
pytest.importorskip("ai_edge_quantizer", reason="needs trimtab[tflite]")

from onnx import TensorProto, helper
from tflite_requests import ENTRY, user_source, write
from tflite_support import contract_of, make_model
from torch import nn

from trimtab.export.convert import module_source
from trimtab.export.exporter import ExportRequest
from trimtab.export.tflite.anatomy import histogram
from trimtab.export.tflite.audit import audit
from trimtab.export.tflite.ir import Program, Tensor
from trimtab.export.tflite.writer import to_bytes
from trimtab.models.contract import image_classifier

CONTRACT = image_classifier(channels=3, height=32, width=32, classes=tuple("abcd"), mean=(0.4,) * 3, std=(0.2,) * 3)
F = np.dtype("float32")


@pytest.fixture(scope="module")
def source():
    return user_source()


def reasons(found, delegate):
    """{(operator, reason): count} of a delegate."""
    return {(entry.op, entry.reason): entry.count for entry in found.delegates[delegate]}


def test_a_plain_network_is_taken_whole(source, tmp_path):
    for precision in ("fp32", "fp16", "int8"):
        found = write(source, precision, tmp_path / "m.tflite").audit
        assert (found.transposes, found.casts, found.islands) == (0, 0, {})
        assert found.delegates["XNNPACK"] == ()
        assert reasons(found, "NNAPI") == {("CONV_2D", "NNAPI does not read version 6 of it"): 1}  # the grouped one


def test_float_islands_are_counted_with_what_bridges_them(tmp_path):
    class Hill(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.last(torch.cos(self.first(x))).mean((2, 3))

    torch.manual_seed(0)
    hill = module_source(Hill(), CONTRACT, label="hill")
    facts = write(hill, "int8", tmp_path / "m.tflite")
    assert facts.audit.islands == {"COS": 1, "DEQUANTIZE": 1, "QUANTIZE": 1}
    assert facts.ops["QUANTIZE"] == facts.ops["DEQUANTIZE"] == 2
    assert write(hill, "fp32", tmp_path / "m.tflite").audit.islands == {}


def test_casts_and_transposes_are_counted(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("Softmax", ["t"], ["y"], axis=2),
    ]
    model = make_model(nodes, {"x": ((1, 3, 8, 6), np.uint8)}, ["y"])
    facts = ENTRY.value.export(ExportRequest(contract_of(model), "fp32", tmp_path / "m.tflite", graph=model))
    assert facts.audit.casts == 1
    assert facts.audit.transposes == facts.ops["TRANSPOSE"] >= 1


def test_xnnpack_is_asked_what_it_takes(tmp_path):
    """TOPK_V2 and GATHER lie between layers that XNNPACK takes: they alone are left out, and the layers on both sides are not."""
    k = np.array([2], dtype=np.int64)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("TopK", ["a", "k"], ["v", "i"]),
        helper.make_node("Sigmoid", ["v"], ["b"]),
        helper.make_node("Gather", ["b", "p"], ["c"], axis=1),
        helper.make_node("Tanh", ["c"], ["y"]),
    ]
    constants = {"k": k, "p": np.array([1, 0, 1], np.int64)}
    model = make_model(nodes, {"x": ((4, 8), F)}, ["y"], constants)
    facts = ENTRY.value.export(ExportRequest(contract_of(model), "fp32", tmp_path / "m.tflite", graph=model))
    assert set(facts.ops) == {"RELU", "TOPK_V2", "LOGISTIC", "GATHER", "TANH"}
    left = {op for op, _ in reasons(facts.audit, "XNNPACK")}
    assert left == {"TOPK_V2", "GATHER"}
    assert all("XNNPACK has no float kernel" in reason for _, reason in reasons(facts.audit, "XNNPACK"))
    assert facts.audit.delegates["NNAPI"] == ()
    coreml = reasons(facts.audit, "Core ML delegate")
    assert {op for op, _ in coreml} == {"TOPK_V2", "GATHER"}


def test_int8_hard_swish_itself_is_left_out_and_its_parts_are_not(tmp_path):
    """Why integer files hold x·relu6(x + 3)/6: LiteRT keeps the int8 HARD_SWISH to itself."""

    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return nn.functional.hardswish(self.conv(x)).mean((2, 3))

    torch.manual_seed(0)
    swish = module_source(Swish(), CONTRACT, label="swish")
    floating = write(swish, "fp32", tmp_path / "m.tflite")
    assert floating.ops["HARD_SWISH"] == 1
    assert "MUL" not in floating.ops
    for precision in ("fp16", "int8-dynamic"):
        assert write(swish, precision, tmp_path / "m.tflite").ops["HARD_SWISH"] == 1
    integer = write(swish, "int8", tmp_path / "m.tflite")
    assert "HARD_SWISH" not in integer.ops
    assert (integer.ops["ADD"], integer.ops["MUL"]) == (1, 2)
    assert integer.audit.delegates["XNNPACK"] == ()
    assert "HARD_SWISH" not in write(swish, "int16x8", tmp_path / "m.tflite").ops
    from trimtab.export.tflite.quantise import quantised

    write(swish, "fp32", tmp_path / "m.tflite", metadata=False)
    feeds = [{"image": np.random.default_rng(i).normal(size=(1, 32, 32, 3)).astype(np.float32)} for i in range(4)]
    native = quantised((tmp_path / "m.tflite").read_bytes(), "int8", feeds).data
    assert histogram(native)["HARD_SWISH"] == 1
    assert reasons(audit(native, integer=True), "XNNPACK") == {("HARD_SWISH", "XNNPACK has no int8 kernel for it"): 1}


@pytest.mark.parametrize("opset", [13, 18])
def test_x_times_hard_sigmoid_is_a_hard_swish(tmp_path, opset):
    nodes = [
        helper.make_node("HardSigmoid", ["x"], ["g"], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["x", "g"], ["y"]),
    ]
    model = make_model(nodes, {"x": (("N", 8), F)}, ["y"], opset=opset)
    facts = ENTRY.value.export(ExportRequest(contract_of(model), "fp32", tmp_path / "m.tflite", graph=model))
    assert facts.ops == {"HARD_SWISH": 1}
    x = np.linspace(-5, 5, 24, dtype=np.float32).reshape(3, 8)
    found = ENTRY.value.runner(tmp_path / "m.tflite", facts.contract)({"x": x})["y"]
    np.testing.assert_allclose(found, x * np.clip(x / 6 + 0.5, 0, 1), atol=2e-6)  # float32 rounding of values up to 5


def test_weights_and_shapes_from_run_time_are_named():
    """A convolution by computed weights leaves every delegate."""
    x, w = Tensor("x", (1, 8, 8, 3), F), Tensor("w", (4, 3, 3, 3), F)
    bias, y, moved = Tensor("b", (4,), F, np.zeros(4, F)), Tensor("y", (1, 8, 8, 4), F), Tensor("v", (4, 3, 3, 3), F)
    program = Program()
    program.inputs.update(x=x, w=w)
    program.outputs["y"] = y
    program.emit("TANH", [w], [moved])
    options = {"padding": 0, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    program.emit("CONV_2D", [x, moved, bias], [y], options)
    found = audit(to_bytes(program, description=""), integer=False)
    for delegate in ("XNNPACK", "Core ML delegate"):
        assert reasons(found, delegate) == {("CONV_2D", "its weights are computed at run time"): 1}


def test_int16_activations_and_mixed_operators_are_named(source, tmp_path):
    wide = write(source, "int16x8", tmp_path / "m.tflite").audit
    assert all(reason.endswith("does not compute in int16") for _, reason in reasons(wide, "XNNPACK"))
    assert all(reason.endswith("does not compute in int16") for _, reason in reasons(wide, "NNAPI"))
    dynamic = write(source, "int8-dynamic", tmp_path / "m.tflite").audit
    assert reasons(dynamic, "XNNPACK") == {
        ("DEPTHWISE_CONV_2D", "XNNPACK has no kernel for it with int8 weights and float activations"): 1
    }
    assert dynamic.islands == {}


def test_core_ml_takes_float_alone(source, tmp_path):
    found = reasons(write(source, "int8", tmp_path / "m.tflite").audit, "Core ML delegate")
    assert found["CONV_2D", "the Core ML delegate computes in float alone, this is int8"] == 9
    found = reasons(write(source, "fp32", tmp_path / "m.tflite").audit, "Core ML delegate")
    assert found == {
        ("CONV_2D", "the Core ML delegate does not read version 6 of it"): 1,  # the grouped one
        ("RESHAPE", "the Core ML delegate takes it for Core ML 2 alone"): 1,
    }
