"""The recipe step "ftwt" from end to end on a small task: figures, notes, refusals, resuming, reloading."""

import json
import re
import signal

import pytest
import torch
from torch import nn
from training_kit import FakeBundle, make_context, make_task, same, weights

from trimtab.compress.dynamic.calibrate import match_rates, threshold
from trimtab.compress.dynamic.ground_truth import Rule
from trimtab.compress.dynamic.method import FtwtConfig, ftwt
from trimtab.compress.dynamic.observe import observe
from trimtab.compress.method import methods
from trimtab.compress.recipe import parse_recipe
from trimtab.compress.train import Runtime
from trimtab.models.errors import UserError
from trimtab.models.gates import gates_of

QUICK = {"epochs": 2, "batch_size": 16, "amp": "off", "checkpoint_s": 1000, "estimate_images": 64}


def make(seed=0):
    """Two gateable convolutions for the toy task, without dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 4),
        )


def run(folder, net=None, task=None, **options):
    net, task = net or make(), task or make_task()
    config = FtwtConfig(**{**QUICK, "r": 0.8, **options} if "target_mac_reduction" not in options else {**QUICK, **options})
    context = make_context(folder, parent=FakeBundle(task.contract, net))
    return net, ftwt(net, task, config, context)


def test_what_the_step_reports(tmp_path):
    net, result = run(tmp_path, scale="standardise", start="open")
    figures = result.figures
    json.dumps(figures)
    assert [spec.conv for spec in result.plan.gates] == ["0", "3"] == list(gates_of(net))
    assert figures["gates"][0]["saves"] == "own outputs, inputs of what follows"
    dense = figures["realised"]["macs_before"]
    assert dense == 64 * 9 * 8 + 64 * 9 * 8 * 16 + 64 * 4
    assert figures["realised"]["gate_macs"] == 8 + 8 * 16
    seen = observe(net, make_task(), Rule(0.8), runtime=Runtime("cpu"))
    share = {path: mask.double() for path, mask in seen.masks.items()}
    first, second = share["0"].mean(1), share["3"].mean(1)
    macs = 64 * 9 * 8 * first + 64 * 9 * 8 * 16 * first * second + 256 * second + 8 + 8 * 16
    assert figures["realised"]["macs_mean"] == pytest.approx(macs.mean().item())
    assert figures["realised"]["mac_reduction"] == pytest.approx(1 - macs.mean().item() / dense)
    assert figures["val_after"] == seen.metrics
    assert figures["estimate"]["level"] == 0.8
    assert set(figures["diversity"]["layers"]) == {"0", "3"}
    epochs = figures["history"]["epochs"]
    assert [set(e["parts"]) for e in epochs] == [{"label", "mask"}] * 2
    assert epochs[0]["parts"]["mask"] > 0
    assert {"accuracy", "mac_reduction", "distinct_masks", "dynamic_layers", "beyond_constant"} <= epochs[0]["val"].keys()


def test_the_loss_has_its_mask_part_in_the_first_half_alone(tmp_path):
    """Σ over parts: label + λ·mask with λ = 2 in epoch 1 of 2, label alone in epoch 2."""
    _, result = run(tmp_path, mask_weight=2.0)
    first, second = result.figures["history"]["epochs"]
    assert first["train_loss"] == pytest.approx(first["parts"]["label"] + 2 * first["parts"]["mask"], rel=1e-5)
    assert second["train_loss"] == pytest.approx(second["parts"]["label"], rel=1e-5)
    assert second["parts"]["mask"] > 0


@pytest.mark.parametrize("scale", ["softmax", "standardise"])
@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_gates_stay_as_they_are_in_the_second_half(tmp_path, scale, mode):
    """Weights and, with standardise, running statistics; the network itself goes on learning."""
    task = make_task()
    states = []
    net = make()
    honest = task.loss

    def loss(outputs, targets):
        states.append({name: t.clone() for name, t in net.state_dict().items()})
        return honest(outputs, targets)

    task.loss = loss
    run(tmp_path, net, task, scale=scale, mode=mode, hidden=3)
    gate = [name for name in states[0] if ".gate." in name]
    halves = states[:6], states[6:]
    assert len(states) == 12
    for name in gate:
        if "num_batches" in name and scale == "softmax":
            continue
        assert not torch.equal(halves[0][1][name], halves[0][-1][name]), name
        assert all(torch.equal(later[name], halves[1][0][name]) for later in halves[1]), name
    assert not torch.equal(halves[1][0]["3.weight"], halves[1][-1]["3.weight"])


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_only_the_joint_mode_lets_the_mask_loss_shape_the_network(tmp_path, mode):
    """With masks that are all on (r = 1 and open gates) the modes can differ by the mask loss alone."""
    weight = {}
    for loss in (1e-9, 50.0):
        net, _ = run(tmp_path / str(loss), mode=mode, mask_weight=loss, r=1.0, start="open", predictor_lr=1e-9)
        weight[loss] = net[0].weight.detach().clone()
    assert torch.equal(weight[1e-9], weight[50.0]) is (mode == "decoupled")


@pytest.mark.parametrize("stop", [3, 6, 7, 10])
def test_a_stopped_run_resumes_bit_exact(tmp_path, stop):
    """Before, at, right after and well after the step where gates are calibrated and frozen (the seventh of 12)."""
    options = {"scale": "standardise", "hidden": 3, "calibrate": True, "optimizer": "sgd"}
    whole, told = run(tmp_path / "whole", **options)
    task, calls = make_task(), []
    honest = task.loss

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        return honest(outputs, targets)

    task.loss = loss
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", task=task, **options)
    resumed, result = run(tmp_path / "cut", **options)
    assert result.figures["history"]["resumed_at"] == stop
    assert same(weights(whole), weights(resumed))
    assert result.figures["diversity"] == told.figures["diversity"]


def test_a_target_is_met_by_the_estimate(tmp_path):
    _, result = run(tmp_path / "a", target_mac_reduction=0.4)
    estimate = result.figures["estimate"]
    assert abs(estimate["mac_reduction"] - 0.4) < 0.02  # 64 images, 24 filters: the curve has steps
    assert 0 < estimate["level"] < 1
    assert len(estimate["curve"]) > 2
    _, layered = run(tmp_path / "b", target_mac_reduction=0.4, allocate="layer")
    assert set(layered.figures["estimate"]["level"]) == {"0", "3"}


def test_calibrated_gates_keep_as_much_as_the_ground_truth(tmp_path):
    """Random gates before, and thresholds fitted and looked at on the same images: within one entry of the layer's 64 × C."""
    net, _ = run(tmp_path, scale="standardise", start="random", predictor_lr=1e-6)
    task, gates = make_task(), gates_of(net)
    images = task.inputs(task.samples("val").__getitems__(range(64)))
    before = observe(net, task, Rule(0.6), runtime=Runtime("cpu"))
    match_rates(net, gates, Rule(0.6), [images[:40], images[40:]])
    after = observe(net, task, Rule(0.6), runtime=Runtime("cpu"))
    for path in gates:
        gap = abs(int(after.masks[path].sum()) - int(after.truths[path].sum()))
        assert gap <= 0.02 * after.masks[path].numel()
        assert gap < abs(int(before.masks[path].sum()) - int(before.truths[path].sum()))


