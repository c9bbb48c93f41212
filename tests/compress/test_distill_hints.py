"""Feature hints, with and without a hard quantile, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from terms_kit import FakeSetup, distilled, signals, taught, term_of, wide_net
from torch import nn
from training_kit import make_net, make_task

from trimtab.compress.distill.hints import alike, hard_mean, hint_loss
from trimtab.compress.distill.objectives import parse_term
from trimtab.compress.distill.projector import Regressor
from trimtab.models.errors import UserError

torch.set_num_threads(1)


def as_torch(*arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=dtype if a.dtype.kind == "f" else torch.int64) for a in arrays]


# ---------------------------------------------------------------- hints: the loss


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 7), (4, 9, 3)])
def test_hint_loss_against_numpy(shape):
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, *shape))
    assert hint_loss(*as_torch(s, t, dtype=torch.float32)).item() == pytest.approx(((s - t) ** 2).mean(), rel=1e-5)


def test_maps_are_averaged_down_to_the_smaller_height_and_width():
    """8×3 against 4×6: both become 4×3, blocks averaged by numpy."""
    rng = np.random.default_rng(1)
    s, t = rng.normal(size=(2, 3, 8, 3)), rng.normal(size=(2, 3, 4, 6))
    small_s, small_t = s.reshape(2, 3, 4, 2, 3).mean(3), t.reshape(2, 3, 4, 3, 2).mean(4)
    a, b = alike(*as_torch(s, t))
    np.testing.assert_allclose(a.numpy(), small_s, atol=1e-12)
    np.testing.assert_allclose(b.numpy(), small_t, atol=1e-12)
    assert hint_loss(*as_torch(s, t)).item() == pytest.approx(((small_s - small_t) ** 2).mean(), rel=1e-12)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.57, 0.9, 0.999])
@pytest.mark.parametrize("count", [1, 2, 11, 101, 5000])
def test_the_hard_mean_is_that_of_elements_from_the_quantile_up(quantile, count):
    """mean{D : D ≥ quantile(D)} by numpy, ties included (values rounded); float64: 1e-12."""
    for decimals in (1, 12):
        d = np.random.default_rng(count).uniform(0, 5, count).round(decimals)
        # the interpolated quantile of equal neighbours is rounded by numpy: a hair below is the same set of elements
        expected = d[d >= np.quantile(d, quantile) - 1e-12].mean()
        assert hard_mean(torch.tensor(d), quantile).item() == pytest.approx(expected, rel=1e-12)


def test_the_hard_mean_has_no_limit_at_two_to_the_24():
    """2²⁴ + 1000 elements, where torch.quantile gives up. Uniform values: those from the 0.999 quantile up average 0.9995."""
    d = torch.rand(2**24 + 1000, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(d, 0.999)
    kept = np.sort(d.numpy())[int(np.ceil(0.999 * (len(d) - 1))) :]
    assert hard_mean(d, 0.999).item() == pytest.approx(kept.mean(dtype=np.float64), rel=1e-5)
    assert kept.mean() == pytest.approx(0.9995, abs=1e-5)


def test_only_hard_elements_get_a_gradient():
    """∂/∂s = 2(s − t)/n of the n hardest, 0 elsewhere."""
    rng = np.random.default_rng(2)
    s, t = rng.normal(size=(2, 2, 3, 5, 5))
    z, v = as_torch(s, t)
    z.requires_grad_(True)
    hint_loss(z, v, hard_quantile=0.9).backward()
    d = (s - t) ** 2
    hard = d >= np.quantile(d, 0.9)
    np.testing.assert_allclose(z.grad.numpy(), np.where(hard, 2 * (s - t), 0) / hard.sum(), atol=1e-14)


def test_nan_is_hard():
    d = torch.ones(100)
    d[3] = float("nan")
    assert hard_mean(d, 0.5).isnan()


def test_hint_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"student features \(2, 3, 4, 4\), teacher features \(2, 5, 4, 4\): not alike"):
        hint_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))


# ---------------------------------------------------------------- hints: the term


def hints(ours, theirs, **more):
    generator = torch.Generator().manual_seed(1)
    setup = FakeSetup(student={"a.b": ours}, signals={"c": torch.randn((30, *theirs), generator=generator) * 3 + 2})
    return term_of({"kind": "hints", "student_layer": "a.b", "teacher_layer": "c", **more}, setup), setup


@pytest.mark.parametrize(
    ("ours", "theirs", "layer"),
    [((4, 8, 8), (6, 4, 4), nn.Conv2d), ((4,), (6,), nn.Linear), ((5, 4), (5, 6), nn.Linear)],
)
def test_the_regressor_fits_the_kind_of_features(ours, theirs, layer):
    term, _ = hints(ours, theirs)
    assert isinstance(term.head, Regressor)
    assert isinstance(term.head.layer, layer)
    s, t = torch.randn(3, *ours), torch.randn(3, *theirs)
    made = term.head({"a.b": s})
    assert made.shape[1:] == ((6, 8, 8) if len(ours) == 3 else theirs)
    torch.testing.assert_close(term.loss(signals({"a.b": s}, {"c": t}, head=made)), hint_loss(made, t))
    alike_term, _ = hints(theirs, theirs)
    assert alike_term.head is None
    assert hints(theirs, theirs, projector="always")[0].head is not None


@pytest.mark.parametrize("shape", [(4, 3, 3), (4,), (5, 4)])
def test_channel_statistics_of_the_teacher_over_the_split(shape):
    """(t − mean_c)/std_c over all samples and places, by numpy; a channel that never varies is only shifted. float32: 1e-5."""
    axis = 1 if len(shape) == 3 else len(shape)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn((30, *shape), generator=generator) * 3 + 2
    values.select(axis, 0)[:] = 7.0
    setup = FakeSetup(student={"a": shape}, signals={"c": values})
    term = term_of({"kind": "hints", "student_layer": "a", "teacher_layer": "c", "normalise": "channel"}, setup)
    x = values.double().numpy()
    rest = tuple(i for i in range(x.ndim) if i != axis)
    mean, std = x.mean(rest, keepdims=True), x.std(rest, keepdims=True)
    std[std == 0] = 1
    s, t = torch.randn(6, *shape), values[:6]
    expected = ((s.double().numpy() - (x[:6] - mean) / std) ** 2).mean()
    assert term.loss(signals({"a": s}, {"c": t})).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "more", "said"),
    [
        (
            (4, 8, 8),
            (6, 4, 4),
            {"projector": "never"},
            "the student's 4 channels with the teacher's 6, and projector = 'never'",
        ),
        ((4, 8, 8), (6,), {}, r"can't compare these layers: 'a.b' of the student gives \(4, 8, 8\), 'c' of the teacher \(6,\)"),
        ((5, 4), (7, 4), {}, "can't compare 5 tokens with 7"),
    ],
)
def test_layers_that_cannot_be_compared(ours, theirs, more, said):
    with pytest.raises(UserError, match=said) as caught:
        hints(ours, theirs, **more)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "hints: student_layer and teacher_layer must name a module"),
        ({"student_layer": "2"}, "hints: teacher_layer must name a module"),
        ({"student_layer": "2", "teacher_layer": "2", "hard_quantile": 1}, "hard_quantile = 1: Input should be less than 1"),
        ({"student_layer": "2", "teacher_layer": "2", "normalise": "layer"}, "normalise = 'layer': Input should be 'none' or"),
    ],
)
def test_hints_config_refuses(fields, said):
    with pytest.raises(ValueError, match=said):
        parse_term({"kind": "hints", **fields})


def test_a_wrong_path_is_answered_with_the_nearest(tmp_path):
    task = make_task()
    with pytest.raises(UserError, match="the student has no module 'layer2'"):
        distilled(tmp_path, task, make_net(), [{"kind": "hints", "student_layer": "layer2", "teacher_layer": "2"}])
    with pytest.raises(UserError, match="the teacher has no module '12'"):
        distilled(tmp_path, task, make_net(), [{"kind": "hints", "student_layer": "2", "teacher_layer": "12"}])


@pytest.mark.parametrize("more", [{}, {"normalise": "channel", "hard_quantile": 0.9}])
def test_hints_alone_shape_the_students_layer(tmp_path, more):
    """8 channels of 8×8 towards 12 of 4×4, no labels: the distance falls by half and more; the classifier is not touched."""
    task, teacher = taught(tmp_path / "teacher", net=wide_net(side=2))
    term = {"kind": "hints", "student_layer": "2", "teacher_layer": "2", **more}
    student, result = distilled(
        tmp_path / "run", task, teacher, [term], label_weight=0.0, epochs=6, augment=False, weight_decay=0.0, clip_norm=1.0
    )
    parts = [e["parts"]["hints"] for e in result.figures["history"]["epochs"]]
    assert parts[-1] < 0.6 * parts[0]
    assert torch.equal(student[6].weight, make_net()[6].weight)
