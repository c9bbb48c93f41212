"""The walk through artifacts: layers found, matched and measured, and planted faults named at the layer they were planted in."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_convert import CONTRACT, lively
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export import onnx_taps
from trimtab.export.calibration import calibration_feeds
from trimtab.export.convert import module_source
from trimtab.export.explain import walk
from trimtab.export.explain.explanation import Explanation
from trimtab.export.explain.layouts import aligned
from trimtab.export.explain.plot import plot
from trimtab.export.explain.scopes import locate, module_path
from trimtab.export.explain.values import Reference
from trimtab.export.explain.walk import explain
from trimtab.export.exporter import ExporterCard, ExportRequest, exporters
from trimtab.export.onnx import OnnxExporter
from trimtab.export.parity import probes, sqnr_db
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError

LEFT = "/left/left.0/Conv"


@pytest.fixture(scope="module")
def source():
    return module_source(lively(make(width=8)), CONTRACT, label="user")


@pytest.fixture(scope="module")
def found(source):
    return probes(CONTRACT, source.reference, real=images(16, seed=1), seed=0)


@pytest.fixture(autouse=True)
def tapped(monkeypatch):
    """ONNX shows its inner values, whether or not its exporter says so already."""
    monkeypatch.setattr(OnnxExporter, "tapped", staticmethod(onnx_taps.tapped), raising=False)
    card = dataclasses.replace(exporters.entry("onnx").card, taps="values")
    monkeypatch.setattr(walk, "exporters", _Only(exporters, card))


class _Only:
    def __init__(self, registry, card: ExporterCard):
        self.registry, self.card = registry, card

    def entry(self, name):
        entry = self.registry.entry(name)
        return dataclasses.replace(entry, card=self.card) if name == "onnx" else entry


def written(source, precision, folder, name="onnx"):
    path = folder / f"model{exporters.entry(name).card.suffix}"
    graph = onnx.ModelProto()
    graph.CopyFrom(source.graph)
    feeds = calibration_feeds(CONTRACT, images(32), what=name) if precision == "int8" else ()
    request = ExportRequest(source.contract, precision, path, graph=graph, module=source.module, calibration=feeds)
    return path, exporters.get(name).export(request).contract


def changed(graph, node_name, change):
    """A copy of `graph` in which `change` was applied to the weight of one node."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    (node,) = (n for n in copy.graph.node if n.name == node_name)
    (weight,) = (w for w in copy.graph.initializer if w.name == node.input[1])
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight).copy()), weight.name))
    return copy


def negated(weight):
    weight[1] *= -1
    return weight


def test_every_layer_is_matched_to_the_module_whose_output_it_is(source, found):
    reference = Reference(source, found[0].inputs)
    seen = reference.observe(found[3].inputs)  # another input than it was matched on
    modules = {layer.node: layer.module for layer in reference.layers}
    assert len(modules) == len(source.graph.graph.node)
    assert modules[LEFT] == "left.1"  # the norm that was folded into the convolution
    assert modules["/left/left.2/Relu"] == "left.2"
    assert modules["/inverted/gate/Mul"] == "inverted.gate"  # a functional operation that ends its module
    assert modules["/inverted/gate/Relu"] == ""  # and one that does not
    assert modules["/head/Gemm"] == "head"
    for layer in reference.layers:
        assert layer.verified == bool(layer.module)
        assert sqnr_db(seen.of(layer), seen.values[layer.name]) > 100  # float32 rounds at some 140 dB


def test_a_module_that_is_called_twice_is_two_layers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, image):
            return self.act(self.conv(self.act(self.conv(image)))).mean((2, 3))

    contract = CONTRACT.model_copy(update={"outputs": (TensorSpec(name="logits", shape=("N", 3), layout="NC"),), "classes": ()})
    torch.manual_seed(0)
    twice = module_source(Twice().eval(), contract, label="twice")
    layers = Reference(twice, contract.random_inputs({"N": 1}, seed=0)).layers
    assert [(layer.module, layer.call) for layer in layers[:4]] == [("conv", 0), ("act", 0), ("conv", 1), ("act", 1)]
    assert all(layer.verified for layer in layers[:4])


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ("/layer1/layer1.0/conv1/Conv", ("layer1.0.conv1", 0)),
        ("/features/features.0/features.0.0/Conv", ("features.0.0", 0)),
        ("/0/0.1/Conv", ("0.1", 0)),
        ("/layer1/layer1.0/act_1/Relu", ("layer1.0.act", 1)),
        ("/Concat", ("", 0)),
        ("Conv_7", ("", 0)),
        ("/other/Conv", ("", 0)),
    ],
)
def test_scopes_name_modules(scope, path):
    known = {"layer1", "layer1.0", "layer1.0.conv1", "layer1.0.act", "features", "features.0", "features.0.0", "0", "0.1"}
    assert module_path(scope, known) == path


