"""Signals by name: found, refused with what there is, and gone when the run is over."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_kit import FakeBundle, make_context, make_net, make_task, same, weights

from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.distill.taps import Taps, find_classifier, shape_of
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError

torch.set_num_threads(1)
CONFIG = DistillConfig(epochs=2, batch_size=16, lr=0.05, amp="off")


def zoo(name, **more):
    return architectures.get(name)(num_classes=4, **more)


@pytest.mark.parametrize(
    ("name", "size", "classifier", "width"),
    [
        ("resnet8", 16, "fc", 64),
        ("vgg16_bn", 32, "classifier", 512),
        ("mobilenet_v2", 32, "classifier.1", 1280),
        ("efficientnet_lite0", 32, "_fc", 1280),
    ],
)
def test_the_classifier_is_found_in_every_family(name, size, classifier, width):
    net, x = zoo(name), torch.randn(1, 3, size, size)
    found = find_classifier(net, x, whose="student", key="classifier")
    assert isinstance(net.get_submodule(found), nn.Linear)
    assert found.startswith(classifier.split(".")[0])
    assert shape_of(net, "embedding", x, whose="student", classifier=found) == (width,)
    assert net.training


def test_a_convolution_can_be_the_classifier_and_its_input_is_pooled():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(UserError, match="the student's classifier can't be found") as caught:
        find_classifier(net, x, whose="student", key="classifier")
    assert "classifier = \"PATH\", such as '2'" in caught.value.hint
    taps = Taps(net, ("embedding",), whose="student", classifier="2")
    with taps.recording():
        value = taps.take(net(x))["embedding"]
    torch.testing.assert_close(value, net[1](net[0](x)).mean((2, 3)))


def test_outputs_inputs_and_in_place_activations():
    """A tapped output is what the module returned, though a ReLU behind it writes over it."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(3, 1, 8, 8)
    taps = Taps(net, ("0", "1:in", "logits", "3:in"), whose="student")
    with taps.recording():
        values = taps.take(net(x))
    torch.testing.assert_close(values["0"], net[0](x))
    torch.testing.assert_close(values["3:in"], net[0](x).relu().flatten(1))
    assert values["logits"].shape == (3, 2)
    taps.remove()
    assert not net[0]._forward_hooks
    assert not net[1]._forward_pre_hooks


def test_nothing_is_kept_outside_of_a_recording():
    net = make_net()
    taps = Taps(net, ("0",), whose="student")
    net(torch.randn(2, 1, 8, 8))
    with pytest.raises(UserError, match="'0' was not run in the forward pass"):
        taps.take(torch.zeros(1))


def test_a_wrong_path_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="the teacher has no module 'layr3'") as caught:
        Taps(zoo("resnet8"), ("layr3",), whose="teacher")
    assert "did you mean 'layer3'" in caught.value.hint


def test_a_moving_average_teaches_and_resumes_exactly(tmp_path):
    """Stopped after 7 of 12 steps by a loss that breaks, then resumed: bit for bit the unbroken run, the average included."""
    config = CONFIG.model_copy(update={"teacher": "ema", "ema_decay": 0.9, "checkpoint_s": 0.0})
    task = make_task()
    whole = make_net()
    distill(whole, task, config, make_context(tmp_path / "whole"))
    broken, calls, loss = make_task(), [], task.loss

    def failing(outputs, targets):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("power cut")
        return loss(outputs, targets)

    broken.loss = failing
    cut = make_net()
    with pytest.raises(RuntimeError, match="power cut"):
        distill(cut, broken, config, make_context(tmp_path / "cut"))
    resumed = make_net()
    result = distill(resumed, task, config, make_context(tmp_path / "cut"))
    assert result.figures["history"]["resumed_at"] == 7
    assert same(weights(whole), weights(resumed))
    plain = make_net()
    distill(
        plain,
        task,
        CONFIG.model_copy(update={"objectives": (), "label_weight": 1.0}),
        make_context(tmp_path / "x", parent=FakeBundle(task.contract, make_net(seed=3))),
    )
    assert not same(weights(plain), weights(resumed))


def test_the_term_that_broke_the_loss_is_named_with_step_and_value(tmp_path):
    task, teacher = make_task(), make_net(seed=3)
    teacher[6].weight.data[0, 0] = float("nan")
    context = make_context(tmp_path, parent=FakeBundle(task.contract, teacher))
    with pytest.raises(UserError, match=r"distill: the term 'kd' became nan at step 1 of 12"):
        distill(make_net(), task, CONFIG, context)


def test_a_weight_that_overflows_is_named_with_its_parts(tmp_path):
    task = make_task()
    config = DistillConfig(
        epochs=1, batch_size=16, amp="off", objectives=({"kind": "kd", "weight": 1e38, "temperature": 100.0},)
    )
    context = make_context(tmp_path, parent=FakeBundle(task.contract, make_net(seed=3)))
    with pytest.raises(UserError, match=r"became (inf|nan).*at step \d+ of 6"):
        distill(make_net(), task, config, context)


def test_schedules_follow_the_run():
    from trimtab.compress.distill.objectives import parse_term

    term = parse_term({"kind": "kd", "weight": 2.0, "warmup": 0.5, "until": 0.8})
    assert [term.weight_at(done) for done in (0.0, 0.25, 0.5, 0.79, 0.8, 1.0)] == [0.0, 1.0, 2.0, 2.0, 0.0, 0.0]
    assert parse_term({"kind": "kd"}).weight_at(1.0) == 1.0
