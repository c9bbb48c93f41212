"""The bias loss as functions: its weights by NumPy, guards, controls, and the feature map that is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from training_kit import make_net

from trimtab.compress.bias_loss import (
    SampleWeights,
    bias_loss,
    controlled,
    feature_variance,
    normalised,
    sample_weights,
)
from trimtab.compress.feature_map import feature_map, find_feature_map
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError

torch.set_num_threads(1)


def features(*shape, seed=0):
    """Features whose variance differs from sample to sample."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * rng.uniform(0.3, 3, (shape[0], *[1] * (len(shape) - 1)))).astype(np.float32)


def numpy_weights(v, smallest=None, alpha=0.3, beta=0.3):
    """exp(α (v − m) / (max v − min v)) − β, straight from the paper."""
    m = v.min() if smallest is None else smallest
    return np.exp(alpha * (v - m) / (v.max() - v.min())) - beta


# ---------------------------------------------------------------- the equations


def test_variance_is_numpys_unbiased_one_of_the_whole_map():
    maps = features(5, 3, 4, 4)
    expected = maps.reshape(5, -1).astype(np.float64).var(1, ddof=1)
    found = feature_variance(torch.from_numpy(maps).requires_grad_())
    assert not found.requires_grad
    # float32 sums of 48 squares
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_variance_of_half_precision_features_is_computed_in_float32():
    maps = torch.from_numpy(features(4, 8, 5, 5)).bfloat16()
    assert feature_variance(maps).dtype == torch.float32
    assert torch.equal(feature_variance(maps), feature_variance(maps.float()))


def test_one_value_has_no_variance():
    with pytest.raises(ValueError, match=r"features \(3, 1, 1, 1\) have one value a sample"):
        feature_variance(torch.ones(3, 1, 1, 1))


@pytest.mark.parametrize(("v", "z"), [(0.0, 0.700), (0.2, 0.762), (0.6, 0.897), (1.0, 1.050)])
def test_the_published_curve(v, z):
    assert round(sample_weights(torch.tensor(v)).item(), 3) == z


@pytest.mark.parametrize("normalisation", ["local", "global"])
def test_weights_over_steps_by_numpy(normalisation):
    """Three batches in a row: the running minimum is the least variance of all of them so far, this one included."""
    module, smallest = SampleWeights(normalisation, alpha=0.5, beta=0.2), np.inf
    for step, scale in enumerate((2.0, 1.0, 3.0)):
        maps = scale * features(8, 3, 4, 4, seed=step)
        v = maps.reshape(8, -1).astype(np.float64).var(1, ddof=1)
        smallest = min(smallest, v.min())
        expected = numpy_weights(v, smallest if normalisation == "global" else None, alpha=0.5, beta=0.2)
        # float32 variances; exp magnifies little
        np.testing.assert_allclose(module(torch.from_numpy(maps)).numpy(), expected, rtol=1e-4)
        assert module.smallest.item() == pytest.approx(smallest, rel=1e-5)
    assert expected.max() > (np.exp(0.5) - 0.2) * (1.001 if normalisation == "global" else 0.999)


def test_the_loss_is_the_mean_of_weighted_cross_entropies():
    rng = np.random.default_rng(1)
    logits, targets, z = rng.normal(size=(6, 4)), rng.integers(0, 4, 6), rng.uniform(0.7, 1.05, 6)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = (z * -log_p[np.arange(6), targets]).mean()
    got = bias_loss(torch.from_numpy(logits), torch.from_numpy(targets), torch.from_numpy(z))
    # logits are taken in float32
    assert got.item() == pytest.approx(expected, rel=1e-5)
    ones = bias_loss(torch.from_numpy(logits), torch.from_numpy(targets), torch.ones(6), label_smoothing=0.1)
    plain = nn.functional.cross_entropy(torch.from_numpy(logits).float(), torch.from_numpy(targets), label_smoothing=0.1)
    assert ones.item() == pytest.approx(plain.item(), rel=1e-6)


def test_no_gradient_goes_through_the_weights():
    maps, logits = torch.from_numpy(features(6, 2, 3, 3)).requires_grad_(), torch.randn(6, 3, requires_grad=True)
    bias_loss(logits, torch.arange(6) % 3, SampleWeights()(maps)).backward()
    assert maps.grad is None
    assert logits.grad.abs().sum() > 0


