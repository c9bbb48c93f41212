"""Scores, patterns and masks."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.compress.lottery.patterns import as_matrix, as_weight
from trimtab.compress.lottery.pruning import densities, group_densities, prune
from trimtab.compress.lottery.scores import prunable, random_scores, weight_scores
from trimtab.compress.lottery.shape import Pattern
from trimtab.models.errors import UserError

SHAPES = {"a": (16, 8, 3, 3), "b": (6, 32), "c": (32, 32, 1, 1)}


def drawn(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def full() -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}


def share(masks: dict[str, torch.Tensor]) -> float:
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def test_criteria_are_what_their_papers_say():
    trained, start = drawn(1), drawn(2)
    for criterion, formula in {
        "magnitude": lambda w, _: np.abs(w),
        "magnitude-increase": lambda w, w0: np.abs(w) - np.abs(w0),
        "movement": lambda w, w0: np.abs(w - w0),
    }.items():
        found = weight_scores(criterion, trained, start)
        for name in SHAPES:
            assert np.array_equal(found[name].numpy(), formula(trained[name].numpy(), start[name].numpy()))


def test_broken_weights_are_named_by_layer():
    trained = drawn()
    trained["b"][0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity: b"):
        weight_scores("magnitude", trained, drawn())
    with pytest.raises(UserError, match="scores with NaN or infinity: b"):
        prune(trained, full(), density=0.5)


def test_per_layer_keeps_the_highest_of_every_layer():
    scores = drawn()
    masks = prune(scores, full(), density=0.25).masks
    for name, score in scores.items():
        wanted = round(0.25 * score.numel())
        cutoff = np.sort(score.numpy().ravel())[-wanted]
        assert np.array_equal(masks[name].numpy(), score.numpy() >= cutoff)


def test_global_keeps_the_highest_of_the_network():
    scores = drawn()
    masks = prune(scores, full(), density=0.1, scope="global").masks
    flat = np.concatenate([s.numpy().ravel() for s in scores.values()])
    cutoff = np.sort(flat)[-round(0.1 * flat.size)]
    for name, score in scores.items():
        assert np.array_equal(masks[name].numpy(), score.numpy() >= cutoff)


@pytest.mark.parametrize(("scope", "pattern"), itertools.product(("layer", "global"), ("none", "4x1", "2x8")))
def test_a_pruned_weight_never_comes_back(scope, pattern):
    masks, before = full(), 1.0
    for number, density in enumerate((0.5, 0.25, 0.1, 0.02)):
        after = prune(drawn(number), masks, density=density, scope=scope, pattern=Pattern.parse(pattern)).masks
        assert all(not bool((after[name] & ~masks[name]).any()) for name in masks)
        assert share(after) < before
        assert share(after) == pytest.approx(density, abs=0.05)  # whole blocks, smaller ones at edges, one of every tensor
        masks, before = after, share(after)


def test_a_layer_that_would_lose_everything_keeps_its_best_and_is_named():
    scores = drawn()
    scores["b"] -= 100
    done = prune(scores, full(), density=0.1, scope="global")
    assert done.minimum == ("b",)
    assert int(done.masks["b"].sum()) == 1
    assert bool(done.masks["b"].flatten()[scores["b"].argmax()])


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:4", "1:8"])
def test_n_of_m_holds_in_every_group_of_input_channels(text):
    pattern = Pattern.parse(text)
    scores = drawn()
    done = prune(scores, full(), density=pattern.keep / pattern.group, pattern=pattern)
    for name in set(SHAPES) - set(done.whole):
        matrix = done.masks[name].numpy().reshape(*SHAPES[name][:2], -1).transpose(0, 2, 1)
        assert (matrix.reshape(-1, pattern.group).sum(1) == pattern.keep).all()
        best = scores[name].numpy().reshape(*SHAPES[name][:2], -1).transpose(0, 2, 1).reshape(-1, pattern.group)
        kept = matrix.reshape(-1, pattern.group)
        assert np.array_equal(kept, best >= np.sort(best, 1)[:, [-pattern.keep]])
    assert done.whole == tuple(name for name, shape in SHAPES.items() if shape[1] % pattern.group)


def test_blocks_leave_as_a_whole():
    masks = prune(drawn(), full(), density=0.25, pattern=Pattern.parse("4x1")).masks
    for name in ("a", "c"):  # 8 and 16 outputs: whole blocks of four
        matrix = as_matrix(masks[name]).numpy()
        assert set(matrix.reshape(len(matrix) // 4, 4, -1).sum(1).ravel()) == {0, 4}


def test_matrix_and_weight_are_inverse():
    weight = torch.arange(8 * 4 * 9).reshape(8, 4, 3, 3)
    assert torch.equal(as_weight(as_matrix(weight), weight.shape), weight)
    assert as_matrix(weight)[0, 1] == weight[0, 1, 0, 0]  # input channels are neighbours
    bias = torch.arange(5)
    assert torch.equal(as_weight(as_matrix(bias), bias.shape), bias)


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:4:8", "x4", "1x1", "2:128", "64x64"])
def test_patterns_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="is not known"):
        Pattern.parse(text)


def test_rounds_go_down_to_the_density_that_was_asked_for():
    assert densities(0.0157, 0.5) == (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.0157)  # the paper's
    assert densities(0.3, 0.5) == (1.0, 0.5, 0.3)
    assert densities(0.1, 0.5, start=0.4) == (0.4, 0.2, 0.1)
    assert densities(0.1, 0.5, one_shot=True) == (1.0, 0.1)
    assert group_densities(2, 4, 0.5) == (1.0, 0.5)
    assert group_densities(1, 16, 0.5) == (1.0, 0.5, 0.25, 0.125, 0.0625)
    assert group_densities(3, 4, 0.9) == (1.0, 0.75)


def test_prunable_weights_are_those_of_convolutions_and_linear_layers():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert list(prunable(net)) == ["0.weight", "2.0.weight", "2.1.weight"]
    assert list(prunable(net, biases=True, keep=("2",))) == ["0.weight", "0.bias"]
    with pytest.raises(UserError, match="keep names 'head'"):
        prunable(net, keep=("head",))
    with pytest.raises(UserError, match="there is no weight to prune"):
        prunable(nn.BatchNorm2d(3))


def test_random_scores_are_the_seeds():
    weights = drawn()
    first, again, other = random_scores(weights, 1), random_scores(weights, 1), random_scores(weights, 2)
    assert all(torch.equal(first[n], again[n]) and not torch.equal(first[n], other[n]) for n in weights)
