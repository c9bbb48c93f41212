"""Nested and multi-sample dropout: what they draw, what they compute, and runs of them."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax
from scipy.stats import chisquare
from terms_kit import CONFIG
from torch import nn
from training_kit import make_context, make_net, make_task, same, weights

from trimtab.compress.distill.features import accuracy_by_features
from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.distill.multi_sample import MultiSampleDropoutConfig, dropped
from trimtab.compress.distill.nested_dropout import NestedDropoutConfig, feature_counts, keep_first
from trimtab.compress.distill.objectives import objectives, parse_term
from trimtab.compress.distill.term import Signals
from trimtab.compress.runtime import Runtime
from trimtab.models.errors import UserError

torch.set_num_threads(1)
D, K = 12, 4
NESTED = {"kind": "nested-dropout", "sigma": 10.0}
MULTI = {"kind": "multi-sample-dropout"}


class SmallSetup:
    """A student that is a linear layer behind an embedding of D numbers, and a task's loss."""

    seed = 0

    def __init__(self, classifier, *, smoothing=0.0):
        self._classifier = classifier
        self.task = make_task(train=16, val=16)
        self.task.label_smoothing = smoothing

    def classifier(self):
        return self._classifier


def built(table, setup):
    return objectives.get(table["kind"]).build(parse_term(table), setup)


def step(samples=6, seed=0):
    """(embedding with gradient, targets, the signals that hold them)."""
    rng = np.random.default_rng(seed)
    embedding = torch.tensor(rng.normal(0, 2, (samples, D)), dtype=torch.float32, requires_grad=True)
    targets = torch.tensor(rng.integers(0, K, samples))
    return embedding, targets, Signals(SimpleNamespace(targets=targets), {"embedding": embedding}, {})


def cross_entropy(logits, targets, smoothing=0.0):
    """By scipy, float64."""
    logp = log_softmax(logits, axis=1)
    own = -logp[np.arange(len(logits)), targets]
    return ((1 - smoothing) * own - smoothing * logp.mean(1)).mean()


# ---------------------------------------------------------------- nested dropout


@pytest.mark.parametrize(("sigma", "mu"), [(10.0, 0.0), (3.0, 5.0), (0.2, 0.0), (1e6, 0.0)])
def test_the_number_of_features_is_drawn_as_published(sigma, mu):
    """p(k) ∝ exp(−((k−μ)/σ)²) without a ½, from its logarithm in float64: 1e-12."""
    log_p = -(((np.arange(1, D + 1) - mu) / sigma) ** 2)
    expected = np.exp(log_p - log_p.max())
    np.testing.assert_allclose(feature_counts(D, sigma, mu).numpy(), expected / expected.sum(), rtol=1e-12)


def test_draws_follow_the_distribution():
    """4 000 draws of the term against p by a χ² test at 1e-4 (a fixed seed: the test does not flicker)."""
    seen = []

    class Spy(nn.Linear):
        def forward(self, features):
            seen.append(int((features[0] != 0).sum()))
            return super().forward(features)

    term = built({"kind": "nested-dropout", "sigma": 6.0, "mu": 2.0}, SmallSetup(Spy(D, K)))
    signals = step()[2]
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(4000):
            term.loss(signals)
    p = feature_counts(D, 6.0, 2.0).numpy()
    assert chisquare(np.bincount(seen, minlength=D + 1)[1:], 4000 * p).pvalue > 1e-4
    assert min(seen) == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nested_loss_is_the_tasks_on_the_first_k(bias, smoothing):
    """Against scipy on W[:, :k]·h[:k] + b with the task's label smoothing; float32: 1e-5."""
    classifier = nn.Linear(D, K, bias=bias)
    term = built(NESTED, SmallSetup(classifier, smoothing=smoothing))
    assert term.student == ("embedding",)
    assert term.teachers == ()
    assert term.head is None
    embedding, targets, signals = step()
    w, b = classifier.weight.detach().double().numpy(), classifier.bias.detach().double().numpy() if bias else 0.0
    h = embedding.detach().double().numpy()
    by_k = [cross_entropy(h[:, :k] @ w[:, :k].T + b, targets.numpy(), smoothing) for k in range(1, D + 1)]
    for seed in range(8):
        torch.manual_seed(seed)
        k = int(torch.multinomial(feature_counts(D, 10.0, 0.0), 1)) + 1
        torch.manual_seed(seed)
        assert term.loss(signals).item() == pytest.approx(by_k[k - 1], rel=1e-5)


