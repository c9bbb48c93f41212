"""Terms on features: norm and direction, cosine to class means; each against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from terms_kit import FakeSetup, distilled, signals, taught, term_of, wide_net
from torch import nn
from training_kit import make_net, make_task

from trimtab.compress.distill.class_means import unit_means
from trimtab.compress.distill.cosine import cosine_loss
from trimtab.compress.distill.nd import nd_loss
from trimtab.compress.distill.projector import EmbeddingProjector
from trimtab.models.errors import UserError

torch.set_num_threads(1)


def embeddings(seed=0, *, samples=20, dim=6, classes=3, size=1.0):
    """(s, t, e, y): student, teacher, unit directions, targets; float64."""
    rng = np.random.default_rng(seed)
    s, t = rng.normal(0, size, (samples, dim)), rng.normal(0, 1, (samples, dim))
    e = rng.normal(0, 1, (classes, dim))
    return s, t, e / np.linalg.norm(e, axis=1, keepdims=True), rng.integers(0, classes, samples)


def as_torch(*arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else torch.int64) for a in arrays]


# ---------------------------------------------------------------- class means


def test_class_means_against_numpy():
    """Unit means by class, summed in float64: 1e-6 of float32 output."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, (50, 5)).astype(np.float32), np.arange(50) % 4
    means = np.stack([x[y == k].astype(np.float64).mean(0) for k in range(4)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    got = unit_means(torch.from_numpy(x), torch.from_numpy(y), "abcd")
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
    assert got.dtype == torch.float32


def test_a_class_without_a_sample_is_named():
    x, y = torch.randn(6, 3), torch.tensor([0, 0, 2, 2, 0, 2])
    with pytest.raises(
        UserError, match=r"class 'cat' has no sample among the 6 training images.*\(2 classes are without\)"
    ) as e:
        unit_means(x, y, ("ant", "cat", "dog", "eel"))
    assert "max_train" in e.value.hint


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_class_whose_mean_has_no_direction_is_named(value):
    x = torch.randn(4, 3)
    x[2:] = value
    with pytest.raises(UserError, match="mean embedding of class 'b' is zero or not finite: it has no direction"):
        unit_means(x, torch.tensor([0, 0, 1, 1]), "ab")


# ---------------------------------------------------------------- ND


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_nd_against_its_formula(size):
    """Mean of 1 − s·e_c / max(‖s‖, ‖t‖) by a loop in float64; float32: 1e-5."""
    s, t, e, y = embeddings(size=size)
    expected = np.mean([1 - s[i] @ e[c] / max(np.linalg.norm(s[i]), np.linalg.norm(t[i])) for i, c in enumerate(y)])
    assert nd_loss(*as_torch(s, t, e, y, dtype=torch.float32)).item() == pytest.approx(expected, rel=1e-5)


def test_below_the_teachers_norm_nd_is_linear():
    """∂/∂s = −e_c/(N‖t‖) whatever s is, so twice the embedding earns twice as much. float64: 1e-14."""
    s, t, e, y = embeddings(1, size=0.05)
    assert (np.linalg.norm(s, axis=1) < np.linalg.norm(t, axis=1)).all()
    z, *rest = as_torch(s, t, e, y)
    z.requires_grad_(True)
    loss = nd_loss(z, *rest)
    loss.backward()
    expected = -e[y] / np.linalg.norm(t, axis=1, keepdims=True) / len(y)
    np.testing.assert_allclose(z.grad.numpy(), expected, atol=1e-14)
    assert 1 - nd_loss(2 * z, *rest).item() == pytest.approx(2 * (1 - loss.item()), rel=1e-12)


def test_from_the_teachers_norm_on_nd_is_one_minus_cosine():
    """Exactly the cosine loss, blind to scale: its gradient is at right angles to s, and it asks for no more norm."""
    s, t, e, y = embeddings(2, size=50.0)
    assert (np.linalg.norm(s, axis=1) > np.linalg.norm(t, axis=1)).all()
    z, t_, e_, y_ = as_torch(s, t, e, y)
    z.requires_grad_(True)
    loss = nd_loss(z, t_, e_, y_)
    loss.backward()
    assert loss.item() == pytest.approx(cosine_loss(z, e_, y_).item(), rel=1e-12)
    np.testing.assert_allclose((z.grad * z.detach()).sum(1).numpy(), 0, atol=1e-14)
    sine = np.sqrt(1 - (np.sum(s * e[y], 1) / np.linalg.norm(s, axis=1)) ** 2)
    np.testing.assert_allclose(z.grad.norm(dim=1).numpy(), sine / np.linalg.norm(s, axis=1) / len(y), atol=1e-14)


def test_nd_gradients_by_finite_differences():
    s, t, e, y = embeddings(3, samples=6)
    z, *rest = as_torch(s, t, e, y)
    assert torch.autograd.gradcheck(lambda x: nd_loss(x, *rest), (z.requires_grad_(True),))


def test_nd_leaves_the_teacher_alone_and_bears_dead_embeddings():
    s, t, e, y = embeddings(4, size=0.1)
    a, b, *rest = as_torch(s, t, e, y)
    a.requires_grad_(True)
    b.requires_grad_(True)
    nd_loss(a, b, *rest).backward()
    assert b.grad is None
    zero = torch.zeros(2, 6, requires_grad=True)
    loss = nd_loss(zero, torch.zeros(2, 6), rest[0].float(), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 1.0
    assert zero.grad.isfinite().all()


# ---------------------------------------------------------------- cosine


def test_cosine_against_its_formula():
    s, _, e, y = embeddings(5)
    expected = np.mean([1 - s[i] @ e[c] / np.linalg.norm(s[i]) for i, c in enumerate(y)])
    assert cosine_loss(*as_torch(s, e, y, dtype=torch.float32)).item() == pytest.approx(expected, rel=1e-5)
    z, *rest = as_torch(s, e, y)
    assert torch.autograd.gradcheck(lambda x: cosine_loss(x, *rest), (z.requires_grad_(True),))


# ---------------------------------------------------------------- terms on embeddings


def setup_of(dim, *, theirs=6, samples=12):
    generator = torch.Generator().manual_seed(0)
    return FakeSetup(
        student={"embedding": (dim,)},
        signals={"embedding": torch.rand((samples, theirs), generator=generator)},
        targets=torch.arange(samples) % 3,
    )


@pytest.mark.parametrize("kind", ["nd", "cosine"])
def test_the_projector_is_there_when_it_is_needed(kind):
    assert term_of({"kind": kind}, setup_of(6)).head is None
    assert term_of({"kind": kind, "projector": "never"}, setup_of(6)).head is None
    for choice, dim in (("auto", 4), ("always", 6), ("always", 4)):
        head = term_of({"kind": kind, "projector": choice}, setup_of(dim)).head
        assert head({"embedding": torch.randn(5, dim)}).shape == (5, 6)


@pytest.mark.parametrize("kind", ["nd", "cosine"])
def test_without_a_projector_the_sizes_must_agree(kind):
    said = f"'{kind}' compares the student's 4 embedding dimensions with the teacher's 6, and projector = 'never'"
    with pytest.raises(UserError, match=said) as caught:
        term_of({"kind": kind, "projector": "never"}, setup_of(4))
    assert 'projector = "auto"' in caught.value.hint


def test_the_projector_is_the_papers():
    """BN(γ 1, β 0) → Dropout(0.5) → Linear(zero bias): in eval mode x → W·(x − mean)/√(var + ε)."""
    projector = EmbeddingProjector(4, 6)
    norm, dropout, linear = projector.layers
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert dropout.p == 0.5
    assert (linear.bias == 0).all()
    assert linear.weight.std() > 0
    x = torch.randn(3, 4)
    expected = (x / (1 + norm.eps) ** 0.5) @ linear.weight.T
    torch.testing.assert_close(projector.eval()({"embedding": x}), expected)
    with pytest.raises(UserError, match="the batch is one sample") as caught:
        projector({"embedding": x[:1]})
    assert "batch_size" in caught.value.hint


@pytest.mark.parametrize("dim", [6, 4])
def test_the_nd_term_reads_the_head_where_there_is_one(dim):
    """Against nd_loss on what the head made, with class means by numpy."""
    setup = setup_of(dim)
    term = term_of({"kind": "nd"}, setup)
    x = setup.signals["embedding"].numpy()
    means = np.stack([x[k::3].mean(0) for k in range(3)])
    directions = torch.tensor(means / np.linalg.norm(means, axis=1, keepdims=True))
    s, t, y = torch.randn(5, dim), torch.randn(5, 6), torch.tensor([0, 1, 2, 2, 1])
    head = term.head.eval()({"embedding": s}) if term.head is not None else None
    got = term.loss(signals({"embedding": s}, {"embedding": t}, targets=y, head=head))
    expected = nd_loss(s if head is None else head, t, directions, y)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["nd", "cosine"])
def test_they_need_classes(kind):
    setup = setup_of(6)
    setup.task.contract.classes = ()
    with pytest.raises(UserError, match=f"the term '{kind}' needs class labels"):
        term_of({"kind": kind}, setup)


def geometry(net, task, directions):
    """(mean norm, mean cosine to the own class's direction) of embeddings of the training split, in eval mode."""
    raw = task.samples("train").__getitems__(range(96))
    with torch.no_grad():
        x = net.eval()[:6](task.inputs(raw))
        norm = x.norm(dim=1)
        return norm.mean().item(), ((x * directions[raw.targets]).sum(1) / norm).mean().item()


def test_nd_lengthens_and_turns_the_embedding_and_cosine_turns_it_alone(tmp_path):
    """Beside the label loss, against the label loss alone, towards a teacher with embeddings three times as long (its features
    scaled, its classifier scaled back): both terms raise the cosine to the class mean, only ND's norm approaches the teacher's."""
    task, teacher = taught(tmp_path / "teacher")
    with torch.no_grad():
        teacher[1].weight *= 3
        teacher[1].bias *= 3
        teacher[6].weight /= 3
        raw = task.samples("train").__getitems__(range(96))
        features = teacher.eval()[:6](task.inputs(raw))
    directions = unit_means(features, raw.targets, task.contract.classes)
    found = {}
    for kind, weight in (("nd", 0.0), ("nd", 4.0), ("cosine", 4.0)):
        terms = [{"kind": kind, "weight": weight}]
        student, _ = distilled(tmp_path / f"{kind}{weight}", task, teacher, terms, epochs=6, augment=False)
        found[kind, weight] = geometry(student, task, directions)
        assert student.state_dict().keys() == make_net().state_dict().keys()
    (plain_norm, plain), (nd_norm, nd), (cosine_norm, cosine) = found.values()
    assert min(nd, cosine) > plain + 0.1
    assert nd_norm > 1.2 * max(plain_norm, cosine_norm)


@pytest.mark.parametrize("kind", ["nd", "cosine"])
def test_a_wider_teacher_teaches_through_the_projector(tmp_path, kind):
    """48 against 128 dimensions: the term falls, and the student comes back as it was built."""
    task, teacher = taught(tmp_path / "teacher", net=wide_net())
    student, result = distilled(tmp_path / "run", task, teacher, [{"kind": kind, "weight": 2.0}], epochs=4, augment=False)
    parts = [e["parts"][kind] for e in result.figures["history"]["epochs"]]
    assert parts[-1] < 0.8 * parts[0]
    assert {n: t.shape for n, t in student.state_dict().items()} == {n: t.shape for n, t in make_net().state_dict().items()}


def test_a_class_that_the_run_leaves_out_is_named(tmp_path):
    task, teacher = make_task(), make_net(seed=3)
    with pytest.raises(UserError, match=r"class 'class \d' has no sample among the 2 training images"):
        distilled(tmp_path, task, teacher, [{"kind": "nd"}], max_train=2, batch_size=2)
