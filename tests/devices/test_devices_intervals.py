"""Intervals against scipy's own quantile test, and their coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import quantile_test

from trimtab.devices.intervals import FEWEST, median_interval, paired_ratio, relative_precision


@pytest.mark.parametrize("n", [6, 7, 20, 51, 300])
def test_interval_is_never_narrower_than_scipys_and_at_most_one_rank_wider(n):
    values = np.random.default_rng(n).lognormal(size=n)
    theirs = quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    low, high = median_interval(values)
    ordered = np.sort(values)
    ranks = [int(np.searchsorted(ordered, v)) for v in (low, theirs.low, theirs.high, high)]
    assert ranks == sorted(ranks)
    assert ranks[1] - ranks[0] <= 1
    assert ranks[3] - ranks[2] <= 1


def test_too_few_values_have_no_interval():
    assert median_interval([1.0] * (FEWEST - 1)) is None
    assert median_interval([1.0] * FEWEST) == (1.0, 1.0)
    assert relative_precision([1.0, 2.0]) is None


def test_coverage_of_a_skewed_distribution_is_at_least_95_percent():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(2000):
        low, high = median_interval(rng.lognormal(size=40))
        inside += low <= 1.0 <= high  # a lognormal's median is exp(0)
    assert inside >= 1880  # 95 % of 2000 less two standard errors (2·9.7)


def test_ratio_is_the_median_over_pairs_not_the_ratio_of_medians():
    a, b = [1.0, 4.0, 100.0], [2.0, 2.0, 50.0]
    assert paired_ratio(a, b).value == pytest.approx(2.0)  # ratios ½, 2, 2
    assert paired_ratio(a, b).low is None


def test_ratio_above_one_when_b_is_faster_and_reach_counts_both_sides():
    rng = np.random.default_rng(0)
    b = rng.uniform(1, 2, 50)
    ratio = paired_ratio(b * 1.25, b)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.25,) * 3)
    assert ratio.half_width == pytest.approx(0, abs=1e-12)
    assert paired_ratio(b, b * 1.25).reach == pytest.approx(0.25)  # 0.8 is as far from 1 as 1.25 on the log scale


def test_unpaired_samples_are_refused():
    with pytest.raises(ValueError, match="as many on both sides"):
        paired_ratio([1.0], [1.0, 2.0])


def test_sittings_are_the_repetitions():
    a, b = np.array([2.0] * 30 + [3.0] * 10 + [4.0] * 50), np.ones(90)
    assert paired_ratio(a, b, [30, 10, 50]).value == pytest.approx(3.0)  # one vote each, whatever their length
    assert paired_ratio(a, b, [30, 10, 50]).low is None  # three sittings say nothing about their spread
    assert paired_ratio(a, b).value == pytest.approx(4.0)
    low_high = paired_ratio(np.repeat([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], 5), np.ones(30), [5] * 6)
    assert (low_high.low, low_high.value, low_high.high) == pytest.approx((1.0, np.sqrt(1.2 * 1.3), 1.5))
    assert relative_precision(np.repeat([9.0, 10, 10, 10, 10, 12], 5), [5] * 6) == pytest.approx(0.2)


def test_sittings_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="do not make 3 values"):
        paired_ratio([1.0] * 3, [1.0] * 3, [2, 2])
