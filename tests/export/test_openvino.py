"""OpenVINO files: proven in every precision, free in their sizes, quantised as asked, readable inside, and silent about it."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from test_convert import CONTRACT, lively, plant
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export.artifact import load_artifact
from trimtab.export.convert import convert, file_source, module_source
from trimtab.export.exporter import ExportRequest, exporters
from trimtab.export.openvino import CARD, read
from trimtab.export.openvino_core import core, graph_file, library
from trimtab.export.openvino_graph import audit, operators_of, split
from trimtab.export.openvino_int8 import attends
from trimtab.export.parity import sqnr_db
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError

if CARD.missing():  # importing openvino itself, as importorskip does, would let it report that it is used
    pytest.skip("the openvino extra is not installed", allow_module_level=True)

EXPORTER = exporters.get("openvino")
FEEDS = tuple({"image": image[None]} for image in images(32))


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return module_source(lively(make()), CONTRACT, label="user")


@pytest.fixture(scope="module")
def attention():
    torch.manual_seed(0)
    channels, side, _ = architectures.entry("vit_nano").card.input
    contract = image_classifier(
        channels=channels, height=side, width=side, classes=tuple("abcdefghij"), mean=(0.4,) * channels, std=(0.2,) * channels
    )
    return module_source(lively(architectures.get("vit_nano")(num_classes=10)), contract, label="vit")


def exported(source, precision, folder, **options):
    given = {"real": images(16, seed=1), "calibration": images(64), **options}
    (made,) = convert(source, [("openvino", precision)], folder, **given)
    return made


def request(source, out, precision="int8", feeds=FEEDS, **options):
    return ExportRequest(source.contract, precision, out / "m.openvino", graph=source.graph, calibration=feeds, **options)


def loaded(path):
    return core().read_model(graph_file(path))


def inside(graph, inputs):
    """Every value of an ONNX graph, by ONNX Runtime."""
    import onnxruntime

    open_graph = onnx.ModelProto()
    open_graph.CopyFrom(graph)
    own = {value.name for value in graph.graph.output}
    names = [name for node in graph.graph.node for name in node.output if name and name not in own]
    open_graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(open_graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("fp32", 90, 201), ("fp16", 45, 100), ("int8", 25, 70), ("int8-weights", 25, 70)]
)
def test_a_user_network_in_every_precision(source, tmp_path, precision, least, most):
    made = exported(source, precision, tmp_path)
    artifact = load_artifact(made.folder)
    assert made.ok
    assert least <= artifact.parity.sqnr_db < most  # and no float in disguise
    assert {case.dims["N"] for case in artifact.parity.cases} == {1, 2, 5}
    assert artifact.file == "model.openvino"
    assert sorted(p.name for p in artifact.path(made.folder).iterdir()) == ["model.bin", "model.xml"]
    assert artifact.size_bytes == sum(p.stat().st_size for p in artifact.path(made.folder).iterdir())
    assert (artifact.audit.transposes, artifact.audit.casts, artifact.audit.delegates) == (0, 0, {})
    assert artifact.spec_version.startswith("OpenVINO IR 1")
    model = loaded(artifact.path(made.folder))
    assert [port.get_names() for port in (*model.inputs, *model.outputs)] == [{"image"}, {"logits"}]
    assert json.loads(model.get_rt_info(["trimtab", "contract"]).value)["inputs"][0]["name"] == "image"
    kept = Counter(op.get_output_element_type(0).get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant")
    assert kept[{"fp32": "f32", "fp16": "f16", "int8": "i8", "int8-weights": "u8"}[precision]] >= 9


def test_files_shrink_with_their_weights(tmp_path):
    net = module_source(nn.Sequential(nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 10)), CONTRACT, label="n")
    sizes = {
        precision: exported(net, precision, tmp_path).artifact.size_bytes
        for precision in ("fp32", "fp16", "int8", "int8-weights")
    }
    for precision, share in (("fp16", 2), ("int8", 4), ("int8-weights", 4)):
        assert sizes[precision] == pytest.approx(sizes["fp32"] / share, rel=0.02)  # the rest is the graph's text


def test_damaged_weights_are_noticed(source, tmp_path):
    made = exported(source, "fp32", tmp_path)
    weights = made.folder / "model.openvino" / "model.bin"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="its sha256 differs"):
        load_artifact(made.folder)


@pytest.mark.parametrize("fault", ["a wrong weight", "swapped channels", "a dropped bias", "a wrong normalisation"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-weights"])
def test_a_planted_fault_is_rejected(source, tmp_path, precision, fault):
    colours = np.float32([4, 1, 0.2])[:, None, None]  # channels that differ as much as colours do
    given = {"real": images(16, seed=1) * colours, "calibration": images(64) * colours}
    assert exported(source, precision, tmp_path / "right", **given).ok
    wrong = module_source(plant(source.module, fault), CONTRACT, label="wrong")
    made = exported(replace(source, graph=wrong.graph), precision, tmp_path, **given)
    assert not made.ok
    assert made.folder.name == f"openvino-{precision}.rejected"
    assert "below the" in made.artifact.parity.reason


class Upscaler(nn.Module):
    """Twice the size, with skips: height and width are free."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.act = nn.PReLU(16)

    def forward(self, image):
        x = self.act(self.first(image))
        return self.shuffle(self.last(x + self.middle(x)))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-weights"])
