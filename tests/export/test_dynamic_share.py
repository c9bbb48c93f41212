"""Weights stored once: slices of the full tensor give the branch's own weight back, or are not used."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from routed_nets import CONTRACT, WIDE, Plain, kept
from torch import nn

from trimtab.export.dynamic.routed import assembled
from trimtab.export.dynamic.share import LEAST_BYTES, Slice, graphs, module_path, share
from trimtab.export.onnx import to_graph
from trimtab.models.contract import image_classifier
from trimtab.models.edits import Edit
from trimtab.models.routed import RoutedNet, RouteSpec, plain_branch

RNG = np.random.default_rng(0)


def two_branches(narrow, full, **attributes):
    """If(condition): x·full else x·narrow, padded to full's width; node names are "full" and "narrow"."""
    value = helper.make_tensor_value_info

    def branch(name, weight):
        conv = helper.make_node("Conv", ["x", f"{name}/w"], [f"{name}/y"], name=name)
        total = helper.make_node("ReduceSum", [f"{name}/y"], [f"{name}/sum"], keepdims=1)
        tensor = numpy_helper.from_array(weight, f"{name}/w")
        out = value(f"{name}/sum", onnx.TensorProto.FLOAT, [1, 1, 1, 1])
        return helper.make_graph([conv, total], name, [], [out], [tensor])

    # both read the same x: the narrow branch keeps all input channels
    choice = helper.make_node("If", ["first"], ["out"], then_branch=branch("narrow", narrow), else_branch=branch("full", full))
    inputs = [value("x", onnx.TensorProto.FLOAT, [1, full.shape[1], 8, 8]), value("first", onnx.TensorProto.BOOL, [])]
    outputs = [value("out", onnx.TensorProto.FLOAT, [1, 1, 1, 1])]
    return helper.make_model(
        helper.make_graph([choice], "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )


def weights(rows=64, columns=16):
    return RNG.normal(size=(rows, columns, 3, 3)).astype(np.float32)


def run(model, x, first):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "first": np.array(first)})[0]


def bytes_of(model):
    return sum(numpy_helper.to_array(t).nbytes for g in graphs(model.graph) for t in g.initializer)


def nodes(model, kind):
    return [n for g in graphs(model.graph) for n in g.node if n.op_type == kind]


ROWS = np.array([0, 3, 5, 8, 40, 63], dtype=np.int32)


def test_rows_of_the_full_weight_are_stored_once():
    full = weights()
    model = two_branches(full[ROWS], full)
    made = share(model, {"narrow": Slice("full", ROWS, None)})
    onnx.checker.check_model(made, full_check=True)
    assert bytes_of(made) < full.nbytes + 200  # the positions, and the numbers of the slice that takes all
    assert len(nodes(made, "Gather")) == 1
    assert nodes(made, "Mul") == []  # nothing was scaled
    x = RNG.normal(size=(1, 16, 8, 8)).astype(np.float32)
    for first in (True, False):
        np.testing.assert_array_equal(run(made, x, first), run(model, x, first))  # the very same bits are multiplied


