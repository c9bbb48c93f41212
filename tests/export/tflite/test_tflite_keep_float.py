"""Single layers of an integer file in float: exactly those that are named, whatever they were fused with."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")
pytest.importorskip("ai_edge_quantizer", reason="needs trimtab[tflite]")

from onnx import helper
from tflite_requests import CONTRACT, user_source, verdict, write
from tflite_support import make_model

from trimtab.export.exporter import ExportRequest, exporters
from trimtab.export.tflite.anatomy import anatomy
from trimtab.export.tflite.exporter import nhwc
from trimtab.export.tflite.model import build
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@pytest.fixture(scope="module")
def source():
    return user_source()


def layers(path):
    """(dtype of the result, dtype of the weights) of every layer with weights, in order."""
    found = anatomy(path.read_bytes())
    steps = [step for step in found.steps if step.kind in LAYERS]
    return [(found.dtypes[0, step.outputs[0]], found.dtypes[0, step.inputs[1]]) for step in steps]


def convolutions(source):
    """The names of the graph's convolutions and products, in order."""
    return [node.name for node in source.graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


@pytest.mark.parametrize(("precision", "held"), [("int8", "int8"), ("int16x8", "int16")], ids=["int8", "int16x8"])
def test_exactly_the_named_convolutions_are_float(source, tmp_path, precision, held):
    out = tmp_path / "m.tflite"
    names = convolutions(source)
    chosen = {0, 3, 7}
    assert len(names) == len(layers_of_everything := _all_integer(source, precision, out)) == 11
    assert set(layers_of_everything) == {(held, "int8")}
    facts = write(source, precision, out, keep={names[i] for i in chosen})
    assert [i for i, layer in enumerate(layers(out)) if layer == ("float32", "float32")] == sorted(chosen)
    assert {layer for i, layer in enumerate(layers(out)) if i not in chosen} == {(held, "int8")}
    assert facts.audit.islands["CONV_2D"] == 3
    assert any("stay in float: 3 CONV_2D" in warning for warning in facts.warnings)
    assert verdict(source, facts, out, precision).ok


def _all_integer(source, precision, out):
    write(source, precision, out)
    return layers(out)


def test_every_layer_kept_improves_the_sqnr(source, tmp_path):
    out = tmp_path / "m.tflite"
    names = convolutions(source)
    plain = verdict(source, write(source, "int8", out), out, "int8").sqnr_db
    kept = verdict(source, write(source, "int8", out, keep=set(names)), out, "int8").sqnr_db
    assert {layer[0] for layer in layers(out)} == {"float32"}
    # weights and accumulations are exact then, activations between are still int8: measured 4.5 dB, noise is far below 1
    assert kept > plain + 1


def test_in_a_dynamic_file_a_kept_layer_has_float_weights(source, tmp_path):
    out = tmp_path / "m.tflite"
    names = convolutions(source)
    write(source, "int8-dynamic", out, keep={names[2], names[10]})
    assert [weights for _, weights in layers(out)] == ["float32" if i in (2, 10) else "int8" for i in range(11)]


def test_one_node_of_a_fused_operator_keeps_the_whole(source, tmp_path):
    """Relu is part of the convolution before it, and a HardSwish is several operators."""
    out = tmp_path / "m.tflite"
    relu = next(node.name for node in source.graph.graph.node if node.op_type == "Relu")
    write(source, "int8", out, keep={relu})
    assert [i for i, layer in enumerate(layers(out)) if layer[0] == "float32"] == [0]
    swish = next(node.name for node in source.graph.graph.node if node.op_type == "HardSwish")
    facts = write(source, "int8", out, keep={swish})
    assert {layer[0] for layer in layers(out)} == {"int8"}
    assert {kind: facts.audit.islands[kind] for kind in ("ADD", "MUL")} == {"ADD": 1, "MUL": 2}


def test_a_name_that_another_begins_with_is_another(tmp_path):
    """Names go to the quantiser as expressions: "a" must not match "ab", nor "a.b" match "axb"."""
    x = ("N", 3, 8, 8)
    weight = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)
    outs = ["a.b", "axb", "a.bc", "y"]
    nodes = [
        helper.make_node("Conv", [source, "w"], [out], name=f"conv {out}")
        for source, out in zip(["x", *outs], outs, strict=False)
    ]
    model = make_model(nodes, {"x": (x, np.float32)}, ["y"], {"w": weight})
    contract = Contract(
        inputs=(TensorSpec(name="x", shape=x, layout="NCHW"),), outputs=(TensorSpec(name="y", shape=x, layout="NCHW"),)
    )
    feeds = tuple({"x": np.random.default_rng(i).normal(size=(1, 3, 8, 8)).astype(np.float32)} for i in range(4))
    out = tmp_path / "m.tflite"
    request = ExportRequest(contract, "int8", out, graph=model, calibration=feeds, keep_float=frozenset(["conv a.b"]))
    exporters.get("tflite").export(request)
    assert [layer[0] for layer in layers(out)] == ["float32", "int8", "int8", "int8"]


def test_an_unknown_node_is_refused_with_its_neighbours(source, tmp_path):
    name = convolutions(source)[0]
    with pytest.raises(UserError, match=r"is no node of the graph\n.*did you mean") as caught:
        write(source, "int8", tmp_path / "m.tflite", keep={name[:-1]})
    assert name in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_every_operator_knows_the_nodes_behind_it(source):
    program = build(source.graph, nhwc(CONTRACT))
    covered = frozenset().union(*(op.origins for op in program.ops))
    every = {node.name for node in source.graph.graph.node if node.op_type != "Constant"}
    assert covered <= every
    shapes = {"Shape", "Gather", "Unsqueeze", "Concat", "Slice", "Cast", "Identity", "Flatten", "Reshape"}
    assert {n.op_type for n in source.graph.graph.node if n.name in every - covered} <= shapes
