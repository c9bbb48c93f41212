"""The road from a module to proven artifacts, with faults planted in every format's saved file."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from user_net import make
from zoo_kit import CLASSIFIERS

from trimtab.export.artifact import load_artifact
from trimtab.export.convert import ConversionError, convert, file_source, module_source, plan_formats
from trimtab.export.exporter import exporters
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError

CONTRACT = image_classifier(channels=3, height=32, width=32, classes=tuple("abcdefghij"), mean=(0.4,) * 3, std=(0.2,) * 3)
PAIRS = [("onnx", "fp32"), ("tflite", "fp32"), ("coreml", "fp32"), ("coreml", "fp16")]


def installed(pairs):
    return [
        pytest.param(
            *p, marks=pytest.mark.skipif(bool(exporters.entry(p[0]).card.missing()), reason=f"{p[0]} packages not installed")
        )
        for p in pairs
    ]


def lively(module):
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
    return module.eval()


@pytest.fixture(scope="module")
def source():
    return module_source(lively(make()), CONTRACT, label="user")


@pytest.mark.parametrize(("name", "precision"), installed(PAIRS))
def test_a_user_network_is_exported_and_proven(source, tmp_path, name, precision):
    (made,) = convert(source, [(name, precision)], tmp_path)
    artifact = load_artifact(made.folder)
    assert made.ok
    assert made.folder == tmp_path / f"{name}-{precision}"
    assert artifact.parity.sqnr_db >= {"fp32": 90, "fp16": 45}[precision]
    assert artifact.parity.top1_agreement == 1
    assert artifact.path(made.folder).exists()
    assert artifact.ops
    golden = np.load(made.folder / "golden.npz")
    assert set(golden) == {"input:image", "output:logits"}
    run = exporters.get(name).runner(artifact.path(made.folder), artifact.contract)
    out = run({"image": golden["input:image"]})["logits"]
    np.testing.assert_allclose(out, golden["output:logits"], atol=1e-4 if precision == "fp32" else 5e-2)


def test_what_a_download_costs_is_told_and_may_be_missing_in_old_manifests(source, tmp_path):
    zeros = copy.deepcopy(source.module)
    for weight in zeros.parameters():
        if weight.dim() > 1:
            weight.data[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.8] = 0
    made = [
        convert(net, [("onnx", "fp32")], tmp_path / net.label)[0]
        for net in (source, module_source(zeros, CONTRACT, label="pruned"))
    ]
    dense, pruned = (each.artifact for each in made)
    assert abs(pruned.size_bytes / dense.size_bytes - 1) < 0.01  # zeros are stored like any number
    assert dense.deflated_bytes > 0.8 * dense.size_bytes  # random float32 hardly deflates
    assert pruned.deflated_bytes < 0.5 * pruned.size_bytes
    manifest = made[0].folder / "artifact.json"
    old = json.loads(manifest.read_text())
    assert old.pop("deflated_bytes") == dense.deflated_bytes
    manifest.write_text(json.dumps(old))
    assert load_artifact(made[0].folder).deflated_bytes is None


def plant(module, fault):
    module = copy.deepcopy(module)
    with torch.no_grad():
        match fault:
            case "a wrong weight":
                module.head.weight[3].neg_()
            case "swapped channels":
                module.entry[0].weight.copy_(module.entry[0].weight[:, [2, 1, 0]])
            case "a dropped bias":
                module.head.bias.zero_()
            case "a wrong normalisation":
                module.entry[0].weight.mul_(5)  # as if the pixels had not been divided by std 0.2
    return module


@pytest.mark.parametrize("fault", ["a wrong weight", "swapped channels", "a dropped bias", "a wrong normalisation"])
@pytest.mark.parametrize(("name", "precision"), installed(PAIRS))
def test_a_planted_fault_is_rejected_and_kept_beside(source, tmp_path, name, precision, fault):
    wrong = module_source(plant(source.module, fault), CONTRACT, label="wrong")
    tampered = type(source)(source.label, source.contract, source.reference, wrong.graph, wrong.module, {})
    (made,) = convert(tampered, [(name, precision)], tmp_path)
    assert not made.ok
    assert made.folder.name == f"{name}-{precision}.rejected"
    assert not (tmp_path / f"{name}-{precision}").exists()
    report = json.loads((made.folder / "artifact.json").read_text())
    assert "below the" in report["parity"]["reason"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_no_zoo_network_needs_a_transpose_or_an_unfolded_norm(name, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="the tflite extra is not installed")
    entry = architectures.entry(name)
    channels, side, _ = entry.card.input
    side = min(side, 64)
    contract = image_classifier(
        channels=channels, height=side, width=side, classes=tuple("abcdefghij"), mean=(0.0,) * channels, std=(1.0,) * channels
    )
    zoo = module_source(lively(entry.value(num_classes=10)), contract, label=name)
    assert "BatchNormalization" not in {node.op_type for node in zoo.graph.graph.node}
    (made,) = convert(zoo, [("tflite", "fp32")], tmp_path)
    assert made.ok, made.artifact.parity.reason
    # attention itself splits and joins heads: four a block, and none for the sake of a layout
    blocks = len(getattr(zoo.module, "blocks", ())) if zoo.module is not None else 0
    assert made.artifact.ops.get("TRANSPOSE", 0) == 4 * blocks


def test_any_onnx_file_becomes_tflite(source, tmp_path):
    (made,) = convert(source, [("onnx", "fp32")], tmp_path / "a")
    again = convert(file_source(made.folder / "model.onnx"), plan_formats(["onnx", "tflite"], None), tmp_path / "b")
    assert all(c.ok for c in again)
    assert again[1].artifact.contract.inputs[0].layout == "NHWC"
    with pytest.raises(UserError, match="is made from a torch module"):
        convert(file_source(made.folder / "model.onnx"), [("coreml", "fp16")], tmp_path / "c")


def test_what_is_there_is_not_overwritten_and_force_replaces_it(source, tmp_path):
    convert(source, [("onnx", "fp32")], tmp_path)
    with pytest.raises(UserError, match="exists and is not empty"):
        convert(source, [("onnx", "fp32")], tmp_path)
    convert(source, [("onnx", "fp32")], tmp_path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["onnx-fp32"]


def test_a_changed_artifact_is_refused(source, tmp_path):
    (made,) = convert(source, [("onnx", "fp32")], tmp_path)
    path = made.folder / "model.onnx"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="its sha256 differs"):
        load_artifact(made.folder)
    manifest = json.loads((made.folder / "artifact.json").read_text())
    (made.folder / "artifact.json").write_text(json.dumps({**manifest, "file": "../../x"}))
    with pytest.raises(UserError, match="points outside its folder"):
        load_artifact(made.folder)


@pytest.mark.parametrize(
    ("formats", "precisions", "message", "hint"),
    [
        (["onxx"], None, "unknown export format 'onxx'", "did you mean 'onnx'?"),
        (["onnx"], ["fp8"], "ONNX has no precision 'fp8'", "fp32"),
        (["coreml"], ["int8-activations"], "Core ML mlprogram cannot be written as int8-activations", "use fp32, fp16"),
    ],
)
def test_what_a_format_can_t_hold_is_said_before_anything_runs(formats, precisions, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        plan_formats(formats, precisions)
    assert hint in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed") as caught:
        plan_formats(["coreml"], ["fp32"])
    assert "trimtab[coreml]" in str(caught.value)


class Untraceable(nn.Module):
    """Singular values: ONNX has no such operator."""

    def forward(self, image):
        return torch.linalg.svd(image.mean(1))[1][:, :10]


class BakedIn(nn.Module):
    """Leaves torch on its way: tracing freezes the example's values into the graph without a word."""

    def forward(self, image):
        return torch.from_numpy(image.numpy().mean((2, 3)).repeat(4, axis=1)[:, :10])