@pytest.mark.parametrize(("precision", "low", "high"), [("fp32", 120, 201), ("fp16", 45, 100), ("int8", 25, 70)])
def test_a_sound_artifact_departs_nowhere(source, found, tmp_path, precision, low, high):
    path, contract = written(source, precision, tmp_path)
    walked = explain(source, "onnx", path, contract, inputs=found, precision=precision)
    assert walked.first_departing is None
    assert walked.departing_sizes == ()
    assert [size.dims for size in walked.sizes] == [{"N": 1}, {"N": 2}, {"N": 5}]
    assert [size.inputs for size in walked.sizes] == [8, 2, 5]
    assert all(low <= row.sqnr_db <= high for row in walked.rows)
    missing = sum(u.count for u in walked.unmatched)
    assert len(walked.rows) + missing == len(source.graph.graph.node)
    assert missing <= (6 if precision == "int8" else 0)  # ReLUs take their convolution's place in QDQ files
    assert [row.node for row in walked.rows] == sorted(
        (row.node for row in walked.rows), key=[n.name for n in source.graph.graph.node].index
    )
    assert Explanation.model_validate_json(walked.model_dump_json()) == walked


def test_int8_rows_say_what_a_layer_adds_and_what_it_inherits(source, found, tmp_path):
    path, contract = written(source, "int8", tmp_path)
    walked = explain(source, "onnx", path, contract, inputs=found, precision="int8")
    rows = {row.node: row for row in walked.rows}
    final = rows["/head/Gemm"]
    assert final.local_db > final.sqnr_db  # it inherits some
    assert rows["/Flatten"].local_db > 80  # moves values and rounds none anew
    assert len(walked.worst) == 5
    own = {row.name: row.local_db for row in walked.rows}
    assert max(own[name] for name in walked.worst) <= min(v for n, v in own.items() if n not in walked.worst)
    first = walked.rows[0]
    assert first.added_db == pytest.approx(120 - first.sqnr_db)  # its input is exact


def test_a_planted_weight_is_named_and_those_after_it_are_not_blamed(source, found, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(changed(source.graph, LEFT, negated), path)
    walked = explain(source, "onnx", path, CONTRACT, inputs=found, precision="fp32")
    departure = walked.first_departing
    assert (departure.node, departure.op, departure.module) == (LEFT, "Conv", "left.1")
    assert "below the gate of 90 dB" in departure.reason
    rows = {row.node: row for row in walked.rows}
    assert rows[LEFT].local_db < 20
    assert rows["/head/Gemm"].sqnr_db < 60
    assert rows["/head/Gemm"].local_db > 120  # computes rightly on what it gets
    assert walked.worst == (departure.layer,)
    assert rows["/right/right.0/Conv"].sqnr_db > 120  # the other branch
    assert rows[LEFT].traced_db > 120


def test_a_fault_of_the_trace_is_told_from_the_converter_s(source, found, tmp_path):
    wrong = dataclasses.replace(source, graph=changed(source.graph, LEFT, negated))
    path, contract = written(wrong, "fp32", tmp_path)
    walked = explain(wrong, "onnx", path, contract, inputs=found, precision="fp32")
    assert walked.first_departing.node == LEFT
    row = next(row for row in walked.rows if row.node == LEFT)
    assert row.traced_db < 20 < row.local_db  # the file computes the graph; the graph is not the network
    assert any("the trace is wrong" in line for line in walked.summary())
    after = {row.node: row for row in walked.rows}["/Concat"]
    assert after.sqnr_db < 60  # its reference is not led astray by the graph


def test_a_drop_inside_the_gate_departs_at_reduced_precision(source, found, tmp_path):
    path, contract = written(source, "int8", tmp_path)
    model = onnx.load(path)
    scale = next(w for w in model.graph.initializer if w.name == "/inverted/Add_output_0_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(4), scale.name))  # 2 bits coarser
    zero = next(w for w in model.graph.initializer if w.name == "/inverted/Add_output_0_zero_point")
    zero.CopyFrom(numpy_helper.from_array(np.array(100, np.uint8), zero.name))
    onnx.save(model, path)
    walked = explain(source, "onnx", path, contract, inputs=found, precision="int8")
    assert walked.first_departing.node == "/inverted/Add"
    assert "less than what it reads" in walked.first_departing.reason or "below" in walked.first_departing.reason


class Strided(nn.Module):
    """Five halvings: 64 and 48 rows become 2, 96 become 3."""

    def __init__(self):
        super().__init__()
        self.halve = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(5)))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, image):
        return self.head(torch.flatten(self.pool(self.halve(image)), 1))


