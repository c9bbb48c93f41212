"""The distillation loss, the teacher behind the student's input, and the recipe step "distill"."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn
from training_kit import FakeBundle, make_context, make_net, make_task, same, train, weights

from trimtab.compress.distill.kd import kd_loss
from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.distill.teacher import Teacher, check_classes, input_map
from trimtab.compress.method import methods
from trimtab.compress.runtime import Runtime
from trimtab.compress.train import TrainConfig, evaluate
from trimtab.models.architectures import architectures
from trimtab.models.bundle import Manifest, save_bundle
from trimtab.models.contract import TensorSpec, image_classifier
from trimtab.models.errors import UserError
from trimtab.models.files import read_json
from trimtab.models.source import Architecture

torch.set_num_threads(1)
CONFIG = DistillConfig(epochs=2, batch_size=16, lr=0.05, amp="off")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A task and a teacher trained on it."""
    task = make_task()
    config = TrainConfig(epochs=5, batch_size=16, lr=0.05, amp="off", augment=False)
    net, _ = train(tmp_path_factory.mktemp("teacher"), config, net=make_net(seed=3), task=task)
    return task, net


def bundle_of(task, net, **more):
    return FakeBundle(more.pop("contract", task.contract), net, **more)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_loss_against_scipy(temperature):
    """T²·Σ p log(p/q) by scipy in float64; float32 logits of size ~5: 1e-5 relative."""
    rng = np.random.default_rng(0)
    s, t = rng.normal(0, 5, (2, 32, 10))
    p, q = softmax(t / temperature, axis=1), softmax(s / temperature, axis=1)
    expected = temperature**2 * rel_entr(p, q).sum(1).mean()
    got = kd_loss(torch.tensor(s, dtype=torch.float32), torch.tensor(t, dtype=torch.float32), temperature)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_kd_loss_gradient_is_the_papers():
    """∂/∂s = T·(softmax(s/T) − softmax(t/T))/N (Hinton et al. 2015, eq. 2, times T²); float32: 1e-6 absolute."""
    rng = np.random.default_rng(1)
    s, t = rng.normal(0, 3, (2, 8, 5))
    logits = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    kd_loss(logits, torch.tensor(t, dtype=torch.float32), 4.0).backward()
    expected = 4 * (softmax(s / 4, axis=1) - softmax(t / 4, axis=1)) / 8
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


def test_kd_loss_of_equals_is_zero_and_shifts_do_not_matter():
    t = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert kd_loss(t, t, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert kd_loss(t + 7, t, 4.0).item() == pytest.approx(0, abs=1e-5)  # softmax is shift-invariant; float32 rounding of t + 7


def test_kd_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"student logits \(2, 3\), teacher logits \(2, 4\)"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


# ---------------------------------------------------------------- the teacher's input


def spec(**more):
    return TensorSpec(name="image", shape=("N", 3, 8, 8), layout="NCHW", **({"value_range": (0.0, 1.0)} | more))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (spec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), spec(mean=(0.48, 0.45, 0.41), std=(0.23, 0.22, 0.21))),
        (spec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), spec(value_range=(0.0, 255.0), mean=(127.0,) * 3, std=(128.0,) * 3)),
        (spec(value_range=(-1.0, 1.0)), spec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))),
        (spec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), spec()),
    ],
)
def test_the_teacher_sees_the_same_picture_in_its_own_normalisation(ours, theirs):
    """Against TensorSpec.normalised of the same pixels in either value range; float32: 2e-5 absolute (values up to 5)."""
    unit = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 8))

    def normalised(s):
        low, high = s.value_range
        return s.normalised((low + (high - low) * unit).astype(np.float32))

    scale, shift = (v.view(1, -1, 1, 1) for v in input_map(ours, theirs))
    got = torch.from_numpy(normalised(ours)) * scale + shift
    np.testing.assert_allclose(got.numpy(), normalised(theirs), atol=2e-5)


def test_equal_contracts_leave_the_input_alone():
    task = make_task()
    teacher = Teacher(nn.Identity(), theirs=task.contract, ours=task.contract)
    x = torch.randn(2, 1, 8, 8)
    assert teacher(x) is x