def test_nested_gradients_reach_the_first_k_alone():
    classifier = nn.Linear(D, K)
    term = built({"kind": "nested-dropout", "sigma": 0.3, "mu": 5.0}, SmallSetup(classifier))  # k = 5 but for 1e-5
    embedding, targets, signals = step()
    term.loss(signals).backward()
    assert (embedding.grad[:, :5] != 0).all()
    assert (embedding.grad[:, 5:] == 0).all()
    assert (classifier.weight.grad[:, 5:] == 0).all()
    # ∂/∂h = Wᵀ(softmax − onehot)/N by hand, float32: 1e-6
    logits = keep_first(embedding, 5).detach() @ classifier.weight.T + classifier.bias
    error = (torch.softmax(logits, 1) - nn.functional.one_hot(targets, K)) / len(targets)
    torch.testing.assert_close(embedding.grad[:, :5], (error @ classifier.weight)[:, :5].detach(), atol=1e-6, rtol=1e-5)


def test_a_huge_mu_keeps_all_and_is_the_tasks_loss():
    classifier = nn.Linear(D, K)
    setup = SmallSetup(classifier)
    embedding, targets, signals = step()
    term = built({"kind": "nested-dropout", "sigma": 0.5, "mu": 1000.0}, setup)
    torch.testing.assert_close(term.loss(signals), setup.task.loss(classifier(embedding), targets), atol=0, rtol=0)


# ---------------------------------------------------------------- multi-sample dropout


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_multi_sample_loss_is_the_mean_over_masks(smoothing):
    """Each mask alone through the classifier by scipy, averaged; float32: 1e-5."""
    classifier = nn.Linear(D, K)
    term = built({**MULTI, "samples": 5, "p": 0.4}, SmallSetup(classifier, smoothing=smoothing))
    embedding, targets, signals = step()
    torch.manual_seed(3)
    masks = dropped(torch.ones_like(embedding), 5, 0.4).double().numpy().reshape(5, *embedding.shape)
    w, b, h = (t.detach().double().numpy() for t in (classifier.weight, classifier.bias, embedding))
    expected = np.mean([cross_entropy((h * mask) @ w.T + b, targets.numpy(), smoothing) for mask in masks])
    torch.manual_seed(3)
    assert term.loss(signals).item() == pytest.approx(expected, rel=1e-5)


def test_masks_differ_scale_and_vanish_at_zero():
    """E[mask] = 1: over 64 × 4 000 entries its mean is within 5 standard errors, √(p/(1−p)/n)."""
    torch.manual_seed(0)
    x = torch.ones(40, 100)
    masks = dropped(x, 64, 0.7)
    assert masks.shape == (64 * 40, 100)
    assert masks.unique().tolist() == pytest.approx([0.0, 1 / 0.3])
    assert abs(masks.mean().item() - 1) < 5 * (0.7 / 0.3 / masks.numel()) ** 0.5
    assert not torch.equal(masks[:40], masks[40:80])
    assert torch.equal(dropped(x, 2, 0.0), torch.ones(80, 100))


def test_multi_sample_at_p_zero_is_the_tasks_loss():
    """The same number M times: equal up to the mean's rounding, 1e-6."""
    classifier = nn.Linear(D, K)
    setup = SmallSetup(classifier)
    embedding, targets, signals = step()
    term = built({**MULTI, "samples": 7, "p": 0.0}, setup)
    torch.testing.assert_close(term.loss(signals), setup.task.loss(classifier(embedding), targets), atol=0, rtol=1e-6)