def with_fixed_pool(graph):
    """The trap: a pool over everything exported as one over the 2×2 pixels that were there when it was traced."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    (old,) = (node for node in copy.graph.node if node.op_type == "GlobalAveragePool")
    fixed = onnx.helper.make_node("AveragePool", old.input, old.output, old.name, kernel_shape=[2, 2], strides=[2, 2])
    old.CopyFrom(fixed)
    return copy


@pytest.mark.parametrize("where", ["the artifact", "the trace"])
def test_a_pool_that_is_right_at_two_sizes_and_wrong_at_the_third(tmp_path, where):
    contract = Contract(
        inputs=(TensorSpec(name="image", shape=(1, 3, "H", 64), layout="NCHW"),),
        outputs=(TensorSpec(name="logits", shape=(1, 5), layout="NC"),),
    )
    torch.manual_seed(0)
    free = module_source(Strided().eval(), contract, label="strided")
    found = probes(contract, free.reference, real=None, seed=0)
    assert [p.dims["H"] for p in found[-2:]] == [96, 48]
    wrong = dataclasses.replace(free, graph=with_fixed_pool(free.graph)) if where == "the trace" else free
    path = tmp_path / "model.onnx"
    onnx.save(with_fixed_pool(free.graph), path)
    walked = explain(wrong, "onnx", path, contract, inputs=found, precision="fp32")
    assert walked.first_departing.node == "/pool/GlobalAveragePool"
    assert walked.first_departing.dims == ({"H": 96},)
    assert walked.departing_sizes == ({"H": 96},)
    assert "at H=96" in walked.first_departing.reason
    assert "only at H=96; right at H=64, H=48" in walked.summary()
    at = next(row.at for row in walked.rows if row.node == "/pool/GlobalAveragePool")
    assert at[1] < 40
    assert min(at[0], at[2]) > 120


def test_a_size_at_which_the_artifact_does_not_run_is_named(tmp_path):
    contract = Contract(
        inputs=(TensorSpec(name="image", shape=(1, 3, "H", "W"), layout="NCHW"),),
        outputs=(TensorSpec(name="logits", shape=(1, 5), layout="NC"),),
    )
    torch.manual_seed(0)
    free = module_source(Strided().eval(), contract, label="strided")
    path = tmp_path / "model.onnx"
    onnx.save(with_fixed_pool(free.graph), path)  # at 96×112 it gives 1×2 pixels, and the product refuses them
    found = probes(contract, free.reference, real=None, seed=0)
    walked = explain(free, "onnx", path, contract, inputs=found, precision="fp32")
    (failed,) = (size for size in walked.sizes if size.failure)
    assert failed.dims == {"H": 96, "W": 112}
    assert "Gemm" in failed.failure
    assert walked.departing_sizes == (failed.dims,)


def test_a_user_s_own_onnx_file_is_walked_by_its_values(source, found, tmp_path):
    own = dataclasses.replace(source, module=None)
    path = tmp_path / "model.onnx"
    onnx.save(changed(source.graph, LEFT, negated), path)
    walked = explain(own, "onnx", path, CONTRACT, inputs=found, precision="fp32")
    assert walked.first_departing.node == LEFT
    assert all(row.module == "" for row in walked.rows)


@pytest.mark.parametrize("name", ["tflite", "openvino"])
def test_other_formats_of_the_same_network(source, found, tmp_path, name):
    entry = exporters.entry(name)
    if entry.card.missing():
        pytest.skip(f"{name} packages are not installed")
    path, contract = written(source, "fp32", tmp_path, name)
    walked = explain(source, name, path, contract, inputs=found, precision="fp32")
    assert walked.first_departing is None, walked.summary()
    assert len(walked.rows) >= 15
    assert all(row.sqnr_db > 110 for row in walked.rows)
    wrong = dataclasses.replace(source, graph=changed(source.graph, LEFT, negated))
    (tmp_path / "wrong").mkdir()
    path, contract = written(wrong, "fp32", tmp_path / "wrong", name)
    departure = explain(source, name, path, contract, inputs=found, precision="fp32").first_departing
    assert departure.node in (LEFT, "/left/left.2/Relu")  # a ReLU may be fused into its convolution


class ByModule:
    """An exporter whose taps are named by torch modules, channels last, as some formats' are."""

    def __init__(self, values):
        self.values = values

    def tapped(self, path, contract):
        return lambda inputs: self.values(inputs["image"])