def test_a_scale_of_each_output_channel_is_stored_beside_it():
    full = weights()
    scale = RNG.uniform(0.2, 3, (len(ROWS), 1, 1, 1)).astype(np.float32)
    model = two_branches(full[ROWS] * scale, full)
    made = share(model, {"narrow": Slice("full", ROWS, None)})
    assert len(nodes(made, "Mul")) == 1
    x = RNG.normal(size=(1, 16, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(made, x, True), run(model, x, True), rtol=1e-4, atol=1e-3)  # 31,104 products of order 1
    assert bytes_of(made) < full.nbytes + 300


@pytest.mark.parametrize("change", ["one value", "other rows", "noise"])
def test_what_is_no_slice_is_kept_whole(change):
    full = weights()
    narrow = full[ROWS].copy()
    if change == "one value":
        narrow[2, 3, 1, 1] *= 1.00001
    elif change == "other rows":
        narrow = full[ROWS + np.array([1, 0, 0, 0, 0, 0])]
    else:
        narrow += RNG.normal(size=narrow.shape).astype(np.float32) * 1e-4
    model = two_branches(narrow, full)
    made = share(model, {"narrow": Slice("full", ROWS, None)})
    assert nodes(made, "Gather") == []
    stored = {t.name: numpy_helper.to_array(t) for g in graphs(made.graph) for t in g.initializer}
    np.testing.assert_array_equal(stored["narrow/w"], narrow)


def test_positions_outside_the_full_weight_are_no_slice():
    full = weights()
    model = two_branches(full[ROWS], full[:50])
    made = share(model, {"narrow": Slice("full", ROWS, None)})
    assert nodes(made, "Gather") == []


def test_equal_weights_of_two_branches_lie_there_once():
    full = weights()
    model = two_branches(full.copy(), full)
    made = share(model, {})
    assert bytes_of(made) < full.nbytes + 100
    x = RNG.normal(size=(1, 16, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(made, x, True), run(model, x, True))


def test_the_given_graph_is_left_alone():
    full = weights()
    model = two_branches(full[ROWS], full)
    before = copy.deepcopy(model)
    share(model, {"narrow": Slice("full", ROWS, None)})
    assert model == before


@pytest.mark.parametrize(
    ("node", "path"),
    [("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"), ("/stem/stem.0/Conv", "stem.0"), ("/head/Gemm", "head"), ("Conv", "")],
)
def test_a_node_tells_its_module(node, path):
    assert module_path(node) == path


class Large(Plain):
    """The kit's network with channels enough for weights to be most of the file."""

    WIDTH = 128

    def __init__(self):
        super().__init__()
        wide = self.WIDTH
        self.first, self.norm1 = nn.Conv2d(8, wide, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wide)
        self.second, self.norm2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        self.head = nn.Linear(wide, 5)


def large(nested):
    def cut(count):
        edits = kept(min(count, WIDE - 1)) if count < Large.WIDTH else ()
        return tuple(
            Edit(
                path=e.path, side=e.side, size=Large.WIDTH, kept=tuple(range(0, 2 * count, 2) if count <= 64 else range(count))
            )
            for e in edits
        )

    torch.manual_seed(0)
    net = RoutedNet(Large(), RouteSpec(branches=(cut(32), cut(64), ()), shared=("stem",), nested=nested))
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)
    return net.eval()


def test_a_nested_network_is_as_large_as_its_largest_branch():
    net = large(nested=True)
    shared, whole = (assembled(net, CONTRACT, sharing=sharing).model for sharing in (True, False))
    single = image_classifier(channels=3, height=16, width=16, classes=tuple("abcde"), mean=(0.4,) * 3, std=(0.2,) * 3)
    largest = to_graph(plain_branch(net, 2), single, (torch.zeros(1, 3, 16, 16),))
    assert shared.ByteSize() / largest.ByteSize() < 1.05
    assert whole.ByteSize() / largest.ByteSize() > 1.25  # (1/16 + 1/4 + 1) of the widest layer
    names = {node.name.split("/")[0] for node in nodes(shared, "Conv")}
    assert names == {"branch0", "branch1", "branch2"}
    assert len(nodes(shared, "Gather")) >= 2 * 2 + 2  # two branches: `second` by rows and columns; `first` by rows; thresholds


def test_branches_with_weights_of_their_own_share_none():
    net = large(nested=False)
    for branch in net.branches[:-1]:
        branch.second.weight.data.normal_()
    shared, whole = (assembled(net, CONTRACT, sharing=sharing).model for sharing in (True, False))
    assert bytes_of(shared) >= 0.99 * bytes_of(whole)


def test_sharing_changes_no_answer():
    net = large(nested=True)
    shared, whole = (assembled(net, CONTRACT, sharing=sharing).model for sharing in (True, False))
    for number, limits in enumerate(([0.0, 0.0], [1.01, 0.0], [1.01, 1.01])):
        feeds = {"image": RNG.normal(size=(1, 3, 16, 16)).astype(np.float32), "thresholds": np.float32(limits)}
        with torch.no_grad():
            wanted = net.branches[number](torch.from_numpy(feeds["image"])).numpy()
        for model in (shared, whole):
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            np.testing.assert_allclose(session.run(None, feeds)[0], wanted, rtol=1e-4, atol=2e-5)  # sums in another order


@pytest.mark.parametrize(("rows", "shared"), [(3, False), (4, True)], ids=["under the limit", "at the limit"])
def test_small_weights_are_not_worth_sharing(rows, shared):
    """A narrow weight of 4×16×3×3 float32 has 2304 bytes, one row less 1728: the limit, 2048, lies between."""
    full = weights()
    kept_rows = np.arange(rows)
    model = two_branches(full[kept_rows].copy(), full)
    found = share(model, {"narrow": Slice("full", kept_rows, None)})
    assert bool(nodes(found, "Gather") or nodes(found, "Slice")) == shared
    assert (bytes_of(found) < bytes_of(model)) == shared
    assert LEAST_BYTES == 2048
