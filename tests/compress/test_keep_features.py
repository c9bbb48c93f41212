"""Accuracy by the number of features, the choice of one, and the step that keeps so many for real."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_kit import FakeBundle, lively, make_context, make_net, make_task, train

from trimtab.compress.cost import count
from trimtab.compress.distill.features import accuracy_by_features, choose_k, linear_head
from trimtab.compress.groups import analyse
from trimtab.compress.keep_features import KeepFeaturesConfig, keep_features
from trimtab.compress.method import methods
from trimtab.compress.prefix_plan import plan_prefix
from trimtab.compress.runtime import Runtime
from trimtab.compress.train import TrainConfig
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError
from trimtab.models.outputs import SelectOutput
from trimtab.models.prefix import PrefixLinear
from trimtab.models.surgery import describe

torch.set_num_threads(1)
CLASSIFIER = {
    "resnet8": "fc",
    "resnet14": "fc",
    "mobilenet_v2": "classifier.1",
    "efficientnet_lite0": "_fc",
    "vgg16_bn": "classifier",
}


def zoo(name, **more):
    torch.manual_seed(0)
    return lively(architectures.get(name)(num_classes=4, **more))


def context_for(tmp_path, side=32, channels=3):
    names = tuple("abcd")
    contract = image_classifier(
        channels=channels, height=side, width=side, classes=names, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    return make_context(tmp_path, parent=SimpleNamespace(contract=contract))


def masked(module, path, k):
    """A copy whose classifier sees 0 in the place of all features from k on: the function that must be kept."""
    twin = copy.deepcopy(module)

    def zero(_layer, args):
        features = args[0].clone()
        features[..., k:] = 0
        return (features,)

    twin.get_submodule(path).register_forward_pre_hook(zero)
    return twin


# ---------------------------------------------------------------- accuracy by features


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    task = make_task()
    config = TrainConfig(epochs=4, batch_size=16, lr=0.05, amp="off", augment=False)
    net, _ = train(tmp_path_factory.mktemp("net"), config, net=make_net(dropout=0.0), task=task)
    return task, net


def brute_force(net, task, path, k, count):
    raw = task.samples("val").__getitems__(range(count))
    with torch.no_grad():
        return (masked(net, path, k)(task.inputs(raw)).argmax(1) == raw.targets).double().mean().item()


@pytest.mark.parametrize("count", [64, 40])
def test_one_pass_gives_the_accuracy_of_every_masked_network(trained, count):
    """Against a pass of its own per k, with a hook that zeroes the rest. The same predictions: equal, not close."""
    task, net = trained
    ks = [1, 2, 5, 17, 64, 127, 128]
    got = accuracy_by_features(net, task, ks, Runtime("cpu"), limit=count)
    assert list(got) == ks
    assert got == {k: brute_force(net, task, "6", k, count) for k in ks}
    assert got[128] > 0.9 > got[1]


def test_the_order_of_ks_their_repetition_and_the_network_are_left_alone(trained):
    task, net = trained
    net.train()
    got = accuracy_by_features(net, task, [9, 3, 9], Runtime("cpu"))
    assert list(got) == [3, 9]
    assert net.training
    assert not net[6]._forward_pre_hooks
    net.eval()


def test_an_already_shortened_classifier_is_counted_too(trained):
    task, net = trained
    short = copy.deepcopy(net)
    short[6] = PrefixLinear.of(short[6], 40)
    expected = accuracy_by_features(net, task, [7, 40], Runtime("cpu"))
    assert accuracy_by_features(short, task, [7, 40], Runtime("cpu")) == expected
    with pytest.raises(UserError, match=r"features \[41\] must lie in 1…40"):
        accuracy_by_features(short, task, [41], Runtime("cpu"))


def test_a_classifier_without_bias():
    task = make_task()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 4, bias=False)).eval()
    assert accuracy_by_features(net, task, [3], Runtime("cpu")) == {3: brute_force(net, task, "3", 3, 64)}


@pytest.mark.parametrize(
    ("accuracy", "k"),
    [
        ({1: 0.5, 2: 0.9, 3: 0.9}, 2),  # ties: the smaller
        ({1: 0.5, 10: 0.9, 500: 0.9049}, 10),  # 490 features for 0.0049: not worth 1e-5 each, just
        ({1: 0.5, 10: 0.9, 499: 0.905}, 499),
        ({3: 0.25}, 3),
        ({8: 0.7, 4: 0.7}, 4),
    ],
)
def test_a_feature_must_bring_its_price(accuracy, k):
    assert choose_k(accuracy) == k


def test_networks_without_a_linear_classifier_are_refused():
    fully = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    with pytest.raises(UserError, match=r"'0' is a Conv2d"):
        linear_head(fully, torch.zeros(1, 1, 8, 8), path="0")
    with pytest.raises(UserError, match=r"'nine' is not there"):
        linear_head(fully, torch.zeros(1, 1, 8, 8), path="nine")
    with pytest.raises(UserError, match=r"'the network itself' is a Linear"):
        linear_head(nn.Linear(3, 2), torch.zeros(1, 3))


def test_a_task_without_classes_has_no_accuracy(trained):
    task, net = trained
    other = copy.copy(task)
    other.metric = "nme"
    with pytest.raises(UserError, match="'classification' is judged by nme"):
        accuracy_by_features(net, other, [1], Runtime("cpu"))


# ---------------------------------------------------------------- the cut


@pytest.mark.parametrize(
    ("name", "size", "k", "makers"),
    [
        ("mobilenet_v2", 32, 24, ["features.18.0"]),
        ("efficientnet_lite0", 32, 24, ["_conv_head"]),
        ("resnet8", 16, 9, ["layer3.0.conv2", "layer3.0.downsample.0"]),  # one block: both of its ends feed fc alone
        ("resnet14", 16, 9, []),  # the last stage's stream is read by its second block
    ],
)
def test_the_cut_network_is_the_masked_one(name, size, k, makers, tmp_path):
    """Float32, another order of summation in the shorter products: 1e-5 of outputs of size 1."""
    module = zoo(name)
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = masked(module, CLASSIFIER[name], k)(x)
    before = describe(module)
    whole = copy.deepcopy(module)
    result = keep_features(module, None, KeepFeaturesConfig(k=k), context_for(tmp_path, size))
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    classifier = module.get_submodule(CLASSIFIER[name])
    assert classifier.in_features == k
    assert type(classifier) is (nn.Linear if makers else PrefixLinear)
    assert [module.get_submodule(path).out_channels for path in makers] == [k] * len(makers)
    assert all(path in result.notes[0] for path in makers)
    assert makers or "what makes the others stays" in result.notes[0]
    f = result.figures
    assert (f["k"], f["features"]) == (k, whole.get_submodule(CLASSIFIER[name]).in_features)
    assert (f["macs_before"], f["macs_after"]) == (count(whole, [x[:1]]).macs, count(module, [x[:1]]).macs)
    assert f["params_after"] == sum(p.numel() for p in module.parameters()) < f["params_before"]
    assert f["macs_after"] < f["macs_before"]
    json.dumps(f)
    fresh = result.plan.replay(architectures.get(name)(num_classes=4))
    assert describe(fresh) == describe(module) != before
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh.eval()(x), module(x))


def test_flattened_positions_leave_whole_channels_and_the_rest_is_not_read(tmp_path):
    """128 features of 8 channels × 16 places: 37 features live in 3 channels, whose last 11 places are not read."""
    module, x = lively(make_net(dropout=0.0)), torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = masked(module, "6", 37)(x)
    keep_features(module, None, KeepFeaturesConfig(k=37), context_for(tmp_path, 8, 1))
    assert module[0].out_channels == 3
    assert isinstance(module[6], PrefixLinear)
    assert module[6].in_features == 37
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


class Mixing(nn.Module):
    """A softmax over channels between what makes the features and what reads them: no dependency graph sees that it mixes."""

    def __init__(self):
        super().__init__()
        self.make = nn.Conv2d(1, 12, 3)
        self.read = nn.Linear(12, 4)

    def forward(self, x):
        return self.read(torch.softmax(self.make(x).mean((2, 3)), dim=1))


class TwoReaders(nn.Module):
    """The features feed the classifier and a gate on its logits."""

    def __init__(self):
        super().__init__()
        self.make = nn.Conv2d(1, 12, 3)
        self.gate = nn.Linear(12, 4)
        self.read = nn.Linear(12, 4)

    def forward(self, x):
        features = self.make(x).relu().mean((2, 3))
        gate = torch.sigmoid(self.gate(features))
        return self.read(features * gate.mean(1, keepdim=True))


class Concatenated(nn.Module):
    """Two makers side by side; the features to keep all come from the first."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 6, 3), nn.Conv2d(1, 10, 3)
        self.read = nn.Linear(16, 4)

    def forward(self, x):
        return self.read(torch.cat([self.left(x), self.right(x)], 1).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "k", "left_whole"),
    [(Mixing, 5, ["make"]), (TwoReaders, 5, ["make", "gate"]), (Concatenated, 4, []), (Concatenated, 9, [])],
)
def test_what_else_reads_the_features_keeps_them(make, k, left_whole, tmp_path):
    torch.manual_seed(0)
    module, x = make().eval(), torch.randn(5, 1, 8, 8)
    sizes = {path: module.get_submodule(path).weight.shape for path in left_whole}
    with torch.no_grad():
        expected = masked(module, "read", k)(x)
    keep_features(module, None, KeepFeaturesConfig(k=k, classifier="read"), context_for(tmp_path, 8, 1))
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    assert {path: module.get_submodule(path).weight.shape for path in left_whole} == sizes
    assert module.read.in_features == k
    if make is Concatenated:  # a layer keeps one channel at least
        assert (module.left.out_channels, module.right.out_channels) == ((4, 1) if k == 4 else (6, 3))