def test_height_and_width_stay_free(tmp_path, precision):
    torch.manual_seed(0)
    image, scores = CONTRACT.inputs[0], CONTRACT.outputs[0]
    contract = CONTRACT.model_copy(
        update={
            "inputs": (image.model_copy(update={"shape": ("N", 3, "H", "W")}),),
            "outputs": (scores.model_copy(update={"name": "twice", "shape": ("N", 3, "H2", "W2"), "layout": "NCHW"}),),
            "classes": (),
        }
    )
    made = exported(module_source(Upscaler().eval(), contract, label="up"), precision, tmp_path, real=images(16, size=64))
    assert made.ok, made.artifact.parity.reason
    assert len({(case.dims["H"], case.dims["W"]) for case in made.artifact.parity.cases}) == 3
    run = EXPORTER.runner(made.artifact.path(made.folder), contract)
    for shape in ((1, 3, 20, 36), (2, 3, 31, 17)):
        twice = run({"image": np.zeros(shape, np.float32)})["twice"]
        assert twice.shape == (shape[0], 3, 2 * shape[2], 2 * shape[3])


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v1", "mobilenet_v3_small"])
def test_the_zoo_in_int8_keeps_nothing_in_float(tmp_path, name):
    torch.manual_seed(0)
    made = exported(
        module_source(lively(architectures.get(name)(in_channels=3, num_classes=10)), CONTRACT, label=name), "int8", tmp_path
    )
    assert made.artifact.parity.sqnr_db >= 20  # untrained nets are hard to quantise
    assert made.artifact.audit.islands == {}
    assert not made.artifact.warnings


def test_what_stays_in_float_is_named(source, tmp_path):
    made = exported(source, "int8", tmp_path)
    assert made.artifact.warnings == (
        "2 of 11 convolutions and products stay in float: /inverted/gate/squeeze/Conv, /inverted/gate/excite/Conv",
    )
    assert made.artifact.audit.islands == {"Convolution": 2, "Add": 2, "Sigmoid": 1, "Relu": 1}


def test_attention_is_quantised_as_such(attention, source, tmp_path):
    assert attends(attention.graph)
    assert not attends(source.graph)
    channels = attention.contract.inputs[0].shape[1]
    side = attention.contract.inputs[0].shape[2]
    real, calibration = images(16, size=side, seed=1)[:, :channels], images(64, size=side)[:, :channels]
    made = exported(attention, "int8", tmp_path, real=real, calibration=calibration)
    assert made.artifact.parity.sqnr_db >= 20  # untrained
    assert made.artifact.audit.islands["MVN"] == 9
    assert made.artifact.audit.transposes > 0