def test_more_masks_mean_a_steadier_gradient():
    """Var over seeds of ∂loss/∂h falls as 1/M: M = 16 against 1 gives 1/16; asserted below 1/8, from 300 draws each."""
    classifier = nn.Linear(D, K)
    embedding, _, signals = step()

    def variance(samples):
        term = built({**MULTI, "samples": samples}, SmallSetup(classifier))
        grads = []
        for seed in range(300):
            torch.manual_seed(seed)
            grads.append(torch.autograd.grad(term.loss(signals), embedding)[0])
        return torch.stack(grads).var(0).mean().item()

    torch.manual_seed(0)
    assert variance(16) < variance(1) / 8


def test_the_classifier_is_called_once_whatever_the_number_of_masks():
    calls = []
    classifier = nn.Linear(D, K)
    classifier.register_forward_hook(lambda _m, args, _out: calls.append(tuple(args[0].shape)))
    built({**MULTI, "samples": 9}, SmallSetup(classifier)).loss(step()[2])
    assert calls == [(54, D)]


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("table", [NESTED, MULTI], ids=lambda t: t["kind"])
def test_a_classifier_that_is_not_linear_is_refused(table):
    with pytest.raises(UserError, match=f"{table['kind']} works on the inputs of a linear classifier.*is a Conv2d"):
        built(table, SmallSetup(nn.Conv2d(D, K, 1)))


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        (NestedDropoutConfig, {"sigma": 0}, "greater than 0"),
        (NestedDropoutConfig, {"sigma": float("inf")}, "finite"),
        (NestedDropoutConfig, {"mu": float("nan")}, "finite"),
        (MultiSampleDropoutConfig, {"samples": 0}, "greater than or equal to 1"),
        (MultiSampleDropoutConfig, {"p": 1}, "less than 1"),
        (MultiSampleDropoutConfig, {"p": -0.1}, "greater than or equal to 0"),
    ],
)
def test_ranges(config, fields, said):
    with pytest.raises(ValidationError, match=said):
        config(**fields)


def run(folder, table, *, task=None, net=None, seed=0, **more):
    config = DistillConfig(**{**CONFIG.model_dump(exclude={"objectives"}), "objectives": (table,), "label_weight": 0.0, **more})
    net = net or make_net(dropout=0.0)
    return net, distill(net, task or make_task(), config, make_context(folder, seed=seed))


@pytest.mark.parametrize("table", [NESTED, MULTI], ids=lambda t: t["kind"])
def test_a_run_without_teacher_or_label_loss_learns_and_leaves_nothing_behind(table, tmp_path):
    net = make_net(dropout=0.0)
    names = list(net.state_dict())
    net, result = run(tmp_path, table, net=net, epochs=14, augment=False)
    assert result.figures["val_after"]["accuracy"] > 0.6 > result.figures["val_before"]["accuracy"]
    assert result.figures["teachers_val"] == {}
    assert list(net.state_dict()) == names
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("table", [NESTED, MULTI], ids=lambda t: t["kind"])
def test_a_stopped_run_resumes_bit_exact(table, tmp_path):
    """Ctrl-C in step 8 of 12: the same k and the same masks come again."""
    whole, _ = run(tmp_path / "whole", table)
    task, calls = make_task(), []
    pair = task.training_pair

    def interrupting(*args, **more):
        calls.append(1)
        if len(calls) == 8:
            signal.raise_signal(signal.SIGINT)
        return pair(*args, **more)

    task.training_pair = interrupting
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", table, task=task)
    resumed, result = run(tmp_path / "cut", table)
    assert result.figures["history"]["resumed_at"] == 8
    assert same(weights(whole), weights(resumed))


def test_nested_dropout_puts_the_features_in_order(tmp_path):
    """After the same training, 8 of 128 features carry nested dropout's network, and not the plain one's."""
    task = make_task(train=192, val=128)
    accuracies = {}
    for name, table in (("nested", NESTED), ("plain", {"kind": "nested-dropout", "sigma": 1.0, "mu": 1e4})):
        net, _ = run(tmp_path / name, table, task=task, epochs=12, augment=False)
        accuracies[name] = accuracy_by_features(net, task, [8, 128], Runtime("cpu"))
    assert accuracies["nested"][8] > 0.85
    assert accuracies["nested"][8] > accuracies["plain"][8] + 0.2
    assert accuracies["plain"][128] > 0.85
