"""Routed networks: what each rule answers, weights that branches have in common, and the way through a Bundle."""

import copy
import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.contract import image_classifier
from trimtab.models.edits import Edit
from trimtab.models.errors import UserError
from trimtab.models.routed import RoutedNet, RouterSpec, RouteSpec, confidence, features_at, first_reaching, plain_branch
from trimtab.models.source import Architecture
from trimtab.models.surgery import SurgeryPlan

WIDE = 12
X = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(5))
STEM = ("stem",)


class Net(nn.Module):
    """A stem, a convolution, a depthwise and a grouped one, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(8, WIDE, 3, stride=2, padding=1), nn.BatchNorm2d(WIDE)
        self.deep = nn.Conv2d(WIDE, WIDE, 3, padding=1, groups=WIDE)
        self.grouped = nn.Conv2d(WIDE, 8, 1, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(self.stem(x))))
        return 4 * self.head(torch.relu(self.grouped(self.deep(x))).mean((2, 3)))


def kept(*channels):
    """The edits that leave these channels of the middle (as many in each half: the grouped layer has two)."""
    places = [("conv", "out"), ("norm", "out"), ("deep", "out"), ("grouped", "in")]
    return tuple(Edit(path=path, side=side, size=WIDE, kept=channels) for path, side in places)


SMALL, MIDDLE = kept(1, 4, 7, 10), kept(1, 2, 4, 5, 7, 8, 10, 11)


def routed(rule="cascade", *, nested=False, shared=(), at="", branches=(SMALL, MIDDLE, ()), seed=0):
    torch.manual_seed(seed)
    router = None if rule == "cascade" else RouterSpec(at=at, inputs=8 if at else 3, width=4)
    net = RoutedNet(Net(), RouteSpec(branches=branches, rule=rule, shared=shared, nested=nested, router=router))
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
        if net.router is not None:
            for part in net.router.modules():
                if isinstance(part, nn.Linear | nn.Conv2d):
                    part.weight.mul_(6)
    net.eval()
    if rule == "cluster":  # so that each cluster has its share
        with torch.no_grad():
            net.router.head[-1].bias.sub_(net.router(net.router_input(X)).mean(0))
    return net


def limits_of(net, x):
    """Thresholds that split these samples about evenly among the branches."""
    cascade = net.router is None
    said = [confidence(branch(x)) for branch in net.branches[:-1]]
    return (torch.stack(said, 1) if cascade else net.router(net.router_input(x))).quantile(0.6, 0)


@torch.no_grad()
def by_hand(net, x, limits):
    """(answers, branches), one sample at a time, by the rule's words."""
    answers, taken = [], []
    for sample in x.split(1):
        said = [branch(sample) for branch in net.branches]
        if net.spec.rule == "cluster":
            pick = int(net.router(net.router_input(sample)).argmax())
        else:
            scores = [float(confidence(s)) for s in said] if net.router is None else net.router(net.router_input(sample))[0]
            pick = next((i for i in range(len(said) - 1) if scores[i] >= limits[i]), len(said) - 1)
        answers.append(said[pick])
        taken.append(pick)
    return torch.cat(answers), torch.tensor(taken)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("rule", "at"), [("cascade", ""), ("router", ""), ("router", "stem"), ("cluster", ""), ("cluster", "stem")]
)
@torch.no_grad()
def test_a_batch_is_answered_as_its_samples_are_by_the_rule(rule, at, nested):
    net = routed(rule, at=at, nested=nested, shared=STEM)
    if rule != "cluster":
        net.thresholds.copy_(limits_of(net, X))
    answers, taken = by_hand(net, X, net.thresholds)
    assert set(taken.tolist()) == {0, 1, 2}
    # a batch is convolved in another order of additions than a single sample: 1e-5 of values around 1
    torch.testing.assert_close(net(X), answers, rtol=1e-4, atol=1e-5)
    assert torch.equal(net.taken, taken)