def classifier(*, channels=1, side=8, classes=("class 0", "class 1", "class 2", "class 3")):
    return image_classifier(
        channels=channels, height=side, width=side, classes=classes, mean=(0.5,) * channels, std=(0.2,) * channels
    )


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        (classifier(channels=3), "the teacher takes 3 channels, the task delivers 1"),
        (classifier(side=32), "the teacher takes 32 pixels a side, the task delivers 8"),
        (classifier(classes=("a", "b")), "the teacher has 2 classes, the task has 4"),
        (classifier(classes=("class 1", "class 0", "class 2", "class 3")), "the task's classes in another order"),
    ],
)
def test_a_teacher_of_another_shape_is_refused(tmp_path, contract, said):
    task = make_task()
    context = make_context(tmp_path, parent=bundle_of(task, make_net(), contract=contract))
    with pytest.raises(UserError, match=said):
        distill(make_net(), task, CONFIG, context)


def test_a_teacher_whose_logits_are_fewer_than_it_claims_is_refused(tmp_path):
    task = make_task()
    context = make_context(tmp_path, parent=bundle_of(task, make_net(classes=3)))
    with pytest.raises(UserError, match=r"output for one image has shape \(1, 3\), the task has 4 classes"):
        distill(make_net(), task, CONFIG, context)


def test_other_class_names_are_noted():
    note = check_classes(classifier(classes=tuple("abcd")), make_task().contract)
    assert "class names differ (teacher 'a' …, task 'class 0' …)" in note


# ---------------------------------------------------------------- the step


def test_it_is_registered():
    assert methods.get("distill").config is DistillConfig


def test_the_loss_is_hintons_mix(tmp_path, taught):
    """One step over the whole split, no augmentation: (1 − α)·CE + α·T²·KL by scipy from both networks' logits. float32: 1e-4."""
    task, net = taught
    student = make_net(dropout=0.0)
    raw = task.samples("train").__getitems__(range(96))
    with torch.no_grad():
        student.train()
        s = student(task.inputs(raw)).double().numpy()
        t = net.eval()(task.inputs(raw)).double().numpy()
    student = make_net(dropout=0.0)
    term = {"kind": "kd", "weight": 0.7, "temperature": 3.0}
    config = DistillConfig(epochs=1, batch_size=96, augment=False, amp="off", objectives=(term,), label_weight=0.3)
    result = distill(student, task, config, make_context(tmp_path, parent=bundle_of(task, net)))
    ce = -log_softmax(s, axis=1)[np.arange(96), raw.targets.numpy()].mean()
    kd = 9 * rel_entr(softmax(t / 3, axis=1), softmax(s / 3, axis=1)).sum(1).mean()
    epoch = result.figures["history"]["epochs"][0]
    assert epoch["parts"] == pytest.approx({"label": ce, "kd": kd}, rel=1e-4)
    assert epoch["train_loss"] == pytest.approx(0.3 * ce + 0.7 * kd, rel=1e-4)


def test_the_teacher_is_left_as_it_was_and_the_student_learns_from_it_alone(tmp_path, taught):
    """label_weight = 0: no label is used, and the student still gets well above chance (0.25)."""
    task, net = taught
    before = weights(net)
    config = CONFIG.model_copy(update={"label_weight": 0.0, "epochs": 6, "augment": False})
    result = distill(make_net(), task, config, make_context(tmp_path, parent=bundle_of(task, net)))
    assert same(before, weights(net))
    assert result.figures["teacher_val"]["accuracy"] > 0.9
    assert result.figures["val_after"]["accuracy"] > 0.8 > result.figures["val_before"]["accuracy"]
    assert result.figures["teacher_cache"] == "off"
    assert result.notes == ()
    assert json.loads(json.dumps(result.figures)) == result.figures


def test_a_teacher_with_another_normalisation_teaches_the_same(tmp_path, taught):
    """A teacher that expects 0…255 pixels, built by folding the map into a wrapper: its logits on val agree to 1e-4."""
    task, net = taught
    contract = image_classifier(channels=1, height=8, width=8, classes=task.contract.classes, mean=(10.0,), std=(50.0,))
    image = contract.inputs[0].model_copy(update={"value_range": (0.0, 255.0)})
    contract = contract.model_copy(update={"inputs": (image,)})
    mean, std = task.contract.inputs[0].mean[0], task.contract.inputs[0].std[0]

    class Odd(nn.Module):
        def forward(self, x):
            return net(((x * 50 + 10) / 255 - mean) / std)

    teacher = Teacher(Odd(), theirs=contract, ours=task.contract)
    x = task.inputs(task.samples("val").__getitems__(range(16)))
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), net.eval()(x), atol=1e-4, rtol=1e-4)
    assert not teacher.same


