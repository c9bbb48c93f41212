"""Terms on logits: decoupled KD, correlations, regression; each against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import pearsonr
from terms_kit import FakeSetup, distilled, signals, taught, term_of
from training_kit import make_net

from trimtab.compress.distill.dist import dist_loss
from trimtab.compress.distill.dkd import dkd_loss, dkd_parts
from trimtab.compress.distill.kd import kd_loss
from trimtab.compress.distill.logit_mse import logit_mse_loss
from trimtab.compress.distill.objectives import parse_term
from trimtab.models.errors import UserError

torch.set_num_threads(1)


def logits(seed=0, *, samples=24, classes=10, scale=5.0):
    rng = np.random.default_rng(seed)
    s, t = rng.normal(0, scale, (2, samples, classes))
    return s, t, rng.integers(0, classes, samples)


def single(*arrays):
    return [torch.tensor(a, dtype=torch.float32 if a.dtype.kind == "f" else torch.int64) for a in arrays]


def double(*arrays, grad=False):
    return [torch.tensor(a, dtype=torch.float64, requires_grad=grad) for a in arrays]


# ---------------------------------------------------------------- DKD


def dkd_by_probabilities(s, t, targets, temperature, alpha, beta):
    """Zhao et al. 2022, eq. 8, straight from probabilities: b over {target, not}, q over the other classes."""
    p_s, p_t = softmax(s / temperature, axis=1), softmax(t / temperature, axis=1)
    total = 0.0
    for i, c in enumerate(targets):
        b_s, b_t = (np.array([p[i, c], 1 - p[i, c]]) for p in (p_s, p_t))
        q_s, q_t = (np.delete(p[i], c) / (1 - p[i, c]) for p in (p_s, p_t))
        total += alpha * rel_entr(b_t, b_s).sum() + beta * rel_entr(q_t, q_s).sum()
    return temperature**2 * total / len(s)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 0.0, 1.0), (0.0, 2.0, 10.0)])
def test_dkd_against_its_formula(alpha, beta, temperature):
    """float32 logits of size ~5 against float64 probabilities: 2e-5 relative."""
    s, t, y = logits()
    got = dkd_loss(*single(s, t, y), temperature=temperature, alpha=alpha, beta=beta)
    assert got.item() == pytest.approx(dkd_by_probabilities(s, t, y, temperature, alpha, beta), rel=2e-5)


def test_dkd_with_the_teachers_own_doubt_as_weight_is_kd():
    """KD = TCKD + (1 − p_target) · NCKD, by sample (eq. 7). float64: 1e-12."""
    s, t, y = logits(1)
    tckd, nckd = dkd_parts(*double(s, t), torch.tensor(y), temperature=4.0)
    doubt = 1 - softmax(t / 4, axis=1)[np.arange(len(y)), y]
    p, q = softmax(t / 4, axis=1), softmax(s / 4, axis=1)
    np.testing.assert_allclose(tckd.numpy() + doubt * nckd.numpy(), rel_entr(p, q).sum(1), rtol=1e-12, atol=1e-12)
    kd = kd_loss(*single(s, t), 4.0).item()
    assert kd == pytest.approx(16 * (tckd.numpy() + doubt * nckd.numpy()).mean(), rel=1e-5)  # float32 KD


def test_dkd_gradients_by_finite_differences():
    s, t, y = logits(2, samples=3, classes=4, scale=2.0)
    [z] = double(s, grad=True)

    def loss(x):
        return dkd_loss(x, *double(t), torch.tensor(y), temperature=2.0, alpha=1.5, beta=3.0)

    assert torch.autograd.gradcheck(loss, (z,))


def test_dkd_halves_know_nothing_of_each_other():
    """Shifting the target logit leaves NCKD alone, shuffling the others' logits leaves TCKD alone (float64: 1e-12)."""
    s, t, y = logits(3)
    tckd, nckd = dkd_parts(*double(s, t), torch.tensor(y), temperature=1.0)
    lifted, turned = s.copy(), s.copy()
    lifted[np.arange(len(y)), y] += 3
    for i, c in enumerate(y):
        others = [k for k in range(10) if k != c]
        turned[i, others] = np.roll(s[i, others], 1)
    torch.testing.assert_close(dkd_parts(*double(lifted, t), torch.tensor(y), temperature=1.0)[1], nckd, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(dkd_parts(*double(turned, t), torch.tensor(y), temperature=1.0)[0], tckd, atol=1e-12, rtol=1e-12)


def test_dkd_is_finite_where_probabilities_are_not():
    """Logits ±1000: probabilities 0 and 1 exactly in float32. Value and gradient against KL in log space, 1e-4 relative."""
    s = torch.tensor([[1000.0, -1000.0, 0.0], [-1000.0, 1000.0, 0.0]], requires_grad=True)
    t, y = torch.tensor([[-1000.0, 1000.0, 0.0], [-1000.0, 1000.0, 0.0]]), torch.tensor([0, 1])
    loss = dkd_loss(s, t, y, temperature=1.0, alpha=1.0, beta=1.0)
    loss.backward()
    assert s.grad.isfinite().all()
    # First sample: the teacher is sure of "not class 0" and the student gives that e^-1000, so TCKD is 1000; of the others the
    # teacher is sure of class 1 and the student gives that e^-1000 too, so NCKD is 1000. The second sample agrees.
    assert loss.item() == pytest.approx((1000 + 1000) / 2, rel=1e-4)


def test_dkd_of_a_perfect_student_is_zero():
    _, t, y = logits(4)
    assert dkd_loss(*single(t, t, y), temperature=4.0, alpha=1.0, beta=8.0).item() == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- DIST


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1.0, 1.0, 4.0), (2.0, 0.0, 1.0), (0.0, 0.5, 8.0)])
def test_dist_against_scipys_pearson(beta, gamma, temperature):
    """τ²·(β·mean(1 − ρ of rows) + γ·mean(1 − ρ of columns)); float32 against float64: 2e-5 relative."""
    s, t, _ = logits(5)
    p, q = softmax(s / temperature, axis=1), softmax(t / temperature, axis=1)
    inter = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(p.T, q.T, strict=True)])
    got = dist_loss(*single(s, t), temperature=temperature, beta=beta, gamma=gamma)
    assert got.item() == pytest.approx(temperature**2 * (beta * inter + gamma * intra), rel=2e-5)


