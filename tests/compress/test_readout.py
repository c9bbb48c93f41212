import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from training_kit import lively
from user_net import UserNet

from trimtab.compress.cost import count
from trimtab.compress.input_dependence import observe
from trimtab.compress.method import Context
from trimtab.compress.readout import TOLERANCE, ReadoutConfig, apply
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError
from trimtab.models.masks import attach_masks, leaked, masks_of

SIDE = 8


def read_out(module, tmp_path, *, side=SIDE, **config):
    contract = image_classifier(
        channels=3, height=side, width=side, classes=tuple("abcdefghij"), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    context = Context(workdir=tmp_path, parent=SimpleNamespace(contract=contract))
    return apply(module, None, ReadoutConfig(**config), context)


def chain(*, padding=0, kernel=1, bias=True, norm=False):
    """Convolution, ReLU, convolution (with a batch norm, if `norm`), pooling, linear: 6 and 5 channels."""
    torch.manual_seed(0)
    behind = [nn.BatchNorm2d(5)] if norm else []
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, kernel, padding=padding, bias=bias), *behind,
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10),
        )
    )  # fmt: skip


def outputs(module, side=SIDE, seed=7):
    """Outputs in float64 on inputs that the step has not seen, far beyond the contract's range."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return (
            copy.deepcopy(module).double().eval()(3 * torch.randn(4, 3, side, side, dtype=torch.float64, generator=generator))
        )


def same(a, b):
    """None, when float64 outputs agree to what float32 biases are rounded to: 2⁻²⁴ ≈ 6e-8 each, over a few layers."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * float(a.abs().max()))


