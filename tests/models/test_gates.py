"""Gates: what they do to a network, and that a network without them is the one it was."""

import copy

import pytest
import torch
from torch import nn

from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError
from trimtab.models.gates import CHILD, Gate, GateSpec, attach, detach_gates, gates_of
from trimtab.models.source import Architecture
from trimtab.models.surgery import SurgeryPlan

ARCHITECTURE = Architecture(name="resnet8", kwargs={"num_classes": 5, "in_channels": 3, "width": 0.5})
X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """Two convolutions; a gate on the first also closes the depthwise one behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.deep, self.deep_norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.out(torch.relu(self.deep_norm(self.deep(x))).mean((2, 3)))


def spec(**more):
    return GateSpec(conv="conv", points=("norm", "deep_norm"), inputs=3, channels=6, **more)


def net(*specs):
    torch.manual_seed(0)
    return attach(Net(), specs).eval()


def resnet_specs():
    module = ARCHITECTURE.build()
    layers = dict(module.named_modules())
    found = []
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d) and name.endswith("conv1"):
            norm = name[:-5] + "bn1"
            found.append(GateSpec(conv=name, points=(norm,), inputs=layer.in_channels, channels=layer.out_channels))
    return tuple(found)


def by_hand(module, mask, x):
    """What a gate with this mask makes of the network, written out."""
    wide = mask[:, :, None, None]
    y = torch.relu(module.norm(module.conv(x)) * wide)
    y = torch.relu(module.deep_norm(module.deep(y)) * wide)
    return module.out(y.mean((2, 3)))


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("hidden", [0, 5])
def test_a_gate_multiplies_by_its_own_prediction(pool, hidden):
    gated, dense = net(spec(pool=pool, hidden=hidden)), net()
    gate = gates_of(gated)["conv"]
    pooled = X.amax((2, 3)) if pool == "max" else X.mean((2, 3))
    logits = gate.linear(gate.embed(pooled.softmax(1)))
    mask = (logits > 0).float()
    assert 0 < mask.mean() < 1
    dense.load_state_dict({n: t for n, t in gated.state_dict().items() if CHILD not in n.split(".")})
    torch.testing.assert_close(gated(X), by_hand(dense, mask, X))
    assert torch.equal(gate.mask, mask)
    torch.testing.assert_close(gate.logits, logits)


def test_standardised_gates_use_running_statistics():
    gated = net(spec(scale="standardise"))
    gate = gates_of(gated)["conv"]
    gate.norm.running_mean.fill_(0.5)
    gate.norm.running_var.fill_(4.0)
    gated(X)
    torch.testing.assert_close(gate.logits, gate.linear((X.amax((2, 3)) - 0.5) / (4.0 + gate.norm.eps) ** 0.5))


def test_a_chooser_takes_the_predictors_place_and_sees_the_saliency():
    gated, dense = net(spec()), net()
    dense.load_state_dict({n: t for n, t in gated.state_dict().items() if CHILD not in n.split(".")})
    seen = []

    def choose(saliency):
        seen.append(saliency)
        return (saliency >= saliency.median(1, keepdim=True).values).float()

    gates_of(gated)["conv"].chooser = choose
    out = gated(X)
    fired = torch.relu(dense.norm(dense.conv(X))).amax((2, 3))
    torch.testing.assert_close(seen[0], fired)
    torch.testing.assert_close(out, by_hand(dense, (fired >= fired.median(1, keepdim=True).values).float(), X))


def test_saliency_of_what_is_not_rectified_is_the_largest_absolute_value():
    gated = net(spec(rectified=False))
    gate = gates_of(gated)["conv"]
    gate.taping = True
    gated(X)
    saliency = gate.saliency
    detach_gates(gated)
    torch.testing.assert_close(saliency, gated.norm(gated.conv(X)).abs().amax((2, 3)))


def test_the_loss_reaches_the_layers_before_a_gate_in_joint_mode_only():
    for detach in (True, False):
        gated = net(spec())
        gate = gates_of(gated)["conv"]
        gate.detach = detach
        x = X.clone().requires_grad_(True)
        gated(x)
        gate.logits.sum().backward()
        assert gate.linear.bias.grad is not None
        assert (x.grad is None) is detach
    gated = net(spec())
    gated(X).sum().backward()
    assert gates_of(gated)["conv"].linear.weight.grad is None  # the task's loss never trains the predictor


def test_without_its_gates_a_network_is_bit_for_bit_the_dense_one():
    torch.manual_seed(0)
    module = ARCHITECTURE.build().eval()
    before, names = module(X), list(module.state_dict())
    attach(module, resnet_specs())
    assert not torch.equal(module(X), before)
    detach_gates(module)
    assert torch.equal(module(X), before)
    assert list(module.state_dict()) == names
    assert not gates_of(module)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    attach(module, resnet_specs())  # and it can be gated again
    assert len(gates_of(module)) == len(resnet_specs())


def test_a_copy_has_gates_of_its_own():
    gated = net(spec())
    gated(X)
    twin = copy.deepcopy(gated)  # right after a pass whose graph is still there
    mine, its = gates_of(gated)["conv"], gates_of(twin)["conv"]
    assert torch.equal(twin(X), gated(X))
    with torch.no_grad():
        its.linear.weight.zero_()
        its.linear.bias.fill_(-1)
    assert not twin(X[:2]).allclose(gated(X[:2]))
    assert mine.mask.any()
    assert its.mask.shape == (2, 6)
    assert not its.mask.any()
    detach_gates(twin)
    assert gates_of(gated)["conv"] is mine
    assert torch.equal(gated(X), net(spec())(X))


def test_a_gated_network_reloads_from_its_bundle(tmp_path):
    specs = resnet_specs()
    torch.manual_seed(0)
    module = attach(ARCHITECTURE.build(), specs).eval()
    contract = image_classifier(channels=3, height=16, width=16, classes=tuple("abcde"), mean=(0.0,) * 3, std=(1.0,) * 3)
    plan = SurgeryPlan(gates=specs)
    save_bundle(
        tmp_path / "b", module, Manifest(architecture=ARCHITECTURE, contract=contract, plan=plan.model_dump(mode="json"))
    )
    again = load_bundle(tmp_path / "b").module().eval()
    assert torch.equal(again(X), module(X))
    assert [g.spec for g in gates_of(again).values()] == list(specs)
    assert isinstance(again.get_submodule(specs[0].conv).get_submodule(CHILD), Gate)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"conv": "norm"}, r"a gate of 3→6 channels is planned at norm, a BatchNorm2d"),
        ({"channels": 7}, r"a gate of 3→7 channels is planned at conv, a 3→6"),
        ({"inputs": 2}, r"a gate of 2→6 channels is planned at conv, a 3→6"),
        ({"conv": "nowhere"}, r"'nowhere', which the network lacks"),
        ({"points": ("gone",)}, r"'gone', which the network lacks"),
    ],
)
def test_a_gate_for_another_network_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        attach(Net(), [spec().model_copy(update=wrong)])


def test_a_layer_takes_one_gate():
    with pytest.raises(UserError, match="conv has a gate already"):
        attach(Net(), [spec(), spec()])


def test_the_plan_refuses_cuts_behind_gates_and_a_second_set():
    plan = SurgeryPlan(gates=(spec(),))
    cut = SurgeryPlan.model_validate({"edits": [{"path": "conv", "side": "out", "size": 6, "kept": [0, 1]}]})
    with pytest.raises(UserError, match="a gated or routed network can't be cut"):
        plan.then(cut)
    with pytest.raises(UserError, match="the network is dynamic already"):
        plan.then(plan)
    assert cut.then(plan).gates == plan.gates