def test_ranges_are_the_least_and_the_greatest_value(tmp_path):
    """With outliers in a few images, least and greatest values hold them, and NNCF's own means forget them."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10, bias=False)
    net = module_source(nn.Sequential(*layers), CONTRACT, label="net")
    calibration = np.concatenate([4 * images(4), 0.2 * images(60)])
    made = exported(net, "int8", tmp_path, calibration=calibration)
    assert made.ok
    model = loaded(made.artifact.path(made.folder))
    first = next(op for op in model.get_ordered_ops() if op.get_type_name() == "FakeQuantize")
    low, high = (first.input_value(i).get_node().data.item() for i in (1, 2))
    assert low <= calibration.min() * 0.99
    assert high >= calibration.max() * 0.99


def test_biases_are_corrected_on_request_only(source, tmp_path):
    outputs = {}
    for choice in ("none", "fast", "full"):
        options = CARD.configured({"bias_correction": choice})
        EXPORTER.export(request(source, tmp_path, options=options))
        run = EXPORTER.runner(tmp_path / "m.openvino", source.contract)
        outputs[choice] = run({"image": images(4, seed=2)})["logits"]
    reference = source.reference({"image": images(4, seed=2)})["logits"]
    assert min(sqnr_db(reference, output) for output in outputs.values()) > 25
    assert sqnr_db(outputs["none"], outputs["fast"]) < 60
    assert sqnr_db(outputs["none"], outputs["full"]) < 60
    with pytest.raises(UserError, match="bias_correction = 'some'"):
        CARD.configured({"bias_correction": "some"})


KEPT = [
    ("/entry/entry.0/Conv",),
    ("/inverted/depth/depth.0/Conv", "/head/Gemm"),
    ("/grouped/grouped.0/Conv", "/inverted/Add", "/Concat"),
]


@pytest.mark.parametrize("kept", KEPT)
def test_exactly_the_layers_asked_for_stay_in_float(source, tmp_path, kept):
    EXPORTER.export(request(source, tmp_path))
    before = loaded(tmp_path / "m.openvino")
    told = EXPORTER.export(request(source, tmp_path, keep_float=frozenset(kept))).warnings
    after = loaded(tmp_path / "m.openvino")
    products = {name for name in kept if name.endswith(("Conv", "Gemm"))}
    assert set(split(after)[1]) - set(split(before)[1]) == products
    assert set(split(before)[0]) - set(split(after)[0]) == products
    assert f"{2 + len(products)} of 11 convolutions and products stay in float" in told[0]
    ops = {op.get_friendly_name(): op for op in after.get_ordered_ops()}
    for group in operators_of(read(source.graph), source.graph, kept).values():
        sources = [value.get_node() for name in group for value in ops[name].input_values()]
        assert not [op for op in sources if op.get_type_name() in ("FakeQuantize", "Convert")]


def test_a_layer_that_openvino_fuses_can_be_kept_all_the_same(attention):
    model = read(attention.graph)
    named = {name for op in model.get_ordered_ops() for port in op.outputs() for name in port.get_names()}
    fused = [node for node in attention.graph.graph.node if node.op_type == "Erf" and not set(node.output) & named]
    assert fused
    found = operators_of(model, attention.graph, [fused[0].name])[fused[0].name]
    types = {op.get_friendly_name(): op.get_type_name() for op in model.get_ordered_ops()}
    assert "Gelu" in {types[name] for name in found}


def test_weights_alone_can_be_kept_too(source, tmp_path):
    told = EXPORTER.export(request(source, tmp_path, "int8-weights", feeds=(), keep_float=frozenset({"/head/Gemm"}))).warnings
    assert told == ("1 of 11 convolutions and products keep weights in float: /head/Gemm",)


def test_an_unknown_layer_is_refused(source, tmp_path):
    with pytest.raises(UserError, match="'/head/Gem', to be kept in float, is no node") as caught:
        EXPORTER.export(request(source, tmp_path, keep_float=frozenset({"/head/Gem"})))
    assert "/head/Gemm" in caught.value.hint


@pytest.mark.parametrize("net", ["source", "attention"])
def test_inner_values_are_those_of_onnx_runtime(request, net, tmp_path):
    source = request.getfixturevalue(net)
    made = exported(source, "fp32", tmp_path, real=None, calibration=None)
    inputs = source.contract.random_inputs({"N": 2}, seed=3)
    taps = EXPORTER.tapped(made.artifact.path(made.folder), source.contract)(inputs)
    reference = inside(source.graph, inputs)
    assert set(taps) <= set(reference)
    for name, values in taps.items():
        assert values.dtype == np.float32
        assert values.shape == reference[name].shape
        assert sqnr_db(reference[name], values) >= 90, name
    computed = {
        name for node in source.graph.graph.node if node.op_type in ("Conv", "Gemm", "Relu", "Concat") for name in node.output
    }
    assert computed <= set(taps)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-weights"])
def test_inner_values_of_reduced_precisions(source, tmp_path, precision):
    made = exported(source, precision, tmp_path)
    inputs = {"image": images(2, seed=4)}
    taps = EXPORTER.tapped(made.artifact.path(made.folder), source.contract)(inputs)
    reference = inside(source.graph, inputs)
    assert set(taps) == {name for name, value in reference.items() if value.dtype == np.float32}
    assert min(sqnr_db(reference[name], values) for name, values in taps.items()) > 20


def test_the_first_value_that_departs_is_the_wrong_layers(source, tmp_path):
    wrong = onnx.ModelProto()
    wrong.CopyFrom(source.graph)
    (node,) = (node for node in wrong.graph.node if node.name == "/mix/mix.0/Conv")
    (weight,) = (w for w in wrong.graph.initializer if w.name == node.input[1])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3] *= -1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    made = exported(replace(source, graph=wrong), "fp32", tmp_path)
    assert not made.ok
    inputs = {"image": images(2, seed=4)}
    taps = EXPORTER.tapped(made.artifact.path(made.folder), source.contract)(inputs)
    reference = inside(source.graph, inputs)
    order = [(node.name, name) for node in source.graph.graph.node for name in node.output if name in taps]
    departing = [node for node, name in order if sqnr_db(reference[name], taps[name]) < 90]
    assert departing[0] == "/mix/mix.0/Conv"


def test_transposes_and_casts_are_counted():
    nodes = [
        onnx.helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        onnx.helper.make_node("Softmax", ["a"], ["b"], axis=1),
        onnx.helper.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", ["b", "f"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    inputs = [info("x", onnx.TensorProto.FLOAT, [1, 3, 4, 5]), info("i", onnx.TensorProto.INT32, [3])]
    graph = onnx.helper.make_graph(nodes, "net", inputs, [info("y", onnx.TensorProto.FLOAT, [1, 4, 5, 3])])
    found = audit(read(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])))
    assert (found.transposes, found.casts, found.islands) == (1, 1, {})


class Shift(nn.Module):
    """Nothing in it that integers are asked for."""

    def forward(self, image):
        return image.mean((2, 3)).exp()


class Deciding(nn.Module):
    """One of two convolutions, by the mean of the input."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 10, 3), nn.Conv2d(3, 10, 3)

    def forward(self, image):
        return _either(image, self.one(image).mean((2, 3)), self.other(image).mean((2, 3)))