def test_channels_that_nobody_reads_go_whatever_they_carry(tmp_path):
    net = chain(kernel=3, padding=1)
    net[2].weight.data[:, [1, 4]] = 0
    before, dense = outputs(net), copy.deepcopy(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert result.figures["removed"] == {"unread": 2}
    assert result.figures["widths"] == {"0": [6, 4]}
    assert torch.equal(net[0].weight, dense[0].weight[[0, 2, 3, 5]])
    inputs = [torch.zeros(1, 3, SIDE, SIDE)]
    assert result.figures["mac_ratio"] == count(net, inputs).macs / count(dense, inputs).macs < 1
    assert result.figures["exact"]
    assert result.figures["deviation"] <= TOLERANCE


def test_channels_that_carry_zero_go_even_before_zero_padding(tmp_path):
    net = chain(kernel=3, padding=1)
    net[0].weight.data[2] = 0
    net[0].bias.data[2] = -0.7  # the ReLU makes 0 of it
    before = outputs(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert result.figures["removed"] == {"silent": 1}


def test_another_constant_goes_into_the_readers_bias(tmp_path):
    net = chain()
    net[0].weight.data[3] = 0
    net[0].bias.data[3] = 0.7
    weight, bias = net[2].weight.detach().numpy().copy(), net[2].bias.detach().numpy().copy()
    before = outputs(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert result.figures["removed"] == {"folded": 1}
    # float32 rounding of one sum
    np.testing.assert_allclose(net[2].bias.detach().numpy(), bias + weight[:, 3, 0, 0] * np.float32(0.7), rtol=1e-6, atol=1e-7)


def test_without_a_bias_it_goes_into_the_running_mean_behind(tmp_path):
    net = chain(bias=False, norm=True)
    net[0].weight.data[3] = 0
    net[0].bias.data[3] = 0.7
    weight, mean = net[2].weight.detach().numpy().copy(), net[3].running_mean.numpy().copy()
    before = outputs(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert result.figures["removed"] == {"folded": 1}
    np.testing.assert_allclose(net[3].running_mean.numpy(), mean - weight[:, 3, 0, 0] * np.float32(0.7), rtol=1e-6, atol=1e-7)


class PreActivated(nn.Module):
    """A convolution whose output a batch norm and an addition read: its running mean may not be shifted."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x):
        x = self.b(torch.relu(self.a(x)))
        return self.head((x + torch.relu(self.norm(x))).mean((2, 3)))


def test_a_norm_that_does_not_read_alone_takes_no_constant(tmp_path):
    net = lively(PreActivated())
    net.a.weight.data[3] = 0
    net.a.bias.data[3] = 0.7
    before = outputs(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert result.figures["removed"] == {}
    assert "without bias" in next(iter(result.figures["stuck"]))


def test_zero_padding_keeps_a_constant_unless_an_approximation_is_asked_for(tmp_path):
    net = chain(kernel=3, padding=1)
    net[0].weight.data[3] = 0
    net[0].bias.data[3] = 0.7
    plain = read_out(copy.deepcopy(net), tmp_path)
    assert plain.figures["removed"] == {}
    assert any("zero padding makes the edges differ" in note and "approximate" in note for note in plain.notes)
    before, middle = outputs(net), copy.deepcopy(net)
    result = read_out(net, tmp_path, fold="approximate")
    assert result.figures["removed_approximately"] == {"folded": 1}
    assert not result.figures["exact"]
    assert result.figures["deviation"] > TOLERANCE
    assert not torch.allclose(before, outputs(net), rtol=1e-3, atol=1e-3)
    x = torch.randn(2, 3, SIDE, SIDE)
    inside = (..., slice(1, -1), slice(1, -1))
    # float32 sums in another order; only the edges may differ
    torch.testing.assert_close(middle[:3](x)[inside], net[:3](x)[inside], rtol=1e-5, atol=1e-5)


def test_other_paddings_repeat_a_constant_and_change_nothing(tmp_path):
    net = chain(kernel=3, padding=1)
    net[2].padding_mode = "reflect"
    net[0].weight.data[3] = 0
    net[0].bias.data[3] = 0.7
    before = outputs(net)
    assert read_out(net, tmp_path).figures["removed"] == {"folded": 1}
    same(before, outputs(net))


def test_a_channel_that_is_zero_on_all_inputs_seen_but_not_by_its_weights_stays(tmp_path):
    net = chain()
    net[0].bias.data[2] = -30.0  # no input of the contract lifts it over 0, a brighter one does
    result = read_out(net, tmp_path)
    assert result.figures["removed"] == {}
    assert observe(copy.deepcopy(net).double(), [[torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)]])["2"].dependent.all()


def test_a_depthwise_layer_can_kill_a_channel_that_is_made_and_one_death_brings_the_next(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10),
    ).eval()  # fmt: skip
    net[3].weight.data[2] = 0
    net[3].bias.data[2] = 0.4
    net[1].weight.data[[i for i in range(8) if i != 2], 4] = 0  # channel 4 of the first layer feeds channel 2 alone
    before = outputs(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert result.figures["removed"] == {"folded": 1, "unread": 1}
    assert result.figures["rounds"] == 2
    assert result.figures["widths"] == {"1": [8, 7], "3": [8, 7], "0": [6, 5]}


class OverChannels(nn.Module):
    """A mean over channels reads them without weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 10)

    def forward(self, x):
        x = self.a(x)
        return self.c((self.b(x) + x.mean(1, keepdim=True)).mean((2, 3)))


def test_what_something_else_than_a_layer_reads_stays(tmp_path):
    net = OverChannels().eval()
    net.b.weight.data[:, 2] = 0
    net.c.weight.data[:, 2] = 0  # the addition ties b's outputs to a's
    before = outputs(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert result.figures["removed"] == {}
    assert any("1 channels of b stay: something that is no layer reads them" in note for note in result.notes)


def test_channels_that_are_normalised_together_stay(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10)
    ).eval()  # fmt: skip
    net[3].weight.data[:, 2] = 0
    before = outputs(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert any("1 channels of 0 stay: something that is no layer reads them or is normalised" in note for note in result.notes)


def test_one_channel_stays_where_all_are_dead(tmp_path):
    net = chain(kernel=3, padding=1)
    net[2].weight.data.zero_()
    before = outputs(net)
    result = read_out(net, tmp_path)
    same(before, outputs(net))
    assert net[0].out_channels == 1
    assert result.figures["spared"] == ["0", "2"]
    assert any("one stays (a layer needs one): 0, 2" in note for note in result.notes)


def test_a_network_with_nothing_dead_is_told_how_much_nearly_is(tmp_path):
    net = chain(kernel=3, padding=1)
    net[2].weight.data[1].flatten()[1:] = 0  # 1 of 54
    before = copy.deepcopy(net).state_dict()
    result = read_out(net, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert result.figures["mac_ratio"] == 1
    assert result.notes == (
        "no channel is dead: nothing was cut; 1 of 11 channels have less than 5% of their incoming weights left "
        "(min_weights removes such, as an approximation)",
    )


def test_channels_with_few_weights_left_go_as_an_approximation_of_the_network_without_these(tmp_path):
    net = chain()
    net[2].weight.data[1].flatten()[1:] = 0  # 1 of 6 left
    net[2].bias.data[1] = 0.3
    silenced = copy.deepcopy(net)
    silenced[2].weight.data[1] = 0
    result = read_out(net, tmp_path, min_weights=0.2)
    assert result.figures["removed_approximately"] == {"folded": 1}
    assert not result.figures["exact"]
    same(outputs(silenced), outputs(net))
    assert any("removed as an approximation" in note for note in result.notes)


def pruned(module, share, *, rows=0.2):
    """The module with the smallest weights of each large layer at 0, and some output channels entirely."""
    generator = torch.Generator().manual_seed(3)
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d) or layer.weight.numel() < 500:
            continue
        weight = layer.weight.data
        weight[weight.abs() <= weight.abs().flatten().kthvalue(int(share * weight.numel())).values] = 0
        weight[torch.rand(len(weight), generator=generator) < rows] = 0
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    with torch.no_grad():  # statistics of the pruned network's own signals, so that they live on to the output
        module.train()(torch.randn(16, 3, 32, 32, generator=generator))
    return module.eval()


def mobilenet():
    return architectures.get("mobilenet_v1")(num_classes=10, width=0.25, stem_stride=1)


def resnet():
    return architectures.get("resnet20")(num_classes=10)


@pytest.mark.parametrize(
    ("make", "share"), [(UserNet, 0.8), (UserNet, 0.95), (resnet, 0.8), (resnet, 0.95), (mobilenet, 0.7), (mobilenet, 0.8)]
)
def test_a_pruned_network_is_smaller_and_computes_the_same(make, share, tmp_path):
    net = pruned(lively(make()), share)
    attach_masks(net, {f"{n}.weight": m.weight != 0 for n, m in net.named_modules() if isinstance(m, nn.Conv2d)})
    before = outputs(net, 32)
    assert before.std(0).max() > 1e-3 * before.abs().max()  # it still looks at its inputs
    result = read_out(net, tmp_path, side=32)
    same(before, outputs(net, 32))
    figures = result.figures
    assert figures["exact"]
    assert sum(figures["removed"].values()) > 0
    assert figures["mac_ratio"] < 1
    assert figures["deviation"] <= figures["tolerance"]
    zeros = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert figures["zeros_after"] == sum(int((w == 0).sum()) for w in zeros) / sum(w.numel() for w in zeros)
    assert not leaked(net)
    assert all(mask.shape == net.get_parameter(name).shape for name, mask in masks_of(net).items())
    fresh = result.plan.replay(make()).eval()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(outputs(fresh, 32), outputs(net, 32))


class Random(nn.Module):
    """Noise in eval mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 1)

    def forward(self, x):
        return self.b(self.a(x) + torch.randn(1)).mean((2, 3))


def test_outputs_that_differ_from_run_to_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="differ from run to run"):
        read_out(Random(), tmp_path)