@pytest.mark.parametrize("rule", ["cascade", "router"])
@torch.no_grad()
def test_a_higher_threshold_never_picks_a_smaller_branch(rule):
    net = routed(rule)
    taken = {}
    grid = [0.0, 0.3, 0.45, 0.6, 0.8, 1.01]
    for limits in itertools.product(grid, grid):
        net(X, torch.tensor(limits))
        taken[limits] = net.taken
    for low, high in itertools.product(taken, taken):
        if low[0] <= high[0] and low[1] <= high[1]:
            assert (taken[low] <= taken[high]).all()
    assert (taken[0.0, 0.0] == 0).all()
    assert (taken[1.01, 1.01] == 2).all()


def test_thresholds_given_take_the_place_of_the_networks_own():
    net = routed()
    with torch.no_grad():
        net(X, torch.zeros(2))
        assert (net.taken == 0).all()
        net.thresholds.fill_(1.01)
        torch.testing.assert_close(net(X), net.branches[2](X))


def test_first_reaching_is_the_first_score_at_its_limit():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.7], [0.2, 0.1], [0.5, 0.9]])
    assert first_reaching(scores, torch.tensor([0.5, 0.7])).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("nested", [False, True])
def test_a_plain_branch_computes_what_the_branch_does_and_stands_alone(nested):
    net = routed(nested=nested, shared=STEM)
    with torch.no_grad():
        for number, branch in enumerate(net.branches):
            alone = plain_branch(net, number)
            wanted = branch(X)
            assert torch.equal(alone(X), wanted)
            assert not any(part._forward_hooks or part._forward_pre_hooks for part in alone.modules())
            own = dict(alone.named_parameters())
            assert own["conv.weight"].shape[0] == (4, 8, 12)[number]
            for parameter in own.values():
                parameter.add_(1)
            assert torch.equal(branch(X), wanted)  # nothing of the copy is the network's


def test_nested_weights_are_slices_of_the_largest_branchs():
    net = routed(nested=True)
    largest = net.branches[2]
    channels = torch.tensor([1, 4, 7, 10])
    with torch.no_grad():
        largest.conv.weight.normal_()
        largest.deep.weight.normal_()
        small = plain_branch(net, 0)
        assert torch.equal(small.conv.weight, largest.conv.weight[channels])
        assert torch.equal(small.deep.weight, largest.deep.weight[channels])
        assert torch.equal(small.head.weight, largest.head.weight)
    assert not [name for name in net.state_dict() if name.startswith("branches.0.") and name.endswith("conv.weight")]
    assert "branches.0.grouped.weight" in net.state_dict()  # a grouped convolution keeps its own
    assert "branches.0.norm.weight" in net.state_dict()


def test_nested_weights_within_a_largest_branch_that_is_cut_itself():
    net = routed(nested=True, branches=(SMALL, MIDDLE))
    at = torch.tensor([0, 2, 4, 6])  # where 1, 4, 7, 10 are among 1, 2, 4, 5, 7, 8, 10, 11
    assert torch.equal(plain_branch(net, 0).conv.weight, net.branches[1].conv.weight[at])


def test_the_smaller_branches_train_the_largest_ones_weights():
    net = routed(nested=True).train()
    net.branches[0](X).square().mean().backward()
    grad = net.branches[2].conv.weight.grad
    touched = grad.flatten(1).abs().sum(1) > 0
    assert touched.nonzero()[:, 0].tolist() == [1, 4, 7, 10]
    before = net.branches[0](X).detach()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert not torch.allclose(net.branches[0](X), before)


def test_branches_that_are_not_nested_are_refused_with_the_channel():
    with pytest.raises(UserError, match=r"not nested at conv \(out\): channel 0"):
        routed(nested=True, branches=(kept(0, 1, 7, 10), MIDDLE))
    with pytest.raises(UserError, match=r"not nested at conv \(out\)"):
        routed(nested=True, branches=((), MIDDLE))


