"""The recipe step "route" from end to end on a small task: branches, router, clusters, costs, refusals, resuming."""

import json

import pytest
import torch
from training_kit import make_task, same, weights

from trimtab.compress.apply import run_recipe
from trimtab.compress.cost import count
from trimtab.compress.recipe import parse_recipe
from trimtab.compress.routing.cost import expected_macs, route_cost
from trimtab.compress.routing.router import easiness, router_loss, router_targets
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.gates import gates_of
from trimtab.models.routed import RoutedNet, plain_branch
from trimtab.models.source import parse

QUICK = {"epochs": 2, "batch_size": 16, "amp": "off", "checkpoint_s": 1000, "round_to": 1, "ratios": [0.3, 1.0]}
NET = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(Bundle, task, the network's file): the small net, trained for three epochs."""
    folder = tmp_path_factory.mktemp("parent")
    (folder / "net.py").write_text(NET)
    task = make_task()
    architecture = parse(f"{folder / 'net.py'}:make", {})
    torch.manual_seed(0)
    save_bundle(folder / "b", architecture.build(), Manifest(architecture=architecture, contract=task.contract))
    bundle = load_bundle(folder / "b")
    recipe = [{"kind": "finetune", "epochs": 3, "lr": 0.1, "batch_size": 16, "amp": "off"}]
    return steps(bundle, task, folder / "work", *recipe)[-1].bundle, task, folder / "net.py"


@pytest.fixture
def parent(trained):
    """(Bundle, task), the network's file trusted: every test has a home of its own."""
    bundle, task, file = trained
    parse(f"{file}:make", {})
    return bundle, task


def steps(bundle, task, folder, *recipe, seed=0):
    return run_recipe(bundle, parse_recipe({"format": 1, "seed": seed, "step": list(recipe)}, origin="test"), task, folder)


def routed(parent, folder, **options):
    bundle, task = parent
    return steps(bundle, task, folder, {"kind": "route", **QUICK, **options})[-1]


def images(task, split="val"):
    samples = task.samples(split)
    return task.inputs(samples.__getitems__(range(len(samples))))


def test_a_cascade_reports_what_it_does(parent, tmp_path):
    done = routed(parent, tmp_path)
    bundle, task = parent
    figures, net = done.figures, done.bundle.module().eval()
    json.dumps(figures)
    assert isinstance(net, RoutedNet)
    assert net.router is None
    small, large = figures["branches"]
    assert small["mac_ratio"] == pytest.approx(0.3, abs=0.02)
    assert (large["mac_ratio"], large["trained"]) == (1.0, False)  # the parent as it is
    assert small["path_ratio"] == small["mac_ratio"]
    assert large["path_ratio"] == pytest.approx(large["mac_ratio"] + small["mac_ratio"])
    # the same, from the network itself: branches alone, and the samples that each takes
    x = images(task)
    one = [count(plain_branch(net, i), [x[:1]]).macs for i in range(2)]
    assert [b["macs"] for b in figures["branches"]] == one
    with torch.no_grad():
        net(x)
    share = float((net.taken == 0).float().mean())
    assert figures["shares"] == pytest.approx([share, 1 - share])
    assert figures["macs_after"] == pytest.approx(share * one[0] + (1 - share) * sum(one))
    assert figures["mac_ratio"] == pytest.approx(figures["macs_after"] / one[1])
    assert figures["macs_worst"] == sum(one)
    chosen = figures["calibration"]["chosen"]
    assert chosen["thresholds"] == pytest.approx(net.thresholds.tolist())
    assert chosen["accuracy"] >= figures["calibration"]["reference_accuracy"] - 0.005
    assert figures["val_after"]["accuracy"] == pytest.approx(chosen["accuracy"])
    assert set(figures["signals"]) == {"confidence", "mass"}
    # the largest branch is the parent, bit for bit
    with torch.no_grad():
        assert torch.equal(plain_branch(net.eval(), 1)(x), bundle.module().eval()(x))


def test_the_small_branch_learns(parent, tmp_path):
    epochs = routed(parent, tmp_path, epochs=4).figures["history"]["branches"]["epochs"]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert {"label", "teacher"} == set(epochs[0]["parts"])


def test_a_router_picks_at_once_and_its_cost_is_counted(parent, tmp_path):
    done = routed(parent, tmp_path, rule="router", router_epochs=2, joint_epochs=1)
    figures, net = done.figures, done.bundle.module()
    task = parent[1]
    assert set(figures["history"]) == {"branches", "router", "specialise", "joint"}
    assert set(figures["signals"]) == {"confidence", "router", "mass"}
    cost = route_cost(net, [images(task)[:1]])
    assert cost.router == count(net.router, [images(task)[:1]]).macs > 0
    assert cost.paths == tuple(cost.router + macs for macs in cost.alone)
    assert figures["router_macs"] == cost.router


def test_nested_branches_have_no_weights_of_their_own(parent, tmp_path):
    done = routed(parent, tmp_path, nested=True)
    net, figures = done.bundle.module().eval(), done.figures
    with torch.no_grad():
        net(images(parent[1]))  # a slice is taken at every pass
    small, large = net.branches
    kept = list(next(e.kept for e in done.bundle.plan.routes.branches[0] if (e.path, e.side) == ("0", "out")))
    first = large[0].weight.detach()
    assert torch.equal(small[0].weight.detach(), first[kept])
    own = sum(p.numel() for p in net.parameters())
    assert figures["params_after"] == own < sum(b["params"] for b in figures["branches"])
    assert figures["branches"][1]["trained"]


def test_shared_modules_are_the_same_and_counted_once(parent, tmp_path):
    done = routed(parent, tmp_path, shared=["0", "1", "2"], ratios=[0.5, 1.0])
    net = done.bundle.module()
    assert net.branches[0][0] is net.branches[1][0]
    cost = route_cost(net, [images(parent[1])[:1]])
    assert cost.prefix == 8 * 9 * 64  # the first convolution: 8 filters of 1×3×3 on 8×8 places
    assert cost.paths == (cost.alone[0], cost.alone[0] + cost.alone[1] - cost.prefix)


def test_clusters_have_one_size_and_no_thresholds(parent, tmp_path):
    kinds = {}
    for by in ("masks", "classes"):
        options = {key: value for key, value in QUICK.items() if key != "ratios"}
        bundle, task = parent
        step = {"kind": "route", **options, "by": by, "clusters": 2, "ratio": 0.4, "router_epochs": 2}
        done = steps(bundle, task, tmp_path / by, step)[-1]
        kinds[by] = done.bundle.module()
        assert [b["mac_ratio"] for b in done.figures["branches"]] == pytest.approx([0.4, 0.4], abs=0.02)
        assert done.figures["thresholds"] == []
        assert "calibration" not in done.figures
        assert sum(done.figures["shares"]) == pytest.approx(1)
    assert kinds["masks"].spec.rule == kinds["classes"].spec.rule == "cluster"


def test_expected_macs_are_those_of_the_branches_taken(parent, tmp_path):
    net = routed(parent, tmp_path).bundle.module()
    x, cost = images(parent[1]), route_cost(net, [images(parent[1])[:1]])
    net.thresholds.fill_(0.0)
    assert expected_macs(net, x).mean == cost.paths[0]
    net.thresholds.fill_(1.01)
    found = expected_macs(net, [x[:10], x[10:]])
    assert (found.mean, found.shares, found.samples) == (cost.paths[1], (0.0, 1.0), len(x))
    with pytest.raises(UserError, match="no samples"):
        expected_macs(net, [])


def test_gates_rank_the_channels_and_stay_behind(parent, tmp_path):
    bundle, task = parent
    gates = {
        "kind": "ftwt",
        "r": 0.8,
        "scale": "standardise",
        "epochs": 1,
        "batch_size": 16,
        "amp": "off",
        "estimate_images": 64,
    }
    done = steps(bundle, task, tmp_path, gates, {"kind": "route", **QUICK})[-1]
    net = load_bundle(done.bundle.folder).module()
    assert isinstance(net, RoutedNet)
    assert not gates_of(net)
    x = images(task)
    with torch.no_grad():  # the whole branch has the weights from before the gates
        assert torch.equal(plain_branch(net.eval(), 1)(x), bundle.module().eval()(x))


def test_it_reloads_and_a_second_run_is_the_same(parent, tmp_path):
    first, second = routed(parent, tmp_path / "a"), routed(parent, tmp_path / "b")
    assert same(weights(first.bundle.module()), weights(second.bundle.module()))
    assert first.figures["thresholds"] == second.figures["thresholds"]
    assert routed(parent, tmp_path / "a").reused


def test_a_stopped_run_goes_on_to_the_same_network(parent, tmp_path, monkeypatch):
    from trimtab.compress.routing import run as module

    whole = routed(parent, tmp_path / "whole", rule="router", router_epochs=1)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.Run, "_train_router", stop)
        with pytest.raises(KeyboardInterrupt):
            routed(parent, tmp_path / "broken", rule="router", router_epochs=1)
    resumed = routed(parent, tmp_path / "broken", rule="router", router_epochs=1)
    assert same(weights(whole.bundle.module()), weights(resumed.bundle.module()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": [0.05, 1.0], "max_ratio": 0.5}, r"a branch of"),
        ({"shared": ["stem"]}, r"shared names 'stem', which the network lacks"),
        ({"target_mac_ratio": 0.05}, r"target_mac_ratio 0.05 can't be reached: the smallest branch alone costs 0\.[23]"),
    ],
)
def test_what_can_t_be_made_is_refused(parent, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        routed(parent, tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": [1.0, 0.3]}, "must rise"),
        ({"ratios": [0.3]}, "ratios has 1 values"),
        ({"ratios": [0.0, 1.0]}, "ratios has 0: a share"),
        ({"max_accuracy_drop": 0.1, "target_mac_ratio": 0.5}, "two targets"),
        ({"router_at": "3", "rule": "router"}, "is not in a shared module"),
        ({"by": "masks"}, 'ratios goes with by = "difficulty"'),
        ({"joint_epochs": 1}, "is for a router"),
        ({"nested": True, "train_largest": False}, "nested branches learn"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        parse_recipe({"format": 1, "step": [{"kind": "route", **QUICK, **options}]}, origin="test")


def test_few_validation_samples_and_second_routes_are_refused(parent, tmp_path):
    bundle, task = parent
    with pytest.raises(UserError, match="thresholds from 31 validation samples would be chance"):
        steps(bundle, make_task(val=31), tmp_path / "few", {"kind": "route", **QUICK})
    with pytest.raises(UserError, match="routed already"):
        steps(bundle, task, tmp_path / "twice", {"kind": "route", **QUICK}, {"kind": "route", **QUICK})


def test_what_a_router_is_to_learn():
    assert easiness(torch.tensor([0.1, 0.5, 0.5, 0.9])).tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0])
    suffices = torch.tensor([[True], [False], [True], [False]])
    demand = torch.tensor([0.1, 0.5, 0.5, 0.9])
    assert router_targets("suffices", suffices, None)[:, 0].tolist() == [1, 0, 1, 0]
    assert router_targets("both", suffices, demand)[:, 0].tolist() == pytest.approx([1.0, 0.25, 0.75, 0.0])
    logits = torch.tensor([[0.3], [-2.0]])
    wanted = torch.tensor([[1.0], [0.25]])
    p = torch.sigmoid(logits.double())
    expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
    assert float(router_loss(logits, wanted)) == pytest.approx(float(expected), rel=1e-5)
