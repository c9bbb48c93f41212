"""Thresholds from what branches answered: against every threshold there is, tried one by one."""

import itertools

import numpy as np
import pytest

from trimtab.compress.routing.calibration import NEVER, Observed, curve, point, taken, thresholds_for
from trimtab.models.errors import UserError

PATHS = {2: [1.0, 6.0], 3: [1.0, 4.0, 14.0]}


def observed(branches, *, samples=40, seed=0):
    """Branches that are right the more often the larger they are, and surer where they are right."""
    rng = np.random.default_rng(seed)
    hard = rng.random(samples)
    limits = np.linspace(0.6, 0.9, branches)
    right = hard[:, None] < limits
    scores = np.clip(1 - hard[:, None] + rng.normal(0, 0.2, (samples, branches - 1)), 0, 1).astype(np.float32)
    return Observed(scores, right, np.array(PATHS[branches]), 10.0)


def every_threshold(seen):
    """All combinations of thresholds that can make a difference: each score itself, and one above all."""
    columns = [[*np.unique(seen.scores[:, i]).tolist(), NEVER] for i in range(seen.scores.shape[1])]
    return itertools.product(*columns)


def outcome(seen, thresholds):
    """(accuracy, mean MACs), sample by sample."""
    right, macs = 0, 0.0
    for scores, good in zip(seen.scores, seen.right, strict=True):
        branch = next((i for i, t in enumerate(thresholds) if scores[i] >= np.float32(t)), len(thresholds))
        right, macs = right + bool(good[branch]), macs + seen.paths[branch]
    return right / len(seen.scores), macs / len(seen.scores)


@pytest.mark.parametrize("seed", range(4))
def test_with_two_branches_the_curve_is_the_exact_front(seed):
    seen = observed(2, seed=seed)
    all_points = [outcome(seen, t) for t in every_threshold(seen)]
    found = curve(seen)
    for at in found.points:
        assert (at.accuracy, at.cost) == pytest.approx(outcome(seen, at.thresholds))
        assert not any(a > at.accuracy + 1e-9 and m <= at.cost + 1e-9 for a, m in all_points)
    for accuracy, macs in all_points:  # nothing that could be had is missing
        assert any(p.accuracy >= accuracy - 1e-9 and p.cost <= macs + 1e-9 for p in found.points)


@pytest.mark.parametrize("seed", range(3))
def test_with_three_branches_the_corners_of_the_front_are_found(seed):
    """At every price of a MAC the curve has a point as good as the best of all pairs of thresholds."""
    seen = observed(3, seed=seed)
    all_points = [outcome(seen, t) for t in every_threshold(seen)]
    found = curve(seen)
    for price in (0.005, 0.02, 0.05):
        best = max(a - price * m for a, m in all_points)
        ours = max(p.accuracy - price * p.cost for p in found.points)
        assert ours >= best - 1 / len(seen.scores)  # within one sample


def test_the_first_branch_whose_score_reaches_its_threshold_answers():
    scores = np.array([[0.9, 0.1], [0.2, 0.9], [0.2, 0.2], [0.9, 0.9]], dtype=np.float32)
    assert taken(scores, (0.5, 0.5)).tolist() == [0, 1, 2, 0]
    assert taken(scores, (0.9, 0.9)).tolist() == [0, 1, 2, 0]  # equal is enough
    assert taken(scores, (NEVER, NEVER)).tolist() == [2] * 4


def test_a_point_knows_its_own_figures():
    seen = observed(3)
    at = point(seen, (0.5, 0.5))
    assert (at.accuracy, at.cost) == pytest.approx(outcome(seen, (0.5, 0.5)))
    assert at.cost_ratio == pytest.approx(at.cost / 10)
    assert sum(at.shares) == pytest.approx(1)
    assert at.error > 0


def test_targets_choose_the_cheapest_or_the_most_accurate():
    found = curve(observed(3, samples=200))
    by_drop = thresholds_for(found, max_accuracy_drop=0.05)
    assert by_drop.accuracy >= found.reference - 0.05
    assert all(p.accuracy < found.reference - 0.05 for p in found.points if p.cost < by_drop.cost)
    by_macs = thresholds_for(found, target_mac_ratio=0.5)
    assert by_macs.cost_ratio <= 0.5
    assert all(p.cost_ratio > 0.5 for p in found.points if p.accuracy > by_macs.accuracy)


def test_targets_out_of_reach_name_the_nearest():
    found = curve(observed(3))
    least = f"{found.points[0].cost_ratio:.4f}"
    with pytest.raises(UserError, match=rf"MAC ratio of 0.01 can't be reached: the least is {least}"):
        thresholds_for(found, target_mac_ratio=0.01)
    with pytest.raises(UserError, match=r"accuracy of 0.9999 can't be reached: the highest on 40 validation samples"):
        thresholds_for(found, target_accuracy=0.9999)
    with pytest.raises(ValueError, match="one of"):
        thresholds_for(found, target_accuracy=0.5, target_mac_ratio=0.5)


def test_too_few_samples_are_refused():
    with pytest.raises(UserError, match="31 validation samples would be chance: at least 32"):
        observed(2, samples=31)
