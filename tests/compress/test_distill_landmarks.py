"""KD-Loss for landmarks: its two terms against NumPy, their slopes, and runs on drawn faces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from training_kit import FakeBundle, make_context, make_net, make_task, same, weights

from trimtab.compress.distill.landmarks import AssistiveConfig, LandmarkMainConfig, assistive_loss, main_loss, shuffled
from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.distill.objectives import objectives
from trimtab.models.errors import UserError
from trimtab.models.files import digest_of
from trimtab.models.tasks.augment_points import Movement
from trimtab.models.tasks.images import ArrayImages
from trimtab.models.tasks.landmarks import LandmarksTask, Measure
from trimtab.models.tasks.splits import Splits

torch.set_num_threads(1)
FIGURE = {"alpha": 1.0, "alpha_neg": 0.5, "beta": 0.4, "ramp": "linear"}
TOUGH = {"alpha": 1.9, "alpha_neg": 0.45, "beta": 0.15, "ramp": "step"}
TOLERANT = {"alpha": 1.8, "alpha_neg": 0.4, "beta": 0.15, "ramp": "step"}


def cases(seed=0, shape=(64, 10)):
    """Outputs, targets and teacher errors of alike size, so that every region of the losses is met."""
    rng = np.random.default_rng(seed)
    targets = rng.uniform(-0.5, 0.5, shape)
    return targets + rng.normal(0, 0.4, shape), targets, np.abs(rng.normal(0, 0.4, shape))


def tensors(*arrays):
    return [torch.tensor(a, dtype=torch.float32) for a in arrays]


# ---------------------------------------------------------------- the main loss


def main_by_hand(out, target, delta=None):
    total = []
    for o, t, d in zip(out.ravel(), target.ravel(), (np.full_like(out, 0.5) if delta is None else delta).ravel(), strict=True):
        far = abs(o - t)
        k = 1 if delta is None else 3
        total.append(k * far if far <= d else far**2 + k * d - d**2)
    return np.mean(total)


@pytest.mark.parametrize("released", [True, False])
def test_main_loss_by_hand(released):
    """A loop in float64; float32 of numbers near 1: 1e-5 relative."""
    out, target, delta = cases()
    delta = delta if released else None
    got = main_loss(*tensors(out, target), torch.tensor(delta, dtype=torch.float32) if released else None)
    assert got.item() == pytest.approx(main_by_hand(out, target, delta), rel=1e-5)


@pytest.mark.parametrize(("delta", "inside", "outside"), [(None, 1.0, 1.0), (0.05, 3.0, 0.1), (1.5, 3.0, 3.0)])
def test_main_loss_is_continuous_and_its_slope_steps_from_k_to_twice_delta(delta, inside, outside):
    """Finite differences 1e-4 beside the knee in float64 would be cast to float32: autograd gives the slopes, 1e-3 apart."""
    knee = 0.5 if delta is None else delta
    error = None if delta is None else torch.tensor([[delta]])
    values, slopes = [], []
    for distance in (knee - 1e-5, knee + 1e-5):
        x = torch.tensor([[distance]], requires_grad=True)
        loss = main_loss(x, torch.zeros(1, 1), error)
        loss.backward()
        values.append(loss.item())
        slopes.append(x.grad.item())
    # a jump would be seen: 2e-5 apart times a slope of at most 3, and float32 rounding
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert slopes == pytest.approx([inside, outside], abs=1e-3)


def test_main_loss_with_a_perfect_teacher_is_the_squared_error():
    out, target, _ = tensors(*cases())
    torch.testing.assert_close(main_loss(out, target, torch.zeros_like(out)), nn.functional.mse_loss(out, target))


# ---------------------------------------------------------------- the assistive loss


def assistive_by_hand(out, target, delta, *, alpha, alpha_neg, beta, ramp):
    total, slopes = [], np.zeros_like(out)
    for i in np.ndindex(out.shape):
        far, d = abs(out[i] - target[i]), delta[i]
        if far > d:
            w = alpha
        elif far >= beta * d:
            w = -alpha_neg
        else:
            w = 0.0 if ramp == "step" else -alpha_neg * far / (beta * d)
        total.append(w * abs(far - d))
        slopes[i] = w * np.sign(far - d) * np.sign(out[i] - target[i]) / out.size
    return np.mean(total), slopes


@pytest.mark.parametrize("settings", [FIGURE, TOUGH, TOLERANT, {**FIGURE, "beta": 0.0}, {**TOUGH, "beta": 1.0}])
def test_assistive_loss_and_gradient_by_hand(settings):
    """A loop in float64 with the weight held constant; float32: 1e-5 of the size of the numbers."""
    out, target, delta = cases()
    expected, slopes = assistive_by_hand(out, target, delta, **settings)
    x, t, d = tensors(out, target, delta)
    loss = assistive_loss(x.requires_grad_(), t, d, **settings)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), slopes, atol=1e-5 / 64)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("settings", "at", "pull"),
    [
        (TOUGH, 2.0, 1.9),  # worse than the teacher
        (TOUGH, 1.001, 1.9),
        (TOUGH, 0.999, 0.45),  # better than the teacher
        (TOUGH, 0.151, 0.45),
        (TOUGH, 0.149, 0.0),  # as good as there
        (FIGURE, 2.0, 1.0),
        (FIGURE, 0.7, 0.5),
        (FIGURE, 0.2, 0.25),  # half way down the ramp
        (FIGURE, 0.04, 0.05),
        (FIGURE, 0.0, 0.0),
    ],
)
def test_the_pull_toward_the_ground_truth(settings, at, pull, side):
    """At |Δ| = at·δ the loss grows with |Δ| by +α outside, +α′ inside and less and less very near, on either side of the truth."""
    x = torch.tensor([[side * at * 0.1]], requires_grad=True)
    assistive_loss(x, torch.zeros(1, 1), torch.tensor([[0.1]]), **settings).backward()
    assert side * x.grad.item() == pytest.approx(pull, abs=1e-5)


def test_slopes_agree_with_finite_differences_within_a_region():
    """Where w is constant the gradient is the loss's own derivative: central differences of 1e-3 in float32, 1 % apart."""
    out, target, delta = cases(3)
    ratio = np.abs(out - target) / delta
    keep = (np.abs(ratio - 1) > 0.1) & (np.abs(ratio - 0.15) > 0.1) & (delta > 0.05) & (np.abs(out - target) > 0.01)
    x, t, d = tensors(out[keep][None], target[keep][None], delta[keep][None])
    assistive_loss(x.requires_grad_(), t, d, **TOUGH).backward()
    for i in range(0, x.shape[1], 20):
        step = torch.zeros_like(x)
        step[0, i] = 1e-3
        with torch.no_grad():
            high, low = (assistive_loss((x + s * step).double(), t, d, **TOUGH).item() for s in (1, -1))
        assert (high - low) / 2e-3 * x.shape[1] == pytest.approx(x.grad[0, i].item() * x.shape[1], abs=0.02)