def test_a_threshold_lies_between_neighbours():
    logits = torch.tensor([[3.0, 1.0], [0.0, -2.0]])
    assert [threshold(logits, count) for count in range(5)] == [4.0, 2.0, 0.5, -1.0, -3.0]


def test_a_threshold_parts_no_ties():
    """Four equal logits stay on one side, whichever count is nearer; a threshold on them would be decided by rounding."""
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    assert [threshold(logits, count) for count in (1, 2, 4, 5)] == [2.0, 2.0, 0.5, 0.5]


def test_collapsed_gates_are_named(tmp_path):
    """The first gate sees one grey channel: the softmax of it is 1 for every input."""
    _, result = run(tmp_path / "a", start="open", predictor_lr=1e-9)
    assert any(re.search(r"^2 of 2 gates switch nothing off \(all on\): 0, 3", note) for note in result.notes)
    assert "the gate of 0 sees one channel, whose softmax is 1 for every input" in result.notes
    assert any("was estimated as" in note for note in result.notes)
    _, result = run(tmp_path / "b", start="mean", predictor_lr=1e-9, r=0.5)
    assert any("the same mask (static): 0, 3" in note for note in result.notes)


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="ftwt needs data, and this run has none"):
        ftwt(make(), None, FtwtConfig(r=0.9), make_context(tmp_path))
    net, _ = run(tmp_path / "once")
    with pytest.raises(UserError, match="the network has 2 gates already"):
        run(tmp_path / "twice", net)
    with pytest.raises(UserError, match="no layer of this network can be gated"):
        run(tmp_path / "none", nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(UserError, match=r"no layer of this network can be gated.*the recipe keeps 0"):
        run(tmp_path / "kept", keep=("0", "3"))
    with pytest.raises(UserError, match="mask statistics from 20 val samples"):
        run(tmp_path / "few", task=make_task(val=20))
    with pytest.raises(UserError, match=r"target_mac_reduction = 0.995 is out of reach: even r = 0.05"):
        run(tmp_path / "far", target_mac_reduction=0.995)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"r": 0.0}, "r.*greater than 0"),
        ({"r": 1.01}, "r.*less than or equal to 1"),
        ({"target_mac_reduction": 1.0}, "target_mac_reduction.*less than 1"),
        ({}, "give one of r .* and target_mac_reduction"),
        ({"r": 0.9, "target_mac_reduction": 0.5}, "give one of r .* and target_mac_reduction"),
        ({"r": 0.9, "allocate": "layer"}, 'allocate = "layer" needs target_mac_reduction'),
        ({"r": 0.9, "scale": "standardise", "batch_size": 1}, "one image has no variance"),
        ({"r": 0.9, "calibrate": True, "mask_until": 1.0}, "calibrate needs mask_until below 1"),
        ({"r": 0.9, "estimate_images": 8}, "estimate_images.*greater than or equal to 32"),
    ],
)
def test_a_recipe_is_refused_before_anything_runs(step, said):
    assert "ftwt" in methods
    with pytest.raises(UserError, match=said):
        parse_recipe({"format": 1, "step": [{"kind": "ftwt", **step}]}, origin="test")


def test_the_defaults_are_the_papers():
    config = FtwtConfig(r=0.9)
    assert (config.lr, config.predictor_lr, config.mask_weight, config.mask_until) == (0.01, 0.1, 1.0, 0.5)
    assert (config.pool, config.scale, config.mode, config.hidden, config.criterion) == (
        "max",
        "softmax",
        "decoupled",
        0,
        "mass",
    )
    assert config.momentum == 0.9
    assert config.weight_decay == 5e-4
