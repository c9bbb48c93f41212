"""The dual head, its logit-level losses, and the alignment of two losses' gradients."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, rel_entr
from terms_kit import FakeSetup, distilled, signals, taught, term_of
from torch import nn
from training_kit import CONFIG, make_net, make_task, same, train, weights

from trimtab.compress.alignment import AlignedLoss, aligned_backward
from trimtab.compress.distill.binary_kl import binary_kl_loss, binary_kl_norm_loss, log_cosh
from trimtab.compress.distill.objectives import parse_term
from trimtab.models.errors import UserError

torch.set_num_threads(1)


def logits(seed=0, *, samples=16, classes=7, scale=4.0):
    return np.random.default_rng(seed).normal(0, scale, (2, samples, classes))


def double(*arrays):
    return [torch.tensor(a, dtype=torch.float64) for a in arrays]


def coins(p, q):
    """KL(Bern(p) ‖ Bern(q)), elementwise."""
    return rel_entr(p, q) + rel_entr(1 - p, 1 - q)


# ---------------------------------------------------------------- the losses


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_binary_kl_norm_is_the_kl_of_a_fair_coin(temperature):
    """τ² Σ KL(Bern(½) ‖ Bern(σ((z − v)/τ))), mean over the batch: 1e-9 relative in float64."""
    z, v = logits()
    x = (z - v) / temperature  # 1 − σ is σ(−x): subtracted from 1 it would be lost
    coin = -np.log(2) - (log_expit(x) + log_expit(-x)) / 2
    np.testing.assert_allclose(coins(0.5, expit(x)), coin, rtol=1e-2, atol=1e-12)
    expected = temperature**2 * coin.sum(1).mean()
    assert binary_kl_norm_loss(*double(z, v), temperature).item() == pytest.approx(expected, rel=1e-9)
    single = binary_kl_norm_loss(*(x.float() for x in double(z, v)), temperature)
    assert single.item() == pytest.approx(expected, rel=1e-5)


def test_binary_kl_norm_near_and_far():
    """(z − v)²/8 near zero; τ|z − v|/2 − τ² log 2 far away, where cosh would overflow."""
    near, far = torch.full((1, 1), 1e-2, dtype=torch.float64), torch.full((1, 1), 1e4)
    zero = torch.zeros(1, 1)
    assert binary_kl_norm_loss(near, zero.double(), 2.0).item() == pytest.approx(1e-4 / 8, rel=1e-4)
    assert binary_kl_norm_loss(far, zero, 2.0).item() == pytest.approx(1e4 - 4 * np.log(2), rel=1e-6)
    assert binary_kl_norm_loss(zero, zero, 2.0).item() == pytest.approx(0, abs=1e-7)


def test_binary_kl_norm_gradient_is_tanh():
    """(τ/2)·tanh((z − v)/(2τ))/N, and 0 where z = v. float64: 1e-15."""
    z, v = logits(1)
    v[0] = z[0]
    a, b = double(z, v)
    binary_kl_norm_loss(a.requires_grad_(True), b, 2.0).backward()
    np.testing.assert_allclose(a.grad.numpy(), np.tanh((z - v) / 4) / len(z), atol=1e-15)


def test_log_cosh_against_numpy():
    x = np.linspace(-20, 20, 401)
    np.testing.assert_allclose(log_cosh(torch.tensor(x)).numpy(), np.log(np.cosh(x)), atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_binary_kl_against_scipy(temperature):
    """Value, and gradient τ(σ(z/τ) − σ(v/τ))/N, in float64."""
    z, v = logits(2)
    expected = temperature**2 * coins(expit(v / temperature), expit(z / temperature)).sum(1).mean()
    a, b = double(z, v)
    loss = binary_kl_loss(a.requires_grad_(True), b, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    slope = temperature * (expit(z / temperature) - expit(v / temperature)) / len(z)
    np.testing.assert_allclose(a.grad.numpy(), slope, atol=1e-14)


def test_binary_kl_is_finite_where_the_sigmoid_is_not():
    """A teacher sure of yes (logit 500), a student sure of no: 1000/τ·τ² = 2000 without any clamping."""
    z = torch.full((1, 1), -1000.0, requires_grad=True)
    loss = binary_kl_loss(z, torch.full((1, 1), 500.0), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(2000, rel=1e-6)
    assert z.grad.item() == pytest.approx(-2.0)


@pytest.mark.parametrize("loss", [binary_kl_loss, binary_kl_norm_loss])
def test_perfect_students_shapes_and_precision(loss):
    [v] = double(logits(3)[0])
    assert loss(v, v, 2.0).item() == pytest.approx(0, abs=1e-12)
    assert loss(v.bfloat16(), v.bfloat16(), 2.0).dtype == torch.float32
    with pytest.raises(ValueError, match=r"student logits \(2, 3\), teacher logits \(2, 4\): not alike"):
        loss(torch.zeros(2, 3), torch.zeros(2, 4), 2.0)


@pytest.mark.parametrize(("kind", "loss"), [("binary-kl", binary_kl_loss), ("binary-kl-norm", binary_kl_norm_loss)])
def test_single_heads_follow_the_students_own_logits(kind, loss):
    z, v = double(*logits(4))
    term = term_of({"kind": kind, "temperature": 3.0}, FakeSetup())
    assert term.head is None
    assert not term.aligned
    assert term.loss(signals({"logits": z}, {"logits": v})).item() == loss(z, v, 3.0).item()
    assert term_of({"kind": kind, "align": True}, FakeSetup()).aligned


# ---------------------------------------------------------------- the head


def dual(**more):
    setup = FakeSetup(student={"embedding": (9,)}, signals={"logits": torch.zeros(4, 5)})
    return term_of({"kind": "dual-head", **more}, setup)


def test_the_heads_are_the_papers():
    linear = dual().head.layers
    assert isinstance(linear, nn.Linear)
    assert (linear.in_features, linear.out_features) == (9, 5)
    first, dropout, norm, relu, last = dual(head="nonlinear").head.layers
    assert (first.in_features, first.out_features) == (9, 200)
    assert dropout.p == 0.1
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(relu, nn.ReLU)
    assert (last.in_features, last.out_features) == (200, 5)


@pytest.mark.parametrize(("name", "loss"), [("binary-kl", binary_kl_loss), ("binary-kl-norm", binary_kl_norm_loss)])
def test_the_loss_is_the_heads_not_the_classifiers(name, loss):
    term = dual(loss=name)
    made, v = torch.randn(4, 5), torch.randn(4, 5)
    got = term.loss(signals({"embedding": torch.randn(4, 9)}, {"logits": v}, head=made))
    assert got.item() == loss(made, v, 2.0).item()
    assert term.student == ("embedding",)
    assert term.aligned
    assert not dual(align=False).aligned


def test_a_batch_of_one_and_outputs_that_are_maps_are_refused():
    with pytest.raises(UserError, match="the batch is one sample"):
        dual(head="nonlinear").head({"embedding": torch.randn(1, 9)})
    assert dual().head({"embedding": torch.randn(1, 9)}).shape == (1, 5)
    setup = FakeSetup(student={"embedding": (9,)}, signals={"logits": torch.zeros(4, 5, 8, 8)})
    with pytest.raises(UserError, match=r"a second head follows logits \(N, K\), and .* has shape \(5, 8, 8\)") as caught:
        term_of({"kind": "dual-head"}, setup)
    assert "logit-mse" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"head": "mlp"}, "dual-head: head = 'mlp': Input should be 'linear' or 'nonlinear'"),
        ({"loss": "kl"}, "dual-head: loss = 'kl': Input should be 'binary-kl-norm' or 'binary-kl'"),
        ({"temperature": -2}, "dual-head: temperature = -2: Input should be greater than 0"),
    ],
)
def test_config_refuses(fields, said):
    with pytest.raises(ValueError, match=said):
        parse_term({"kind": "dual-head", **fields})


# ---------------------------------------------------------------- alignment


class TwoHeads(nn.Module):
    """A shared layer and a head for each of two losses."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def losses(self, x, sign=1.0):
        h = self.body(x).tanh()
        return self.first(h).square().sum(), sign * self.second(h).square().sum() - self.first(h).sum()


