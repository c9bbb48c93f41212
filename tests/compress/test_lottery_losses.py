"""The lottery's losses against independent NumPy formulas."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from trimtab.compress.lottery.losses import (
    class_rank_loss,
    effective_weights,
    log_odds,
    rank_hinge,
    weighted_cross_entropy,
)

RTOL = 1e-5  # float32 sums of a few dozen terms


def drawn(n: int = 40, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(0, 2, (n, classes)), dtype=torch.float32), torch.tensor(rng.integers(0, classes, n))


def test_effective_numbers_are_the_papers_own_figures():
    """The paper quotes β = 0.99997 for ISIC (727 to 173 images); its equation gives a ratio of 4.17 there."""
    ratio = effective_weights(torch.tensor([727, 173]), 0.99997)
    assert float(ratio[0]) == 1
    assert float(ratio[1]) == pytest.approx(4.17, abs=0.005)
    assert torch.allclose(effective_weights(torch.tensor([50, 5]), 0.0), torch.ones(2, dtype=torch.float64))


def test_weighted_cross_entropy_is_a_mean_over_samples():
    logits, targets = drawn()
    gamma = np.array([1.0, 5.0, 2.0])
    log_p = log_softmax(logits.numpy().astype(float), axis=1)
    expected = -np.mean(gamma[targets] * log_p[np.arange(len(targets)), targets])
    assert weighted_cross_entropy(logits, targets, torch.tensor(gamma)).item() == pytest.approx(expected, rel=RTOL)


def test_log_odds_leave_the_class_itself_out():
    logits, _ = drawn()
    values = logits.numpy().astype(float)
    expected = values[:, 1] - logsumexp(values[:, [0, 2]], axis=1)
    assert log_odds(logits, 1).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def sorted_hinge(s: np.ndarray, positive: np.ndarray) -> float:
    ordered, below = np.sort(s), int((~positive).sum())
    theta = (ordered[below - 1] + ordered[below]) / 2
    return float(np.mean([max(1 - (1 if p else -1) * (x - theta), 0) ** 2 for x, p in zip(s, positive, strict=True)]))


def pairwise_hinge(s: np.ndarray, positive: np.ndarray) -> float:
    return float(np.mean([max(1 - (a - b), 0) ** 2 for a in s[positive] for b in s[~positive]]))


def hardest_hinge(s: np.ndarray, positive: np.ndarray) -> float:
    top = s[~positive].max()
    return float(sum(min(a - top, 0) ** 2 for a in s[positive]) / (positive.sum() + 1))


@pytest.mark.parametrize(
    ("kind", "formula"), [("sorted", sorted_hinge), ("pairwise", pairwise_hinge), ("hardest", hardest_hinge)]
)
def test_ranking_hinges_follow_their_formulas(kind, formula):
    for seed in range(5):
        logits, targets = drawn(seed=seed)
        scores, positive = logits[:, 0], targets == 1
        expected = formula(scores.numpy().astype(float), positive.numpy())
        assert rank_hinge(scores, positive, kind).item() == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("kind", ["sorted", "pairwise", "hardest"])
def test_a_ranking_hinge_looks_at_the_order_alone_and_training_on_it_orders(kind):
    logits, targets = drawn()
    positive = targets == 1
    scores = logits[:, 0].clone().requires_grad_()
    shifted = rank_hinge(scores + 7, positive, kind).item()
    assert shifted == pytest.approx(rank_hinge(scores, positive, kind).item(), rel=1e-4)
    optimizer = torch.optim.SGD([scores], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        (rank_hinge(scores, positive, kind) * len(scores)).backward()
        optimizer.step()
    margin = scores[positive].min() - scores[~positive].max()
    assert margin > (-1e-3 if kind == "hardest" else 0.5)  # the code's form has no margin


@pytest.mark.parametrize("kind", ["sorted", "pairwise", "hardest"])
@pytest.mark.parametrize("value", [True, False])
def test_a_batch_of_one_side_adds_nothing(kind, value):
    scores = torch.randn(5, requires_grad=True)
    loss = rank_hinge(scores, torch.full((5,), value), kind)
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


def test_several_critical_classes_add_up():
    logits, targets = drawn()
    parts = [rank_hinge(log_odds(logits, c), targets == c, "pairwise").item() for c in (0, 2)]
    assert class_rank_loss(logits, targets, (0, 2), "pairwise").item() == pytest.approx(sum(parts), rel=RTOL)