@torch.jit.script
def _either(image, one, other):
    if bool(image.mean() > 0):
        return one.relu()
    return other


def test_what_can_t_be_quantised_is_refused(tmp_path):
    contract = image_classifier(channels=3, height=32, width=32, classes=tuple("abc"), mean=(0.4,) * 3, std=(0.2,) * 3)
    shift = module_source(Shift(), contract, label="shift")
    for precision in ("int8", "int8-weights"):
        with pytest.raises(UserError, match=f"{precision} was asked, and none of the network's 0 convolutions and products"):
            exported(shift, precision, tmp_path)
        with pytest.raises(UserError, match=f"OpenVINO {precision} of a network that decides \\(If\\) can't be made"):
            exported(module_source(Deciding(), CONTRACT, label="x"), precision, tmp_path)
    with pytest.raises(UserError, match="OpenVINO int8 takes its ranges from real inputs, and there are none"):
        exported(shift, "int8", tmp_path, calibration=None)


def test_a_network_that_decides_is_written_in_float(tmp_path):
    made = exported(module_source(Deciding(), CONTRACT, label="x"), "fp32", tmp_path)
    assert made.ok, made.artifact.parity.reason
    assert made.artifact.ops["If"] == 1
    assert made.artifact.ops["Relu"] == 1  # in a branch