def test_shared_modules_are_one():
    net = routed(shared=STEM)
    assert net.branches[0].stem is net.branches[2].stem
    assert net.branches[0].conv is not net.branches[2].conv
    apart = routed()
    assert apart.branches[0].stem is not apart.branches[2].stem


@pytest.mark.parametrize("nested", [False, True])
def test_a_copy_is_whole_and_apart(nested):
    net = routed(nested=nested, shared=STEM)
    net.branches[0](X)  # leaves a graph
    with torch.inference_mode():
        net(X)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        assert torch.equal(twin(X), net(X))
        before = net(X)
        for parameter in twin.parameters():
            parameter.mul_(2)
        assert torch.equal(net(X), before)
        assert not torch.equal(plain_branch(twin, 0).conv.weight, plain_branch(net, 0).conv.weight)


RESNET = Architecture(name="resnet8", kwargs={"num_classes": 5, "in_channels": 3, "width": 0.5})


def slim(share):
    """ResNet-8 with that share of the channels inside its three blocks."""
    edits = []
    for stage, width in enumerate((8, 16, 32), 1):
        block, kept_ones = f"layer{stage}.0", tuple(range(round(width * share)))
        edits += [Edit(path=f"{block}.{name}", side="out", size=width, kept=kept_ones) for name in ("conv1", "bn1")]
        edits.append(Edit(path=f"{block}.conv2", side="in", size=width, kept=kept_ones))
    return tuple(edits)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("rule", "at"), [("cascade", ""), ("router", ""), ("cluster", "bn1")])
def test_a_routed_network_reloads_from_its_bundle(tmp_path, rule, at, nested):
    router = None if rule == "cascade" else RouterSpec(at=at, inputs=8 if at else 3)
    spec = RouteSpec(branches=(slim(0.25), slim(0.5), ()), rule=rule, shared=("conv1", "bn1"), nested=nested, router=router)
    torch.manual_seed(0)
    net = RoutedNet(RESNET.build(), spec).eval()
    if rule != "cluster":
        net.thresholds.copy_(limits_of(net, X).detach())
    contract = image_classifier(channels=3, height=12, width=12, classes=tuple("abcde"), mean=(0.0,) * 3, std=(1.0,) * 3)
    plan = SurgeryPlan(routes=spec).model_dump(mode="json")
    save_bundle(tmp_path / "b", net, Manifest(architecture=RESNET, contract=contract, plan=plan))
    again = load_bundle(tmp_path / "b").module().eval()
    with torch.no_grad():
        assert torch.equal(again(X), net(X))
        assert torch.equal(again.taken, net.taken)
    assert torch.equal(again.thresholds, net.thresholds)
    assert again.branches[0].conv1 is again.branches[2].conv1
    again.train()
    again(X).square().mean().backward()  # it can be trained
    assert again.branches[2].layer1[0].conv1.weight.grad is not None or not nested


def test_features_stop_where_they_are_wanted():
    net = Net().eval()
    ran = []
    net.head.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        assert torch.equal(features_at(net, "stem", X), net.stem(X))
    assert not ran
    net.idle = nn.Identity()
    with pytest.raises(UserError, match="never reaches 'idle'"):
        features_at(net, "idle", X)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rule": "router"}, "'router' needs a router"),
        ({"router": RouterSpec(inputs=3)}, "'cascade' takes no router"),
        ({"branches": (SMALL,)}, "at least 2"),
        ({"branches": (SMALL,) * 9}, "at most 8"),
    ],
)
def test_specs_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        RouteSpec(**{"branches": (SMALL, ()), **wrong})


def test_a_network_is_routed_once_and_cut_before():
    plan = SurgeryPlan(routes=RouteSpec(branches=(SMALL, ())))
    with pytest.raises(UserError, match="the network is dynamic already"):
        plan.then(plan)
    with pytest.raises(UserError, match="can't be cut"):
        plan.then(SurgeryPlan(edits=SMALL))
    assert SurgeryPlan(edits=MIDDLE[:1]).then(plan).routes == plan.routes
