"""MAC reduction before training: the curve, the level for a target, and levels for each layer."""

import json

import pytest
import torch
from ftwt_kit import Chain
from torch import nn
from training_kit import make_net, make_task

from trimtab.compress.cost import count
from trimtab.compress.dynamic.estimate import CLOSE, Estimator, estimate
from trimtab.compress.dynamic.ground_truth import mass_mask, uniform_mask
from trimtab.compress.dynamic.per_layer import allocate
from trimtab.compress.train import Runtime, evaluate
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError

X = torch.zeros(1, 1, 8, 8)


def runtime():
    return Runtime("cpu", amp="off")


def vgg():
    """A network of 13 layers for the toy task, its statistics those of random weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Upsample(scale_factor=2), architectures.get("vgg16_bn")(num_classes=4, in_channels=1, width=0.125))
    with torch.no_grad():
        net.train()(torch.randn(64, 1, 8, 8))
    return net.eval()


@pytest.fixture(scope="module")
def estimator():
    return Estimator(vgg(), make_task(), [X], runtime=runtime(), images=48)


def test_the_figure_is_the_masks_worked_out_by_hand():
    """One gate, of which everything is known: keep shares of the first convolution and of the classifier's inputs."""
    torch.manual_seed(0)
    net, task = make_net(), make_task()
    curve = estimate(net, task, [X], runtime=runtime(), levels=(0.9, 0.4), images=64)
    cost = {layer.path: layer.macs for layer in count(net, [X]).layers}
    images = task.inputs(task.samples("val").__getitems__(range(64)))
    saliency = net.eval()[:3](images).amax((2, 3))
    gate = 1 * 8
    for point, r in zip(curve.points, (0.4, 0.9), strict=True):
        keep = mass_mask(saliency, r).double().mean(1)
        macs = ((cost["0"] + cost["6"]) * keep + gate).mean().item()
        assert point.mac_reduction == pytest.approx(1 - macs / (cost["0"] + cost["6"]), abs=1e-9)
        assert point.keep["0"] == pytest.approx(keep.mean().item())
        masked = net[3:](net[:3](images) * mass_mask(saliency, r)[:, :, None, None])
        accuracy = (masked.argmax(1) == task.samples("val").__getitems__(range(64)).targets).double().mean().item()
        assert point.metrics["accuracy"] == pytest.approx(accuracy)
    assert curve.dense_metrics == evaluate(net, task, "val", runtime=runtime(), limit=64)
    assert (curve.dense_macs, curve.gate_macs, curve.samples) == (cost["0"] + cost["6"], gate, 64)
    json.dumps(curve.as_dict())


def test_a_smaller_r_saves_more(estimator):
    reductions = [estimator.point(r).mac_reduction for r in (0.3, 0.5, 0.7, 0.9, 1.0)]
    assert reductions == sorted(reductions, reverse=True)
    assert reductions[0] > 0.6


def test_uniform_keeps_the_same_share_of_every_layer():
    curve = estimate(vgg(), make_task(), [X], runtime=runtime(), levels=(0.5,), criterion="uniform", images=48)
    saliency = torch.rand(1, 8)
    assert set(curve.points[0].keep.values()) == {uniform_mask(saliency, 0.5).float().mean().item()}


@pytest.mark.parametrize("target", [0.2, 0.5, 0.75])
def test_the_level_for_a_target_is_found_by_measuring(estimator, target):
    point = estimator.level_for(target)
    steps = [abs(p.mac_reduction - target) for p in estimator.measured()]
    assert abs(point.mac_reduction - target) == min(steps)
    assert abs(point.mac_reduction - target) <= 2 * CLOSE  # 48 images × 13 layers: the curve has small steps
    assert estimator.summary(point.level, estimator.look(point.level)).mac_reduction == point.mac_reduction


def test_a_target_out_of_reach_names_the_nearest(estimator):
    most, least = estimator.point(0.05).mac_reduction, estimator.point(1.0).mac_reduction
    with pytest.raises(
        UserError, match=rf"target_mac_reduction = 0.999 is out of reach: even r = 0.05 saves no more than {most:.3f}"
    ):
        estimator.level_for(0.999)
    low = least - 0.02
    with pytest.raises(UserError, match=rf"is out of reach: r = 1 saves {least:.3f} already") as caught:
        estimator.level_for(low)
    assert f"nearest that can be reached is {least:.3f}" in caught.value.hint


def test_levels_for_each_layer_meet_the_target_together(estimator):
    levels, point = allocate(estimator, 0.4, steps=(1.0, 0.9, 0.7, 0.4, 0.1))
    assert set(levels) == set(estimator.gates)
    assert len(set(levels.values())) > 1
    again = estimator.summary(0.0, estimator.look(levels))
    assert again.mac_reduction == point.mac_reduction
    assert abs(point.mac_reduction - 0.4) < 0.03  # one move of one of 13 layers is the grain
    with pytest.raises(UserError, match=r"even level 0\.9 in every layer saves no more than"):
        allocate(estimator, 0.99, steps=(1.0, 0.9))


def test_layers_are_charged_by_what_they_cost():
    """A layer whose masks lose nothing is cut before one whose masks lose much."""
    net = vgg()
    estimator = Estimator(net, make_task(), [X], runtime=runtime(), images=48)
    spared = "1.features.0"
    honest = estimator.look

    def look(level, *, images=0):
        seen = honest(level, images=images)
        seen.metrics["loss"] = 1e3 * (1 - level[spared])
        return seen

    estimator.look = look
    levels, _ = allocate(estimator, 0.4, steps=(1.0, 0.9, 0.7, 0.4, 0.1))
    assert levels[spared] == 1.0


def test_bad_input():
    net, task = make_net(), make_task()
    with pytest.raises(UserError, match=r"r = 1.2 must be above 0 and at most 1"):
        estimate(net, task, [X], runtime=runtime(), levels=(0.5, 1.2))
    with pytest.raises(UserError, match="mask statistics from 20 val samples say nothing: at least 32 are wanted"):
        estimate(net, make_task(val=20), [X], runtime=runtime())
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UserError, match=r"no layer of this network can be gated \(1: linear layers are not gated\)"):
        estimate(bare, task, [X], runtime=runtime())
    sigmoid = Chain(first=torch.sigmoid, second=torch.sigmoid)
    with pytest.raises(UserError, match=r"can be gated \(a.0: Sigmoid follows"):
        estimate(sigmoid, make_task(channels=3), [torch.zeros(1, 3, 12, 12)], runtime=runtime())


def test_the_network_is_left_as_it_was():
    net = make_net().train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    estimate(net, make_task(), [X], runtime=runtime(), levels=(0.5,), images=32)
    assert net.training
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