def test_a_perfect_teacher_gives_the_absolute_error_and_nothing_breaks():
    out, target, _ = tensors(*cases())
    for settings in (FIGURE, TOUGH):
        x = out.clone().requires_grad_()
        loss = assistive_loss(x, target, torch.zeros_like(out), **settings)
        loss.backward()
        torch.testing.assert_close(loss.detach(), settings["alpha"] * nn.functional.l1_loss(out, target))
        assert x.grad.isfinite().all()
    x = target.clone().requires_grad_()
    assistive_loss(x, target, torch.zeros_like(out), **FIGURE).backward()
    assert not x.grad.any()


def test_losses_are_computed_in_float32():
    out, target, delta = (t.bfloat16() for t in tensors(*cases()))
    assert main_loss(out, target, delta).dtype == torch.float32
    assert assistive_loss(out, target, delta, **FIGURE).dtype == torch.float32


# ---------------------------------------------------------------- the control


def test_shuffling_permutes_samples_and_leaves_the_random_stream_alone():
    errors = torch.arange(60.0).view(20, 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = shuffled(errors)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(shuffled(errors), first)
    assert not torch.equal(first, errors)
    assert sorted(first.tolist()) == errors.tolist()
    torch.manual_seed(6)
    assert not torch.equal(shuffled(errors), first)


# ---------------------------------------------------------------- configs


def test_defaults_are_the_papers_figure():
    config = AssistiveConfig()
    assert {name: getattr(config, name) for name in FIGURE} == FIGURE
    assert not config.shuffle
    assert LandmarkMainConfig().form == "released"
    assert {"landmark-main", "assistive"} <= set(objectives.names())


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"kind": "assistive", "alpha": -1}, "assistive: alpha = -1: .*greater than or equal to 0"),
        ({"kind": "assistive", "alpha_neg": float("nan")}, "assistive: alpha_neg = nan"),
        ({"kind": "assistive", "beta": 1.5}, "assistive: beta = 1.5: .*less than or equal to 1"),
        ({"kind": "assistive", "ramp": "smooth"}, "assistive: ramp = 'smooth': .*'linear' or 'step'"),
        ({"kind": "assistive", "gamma": 1}, "assistive: unknown key 'gamma'"),
        ({"kind": "landmark-main", "form": "paper"}, "landmark-main: form = 'paper'"),
        ({"kind": "landmark-main", "form": "figure", "teacher": "step:1"}, 'form = "figure" follows no teacher'),
    ],
)
def test_bad_terms_are_refused_in_words(term, said):
    with pytest.raises(ValidationError, match=said):
        DistillConfig(objectives=(term,))


# ---------------------------------------------------------------- runs


