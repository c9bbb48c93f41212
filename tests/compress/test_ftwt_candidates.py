"""What can be gated and what each gate saves, on networks with every kind of joint."""

import copy

import pytest
import torch
from ftwt_kit import Chain, Wrapped, X, conv_bn, lively, random_masks, sliced
from torch import nn
from torch.nn import functional as F
from user_net import make

from trimtab.compress.dynamic.candidates import candidates, spec_of
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError
from trimtab.models.gates import attach, gates_of


def survey(net, x=X, **more):
    torch.manual_seed(0)
    found = candidates(net, [x], **more)
    return found.by_path(), {u.path: u.reason for u in found.ungated}


def reached(candidate):
    return {(r.path, r.side) for r in candidate.reach}


def zoo(name, **more):
    torch.manual_seed(0)
    return architectures.get(name)(num_classes=10, in_channels=3, **more)


def test_a_plain_chain_saves_its_consumers_inputs():
    found, ungated = survey(Chain())
    assert found["a.0"].points == ("a.1",)
    assert reached(found["a.0"]) == {("a.0", "out"), ("b.0", "in")}
    linear = next(r for r in found["b.0"].reach if r.path == "fc")
    assert len(linear.own) == 8 * 36
    assert linear.channel[:36] == (0,) * 36  # channel-first flattening
    assert ungated == {"fc": "linear layers are not gated"}


def test_a_convolution_without_a_norm_is_masked_itself():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    found, _ = survey(net)
    assert (found["0"].points, found["0"].rectified) == (("0",), True)
    assert (found["2"].points, found["2"].rectified) == (("2",), False)
    assert reached(found["0"]) == {("0", "out"), ("2", "in")}


def test_in_a_residual_stream_a_branch_saves_its_own_outputs():
    found, ungated = survey(zoo("resnet8"))
    inner, last = found["layer1.0.conv1"], found["layer1.0.conv2"]
    assert reached(inner) == {("layer1.0.conv1", "out"), ("layer1.0.conv2", "in")}
    assert inner.rectified
    assert last.points == ("layer1.0.bn2",)
    assert last.own_outputs_only
    assert not last.rectified  # |values| count before the addition
    assert "one sum with those of conv1" in last.note
    assert found["conv1"].own_outputs_only
    assert found["layer2.0.downsample.0"].own_outputs_only
    assert list(ungated) == ["fc"]


def test_depthwise_convolutions_share_the_mask_of_what_feeds_them():
    found, ungated = survey(zoo("mobilenet_v1", width=0.25, stem_stride=1), torch.zeros(1, 3, 32, 32))
    first = found["features.0.0"]
    assert first.points == ("features.0.1", "features.1.1")
    assert reached(first) == {("features.0.0", "out"), ("features.1.0", "out"), ("features.1.3", "in")}
    assert ungated["features.1.0"] == "a depthwise convolution, which shares the mask of features.0.0"


def test_concatenation_depthwise_grouped_and_squeeze_and_excitation():
    found, ungated = survey(make(width=16), torch.zeros(1, 3, 16, 16))
    right = next(r for r in found["right.0"].reach if r.path == "mix.0")
    assert right.own == tuple(range(16, 32))
    assert right.channel == tuple(range(16))
    expand = found["inverted.expand.0"]
    assert expand.points == ("inverted.expand.1", "inverted.depth.1")
    assert not expand.rectified  # hard-swish: zero at zero, but negative values count
    assert {p for p, _ in reached(expand)} == {
        "inverted.expand.0",
        "inverted.depth.0",
        "inverted.gate.squeeze",
        "inverted.gate.excite",
        "inverted.project.0",
    }
    assert found["mix.0"].note == "only its own outputs are saved: grouped.0 is grouped"
    assert ungated["grouped.0"] == "a grouped convolution (4 groups)"
    assert ungated["inverted.gate.squeeze"] == "its gate would compute as much as it does itself"


@pytest.mark.parametrize(
    ("activation", "rectified"),
    [
        (F.relu, True),
        (F.relu6, True),
        (lambda v: v.clamp(min=0), True),
        (nn.ReLU(inplace=True), True),
        (F.hardtanh, False),
        (F.silu, False),
        (F.hardswish, False),
        (F.gelu, False),
        (lambda v: F.leaky_relu(v, 0.1), False),
        (lambda v: v, False),
    ],
)
def test_the_activation_is_found_module_or_function(activation, rectified):
    found, _ = survey(Chain(first=activation))
    assert found["a.0"].rectified is rectified
    assert not found["a.0"].own_outputs_only


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        (torch.sigmoid, "Sigmoid follows, which makes 0.5 of a channel that is off"),
        (nn.Hardsigmoid(), "Hardsigmoid follows, which makes 0.5"),
        (F.softplus, "Softplus follows, which makes 0.69"),
        (lambda v: v.exp(), "Exp follows, which makes 1"),
        (lambda v: v.lgamma(), "Lgamma follows, of which it is not known"),
    ],
)
def test_an_activation_that_does_not_keep_zero_is_refused(activation, said):
    found, ungated = survey(Chain(first=activation))
    assert "a.0" not in found
    assert said in ungated["a.0"]
    assert "b.0" in found


