"""Gated networks that gather: the masked network's function, with the channels that are off left out."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gated_kit import NETS, contract, fix, gated, gated_zoo, liven, save_gated, specs_for
from torch import nn
from user_net import UserNet, make

from trimtab.export.convert import convert, module_source, plan_formats
from trimtab.export.dynamic.gather_choice import Layer, choose, gain
from trimtab.export.dynamic.gathered import ONLY_HERE, REFUSALS, gathered_graph, gathered_source, refuse
from trimtab.models.architectures import architectures
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.gates import attach, gates_of
from trimtab.models.source import parse

SIDE = 32


def run(graph, x, *more):
    """ONNX Runtime's outputs (and intermediate values named in `more`) for one image."""
    graph = copy.deepcopy(graph)
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def images(count, *, channels=3, side=SIDE, seed=0):
    """Images of different brightness, so that gates differ."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, channels, side, side, generator=generator) * (0.3 + i % 3) for i in range(count)]


def agree(net, graph, *, count=8, **more):
    """Asserts that torch's masked network and the graph agree on `count` images; the masks seen, joined, one row an image."""
    seen = []
    for x in images(count, **more):
        with torch.no_grad():
            expected = net(x)
        seen.append(torch.cat([gate.mask[0] for gate in gates_of(net).values()]))
        got = torch.from_numpy(run(graph, x)[0])
        # float32 sums in another order: 1e-5 of the output's scale
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    return torch.stack(seen)


def nets():
    yield from (pytest.param(lambda name=name, **more: gated_zoo(name, **more), id=name) for name in NETS)
    yield pytest.param(lambda **more: gated(UserNet(), torch.zeros(1, 3, SIDE, SIDE), **more), id="user")


@pytest.mark.parametrize("make_gated", nets())
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_it_computes_the_masked_network(make_gated, keep):
    net = make_gated()
    graph, single, notes = gathered_graph(net, contract(), keep=keep)
    onnx.checker.check_model(graph, full_check=True)
    masks = agree(net, graph)
    assert len(torch.unique(masks, dim=0)) >= 4  # the masks look at the input,
    assert 0.2 < float(masks.mean()) < 0.8  # and switch channels off
    assert single.inputs[0].shape == (1, 3, SIDE, SIDE)
    assert notes[0].endswith("gated convolutions are gathered")


@pytest.mark.parametrize(
    "spec",
    [{"pool": "avg"}, {"scale": "standardise"}, {"hidden": 5}, {"pool": "avg", "scale": "standardise", "hidden": 4}],
    ids=str,
)
def test_every_kind_of_predictor(spec):
    net = gated_zoo("resnet8", **spec)
    for gate in gates_of(net).values():
        if spec.get("scale") == "standardise":
            gate.norm.running_mean.uniform_(0, 1)
            gate.norm.running_var.uniform_(0.5, 2)
    assert "9 of 9" in gathered_graph(net, contract(), keep=0.0)[2][0]
    agree(net, gathered_graph(net, contract(), keep=0.0)[0], count=4)


@pytest.mark.parametrize("name", ["vgg16_bn", "mobilenet_v1"])
def test_gates_that_are_all_off_all_on_or_on_the_edge(name):
    net = gated_zoo(name)
    wide = {path: gate.spec.channels for path, gate in gates_of(net).items()}
    for kept in (
        {path: [] for path in wide},
        {path: range(c) for path, c in wide.items()},
        {path: [c - 1] for path, c in wide.items()},
    ):
        fix(net, kept)
        agree(net, gathered_graph(net, contract(), keep=0.0)[0], count=2)
    for gate in gates_of(net).values():
        nn.init.zeros_(gate.linear.weight)
        nn.init.zeros_(gate.linear.bias)  # a logit of exactly 0 is off, and so is its negative
    agree(net, gathered_graph(net, contract(), keep=0.0)[0], count=2)


def test_channels_that_are_off_are_not_computed():
    net = gated_zoo("vgg16_bn")
    graph, *_ = gathered_graph(net, contract(), keep=0.0)
    convs = [node for node in graph.graph.node if node.op_type == "Conv"]
    gates = list(gates_of(net).values())
    assert len(convs) == len(gates) == 13
    for x in images(3):
        with torch.no_grad():
            net(x)
        _, *computed = run(graph, x, *(conv.output[0] for conv in convs))
        _, *weights = run(graph, x, *(conv.input[1] for conv in convs))
        before = 3
        for gate, value, weight in zip(gates, computed, weights, strict=True):
            on = int(gate.mask.sum())
            pivot = int(gate.linear.bias.argmax())
            spare = int(gate.mask[0, pivot] == 0)  # a channel of zeros in its place, so that never none is computed
            assert value.shape[1] == on + spare
            assert weight.shape[:2] == (on + spare, before)
            before = on + spare