def test_a_teacher_no_better_than_chance_is_reported_with_the_numbers(tmp_path, caplog):
    task, net = make_task(), make_net()
    nn.init.zeros_(net[6].weight)
    result = distill(make_net(), task, CONFIG, make_context(tmp_path, parent=bundle_of(task, net)))
    accuracy = result.figures["teacher_val"]["accuracy"]
    assert f"not better than chance: accuracy {accuracy:.3f} on 64 validation images, chance 0.250 ± 0.108" in result.notes[0]
    assert result.notes[0] in caplog.text


def test_a_checkpoint_of_another_teacher_is_not_used(tmp_path, taught):
    task, net = taught
    distill(make_net(), task, CONFIG, make_context(tmp_path, parent=bundle_of(task, net)))
    result = distill(make_net(), task, CONFIG, make_context(tmp_path, parent=bundle_of(task, net, hash="teacher-2")))
    assert "another run (teachers " in result.notes[0]


def test_a_saved_bundle_is_a_teacher(tmp_path):
    """A real Bundle on disk, by its folder's path; its own figures prove that it is the one that was saved."""
    task = make_task()
    net = architectures.get("resnet20")(num_classes=4, in_channels=1)
    architecture = Architecture(name="resnet20", kwargs={"num_classes": 4, "in_channels": 1})
    bundle = save_bundle(tmp_path / "teacher", net, Manifest(architecture=architecture, contract=task.contract))
    config = CONFIG.model_copy(update={"teacher": str(tmp_path / "teacher"), "epochs": 0.2, "cache_teacher": True})
    result = distill(make_net(), task, config, make_context(tmp_path / "work"))
    expected = evaluate(net, task, "val", runtime=Runtime("cpu"))
    assert result.figures["teacher_val"] == pytest.approx(expected, rel=1e-4)
    key = next((tmp_path / "work" / "teacher").glob("logits-*.json"))
    assert read_json(key)["key"]["teacher"] == bundle.hash


def test_no_task_no_parent_no_bundle_there(tmp_path):
    task = make_task()
    with pytest.raises(UserError, match="distill needs data, and this run has none"):
        distill(make_net(), None, CONFIG, make_context(tmp_path))
    with pytest.raises(UserError, match="teacher is 'parent', and this run has no parent Bundle"):
        distill(make_net(), task, CONFIG, make_context(tmp_path))
    config = CONFIG.model_copy(update={"teacher": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="nowhere is not a Bundle"):
        distill(make_net(), task, config, make_context(tmp_path))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"objective": "kdd"}, "unknown objective 'kdd': did you mean 'kd'"),
        ({"objectives": [{"kind": "kdd"}]}, "unknown distillation objective 'kdd'"),
        ({"objectives": [{"weight": 1}]}, "is not a term: write {kind"),
        ({"objectives": [{"kind": "kd", "temprature": 2}]}, r"kd: unknown key 'temprature' \(did you mean 'temperature'"),
        ({"objectives": [{"kind": "kd", "temperature": 0}]}, "kd: temperature = 0: Input should be greater than 0"),
        ({"objectives": [{"kind": "kd", "weight": -1}]}, "kd: weight = -1: Input should be greater than or equal to 0"),
        ({"objectives": [{"kind": "kd", "warmup": 0.5, "until": 0.2}]}, "warmup 0.5 must not exceed until 0.2"),
        ({"objective": "kd++", "objectives": [{"kind": "kd"}]}, "two ways to say the same"),
        ({"label_weight": -0.1}, r"label_weight\n.*greater than or equal to 0"),
        ({"teacher": ""}, r"teacher\n.*at least 1 character"),
        ({"batch_size": 0}, r"batch_size\n.*greater than or equal to 1"),
    ],
)
def test_config_refuses(fields, said):
    with pytest.raises(ValidationError, match=said):
        DistillConfig(**fields)


def test_empty_split(tmp_path, taught):
    task, net = make_task(), taught[1]
    samples = task.samples("train")
    task._samples["train"] = type(samples)(samples.images.take(np.arange(0)))
    with pytest.raises(UserError, match="the training split of 'toy' is empty"):
        distill(make_net(), task, CONFIG, make_context(tmp_path, parent=bundle_of(task, net)))