def test_dist_gradients_by_finite_differences():
    s, t, _ = logits(6, samples=4, classes=3, scale=2.0)
    [z] = double(s, grad=True)
    assert torch.autograd.gradcheck(lambda x: dist_loss(x, *double(t), temperature=2.0), (z,))


def test_dist_only_asks_for_relations():
    """Pearson is blind to scale: among softened probabilities near uniform, half the teacher's logits cost next to nothing,
    while KD asks for all of them. (Temperature 100: softmax is linear to 1 %, so the distance is of second order.)"""
    _, t, _ = logits(7, scale=2.0)
    half, full = single(0.5 * t, t)
    distance = dist_loss(half, full, temperature=100.0) / 100**2
    assert distance.item() < 1e-3
    assert kd_loss(half, full, 100.0).item() > 0.1


def test_dist_of_one_sample_has_no_gradient_from_the_batch():
    s, t, _ = logits(8, samples=1)
    [z] = double(s, grad=True)
    dist_loss(z, *double(t), temperature=1.0, beta=0.0).backward()
    assert z.grad.abs().max() == 0


# ---------------------------------------------------------------- regression


def test_logit_mse_against_numpy():
    s, t, _ = logits(9)
    assert logit_mse_loss(*single(s, t)).item() == pytest.approx(((s - t) ** 2).mean(), rel=1e-5)
    d = s - t - (s - t).mean(1, keepdims=True)
    assert logit_mse_loss(*single(s, t), centre=True).item() == pytest.approx((d**2).mean(), rel=1e-5)


def test_centred_logits_may_be_shifted_and_the_gradient_sums_to_nothing():
    s, t, _ = logits(10)
    a = logit_mse_loss(*double(s, t), centre=True)
    b = logit_mse_loss(*double(s + 7, t), centre=True)
    assert a.item() == pytest.approx(b.item(), rel=1e-12)
    [z] = double(s, grad=True)
    logit_mse_loss(z, *double(t), centre=True).backward()
    np.testing.assert_allclose(z.grad.sum(1).numpy(), 0, atol=1e-15)
    expected = 2 * (s - t - (s - t).mean(1, keepdims=True)) / s.size
    np.testing.assert_allclose(z.grad.numpy(), expected, atol=1e-15)


def test_kd_at_a_high_temperature_is_centred_regression():
    """T²·KL → Σ(centred difference)²/(2K) as T → ∞ (Hinton et al. 2015, §2.1): 1 % at T = 1000."""
    s, t, _ = logits(11)
    kd = kd_loss(*double(s, t), 1000.0).item()
    assert logit_mse_loss(*double(s, t), centre=True).item() / 2 == pytest.approx(kd, rel=0.01)