def test_an_operator_that_openvino_has_not_is_named(source, tmp_path):
    node = onnx.helper.make_node("Wonder", ["x"], ["y"], domain="org.example", name="odd")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "net", [info("x", 1, [2])], [info("y", 1, [2])])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("org.example", 1)]
    )
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    with pytest.raises(UserError, match=r"OpenVINO does not read the network's ONNX graph: .*Wonder"):
        read(model)
    assert (root.level, root.filters, root.handlers) == before  # later warnings are heard


def test_a_users_onnx_file(source, tmp_path):
    (made,) = convert(source, [("onnx", "fp32")], tmp_path / "a")
    (again,) = convert(file_source(made.folder / "model.onnx"), [("openvino", "fp16")], tmp_path / "b")
    assert again.ok


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "m.openvino").mkdir()
    (tmp_path / "m.openvino" / "model.xml").write_text("<net/>")
    with pytest.raises(UserError, match=r"OpenVINO rejects m\.openvino: "):
        EXPORTER.runner(tmp_path / "m.openvino", CONTRACT)


def test_nothing_is_printed_or_logged(source, tmp_path, capfd, caplog):
    for precision in ("fp32", "int8", "int8-weights"):
        exported(source, precision, tmp_path)
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_nothing_is_reported_to_anyone(tmp_path):
    """In a process of its own, with a home folder of its own: no identifier is left there, and what would send is not loaded."""
    code = (
        "import logging, sys\n"
        "from trimtab.export.openvino_core import core, library\n"
        "core(); library('nncf'); library().convert_model\n"
        "print('openvino_telemetry' in sys.modules, logging.getLoggerClass().__name__)"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["False", "Logger"], done.stderr
    assert not (home / "intel").exists()


def test_a_package_that_is_loaded_already_stays_with_its_users():
    module = type(sys)("openvino_telemetry")
    before = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = module
    try:
        library.cache_clear()
        assert library().__name__ == "openvino"
        assert sys.modules["openvino_telemetry"] is module
    finally:
        del sys.modules["openvino_telemetry"]
        if before is not None:
            sys.modules["openvino_telemetry"] = before


def test_the_same_folder_can_be_written_again(source, tmp_path):
    for precision in ("fp32", "fp16"):
        EXPORTER.export(request(source, tmp_path, precision))
    assert sorted(p.name for p in (tmp_path / "m.openvino").iterdir()) == ["model.bin", "model.xml"]
    run = EXPORTER.runner(tmp_path / "m.openvino", CONTRACT)
    shutil.rmtree(tmp_path / "m.openvino")  # what is loaded does not need its files
    assert run({"image": images(1)})["logits"].shape == (1, 10)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-weights"])
def test_reduced_precisions_are_profiled(source, tmp_path, precision):
    from trimtab.devices.profile import profile

    made = exported(source, precision, tmp_path)
    found = profile([made.folder], preset="quick", budget_s=0.5)
    assert [(m.runtime, m.outputs_ok) for m in found.measurements] == [("openvino", True)]