def test_a_network_that_can_t_be_traced_is_explained(tmp_path):
    source = module_source(Untraceable(), CONTRACT, label="x")
    with pytest.raises(UserError, match="can't be traced to ONNX"):
        convert(source, [("onnx", "fp32")], tmp_path)
    with pytest.raises(UserError, match="can't be traced to ONNX"):
        source.traced()


class HyperbolicSine(nn.Module):
    """An operator that the ONNX exporter has not, in a block of its own."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU())

    def forward(self, image):
        return torch.asinh(self.blocks(image)).mean((2, 3))


def test_an_operator_that_onnx_has_not_is_named_with_its_line_and_keeps_no_other_format_from_its_turn(tmp_path):
    source = module_source(HyperbolicSine(), CONTRACT, label="x")
    with pytest.raises(ConversionError, match=r"2 of 3 artifacts could not be written") as caught:
        convert(source, [("onnx", "fp32"), ("tflite", "fp32"), ("executorch", "fp32")], tmp_path)
    assert "onnx fp32, tflite fp32: the network can't be traced to ONNX" in caught.value.what  # said once
    assert re.search(r"aten::asinh.* in the network itself \(test_convert\.py:\d+\)", caught.value.what)
    assert [made.artifact.format for made in caught.value.made] == ["executorch"]


def test_a_network_that_traces_wrongly_is_rejected(tmp_path):
    (made,) = convert(module_source(BakedIn(), CONTRACT, label="x"), [("onnx", "fp32")], tmp_path)
    assert not made.ok


def test_an_invalid_onnx_file_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        file_source(Path("none.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"bad\.onnx is not a valid ONNX model"):
        file_source(tmp_path / "bad.onnx")


def test_class_names_must_be_as_many_as_outputs(source, tmp_path):
    contract = source.contract.model_copy(update={"classes": ("a", "b", "c")})
    with pytest.raises(UserError, match="there are 3 class names, and output 'logits' has 10 entries"):
        convert(replace(source, contract=contract), [("onnx", "fp32")], tmp_path)


def test_what_fails_does_not_keep_the_others_from_being_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.export.tflite.roads.ready", lambda road: False)
    no_module = replace(source, graph=broken(source.graph))
    with pytest.raises(ConversionError, match="TFLite cannot hold 1 operator") as caught:
        convert(no_module, [("tflite", "fp32"), ("coreml", "fp32")], tmp_path)
    assert [made.artifact.format for made in caught.value.made] == ["coreml"]
    assert "coreml fp32 is in place" in caught.value.hint
    assert "where: odd" not in caught.value.what  # a node of no module has no place
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coreml-fp32"]


def broken(graph):
    """The graph with an operator that no TFLite kernel computes."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(graph)
    node = made.graph.node[-1]
    node.output[0], last = "before", node.output[0]
    made.graph.node.append(onnx.helper.make_node("Asinh", ["before"], [last], name="odd"))
    return made