# ---------------------------------------------------------------- what they share

PAIRS = [
    ({"kind": "dkd"}, lambda s, t, y: dkd_by_probabilities(s, t, y, 4.0, 1.0, 8.0)),
    ({"kind": "logit-mse", "centre": True}, lambda s, t, y: logit_mse_loss(*double(s, t), centre=True).item()),
    ({"kind": "dist", "temperature": 2.0}, lambda s, t, y: dist_loss(*double(s, t), temperature=2.0).item()),
]


@pytest.mark.parametrize(("table", "expected"), PAIRS)
def test_a_recipes_table_becomes_the_term(table, expected):
    s, t, y = logits(12)
    a, b, c = single(s, t, y)
    term = term_of(table, FakeSetup())
    got = term.loss(signals({"logits": a}, {"logits": b}, targets=c))
    assert got.item() == pytest.approx(expected(s, t, y), rel=2e-5)
    assert term.head is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: dkd_loss(a, b, torch.zeros(2, dtype=torch.int64), temperature=1.0, alpha=1.0, beta=1.0),
        lambda a, b: dist_loss(a, b, temperature=1.0),
        logit_mse_loss,
    ],
)
def test_other_shapes_are_refused_and_half_precision_is_widened(loss):
    with pytest.raises(ValueError, match=r"student logits \(2, 3\), teacher logits \(2, 4\): not alike"):
        loss(torch.zeros(2, 3), torch.zeros(2, 4))
    assert loss(torch.randn(2, 3).bfloat16(), torch.randn(2, 3)).dtype == torch.float32


def test_dkd_needs_classes():
    with pytest.raises(UserError, match=r"'dkd' needs class labels, and task 'toy' on 'made up' has 0 classes") as caught:
        term_of({"kind": "dkd"}, FakeSetup(classes=()))
    assert "hints" in caught.value.hint


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kind": "dkd", "alpha": -1}, "dkd: alpha = -1: Input should be greater than or equal to 0"),
        ({"kind": "dkd", "beta": float("nan")}, "dkd: beta = nan: Input should be a"),
        ({"kind": "dist", "temperature": 0}, "dist: temperature = 0: Input should be greater than 0"),
        ({"kind": "dist", "gama": 1}, r"dist: unknown key 'gama' \(did you mean 'gamma'"),
        ({"kind": "logit-mse", "center": True}, r"logit-mse: unknown key 'center' \(did you mean 'centre'"),
    ],
)
def test_configs_refuse(table, said):
    with pytest.raises(ValueError, match=said):
        parse_term(table)


@pytest.mark.parametrize("kind", ["dkd", "dist", "logit-mse"])
def test_a_student_learns_from_logits_without_the_label_loss(tmp_path, kind):
    """Accuracy of four balanced classes from about chance to above 0.8, as with KD. One step's record is the formula's."""
    task, teacher = taught(tmp_path / "teacher")
    terms = [{"kind": kind, "weight": 0.1 if kind == "logit-mse" else 1.0}]
    student, result = distilled(tmp_path / "run", task, teacher, terms, label_weight=0.0, epochs=6, augment=False)
    assert result.figures["val_after"]["accuracy"] > 0.8 > result.figures["val_before"]["accuracy"]
    losses = [e["parts"][kind] for e in result.figures["history"]["epochs"]]
    assert losses[-1] < 0.5 * losses[0]
    assert student.state_dict().keys() == make_net().state_dict().keys()


def test_the_labels_of_the_batch_are_dkds_targets(tmp_path):
    """One step over the whole split: the recorded part is the formula on both networks' logits. float32 training: 1e-4."""
    task, teacher = taught(tmp_path / "teacher")
    raw = task.samples("train").__getitems__(range(96))
    with torch.no_grad():
        s = make_net(dropout=0.0).train()(task.inputs(raw)).double().numpy()
        t = teacher.eval()(task.inputs(raw)).double().numpy()
    terms = [{"kind": "dkd", "temperature": 3.0}]
    _, result = distilled(tmp_path / "run", task, teacher, terms, epochs=1, batch_size=96, augment=False)
    parts = result.figures["history"]["epochs"][0]["parts"]
    y = raw.targets.numpy()
    assert parts["dkd"] == pytest.approx(dkd_by_probabilities(s, t, y, 3.0, 1.0, 8.0), rel=1e-4)
    assert parts["label"] == pytest.approx(-log_softmax(s, axis=1)[np.arange(96), y].mean(), rel=1e-4)