def test_taps_by_module_and_channels_last(source, found, monkeypatch):
    reference = Reference(source, found[0].inputs)
    by_scope = {layer.scope: layer for layer in reference.layers if layer.module and layer.scope}

    def values(image):
        seen = reference.observe({"image": image})
        told = {scope: seen.of(layer) for scope, layer in by_scope.items()}  # the norm folded, under the convolution's name
        told["right.0"] = seen.modules["right.0", 0]  # and one without its norm: another value, and no departure
        told["mix.2"] = told["mix.2"] + 1
        last = {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in told.items()}
        return {**last, "logits": source.reference({"image": image})["logits"]}

    entry = dataclasses.replace(
        exporters.entry("onnx"), value=ByModule(values), card=dataclasses.replace(exporters.entry("onnx").card, taps="modules")
    )
    monkeypatch.setattr(walk, "exporters", type("Registry", (), {"entry": staticmethod(lambda name: entry)}))
    walked = explain(source, "onnx", None, CONTRACT, inputs=found, precision="fp32")
    rows = {row.node: row for row in walked.rows}
    assert walked.first_departing.node == "/mix/mix.2/Relu"
    assert rows[LEFT].sqnr_db > 100
    assert "/right/right.0/Conv" not in rows


def test_a_format_without_taps_says_so(source, found, monkeypatch, tmp_path):
    silent = dataclasses.replace(exporters.entry("onnx").card, taps="")
    monkeypatch.setattr(walk, "exporters", _Only(exporters, silent))
    with pytest.raises(UserError, match="does not show what its artifacts compute inside") as caught:
        explain(source, "onnx", tmp_path / "x", CONTRACT, inputs=found, precision="fp32")
    assert "bisection" in str(caught.value)


def test_layouts_are_matched_and_square_images_by_content():
    rng = np.random.default_rng(0)
    square = rng.normal(size=(1, 4, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(aligned(square, square.transpose(0, 2, 3, 1)), square)
    np.testing.assert_array_equal(aligned(square, square), square)
    vector = rng.normal(size=(2, 6, 1, 1)).astype(np.float32)
    np.testing.assert_array_equal(aligned(vector, vector.reshape(2, 6)), vector)
    assert aligned(vector, vector[:1]) is None
    image = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    flat = image.transpose(0, 2, 3, 1).reshape(2, -1)  # flattened channels last
    np.testing.assert_array_equal(aligned(image.reshape(2, -1), flat, image), image.reshape(2, -1))


def test_taps_undo_the_quantiser_s_names_and_prefer_what_was_rounded(source, tmp_path):
    path, contract = written(source, "int8", tmp_path)
    values = onnx_taps.tapped(path, contract)({"image": images(1)})
    assert not [name for name in values if "QuantizeLinear" in name]
    inside = values["/inverted/Add_output_0"]
    assert inside.dtype == np.float32
    assert len(np.unique(inside)) <= 256  # eight bits
    assert "logits" in values
    assert "head.weight" not in values


@pytest.mark.parametrize(
    ("node", "module", "line"),
    [
        ("/inverted/gate/ReduceMean", "inverted.gate", "s = x.mean((2, 3), keepdim=True)"),
        ("/inverted/gate/Sigmoid", "inverted.gate", "return x * torch.sigmoid("),
        ("/left/left.2/Relu", "left.2", "x = torch.cat([self.left(x), self.right(x)], dim=1)"),
        ("aten::cat", "the network itself", "x = torch.cat([self.left(x), self.right(x)], dim=1)"),
        ("HardSwish", "inverted.expand.2", "return x + self.project("),
    ],
)
def test_nodes_are_located_in_the_user_s_file(source, node, module, line):
    import user_net

    text = locate(source, node)
    path, _, place = text.partition(" (user_net.py:")
    assert path == module
    assert line in open(user_net.__file__).read().splitlines()[int(place.rstrip(")")) - 1]  # noqa: PTH123, SIM115
    assert locate(dataclasses.replace(source, module=None), node) == ""
    assert locate(source, "aten::fft_fft2") == ""


def test_the_plot_is_written(source, found, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(changed(source.graph, LEFT, negated), path)
    walked = explain(source, "onnx", path, CONTRACT, inputs=found, precision="fp32")
    picture = plot(walked, tmp_path / "walk.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
