"""Inner values of a saved file: each is the ONNX value of its name, and a planted fault shows at its layer first."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")
pytest.importorskip("ai_edge_quantizer", reason="needs trimtab[tflite]")

import torch
from onnx import numpy_helper
from test_tflite_nets import to_onnx
from tflite_nets import NETS, build
from tflite_requests import CONTRACT, ENTRY, images, onnx_values, user_source, write
from tflite_support import sqnr_db

from trimtab.export.exporter import ExportRequest
from trimtab.models.errors import UserError

GATE_DB = 90.0
"""Float32 rounding leaves 100–150 dB; a value of another name, or entries in another order, leave less than 20."""


@pytest.fixture(scope="module")
def source():
    return user_source()


def tapped(path, contract, feeds):
    """All that the file shows for inputs in NHWC."""
    return ENTRY.value.tapped(path, contract)(feeds)


def differences(found, wanted):
    """The SQNR in dB of every tap that has an ONNX value of its name, in its file's order; feature maps turned to NCHW."""
    measured = {}
    for name, value in found.items():
        reference = wanted[name]
        turned = value.transpose(0, 3, 1, 2) if value.ndim == 4 and reference.shape != value.shape else value
        assert turned.shape == reference.shape, name
        measured[name] = sqnr_db(reference, turned)
    return measured


def test_every_tap_of_a_float_file_is_the_value_of_its_name(source, tmp_path):
    out = tmp_path / "m.tflite"
    facts = write(source, "fp32", out)
    x = images(3)
    measured = differences(
        tapped(out, facts.contract, {"image": x.transpose(0, 2, 3, 1)}), onnx_values(source.graph, {"image": x})
    )
    assert len(measured) >= 18
    assert all(value.dtype == np.float32 for value in tapped(out, facts.contract, {"image": x.transpose(0, 2, 3, 1)}).values())
    assert min(measured.values()) >= GATE_DB, measured


@pytest.mark.parametrize("name", list(NETS))
def test_no_tap_of_any_network_lies(name, tmp_path):
    """Values that are stored in another order of entries (before a PixelShuffle, after a Flatten) are left out."""
    torch.set_num_threads(1)
    model, contract = to_onnx(name, build(name), dynamo=False, slim=True)
    out = tmp_path / "m.tflite"
    facts = ENTRY.value.export(ExportRequest(contract, "fp32", out, graph=model))
    x = np.random.default_rng(0).uniform(size=(2, *NETS[name][1])).astype(np.float32)
    laid = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
    found, wanted = tapped(out, facts.contract, {"image": laid}), onnx_values(model, {"image": x})
    assert set(found) <= set(wanted)
    assert len(found) > 1
    for key, value in found.items():
        reference = wanted[key]
        turned = [value.transpose(order) for order in itertools.permutations(range(value.ndim))]
        assert max(sqnr_db(reference, t) for t in turned if t.shape == reference.shape) >= GATE_DB, key


@pytest.mark.parametrize(("precision", "gate"), [("fp16", 45), ("int8", 20), ("int8-dynamic", 25), ("int16x8", 25)], ids=str)
def test_taps_of_every_precision_are_in_real_numbers(source, tmp_path, precision, gate):
    """The gates of whole artifacts, 5 dB less for int8: some inner values are small against their range."""
    out = tmp_path / "m.tflite"
    facts = write(source, precision, out)
    x = images(2)
    found = tapped(out, facts.contract, {"image": x.transpose(0, 2, 3, 1)})
    measured = differences(found, onnx_values(source.graph, {"image": x}))
    assert len(measured) >= 18
    assert min(measured.values()) >= gate, measured


def test_taps_of_a_file_with_integer_doors_and_a_float_layer(source, tmp_path):
    out = tmp_path / "m.tflite"
    kept = next(node for node in source.graph.graph.node if node.op_type == "Conv")
    facts = write(source, "int8", out, io="uint8", keep={kept.name})
    x = images(2)
    feeds = {"image": facts.contract.inputs[0].stored(x.transpose(0, 2, 3, 1))}
    found = tapped(out, facts.contract, feeds)
    assert found.pop("logits").dtype == np.uint8
    measured = differences(found, onnx_values(source.graph, {"image": x}))
    assert min(measured.values()) >= 20, measured


@pytest.mark.parametrize("number", [1, 4, 8])
def test_a_wrong_bias_shows_at_its_layer_first(source, tmp_path, number):
    graph = copy.deepcopy(source.graph)
    layer = [node for node in graph.graph.node if node.op_type == "Conv"][number]
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == layer.input[2])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1), bias.name))
    out = tmp_path / "m.tflite"
    facts = write(source, "fp32", out, graph=graph)
    x = images(2)
    measured = differences(
        tapped(out, facts.contract, {"image": x.transpose(0, 2, 3, 1)}), onnx_values(source.graph, {"image": x})
    )
    first = next(name for name, db in measured.items() if db < GATE_DB)
    readers = [node for node in graph.graph.node if layer.output[0] in node.input]
    assert first in {layer.output[0], *(out for node in readers for out in node.output)}  # or the activation fused into it
    assert CONTRACT.outputs[0].name in measured


def test_taps_want_the_contracts_inputs(source, tmp_path):
    out = tmp_path / "m.tflite"
    facts = write(source, "fp32", out)
    with pytest.raises(UserError, match="needs the input 'image'"):
        tapped(out, facts.contract, {})