def flat(net, loss):
    """One loss's gradient as a float64 vector, zeros where it does not reach."""
    grads = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
    pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), grads, strict=True)]
    return torch.cat([g.flatten() for g in pieces]).double().numpy()


def pcgrad(p, s):
    """Yu et al. 2020, one way: the secondary without its part against the primary; then their sum."""
    if s @ p < 0:
        s = s - (s @ p) / (p @ p) * p
    return p + s


def backward(loss, **more):
    loss.backward(**more)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_aligned_gradients_against_flattened_vectors(seed, sign):
    """float32 gradients against the explicit projection in float64: 1e-5 of the vector's length."""
    net, x = TwoHeads(seed), torch.randn(5, 3)
    primary, secondary = net.losses(x, sign)
    p, s = flat(net, primary), flat(net, secondary)
    kappa = aligned_backward(AlignedLoss(primary, secondary), list(net.parameters()), backward)
    got = torch.cat([q.grad.flatten() for q in net.parameters()]).double().numpy()
    np.testing.assert_allclose(got, pcgrad(p, s), atol=1e-5 * np.linalg.norm(pcgrad(p, s)))
    assert kappa.item() == pytest.approx(max(0, -(s @ p)) / (p @ p), rel=1e-4)
    # what is left of the secondary never pulls against the primary, and the primary's own direction is not altered
    assert (got - p) @ p >= -1e-4 * (p @ p)
    assert (s @ p < 0) == (kappa.item() > 0)


