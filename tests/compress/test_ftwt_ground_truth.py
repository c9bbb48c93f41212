"""Which filters fire, against an independent loop."""

import itertools

import numpy as np
import pytest
import torch

from trimtab.compress.dynamic.ground_truth import Rule, mass_mask, uniform_mask

POSTER = [0.3, 0.3, 0.2, 0.1, 0.1, 0.03, 0.01]
"""The poster's masses. They sum to 1.04: k = 4 at r = 0.95 with or without normalising (0.8654 → 0.9615; 0.9 → 1.0)."""


def loop(saliency, r):
    """The rule in plain Python, filter by filter."""
    mask = np.zeros(saliency.shape, bool)
    for n, row in enumerate(saliency.astype(np.float64)):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        total, running = row.sum(), 0.0
        for rank, c in enumerate(order):
            share = row[c] / total if total else 0.0
            running += share
            keeps = share > 1e-5 if r == 1 else total > 0 and running <= r + 1e-5
            mask[n, c] = keeps or rank == 0
    return mask


@pytest.mark.parametrize("r", [0.05, 0.3, 0.5, 0.85, 0.95, 0.999, 1.0])
def test_mass_is_what_the_loop_says(r):
    rng = np.random.default_rng(0)
    saliency = np.maximum(rng.normal(0.3, 1, (64, 19)), 0).astype(np.float32)
    saliency[3] = 0
    saliency[4, 1:] = 0
    saliency[5] = 1
    assert (mass_mask(torch.from_numpy(saliency), r).numpy() == loop(saliency, r)).all()


def test_the_posters_example():
    scattered = torch.tensor([[0.01, 0.3, 0.03, 0.3, 0.2, 0.09, 0.1]])  # the fifth a little smaller, so that there is no tie
    for saliency in (scattered, scattered / scattered.sum()):
        assert mass_mask(saliency, 0.95).tolist() == [[False, True, False, True, True, False, True]]
    assert mass_mask(torch.tensor([POSTER]), 0.95).tolist() == [[True] * 4 + [False] * 3]


def test_at_least_one_filter_stays():
    one_has_all = torch.tensor([[0.0, 0.98, 0.01, 0.01]])
    assert mass_mask(one_has_all, 0.5).tolist() == [[False, True, False, False]]
    for r in (0.1, 0.9, 1.0):
        assert mass_mask(torch.zeros(2, 4), r).sum(1).tolist() == [1, 1]


def test_r_1_drops_dead_filters_only():
    saliency = torch.tensor([[1.0, 1e-3, 0.0, 2e-5, 0.5e-5]])
    assert mass_mask(saliency, 1.0).tolist() == [[True, True, False, True, False]]


def test_masks_grow_with_r():
    saliency = torch.rand(32, 24, generator=torch.Generator().manual_seed(0))
    masks = [mass_mask(saliency, r) for r in (0.2, 0.5, 0.8, 0.95, 1.0)]
    for smaller, larger in itertools.pairwise(masks):
        assert (smaller <= larger).all()


@pytest.mark.parametrize(("keep", "count"), [(0.01, 1), (0.25, 2), (0.5, 4), (0.9, 7), (1.0, 8)])
def test_uniform_keeps_the_largest_fraction_of_each_input(keep, count):
    saliency = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
    mask = uniform_mask(saliency, keep).numpy()
    for row, kept in zip(saliency.numpy(), mask, strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(-row)[:count])


@pytest.mark.parametrize("make", [mass_mask, uniform_mask])
@pytest.mark.parametrize("level", [0.0, -0.1, 1.01])
def test_a_level_outside_0_to_1_is_an_error(make, level):
    with pytest.raises(ValueError, match=f"= {level} must be above 0 and at most 1"):
        make(torch.ones(1, 2), level)


def test_a_rule_has_one_level_or_one_per_layer():
    saliency = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Rule(0.6).mask("any", saliency), mass_mask(saliency, 0.6))
    each = Rule({"a": 0.3, "b": 1.0}, "uniform")
    assert each.mask("a", saliency).sum(1).tolist() == [3] * 4
    assert each.mask("b", saliency).all()