# ---------------------------------------------------------------- guards


@pytest.mark.parametrize("smallest", [None, 0.5])
@pytest.mark.parametrize("variance", [[2.0, 2.0, 2.0], [2.0], [0.0, 0.0], [2.0, 2.0 + 1e-7]])
def test_equal_variances_weigh_alike(variance, smallest):
    """max = min, also to float32's rounding, and a batch of one: everybody has 1 − β, by either minimum."""
    low = None if smallest is None else torch.tensor(smallest)
    found = sample_weights(normalised(torch.tensor(variance), smallest=low))
    assert torch.equal(found, torch.full_like(found, 0.7))


def test_a_drifted_minimum_stays_finite():
    """Variances that rose from 0.01 to 50 and hardly differ in this batch: (v − m) / (max − min) ≈ 5000 is taken for 10."""
    found = sample_weights(normalised(torch.tensor([50.0, 50.01]), smallest=torch.tensor(0.01)))
    # exp(3) − 0.3
    assert found.tolist() == pytest.approx([19.7855, 19.7855], rel=1e-4)


def test_local_weights_lie_in_the_published_range():
    found = sample_weights(normalised(feature_variance(torch.from_numpy(features(64, 2, 3, 3)))))
    assert found.min().item() == pytest.approx(0.7, abs=1e-6)
    assert found.max().item() == pytest.approx(np.exp(0.3) - 0.3, abs=1e-6)


# ---------------------------------------------------------------- controls


def test_mean1_keeps_proportions():
    z = torch.tensor([0.7, 0.8, 1.05])
    found = controlled(z, "mean1")
    assert found.mean().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(found / found[0], z / z[0])


def test_shuffled_deals_the_same_weights_to_others():
    z = torch.linspace(0.7, 1.05, 50)
    torch.manual_seed(0)
    found = controlled(z, "shuffled")
    assert torch.equal(found.sort().values, z)
    assert not torch.equal(found, z)
    torch.manual_seed(0)
    assert torch.equal(controlled(z, "shuffled"), found)
    assert torch.equal(controlled(z, "none"), z)


@pytest.mark.parametrize("arguments", [{"normalisation": "batch"}, {"control": "off"}])
def test_unknown_words_are_refused(arguments):
    with pytest.raises(ValueError, match="is none of"):
        SampleWeights(**arguments)


# ---------------------------------------------------------------- the last feature map


def zoo(name, **arguments):
    return architectures.get(name)(num_classes=4, in_channels=1, **arguments)


@pytest.mark.parametrize(
    ("net", "side", "path"),
    [
        (lambda: zoo("skipblocknet_small"), 28, "last"),
        (lambda: zoo("resnet8"), 28, "layer3"),
        (lambda: zoo("mobilenet_v2", width=0.25), 64, "features"),
        (make_net, 8, "3"),  # the dropout after it is passed over
    ],
)
def test_the_last_map_before_pooling_is_found(net, side, path):
    assert find_feature_map(net(), torch.zeros(1, 1, side, side), key="bias_features") == path


def test_a_net_without_a_map_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UserError, match="has no feature map") as caught:
        find_feature_map(flat, torch.zeros(1, 1, 8, 8), key="bias_features")
    assert 'bias_features = "PATH"' in caught.value.hint


def test_a_transformers_patches_are_not_taken_for_its_last_map():
    net = zoo("vit_nano", image_size=8, dim=16, depth=1, heads=2)
    with pytest.raises(UserError, match="works on tokens after its last feature map"):
        find_feature_map(net, torch.zeros(1, 1, 8, 8), key="bias_features")


def test_a_given_path_is_checked():
    net, x = make_net(), torch.zeros(1, 1, 8, 8)
    assert feature_map(net, x, "0", key="bias_features") == "0"
    with pytest.raises(UserError, match="the network has no module '12'"):
        feature_map(net, x, "12", key="bias_features")
    pooled = nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4))
    with pytest.raises(UserError, match="bias_features = '1' returns one number a sample"):
        feature_map(pooled, x, "1", key="bias_features")