def test_both_cases_occur_in_the_test_above():
    products = []
    for seed in range(6):
        for sign in (1.0, -1.0):
            net, x = TwoHeads(seed), torch.randn(5, 3)
            p, s = (flat(net, loss) for loss in net.losses(x, sign))
            products.append(p @ s)
    assert min(products) < 0 < max(products)


def test_without_conflict_it_is_the_plain_sum_bit_for_bit():
    net = nn.Linear(3, 1, bias=False)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    kappa = aligned_backward(AlignedLoss(net(x).sum(), 0.5 * net(x).sum()), list(net.parameters()), backward)
    assert kappa == 0
    assert torch.equal(net.weight.grad, 1.5 * x)


def test_opposite_losses_leave_the_primary_alone():
    """Secondary = −0.5 · primary: all of it is against the primary, so nothing of it is left."""
    net = nn.Linear(3, 1, bias=False)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    kappa = aligned_backward(AlignedLoss(net(x).sum(), -0.5 * net(x).sum()), list(net.parameters()), backward)
    assert kappa == 0.5
    torch.testing.assert_close(net.weight.grad, x)


def test_parameters_that_one_loss_or_none_reaches():
    net = TwoHeads(0)
    idle = nn.Parameter(torch.ones(2))
    x = torch.randn(5, 3)
    h = net.body(x).tanh()
    primary, secondary = (
        net.first(h).sum(),
        -net.first.weight.detach().sum() * 0 - (net.body(x) * 0.1).sum() + net.second(h).sum(),
    )
    only_first = torch.autograd.grad(primary, net.first.weight, retain_graph=True)[0]
    only_second = torch.autograd.grad(secondary, net.second.weight, retain_graph=True)[0]
    kappa = aligned_backward(AlignedLoss(primary, secondary), [*net.parameters(), idle], backward)
    assert idle.grad is None
    torch.testing.assert_close(net.first.weight.grad, (1 + kappa) * only_first)
    assert torch.equal(net.second.weight.grad, only_second)


def test_a_primary_without_gradient_leaves_the_secondary():
    net = nn.Linear(2, 1, bias=False)
    x = torch.ones(1, 2)
    kappa = aligned_backward(AlignedLoss((0 * net(x)).sum(), -net(x).sum()), list(net.parameters()), backward)
    assert kappa == 0
    assert torch.equal(net.weight.grad, -x)


def test_kappa_does_not_depend_on_a_common_factor():
    """As under a loss scaler: 2¹⁶ times the gradients, the same κ."""
    results = []
    for factor in (1.0, 65536.0):
        net = TwoHeads(1)
        primary, secondary = net.losses(torch.ones(5, 3), 1.0)
        secondary = 0.1 * secondary - primary
        kappa = aligned_backward(
            AlignedLoss(primary, secondary), list(net.parameters()), lambda loss, f=factor, **more: (f * loss).backward(**more)
        )
        results.append((kappa, net.body.weight.grad / factor))
    assert results[0][0] > 0
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- in the engine


