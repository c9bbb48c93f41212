"""ONNX in half precision and in int8: computed so, proven, and refused where it can't be."""

import numpy as np
import onnx
import pytest
import torch
from test_convert import CONTRACT, lively
from torch import nn
from user_net import make

from trimtab.export.artifact import load_artifact
from trimtab.export.convert import convert, module_source
from trimtab.export.exporter import exporters
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError


def images(count, size=32, seed=0):
    """Smooth pictures: neighbouring pixels are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 4, 4)).astype(np.float32)
    return np.kron(coarse, np.ones((1, 1, size // 4, size // 4), np.float32))


def exported(source, precision, folder, **options):
    given = {"real": images(16, seed=1), "calibration": images(64), **options}
    (made,) = convert(source, [("onnx", precision)], folder, **given)
    return made, onnx.load(made.folder / "model.onnx")


@pytest.fixture(scope="module")
def source():
    return module_source(lively(make()), CONTRACT, label="user")


def test_int8_computes_in_integers_and_is_proven(source, tmp_path):
    made, model = exported(source, "int8", tmp_path)
    artifact = load_artifact(made.folder)
    assert made.ok
    assert artifact.parity.gate_db == 25
    assert 25 <= artifact.parity.sqnr_db < 90  # not float in disguise
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    weights = {w.name: w for w in model.graph.initializer}
    assert convolutions
    for node in convolutions:
        scales = [weights[makers[name].input[1]] for name in node.input[:2]]
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        weight = weights[makers[node.input[1]].input[0]]
        assert weight.data_type == onnx.TensorProto.INT8
        zero_point = weights[makers[node.input[0]].input[2]]
        assert zero_point.data_type == onnx.TensorProto.UINT8
        if node.op_type == "Conv":
            assert list(scales[1].dims) == [weight.dims[0]]  # one for each channel
    assert model.metadata_props[0].key == "trimtab.contract"
    fp32 = exported(source, "fp32", tmp_path)[0].artifact
    assert artifact.size_bytes < fp32.size_bytes


def test_activations_are_signed_on_request(source, tmp_path):
    options = {"onnx": exporters.entry("onnx").card.configured({"activations": "signed"})}
    made, model = exported(source, "int8", tmp_path, options=options)
    assert made.ok
    assert made.artifact.options == {"activations": "signed"}
    points = {w.name: w.data_type for w in model.graph.initializer}
    quantising = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantising
    assert {points[node.input[2]] for node in quantising} == {onnx.TensorProto.INT8}


def test_half_precision_keeps_float32_at_its_doors(source, tmp_path):
    made, model = exported(source, "fp16", tmp_path)
    assert made.ok
    assert 45 <= made.artifact.parity.sqnr_db < 120
    weights = [w for w in model.graph.initializer if len(w.dims) == 4]
    assert {w.data_type for w in weights} == {onnx.TensorProto.FLOAT16}
    doors = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in doors} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v1", "vgg16_bn"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_zoo_in_both(tmp_path, name, precision):
    torch.manual_seed(0)
    net = lively(architectures.get(name)(in_channels=3, num_classes=10))
    contract = image_classifier(channels=3, height=32, width=32, classes=tuple("abcdefghij"), mean=(0.4,) * 3, std=(0.2,) * 3)
    made, _ = exported(module_source(net, contract, label=name), precision, tmp_path)
    assert made.artifact.parity.sqnr_db >= {"fp16": 45, "int8": 20}[precision]  # untrained nets are hard to quantise


def test_openvino_runs_the_same_file(source, tmp_path):
    openvino = pytest.importorskip("openvino")
    del openvino
    from trimtab.devices.profile import profile

    made, _ = exported(source, "int8", tmp_path)
    found = profile([made.folder], runtimes=["onnxruntime", "openvino"], preset="quick", budget_s=1.0)
    assert {m.runtime: m.outputs_ok for m in found.measurements} == {"onnxruntime": True, "openvino": True}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (None, "ONNX int8 takes its ranges from real inputs, and there are none"),
        (images(15), "15 calibration samples are too few for ONNX int8"),
        (np.full((16, 3, 32, 32), 0.5, np.float32), "all values of the calibration samples of ONNX int8 are 0.5"),
        (np.full((16, 3, 32, 32), np.nan, np.float32), "not finite"),
        (images(16, size=16), "calibration samples of ONNX int8 are 3×16×16, input 'image' is 3×32×32"),
    ],
)
def test_calibration_that_says_nothing_is_refused(source, tmp_path, samples, message):
    with pytest.raises(UserError, match=message):
        exported(source, "int8", tmp_path, calibration=samples)
    assert not list(tmp_path.iterdir())


def test_a_network_without_products_is_not_called_int8(tmp_path):
    class Shift(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).relu() + 0.1

    contract = image_classifier(channels=3, height=32, width=32, classes=tuple("abc"), mean=(0.4,) * 3, std=(0.2,) * 3)
    with pytest.raises(UserError, match="int8 was asked, and none of the network's 0 convolutions and products"):
        exported(module_source(Shift(), contract, label="shift"), "int8", tmp_path)


def test_wrong_ranges_are_caught_by_the_gate(tmp_path):
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10, bias=False)
    source = module_source(nn.Sequential(*parts), CONTRACT, label="net")
    assert exported(source, "int8", tmp_path)[0].ok
    made, _ = exported(source, "int8", tmp_path, calibration=images(64) * 1e-3, force=True)
    assert not made.ok
    assert made.folder.name == "onnx-int8.rejected"
    assert "is below the int8 gate of 25 dB" in made.artifact.parity.reason
