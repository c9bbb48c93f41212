"""Bisection: pieces compute what the whole does, and the culprit is the node that was made to fail."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from test_convert import CONTRACT, lively
from test_explain import LEFT, changed, negated
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export.convert import module_source, torch_reference
from trimtab.export.explain.bisect import bisect, bisect_source
from trimtab.export.explain.pieces import Target, Verdict, convert_and_judge, graph_of
from trimtab.export.explain.pieces_onnx import OnnxPieces
from trimtab.export.explain.pieces_torch import TorchPieces
from trimtab.export.exporter import exporters
from trimtab.export.onnx import to_graph
from trimtab.export.onnx_taps import InnerValues
from trimtab.export.parity import probes, sqnr_db
from trimtab.models.errors import UserError


class Inverted(nn.Module):
    """A network with an operation that ONNX and Core ML have not, a ReLU in place, a split, and two outputs."""

    def __init__(self):
        super().__init__()
        self.body, self.act, self.out = make(width=8), nn.ReLU(inplace=True), nn.Linear(10, 10)

    def forward(self, image):
        x = self.act(self.body(image))
        first, rest = x.split([9, 1], dim=1)
        square = first.reshape(-1, 3, 3)
        square = torch.linalg.inv(square.transpose(1, 2) @ square + torch.eye(3))
        return {"logits": self.out(torch.cat([square.flatten(1), rest], 1)), "rest": rest}


@pytest.fixture(scope="module")
def source():
    return module_source(lively(make(width=8)), CONTRACT, label="user")


@pytest.fixture(scope="module")
def found(source):
    return probes(CONTRACT, source.reference, real=images(16, seed=1), seed=0)


@pytest.fixture(scope="module")
def inverted():
    contract = CONTRACT.model_copy(
        update={"outputs": (*CONTRACT.outputs, CONTRACT.outputs[0].model_copy(update={"name": "rest", "shape": ("N", 1)}))}
    )
    net = lively(Inverted())
    found = probes(contract, torch_reference(net, contract), real=images(16, seed=1), seed=0)
    return TorchPieces(net, contract, found), net, found


def by_place(op):
    """A converter that has not `op`."""

    def judged(piece):
        bad = [place for place in piece.places if op in place.op]
        return Verdict(ok=not bad, kind="conversion" if bad else "", message=f"no {op}" if bad else "")

    return judged


def test_prefixes_of_a_module_end_with_the_whole(inverted):
    pieces, net, found = inverted
    whole = pieces.prefix(pieces.last)
    assert [spec.name for spec in whole.contract.outputs] == ["logits", "rest"]
    for probe, original in zip(whole.probes, found, strict=False):
        with torch.inference_mode():
            expected = net(torch.from_numpy(original.inputs["image"]))
        for name, value in expected.items():
            np.testing.assert_array_equal(probe.outputs[name], value.numpy())
    assert len(whole.places) > pieces.last  # a split has no cut inside


def test_a_piece_between_two_cuts_goes_on_where_the_prefix_ends(inverted):
    pieces, _, _ = inverted
    for start in range(0, pieces.last, 7):
        end = min(start + 7, pieces.last)
        before, step, after = pieces.prefix(start) if start else None, pieces.between(start, end), pieces.prefix(end)
        assert set(step.places) == set(after.places) - (set(before.places) if before else set())
        wanted = {value.tobytes() for value in after.probes[1].outputs.values()}
        made = {value.tobytes() for value in step.probes[1].outputs.values()}
        assert made <= wanted  # torch computes it twice with the same kernels
        assert made


def test_pieces_of_a_graph_compute_torch_s_values(source, found):
    pieces = OnnxPieces(source, found)
    whole, middle = pieces.prefix(pieces.last), pieces.between(10, 14)
    assert pieces.last == len(source.graph.graph.node)
    for piece in (whole, middle, pieces.prefix(8)):
        run = InnerValues(graph_of(piece))
        for probe in piece.probes:
            made = run(probe.inputs)
            for name, expected in probe.outputs.items():
                assert sqnr_db(expected, made[name]) > 100  # float32 rounds at some 140 dB
    assert {len(p.inputs[middle.contract.inputs[0].name]) for p in middle.probes} == {1, 2, 5}
    assert middle.contract.inputs[0].shape[0] == "N"


@pytest.mark.parametrize("op", ["linalg_inv", "split", "adaptive_avg_pool2d", "cat", "conv2d"])
def test_the_first_node_a_converter_has_not_is_found(inverted, op):
    pieces, _, _ = inverted
    heard = []
    culprit = bisect(pieces, by_place(op), on_try=lambda tries, most: heard.append((tries, most)))
    first = next(place for place in pieces.prefix(pieces.last).places if op in place.op)
    assert (culprit.op, culprit.node, culprit.module, culprit.line) == (first.op, first.node, first.module, first.line)
    assert culprit.alone
    assert culprit.complete
    assert culprit.kind == "conversion"
    assert culprit.tries == len(heard) <= heard[0][1] <= 2 + len(pieces.prefix(pieces.last).places).bit_length()


def test_places_name_the_module_and_the_user_s_line(inverted):
    pieces, _, _ = inverted
    places = {place.op: place for place in pieces.prefix(pieces.last).places}
    assert str(places["aten.linalg_inv"]).startswith("aten.linalg_inv linalg_inv in (test_bisect.py:")
    assert places["aten.sigmoid"].module == "body.inverted.gate"
    assert places["aten.sigmoid"].line.startswith("user_net.py:")


def test_nothing_is_found_where_everything_passes(inverted):
    assert bisect(inverted[0], by_place("nothing")) is None


def test_a_fault_that_needs_what_comes_before_says_so(inverted):
    pieces, _, _ = inverted

    def judged(piece):  # as when a converter merges operators: alone each is right
        bad = len(piece.places) > 20
        return Verdict(ok=not bad, kind="parity" if bad else "", message="merged wrongly" if bad else "")

    culprit = bisect(pieces, judged)
    assert not culprit.alone
    assert culprit.kind == "parity"
    assert len(culprit.piece.places) == 21
    assert "by itself it passes" in str(culprit)


def test_the_search_ends_when_time_is_out(inverted):
    pieces, _, _ = inverted
    slow = by_place("linalg_inv")

    def judged(piece):
        time.sleep(0.05)
        return slow(piece)

    culprit = bisect(pieces, judged, seconds=0.0)
    assert (culprit.tries, culprit.complete) == (1, False)
    assert f"one of {len(culprit.others) + 1} nodes" in str(culprit)


@pytest.mark.parametrize("name", ["onnx", "coreml"])
def test_the_real_converters_refuse_the_inverse(inverted, tmp_path, name):
    if exporters.entry(name).card.missing():
        pytest.skip(f"{name} packages are not installed")
    pieces, _, _ = inverted
    start = next(k for k in range(pieces.last) if "linalg_inv" in pieces.between(k, k + 1).places[0].op)
    alone = convert_and_judge(pieces.between(start, start + 1), Target(name, "fp32"), tmp_path)
    assert (alone.ok, alone.kind) == (False, "conversion")
    assert "linalg_inv" in alone.message
    sound = convert_and_judge(pieces.between(start - 1, start), Target(name, "fp32"), tmp_path)
    assert sound.ok, sound.message
    assert sound.sqnr_db > 100


def test_the_inverse_is_found_through_the_real_exporter(inverted, tmp_path):
    culprit = bisect(inverted[0], lambda piece: convert_and_judge(piece, Target("onnx", "fp32"), tmp_path))
    assert (culprit.op, culprit.kind, culprit.alone) == ("aten.linalg_inv", "conversion", True)
    assert "aten::linalg_inv" in culprit.message


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_a_planted_weight_is_found_by_parity(source, found, name):
    if exporters.entry(name).card.missing():
        pytest.skip(f"{name} packages are not installed")
    wrong = dataclasses.replace(source, graph=changed(source.graph, LEFT, negated))
    culprit = bisect_source(wrong, Target(name, "fp32"), inputs=found)
    assert (culprit.node, culprit.op, culprit.module, culprit.kind) == (LEFT, "Conv", "left.0", "parity")
    assert culprit.line.startswith("user_net.py:")
    assert culprit.alone
    assert culprit.sqnr_db < 30
    assert culprit.tries <= 8
    assert bisect_source(source, Target(name, "fp32"), inputs=found) is None


def test_integers_get_calibration_inputs_of_their_own(source, found, tmp_path):
    feeds = [{"image": images(1, seed=k)} for k in range(16)]
    for pieces in (OnnxPieces(source, found, feeds=feeds), TorchPieces(source.module, CONTRACT, found, feeds=feeds)):
        step = pieces.between(3, 6)
        assert len(step.feeds) == 16
        assert step.feeds[0].keys() == {spec.name for spec in step.contract.inputs}
    verdict = convert_and_judge(OnnxPieces(source, found, feeds=feeds).prefix(6), Target("onnx", "int8"), tmp_path)
    assert verdict.ok, verdict.message
    assert 25 <= verdict.sqnr_db < 70  # rounded


def test_a_network_that_can_t_be_followed_is_explained():
    class Deciding(nn.Module):
        def forward(self, image):
            return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))

    contract = CONTRACT.model_copy(
        update={"outputs": (CONTRACT.outputs[0].model_copy(update={"shape": ("N", 3)}),), "classes": ()}
    )
    found = probes(contract, torch_reference(Deciding(), contract), real=None, seed=0)
    with pytest.raises(UserError, match=r"can't be cut into pieces: torch\.export"):
        TorchPieces(Deciding(), contract, found)


def test_a_module_s_piece_is_traced_to_onnx_where_the_format_wants_it(inverted):
    pieces, _, _ = inverted
    piece = pieces.prefix(5)
    graph = to_graph(piece.module, piece.contract, tuple(torch.from_numpy(a) for a in piece.example))
    assert [node.op_type for node in graph_of(piece).graph.node] == [node.op_type for node in graph.graph.node]
