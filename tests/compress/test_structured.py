import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_kit import lively
from user_net import UserNet

from trimtab.compress.cost import count
from trimtab.compress.groups import analyse, build_plan
from trimtab.compress.method import Context
from trimtab.compress.structured import StructuredConfig, apply
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError


def context(tmp_path, side=32):
    contract = image_classifier(channels=3, height=side, width=side, classes=tuple("abcdefghij"), mean=(0,) * 3, std=(1,) * 3)
    return Context(workdir=tmp_path, parent=SimpleNamespace(contract=contract))


def silenced(module, plan):
    """The uncut module with every removed channel silenced where it is produced *and* where it is read: an independent reference."""
    module = copy.deepcopy(module)
    for edit in plan.edits:
        layer = module.get_submodule(edit.path)
        gone = [i for i in range(edit.size) if i not in edit.kept]
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data[gone] = 0
            layer.bias.data[gone] = 0
        elif edit.side == "in" and not (isinstance(layer, nn.Conv2d) and layer.groups > 1):
            layer.weight.data[:, gone] = 0
    return module


@pytest.mark.parametrize(
    "make",
    [
        UserNet,
        lambda: architectures.get("resnet20")(num_classes=10),
        lambda: architectures.get("mobilenet_v2")(num_classes=10, width=0.5),
    ],
    ids=["user", "resnet20", "mobilenet_v2"],
)
def test_the_cut_network_computes_what_the_silenced_one_does(make, tmp_path):
    module = lively(make())
    x = torch.randn(2, 3, 32, 32)
    original = copy.deepcopy(module)
    result = apply(module, None, StructuredConfig(mac_ratio=0.6, round_to=4), context(tmp_path))
    expected = silenced(original, result.plan)(x)
    # float32 sums in another order: 1e-4 of the output's scale
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(expected, original(x), rtol=1e-2)


@pytest.mark.parametrize(
    "config",
    [
        {"mac_ratio": 0.5},
        {"mac_ratio": 0.3, "importance": "l1", "scope": "layer"},
        {"param_ratio": 0.4, "importance": "bn-scale"},
        {"mac_ratio": 0.55, "importance": "random", "reduction": "first"},
        {"mac_ratio": 0.4, "iterations": 3},
        {"param_ratio": 0.5, "round_to": 1},
    ],
)
def test_the_target_is_reached_within_two_percent_and_on_the_grid(config, tmp_path):
    module = architectures.get("resnet20")(num_classes=10)
    before = count(module, [torch.randn(1, 3, 32, 32)])
    figures = apply(module, None, StructuredConfig(**config), context(tmp_path)).figures
    after = count(module, [torch.randn(1, 3, 32, 32)])
    key, target = ("mac_ratio", config["mac_ratio"]) if "mac_ratio" in config else ("param_ratio", config["param_ratio"])
    assert figures["mac_ratio"] == after.macs / before.macs
    assert figures["param_ratio"] == after.params / before.params
    assert target - 0.02 <= figures[key] <= target
    assert figures["off_grid"] == []
    if config.get("round_to") != 1:
        assert all(m.out_channels % 8 == 0 for m in module.modules() if isinstance(m, nn.Conv2d))


def test_the_plan_replays_on_a_fresh_network_weight_for_weight(tmp_path):
    module = lively(UserNet())
    fresh = copy.deepcopy(module)
    plan = apply(module, None, StructuredConfig(mac_ratio=0.45, iterations=2), context(tmp_path)).plan
    replayed = plan.replay(fresh).state_dict()
    assert all(torch.equal(tensor, replayed[name]) for name, tensor in module.state_dict().items())


def test_every_layer_that_stays_whole_has_a_reason(tmp_path):
    figures = apply(UserNet(), None, StructuredConfig(mac_ratio=0.7, keep=("inverted",)), context(tmp_path)).figures
    reasons = {f["path"]: f["reason"] for f in figures["fixed"]}
    assert reasons["head"] == "its channels are the network's output"
    assert reasons["inverted.expand.0"] == "the recipe keeps inverted"


class Heads(nn.Module):
    """A reshape with a fixed number of heads: channels can't leave it one by one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x):
        x = self.b(torch.relu(self.a(x)))
        return self.c(x.reshape(x.shape[0], 4, 4, -1).mean(-1).flatten(1))


def test_a_cut_that_breaks_the_forward_pass_is_found_before_it_is_made():
    analysis = analyse(Heads(), [torch.randn(1, 3, 8, 8)])
    assert [g.root for g in analysis.groups] == ["a"]
    assert "cutting it breaks the forward pass" in {f.path: f.reason for f in analysis.fixed}["b"]


def test_grouped_convolutions_lose_the_same_positions_in_every_block():
    analysis = analyse(UserNet(), [torch.randn(1, 3, 32, 32)])
    mix = next(g for g in analysis.groups if g.root == "mix.0")
    assert (mix.channels, mix.blocks) == (64, 4)
    module = build_plan([(mix, {0, 16, 32, 48})]).replay(UserNet())
    assert module.grouped[0].weight.shape == (64, 15, 3, 3)
    assert module(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_taylor_scores_need_data_and_use_it(tmp_path):
    with pytest.raises(UserError, match="needs data for its gradients"):
        apply(UserNet(), None, StructuredConfig(mac_ratio=0.5, importance="taylor"), context(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mac_ratio": 0.02}, "can't be reached .* nearest is"),
        ({"mac_ratio": 0.5, "keep": ("nope",)}, "keep names 'nope', which the network lacks"),
    ],
)
def test_what_can_t_be_done_is_said_with_what_can(config, message, tmp_path):
    with pytest.raises(UserError, match=message):
        apply(UserNet(), None, StructuredConfig(**config), context(tmp_path))


def test_a_network_with_nothing_to_cut_is_said_so(tmp_path):
    with pytest.raises(UserError, match="no layer of this network can be cut"):
        apply(nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()), None, StructuredConfig(mac_ratio=0.5), context(tmp_path))