def quarrel(task, *, stop=0):
    """Cross-entropy, and half of it towards a neighbour's label: the two conflict; a signal in step `stop`."""
    calls = []

    def objective(network, batch):
        calls.append(1)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        outputs = network(batch.inputs)
        primary = task.loss(outputs, batch.targets)
        secondary = 0.5 * task.loss(outputs, batch.targets.roll(1))
        return AlignedLoss(primary, secondary), {"label": primary, "other": secondary}

    return objective


def test_fit_takes_aligned_losses_and_resumes_bit_exact(tmp_path):
    task = make_task()
    whole, told = train(tmp_path / "whole", task=task, objective=quarrel(task))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", task=task, objective=quarrel(task, stop=8))
    resumed, history = train(tmp_path / "cut", task=task, objective=quarrel(task))
    assert history.resumed_at == 8
    assert same(weights(whole), weights(resumed))
    epoch = told.epochs[-1]
    assert epoch.train_loss == pytest.approx(epoch.parts["label"] + epoch.parts["other"], rel=1e-6)
    assert [e.parts for e in told.epochs] == [e.parts for e in history.epochs]


def test_one_step_of_fit_is_sgd_on_the_aligned_gradient(tmp_path):
    """One step of plain SGD over the whole split: w − lr·(p + s − part of s against p), by numpy in float64. 1e-5 absolute."""
    task = make_task()
    config = CONFIG.model_copy(
        update={"epochs": 1, "batch_size": 96, "augment": False, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    )
    config = config.model_copy(update={"schedule": "constant"})
    seen = []

    def objective(network, batch):
        seen.append(batch)
        return quarrel(task)(network, batch)

    start = make_net(dropout=0.0)
    before = torch.cat([p.detach().flatten() for p in start.parameters()]).double().numpy()
    after, _ = train(tmp_path, config, net=start, task=task, objective=objective)
    twin = make_net(dropout=0.0).train()
    loss, _ = quarrel(task)(twin, seen[0])
    p, s = flat(twin, loss.primary), flat(twin, loss.secondary)
    assert s @ p < 0
    expected = before - 0.05 * pcgrad(p, s)
    got = torch.cat([q.detach().flatten() for q in after.parameters()]).double().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not np.allclose(got, before - 0.05 * (p + s), atol=1e-4)  # the plain sum would be somewhere else


@pytest.mark.parametrize("head", ["linear", "nonlinear"])
def test_a_run_trains_the_head_and_leaves_it_behind(tmp_path, head):
    """The head's loss falls, the student beats 0.8 and comes back with its own weights alone."""
    task, teacher = taught(tmp_path / "teacher")
    student, result = distilled(tmp_path / "run", task, teacher, [{"kind": "dual-head", "head": head}], epochs=6, augment=False)
    parts = [e["parts"] for e in result.figures["history"]["epochs"]]
    assert parts[-1]["dual-head"] < 0.5 * parts[0]["dual-head"]
    assert parts[-1]["label"] < 0.5 * parts[0]["label"]
    assert result.figures["val_after"]["accuracy"] > 0.8
    assert student.state_dict().keys() == make_net().state_dict().keys()


def test_the_classifier_hears_the_labels_alone(tmp_path):
    """One step without alignment: the classifier's weights are those of label training, the body's are not."""
    task, teacher = taught(tmp_path / "teacher")
    more = {"epochs": 1, "batch_size": 96, "augment": False, "label_weight": 1.0}
    plain, _ = distilled(tmp_path / "a", task, teacher, [{"kind": "dual-head", "weight": 0.0}], **more)
    dual_, _ = distilled(tmp_path / "b", task, teacher, [{"kind": "dual-head", "align": False}], **more)
    assert torch.equal(plain[6].weight, dual_[6].weight)
    assert not torch.equal(plain[0].weight, dual_[0].weight)


def test_alpha_can_be_shut_off_in_mid_run(tmp_path):
    """`until` = 0.5 is the paper's α = 0 from half of the run on: as a run whose term never counted, from there."""
    task, teacher = taught(tmp_path / "teacher")
    term = {"kind": "dual-head", "until": 0.5}
    _, result = distilled(tmp_path / "a", task, teacher, [term], epochs=4, augment=False)
    epochs = result.figures["history"]["epochs"]
    for epoch in epochs[2:]:
        assert epoch["train_loss"] == pytest.approx(epoch["parts"]["label"], rel=1e-6)
    assert epochs[0]["train_loss"] == pytest.approx(sum(epochs[0]["parts"].values()), rel=1e-6)
