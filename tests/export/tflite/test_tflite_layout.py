"""The layout algebra against plain numpy: a claimed relabelling must hold for the data itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")

from trimtab.export.tflite.layout import NHWC, Scramble, home, place, refine, regroup, reshaped


def rows(*shapes: tuple[int, ...]) -> np.ndarray:
    """Shapes as probes (P, R)."""
    return np.array(shapes)


def test_regroup_pairs_the_finest_runs_and_leaves_ones_out():
    assert regroup(rows((2, 6, 1, 5)), rows((2, 3, 2, 5))) == [([0], [0]), ([1], [1, 2]), ([3], [3])]
    assert regroup(rows((2, 4, 5)), rows((2, 20))) == [([0], [0]), ([1, 2], [1])]


def test_regroup_tells_a_free_axis_from_a_fixed_one_of_equal_size():
    """(N, 4) → (4, N) agree as sizes at N = 4 only."""
    assert regroup(rows((4, 4), (5, 4)), rows((4, 4), (4, 5))) == [([0, 1], [0, 1])]


def test_regroup_answers_none_when_sizes_never_meet():
    assert regroup(rows((2, 3)), rows((2, 4))) is None


def test_refine_splits_an_axis_where_the_target_cuts_it():
    factors = refine(rows((7, 2, 16), (7, 3, 16)), rows((7, 4, 8), (7, 6, 8)))
    assert [[list(f) for f in fs] for fs in factors] == [[[7, 7]], [[2, 3]], [[2, 2], [8, 8]]]


def test_refine_answers_none_when_sizes_do_not_divide():
    assert refine(rows((4, 9)), rows((6, 6))) is None


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((2, 3, 4, 5), (2, 3, 20)),
        ((2, 6, 4, 5), (2, 2, 3, 4, 5)),
        ((2, 3, 4), (2, 12)),
        ((2, 3, 1, 5), (2, 3, 5)),
        ((4, 6), (2, 2, 6)),
    ],
)
def test_a_claimed_reshape_is_a_relabelling_of_the_stored_data(source, target):
    """For every stored order: reshaping what is stored gives the logical reshape, in the order and scramble claimed."""
    data = np.arange(np.prod(source)).reshape(source)
    claimed = 0
    for perm in itertools.permutations(range(len(source))):
        found = reshaped(perm, rows(source), rows(target))
        if found is None:
            continue
        claimed += 1
        wanted = data.reshape(target)
        for axis, scramble in found.scramble.items():
            wanted = np.take(wanted, scramble.order, axis=axis)
        stored = data.transpose(perm).reshape([target[a] for a in found.perm])
        np.testing.assert_array_equal(stored, wanted.transpose(found.perm))
    assert claimed >= 1


def test_flattened_images_are_scrambled_and_spatially_flattened_ones_are_not():
    flat = reshaped(NHWC, rows((2, 3, 4, 5), (7, 3, 4, 5)), rows((2, 60), (7, 60)))
    assert flat.perm == (0, 1)
    assert flat.scramble == {1: Scramble((3, 4, 5), (1, 2, 0))}
    tokens = reshaped(NHWC, rows((2, 3, 4, 5)), rows((2, 3, 20)))
    assert (tokens.perm, dict(tokens.scramble)) == ((0, 2, 1), {})


def test_a_free_size_cannot_be_scrambled_since_weights_could_not_follow():
    assert reshaped(NHWC, rows((2, 3, 4, 5), (2, 3, 8, 5)), rows((2, 60), (2, 120))) is None


def test_place_prefers_nhwc_for_images_and_the_plain_order_for_the_rest():
    assert place([[0], [1]], rows((2, 3, 1, 1))) == NHWC
    assert place([[0], [1], [2]], rows((2, 3, 4))) == (0, 1, 2)
    assert place([[0], [2], [1]], rows((2, 3, 4))) == home(3)