class Swish(nn.Module):
    """An activation that is not zero at zero inside its own product, a shared pool, and two readers of one gated layer."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.b, self.nb = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.c, self.nc = nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16)
        self.act, self.clip, self.out = nn.SiLU(), nn.ReLU6(), nn.Linear(16 + 24, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.act(self.na(self.a(x))), 2)
        y = self.act(self.nb(self.b(x)))
        z = self.clip(self.nc(self.c(y)) * 2 + 0.5)
        return self.out(torch.cat([z.mean((2, 3)), torch.sigmoid(y).mean((2, 3))], 1))


def test_activations_that_are_not_zero_at_zero():
    torch.manual_seed(0)
    net = gated(Swish(), torch.zeros(1, 3, SIDE, SIDE))
    agree(net, gathered_graph(net, contract(), keep=0.0)[0])


class Normed(nn.Module):
    """A group norm between a convolution and its mask: the norm needs all channels."""

    def __init__(self):
        super().__init__()
        self.a, self.na, self.b, self.nb = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
        self.out = nn.Linear(16, 10)

    def forward(self, x):
        return self.out(self.nb(self.b(self.na(self.a(x)).relu())).relu().mean((2, 3)))


def test_what_stays_masked_says_why():
    torch.manual_seed(0)
    plain = Normed()
    x = torch.zeros(1, 3, SIDE, SIDE)
    spec = specs_for(plain, x)[0]
    first = spec.model_copy(update={"conv": "a", "points": ("na",), "inputs": 3, "channels": 16})
    net = liven(attach(plain, [first, spec]))
    graph, _, notes = gathered_graph(net, contract(), keep=0.0)
    assert notes == (
        "1 of 2 gated convolutions are gathered",
        "a stays masked: its mask is not applied to the convolution's own output",
        ONLY_HERE,
    )
    agree(net, graph, count=3)


def test_small_maps_stay_masked_unless_few_channels_are_on():
    net = gated_zoo("vgg16_bn")
    half, quarter = (gathered_graph(net, contract(), keep=keep)[2] for keep in (0.5, 0.2))
    tiny = "features.37 stays masked: on a 2×2 map copying its weights costs more than leaving channels out saves"
    assert tiny in half
    assert len(quarter) < len(half)
    own = gathered_graph(net, contract(), keep={"features.0": 0.99, "features.37": 0.01})[2]
    assert tiny not in own
    assert any(note.startswith("features.0 stays masked") for note in own)


def test_gathering_pays_more_on_larger_maps_and_with_fewer_channels():
    large, small, point = (Layer("g", "f", pixels, area, 64, 64) for pixels, area in ((784, 9), (4, 9), (49, 1)))
    assert gain(large, outputs=0.5, inputs=0.5) > 0 > gain(small, outputs=0.5, inputs=0.5)
    assert gain(large, outputs=0.25, inputs=0.25) > gain(large, outputs=0.5, inputs=0.5) > gain(large, outputs=0.5, inputs=None)
    assert gain(point, outputs=0.5, inputs=0.5) < 0 < gain(point, outputs=0.1, inputs=0.1)


def test_a_layer_that_loses_is_gathered_where_the_next_one_gains_more():
    first, second = Layer("a", "", 784, 9, 64, 3), Layer("b", "a", 784, 9, 64, 64)
    shares = {"a": 0.75, "b": 0.75}
    assert gain(first, outputs=0.75, inputs=None) < 0
    assert gain(second, outputs=0.75, inputs=None) < 0 < gain(second, outputs=0.75, inputs=0.75)
    assert choose([first, second], shares) == {"a", "b"}
    assert choose([first], shares) == choose([first, Layer("b", "a", 4, 9, 64, 64)], shares) == set()
    assert choose([first, Layer("", "a", 784, 9, 64, 64)], {"a": 0.5}) == {"a"}  # the next one has no gate


def test_depthwise_layers_are_named():
    notes = gathered_graph(gated_zoo("mobilenet_v1"), contract())[2]
    assert (
        "13 depthwise convolutions compute all their channels: ONNX fixes the number of groups, so channels can't come and go"
        in notes
    )


# ---------------------------------------------------------------- refusals


def test_a_network_without_gates_or_one_that_can_t_gather_is_refused():
    with pytest.raises(UserError, match="the network has no gates, so there is nothing to gather"):
        gathered_graph(UserNet(), contract())
    net = gated_zoo("resnet8")
    with pytest.raises(UserError, match="none of the 9 gated convolutions can be gathered: conv1 stays masked: on a 32×32 map"):
        gathered_graph(net, contract(), keep=1.0)


def test_free_sizes_and_fixed_batches_are_refused():
    net = gated_zoo("resnet8")
    free, batch = contract(), contract()
    spec = free.inputs[0]
    free = free.model_copy(update={"inputs": (spec.model_copy(update={"shape": ("N", 3, "H", "W")}),)})
    batch = batch.model_copy(update={"inputs": (spec.model_copy(update={"shape": (4, 3, 32, 32)}),)})
    with pytest.raises(UserError, match="needs fixed sizes, and H, W of the input are free"):
        gathered_graph(net, free)
    with pytest.raises(UserError, match="one sample at a time, and the batch of 'image' is fixed at 4"):
        gathered_graph(net, batch)


def test_other_formats_are_refused_with_the_reason():
    refuse("onnx")
    for name, reason in REFUSALS.items():
        with pytest.raises(UserError, match="can't hold a gathered network") as caught:
            refuse(name)
        assert reason in str(caught.value)
    with pytest.raises(UserError, match="only ONNX Runtime was found"):
        refuse("ncnn")


def test_openvino_still_does_not_compile_it(tmp_path):
    openvino = pytest.importorskip("openvino", reason="the openvino extra is not installed")
    graph, *_ = gathered_graph(gated_zoo("resnet8"), contract(), keep=0.0)
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(RuntimeError, match="dynamic weights shape"):
        openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU")


# ---------------------------------------------------------------- artifacts


def test_a_gathered_artifact_is_proven_against_the_masked_network(tmp_path):
    net = gated_zoo("resnet8")
    source = gathered_source(net, contract(), label="net", origin={"bundle_hash": "1"}, keep=0.0)
    (made,) = convert(source, [("onnx", "fp32")], tmp_path)
    assert made.ok
    assert made.artifact.parity.sqnr_db > 90
    assert made.artifact.ops["NonZero"] == 9
    assert made.artifact.contract.inputs[0].shape == (1, 3, SIDE, SIDE)
    assert made.artifact.dynamic == {"mode": "gathered"}
    assert made.artifact.source["notes"] == f"9 of 9 gated convolutions are gathered\n{ONLY_HERE}"
    wrong = copy.deepcopy(net)
    wrong.layer1[0].conv1.gate.linear.bias.data += 0.7
    planted = gathered_source(wrong, contract(), label="net", keep=0.0)
    tampered = type(source)(source.label, source.contract, source.reference, planted.graph, None, {})
    (made,) = convert(tampered, [("onnx", "fp32")], tmp_path / "wrong")
    assert not made.ok


def test_a_gated_bundle_is_saved_reloaded_and_exported_masked_at_any_batch(tmp_path, user_net):
    torch.manual_seed(0)
    manifest = Manifest(architecture=parse(f"{user_net}:make", {"width": 16}), contract=contract())
    saved = save_gated(tmp_path / "gated", save_bundle(tmp_path / "parent", make(width=16), manifest))
    bundle = load_bundle(saved.folder)
    net = bundle.module().eval()
    assert len(gates_of(net)) == 6
    source = module_source(bundle.module(), bundle.contract, label="masked")
    made = convert(source, plan_formats(["onnx", "tflite", "coreml"], ["fp32"]), tmp_path / "artifacts")
    assert [m.ok for m in made] == [True, True, True]
    assert {case.dims["N"] for case in made[0].artifact.parity.cases} == {1, 2, 5}
    x = torch.cat(images(5))
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(row) for row in x[:, None]])
    # a convolution of five images sums in another order than five of one
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert len(torch.unique(net(x), dim=0)) == 5


def test_a_copy_of_a_gated_network_has_gates_of_its_own():
    net = gated_zoo("resnet8")
    twin = copy.deepcopy(net)
    fix(net, {path: [] for path in gates_of(net)})
    x = images(1)[0]
    with torch.no_grad():
        assert not torch.allclose(net(x), twin(x))
        source = module_source(twin, contract(), label="twin")
        np.testing.assert_allclose(source.reference({"image": x.numpy()})["logits"], twin(x).numpy(), rtol=1e-5)
    assert not any(gate.mask.any() for gate in gates_of(net).values())


@pytest.mark.parametrize("name", sorted({"resnet20", "mobilenet_v2", "mobilenet_v3_small"} & set(architectures.names())))
@pytest.mark.slow
def test_more_of_the_zoo(name):
    torch.manual_seed(0)
    net = gated(architectures.get(name)(num_classes=10, width=0.5), torch.zeros(1, 3, 64, 64))
    agree(net, gathered_graph(net, contract(side=64), keep=0.0)[0], side=64)