class Broken(nn.Module):
    """Convolutions that no gate fits."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.cut = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 3, padding=1)
        self.functional = nn.Conv2d(3, 4, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = F.relu(self.twice(F.relu(self.twice(x))))
        y = F.batch_norm(self.functional(x), torch.zeros(4), torch.ones(4)) + self.cut(x).detach()
        return self.head(F.relu(self.up(F.relu(y)))).mean((2, 3))


def test_each_refusal_has_its_reason():
    found, ungated = survey(Broken())
    assert not found
    assert ungated == {
        "twice": "it runs 2 times in a pass",
        "never": "it does not run as a module",
        "cut": "it is not on a differentiable path to the output",
        "functional": "its normalisation is a function (NativeBatchNorm), not a module behind which a mask could stand",
        "up": "a ConvTranspose2d: gates take plain 2-D convolutions",
        "head": "its channels are the network's output",
    }


def _norm_and_elsewhere(net, x):
    y = net.c(x)
    return F.relu(net.n(y)) + y


@pytest.mark.parametrize(
    ("parts", "body", "said"),
    [
        (
            {"c": nn.Conv2d(8, 8, 3, padding=1), "n": nn.GroupNorm(2, 8)},
            lambda net, x: F.relu(net.n(net.c(x))),
            "n, a GroupNorm, computes its statistics over several channels",
        ),
        (
            {"c": nn.Conv2d(8, 8, 3, padding=1), "n": nn.BatchNorm2d(8)},
            lambda net, x: F.relu(net.n(net.c(x))) + F.relu(net.n(x)),
            "n normalises other layers too",
        ),
        (
            {"c": nn.Conv2d(8, 8, 3, padding=1), "n": nn.BatchNorm2d(8)},
            _norm_and_elsewhere,
            "its output goes to n and elsewhere",
        ),
    ],
)
def test_norms_that_a_mask_can_not_stand_behind(parts, body, said):
    found, ungated = survey(Wrapped(body, **parts))
    assert "c" not in found
    assert ungated["c"] == said
    assert "stem.0" in found


def test_where_off_is_not_gone_the_gate_saves_its_own_outputs_alone():
    """DenseNet's order: what is concatenated is normalised again, and the shift revives a channel that is off."""
    net = Wrapped(
        lambda net, x: net.last(F.relu(net.norm(torch.cat([x, net.grow(x)], 1)))),
        grow=nn.Conv2d(8, 4, 3, padding=1),
        norm=nn.BatchNorm2d(12),
        last=nn.Conv2d(12, 8, 1),
    )
    found, _ = survey(net)
    assert found["grow"].own_outputs_only
    assert found["grow"].note.endswith("a channel that is off still leaves something behind in what follows")


def test_a_channel_that_multiplies_takes_its_partner_along():
    net = Wrapped(lambda net, x: F.relu(net.a(x)) * net.b(x), a=conv_bn(8, 8), b=conv_bn(8, 8))
    found, _ = survey(net)
    assert ("b.0", "out") in reached(found["a.0"])
    assert ("a.0", "out") in reached(found["b.0"])


def test_instance_norm_counts_as_a_norm():
    net = Wrapped(lambda net, x: F.relu(net.n(net.c(x))), c=nn.Conv2d(8, 8, 3), n=nn.InstanceNorm2d(8, affine=True))
    found, _ = survey(net)
    assert found["c"].points == ("n",)
    assert not found["c"].own_outputs_only


def test_keep_names_what_stays_ungated():
    found, ungated = survey(Chain(), keep=("a",))
    assert list(found) == ["b.0"]
    assert ungated["a.0"] == "the recipe keeps a"
    with pytest.raises(UserError, match="keep names 'zzz', which the network lacks"):
        survey(Chain(), keep=("zzz",))


def test_a_gated_network_is_judged_as_without_its_gates():
    net = Chain()
    plain, _ = survey(net)
    attach(net, [spec_of(c) for c in plain.values()])
    net(torch.randn(2, 3, 12, 12)).sum().backward()  # leaves tensors in the gates that can't be copied
    gated, _ = survey(net)
    assert gated == plain
    assert len(gates_of(net)) == 2  # and keeps them


def test_the_network_itself_is_left_alone():
    net = Chain().train()
    net.fc.requires_grad_(False)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    survey(net)
    assert net.training
    assert not net.fc.weight.requires_grad
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not net.a[0]._forward_hooks


@pytest.mark.parametrize(
    ("net", "side"),
    [
        (zoo("vgg16_bn", width=0.125), 16),
        (zoo("mobilenet_v1", width=0.25, stem_stride=1), 32),
        (Chain(), 12),
    ],
)
def test_all_masks_at_once_equal_the_sliced_network(net, side):
    """Tolerance: float32 rounding over up to 27 layers, relative to the largest output."""
    net = lively(net)
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    found = candidates(net, [x]).found
    assert all(not c.own_outputs_only for c in found)
    masks = random_masks(found, 3)
    for n in range(3):
        rows = {path: mask[n] for path, mask in masks.items()}
        small = sliced(net, x, rows)(x)
        gated = attach(copy.deepcopy(net), [spec_of(c) for c in found])
        for path, gate in gates_of(gated).items():
            gate.chooser = lambda saliency, row=rows[path]: row.expand_as(saliency)
        assert torch.allclose(gated(x), small, atol=1e-4 * float(net(x).detach().abs().max()), rtol=0)