def toy(train=64, val=32, *, movement=None):
    """8×8 pictures with two bright blobs of different size: four coordinates."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8]

    def images(count):
        points = rng.uniform(1, 6, (count, 2, 2))
        points[:, 1] = 7 - points[:, 0] + rng.normal(0, 0.3, (count, 2))
        blobs = [
            np.exp(-((x - p[:, :1, None]) ** 2 + (y - p[:, 1:, None]) ** 2) / s)
            for p, s in zip((points[:, 0], points[:, 1]), (1, 3), strict=True)
        ]
        pixels = np.clip(255 * (blobs[0] + 0.6 * blobs[1]), 0, 255).astype(np.uint8)[:, None]
        return ArrayImages(pixels, ((points + 0.5) / 8 - 0.5).reshape(count, 4).astype(np.float32))

    splits = Splits(images(train), images(val), images(val), (), flips=False, data_id=digest_of([train, val]))
    return LandmarksTask(splits, data="toy", measure=Measure("diagonal", None), movement=movement or Movement(0.05, 10, 0.1))


def four(seed=0):
    return make_net(classes=4, seed=seed, dropout=0.1)


def run(folder, terms, *, task=None, net=None, teacher=None, **more):
    task = task or toy()
    parent = FakeBundle(task.contract, teacher if teacher is not None else four(7))
    settings = {"epochs": 2, "batch_size": 16, "lr": 0.02, "amp": "off", "label_weight": 0.0, **more}
    config = DistillConfig(objectives=terms, **settings)
    net = net or four()
    return net, distill(net, task, config, make_context(folder, parent=parent))


KD_LOSS = ({"kind": "landmark-main", "weight": 2.0}, {"kind": "assistive"}, {"kind": "assistive", **TOLERANT})


def test_one_step_is_the_sum_by_hand(tmp_path):
    """A whole epoch in one batch without augmentation; float32 sums: 1e-4."""
    task, teacher = toy(), four(7)
    raw = task.samples("train").__getitems__(range(64))
    student = make_net(classes=4, dropout=0.0)
    with torch.no_grad():
        out = student.train()(task.inputs(raw)).double().numpy()
        delta = (teacher.eval()(task.inputs(raw)) - raw.targets).abs().double().numpy()
    target = raw.targets.double().numpy()
    main, first = main_by_hand(out, target, delta), assistive_by_hand(out, target, delta, **FIGURE)[0]
    second = assistive_by_hand(out, target, delta, **TOLERANT)[0]
    before = weights(teacher)
    _, result = run(
        tmp_path,
        KD_LOSS,
        task=task,
        teacher=teacher,
        net=make_net(classes=4, dropout=0.0),
        epochs=1,
        batch_size=64,
        augment=False,
    )
    epoch = result.figures["history"]["epochs"][0]
    assert list(epoch["parts"].values()) == pytest.approx([main, first, second], rel=1e-4)
    assert epoch["train_loss"] == pytest.approx(2 * main + first + second, rel=1e-4)
    assert same(before, weights(teacher))


def test_the_whole_loss_learns_with_augmentation(tmp_path):
    _, result = run(tmp_path, KD_LOSS, epochs=12)
    assert result.figures["val_after"]["nme"] < 0.6 * result.figures["val_before"]["nme"]
    assert "nme" in result.figures["teacher_val"]


def test_the_figures_form_needs_no_teacher(tmp_path):
    task = toy()
    config = DistillConfig(
        objectives=({"kind": "landmark-main", "form": "figure"},), label_weight=0.0, epochs=1, batch_size=16, amp="off"
    )
    result = distill(four(), task, config, make_context(tmp_path))
    assert result.figures["history"]["epochs"][0]["parts"].keys() == {"landmark-main"}


def test_the_shuffled_control_is_reproducible_and_differs(tmp_path):
    nets = [
        run(tmp_path / name, ({"kind": "assistive", "shuffle": shuffle},))[0]
        for name, shuffle in (("a", False), ("b", True), ("c", True))
    ]
    assert same(weights(nets[1]), weights(nets[2]))
    assert not same(weights(nets[0]), weights(nets[1]))
    _, result = run(tmp_path / "d", ({"kind": "assistive", "shuffle": True},))
    assert "assistive: teacher errors are shuffled between samples (a control)" in result.notes


def test_cached_clean_views_are_refused_with_augmented_targets(tmp_path):
    with pytest.raises(UserError, match=r"clean views.* augmented targets[\s\S]*cache_teacher = false, or augment = false"):
        run(tmp_path / "a", KD_LOSS, cache_teacher=True)
    live, _ = run(tmp_path / "b", KD_LOSS, augment=False)
    cached, result = run(tmp_path / "c", KD_LOSS, augment=False, cache_teacher=True)
    assert result.figures["teacher_cache"] == "made"
    for name, value in weights(live).items():
        # the cache holds the teacher's outputs for batches of 256, the live teacher's batches are 16: rounding of float32
        torch.testing.assert_close(weights(cached)[name], value, atol=1e-3, rtol=1e-3)


def test_a_classifier_is_refused(tmp_path):
    task = make_task()
    with pytest.raises(UserError, match="assistive compares coordinates, and the task 'classification' has 4 classes"):
        run(tmp_path, ({"kind": "assistive"},), task=task)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_another_number_of_points_is_refused(tmp_path, whose):
    odd = {"net" if whose == "student" else "teacher": make_net(classes=6)}
    with pytest.raises(
        UserError, match=rf"landmark-main: the {whose}'s output for one picture has shape \(6,\), the task's points \(4,\)"
    ):
        run(tmp_path, ({"kind": "landmark-main"},), **odd)