def test_twice_is_once(tmp_path):
    once, twice = zoo("resnet14"), zoo("resnet14")
    context = context_for(tmp_path, 16)
    single = keep_features(once, None, KeepFeaturesConfig(k=5), context)
    plans = [keep_features(twice, None, KeepFeaturesConfig(k=k), context).plan for k in (20, 5)]
    assert plans[0].then(plans[1]) == single.plan
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(once(x), twice(x))


def test_a_network_that_returns_a_dict_is_cut_by_its_outer_names(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = zoo("resnet8")

        def forward(self, x):
            return {"logits": self.net(x)}

    module = SelectOutput(Both(), "logits").eval()
    plan, _ = plan_prefix(module, [torch.randn(1, 3, 16, 16)], path="net.fc", k=8)
    assert {e.path.split(".")[0] for e in plan.edits} == {"module"}
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = masked(module, "module.net.fc", 8)(x)
        torch.testing.assert_close(plan.replay(module)(x), expected, atol=1e-5, rtol=1e-5)


def test_structured_pruning_leaves_what_a_prefix_reads_alone(tmp_path):
    """Channels in front of a shortened classifier keep their places, with the reason; the others can still go."""
    module = zoo("resnet14")
    keep_features(module, None, KeepFeaturesConfig(k=5), context_for(tmp_path, 16))
    analysis = analyse(module, [torch.randn(1, 3, 16, 16)])
    reasons = {f.path: f.reason for f in analysis.fixed}
    assert "it is tied to fc, a PrefixLinear, which can't be cut" in reasons["layer3.1.conv2"]
    assert "layer3.1.conv1" in {g.root for g in analysis.groups}
    assert not any(m.path == "fc" for g in analysis.groups for m in g.members)


# ---------------------------------------------------------------- the step


def test_it_is_registered():
    assert methods.get("keep-features").config is KeepFeaturesConfig


def test_zero_chooses_on_validation_data(trained, tmp_path):
    """The k of the whole curve's best accuracy less 1e-5 a feature; the shortened network has that accuracy when it is run."""
    task, net = trained
    module = copy.deepcopy(net)
    context = make_context(tmp_path, parent=FakeBundle(task.contract, net))
    curve = accuracy_by_features(module, task, range(1, 129), Runtime("cpu"))
    best = max(a - 1e-5 * k for k, a in curve.items())
    expected = min(k for k, a in curve.items() if a - 1e-5 * k == best)
    result = keep_features(module, task, KeepFeaturesConfig(), context)
    assert result.figures["k"] == expected < 128
    assert module[6].in_features == expected
    assert result.figures["accuracy_by_features"] == list(curve.values())
    assert result.figures["val_after"]["accuracy"] == curve[expected]
    raw = task.samples("val").__getitems__(range(64))
    with torch.no_grad():
        assert (module(task.inputs(raw)).argmax(1) == raw.targets).double().mean().item() == curve[expected]


def test_all_features_is_no_cut(trained, tmp_path):
    task, net = trained
    context = make_context(tmp_path, parent=FakeBundle(task.contract, net))
    result = keep_features(copy.deepcopy(net), None, KeepFeaturesConfig(k=128), context)
    assert result.plan.edits == ()
    assert result.notes == ("all 128 features are kept: nothing was cut",)
    assert "val_after" not in result.figures


def test_mistakes(trained, tmp_path):
    task, net = trained
    context = make_context(tmp_path, parent=FakeBundle(task.contract, net))
    with pytest.raises(UserError, match="k = 129 must be at most 128, the inputs of '6'"):
        keep_features(copy.deepcopy(net), task, KeepFeaturesConfig(k=129), context)
    with pytest.raises(
        UserError, match="chooses the features to keep by validation accuracy, and this run has no data"
    ) as caught:
        keep_features(copy.deepcopy(net), None, KeepFeaturesConfig(), context)
    assert "say how many: k = 16" in caught.value.hint
