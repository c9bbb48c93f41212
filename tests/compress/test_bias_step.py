"""Runs with the bias loss: finetune steps, what they refuse and resume from, the distillation term, accuracy by feature variance."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from terms_kit import FakeSetup, distilled, term_of
from torch import nn
from training_kit import make_context, make_net, make_task, same, weights

from trimtab.compress.analyse.variance import grouped, variance_groups
from trimtab.compress.bias_loss import Biased
from trimtab.compress.finetune import FinetuneConfig, finetune
from trimtab.compress.runtime import Runtime
from trimtab.models.errors import UserError
from trimtab.models.files import digest_of

torch.set_num_threads(1)
BIAS = FinetuneConfig(epochs=2, batch_size=16, lr=0.05, amp="off", checkpoint_s=1000, loss="bias")
CONTROLS = ("none", "mean1", "shuffled")


def numpy_weights(v, alpha=0.3, beta=0.3):
    """exp(α (v − min v) / (max v − min v)) − β, straight from the paper."""
    return np.exp(alpha * (v - v.min()) / (v.max() - v.min())) - beta


# ---------------------------------------------------------------- a finetune step


def run(folder, task=None, *, net=None, seed=0, **more):
    """(the network after training, its Result)."""
    net = net or make_net()
    config = BIAS.model_copy(update=more)
    return net, finetune(net, task or make_task(), config, make_context(folder, seed=seed))


def test_training_by_hand(tmp_path):
    """One step of plain SGD on the whole split: the gradient is that of mean z·CE with z from the features before the step."""
    task, net = make_task(train=32), make_net(dropout=0.0)
    twin = make_net(dropout=0.0).train()
    batch = task.samples("train").__getitems__(range(32))
    maps = twin[:4](task.inputs(batch))  # training statistics, as in the step
    z = numpy_weights(maps.detach().flatten(1).double().numpy().var(1, ddof=1))
    losses = nn.functional.cross_entropy(twin[4:](maps), batch.targets, reduction="none")
    (torch.from_numpy(z).float() * losses).mean().backward()
    settings = {"epochs": 1, "batch_size": 32, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    run(tmp_path, task, net=net, augment=False, schedule="constant", bias_normalisation="local", **settings)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.sub_(0.05 * parameter.grad)
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        # the engine computes channels last: other orders of summation
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_it_learns_and_reports(tmp_path):
    net, result = run(tmp_path, epochs=4, augment=False)
    figures = result.figures
    assert result.module is net
    assert figures["val_after"]["accuracy"] > 0.8 > figures["val_before"]["accuracy"]
    assert figures["features"] == "3"
    parts = figures["history"]["epochs"][-1]["parts"]
    assert set(parts) == {"task", "weight"}
    assert 0.7 <= parts["weight"] <= 20
    tenths = figures["variance_deciles"]
    assert len(tenths) == 10
    assert sum(tenth["count"] for tenth in tenths) == 64
    right = sum(tenth["count"] * tenth["accuracy"] for tenth in tenths)
    assert right / 64 == pytest.approx(figures["val_after"]["accuracy"], abs=1e-6)
    assert json.loads(json.dumps(figures)) == figures


def test_the_network_comes_back_without_hooks_or_new_state(tmp_path):
    net, _ = run(tmp_path)
    assert net.state_dict().keys() == make_net().state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_hooks_go_when_training_fails(tmp_path):
    net, task = make_net(), make_task()
    task.training_pair = None
    with pytest.raises(TypeError):
        run(tmp_path, task, net=net)
    assert not any(m._forward_hooks for m in net.modules())


def test_controls_and_normalisations_train_differently(tmp_path):
    """Five runs from one start, and plain cross-entropy: no two of them end alike."""
    ends = [weights(run(tmp_path / c, bias_control=c)[0]) for c in CONTROLS]
    ends.append(weights(run(tmp_path / "local", bias_normalisation="local")[0]))
    ends.append(weights(run(tmp_path / "plain", loss="task")[0]))
    assert not any(same(a, b) for at, a in enumerate(ends) for b in ends[:at])


def test_no_weighting_is_cross_entropy(tmp_path):
    """α = 0, β = 0: every weight is exp(0) − 0 = 1."""
    one, _ = run(tmp_path / "a", bias_alpha=0.0, bias_beta=0.0)
    plain, _ = run(tmp_path / "b", loss="task")
    for name, value in weights(plain).items():
        # torch's mean cross-entropy divides within its kernel: gradients differ in the last bit
        torch.testing.assert_close(weights(one)[name], value, rtol=1e-4, atol=1e-6)


def interrupted(task, step):
    """The task; Ctrl-C comes at its `step`-th training batch."""
    pair, calls = task.training_pair, []

    def interrupting(*arguments, **named):
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return pair(*arguments, **named)

    task.training_pair = interrupting
    return task


@pytest.mark.parametrize("control", CONTROLS)
def test_a_run_stopped_in_the_middle_resumes_bit_for_bit(tmp_path, control):
    whole, told = run(tmp_path / "whole", bias_control=control)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", interrupted(make_task(), 8), bias_control=control)
    resumed, result = run(tmp_path / "cut", bias_control=control)
    assert result.figures["history"]["resumed_at"] == 8
    assert same(weights(whole), weights(resumed))
    records = [[(e["parts"], e["train_loss"]) for e in r.figures["history"]["epochs"]] for r in (result, told)]
    assert records[0] == records[1]
    assert result.figures["variance_deciles"] == told.figures["variance_deciles"]


def test_the_resumed_minimum_matters(tmp_path, monkeypatch):
    """With the minimum of before lost, the same run ends elsewhere: the test above would notice.

    The convolution's own output, whose weights grow under batch norm, has its least variance early in the run.
    """
    settings = {"lr": 0.2, "augment": False, "bias_features": "0", "weight_decay": 0.0}
    whole, _ = run(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", interrupted(make_task(), 8), **settings)
    load = Biased.load_state_dict

    def forgetful(self, state, *arguments, **named):
        done = load(self, state, *arguments, **named)
        self.weights.smallest.fill_(torch.finfo(torch.float32).max)
        return done

    monkeypatch.setattr(Biased, "load_state_dict", forgetful)
    resumed, _ = run(tmp_path / "cut", **settings)
    assert not same(weights(whole), weights(resumed))


def test_another_loss_does_not_go_on_from_the_checkpoint(tmp_path):
    run(tmp_path)
    _, result = run(tmp_path, bias_alpha=0.5)
    assert "bias_alpha 0.3 → 0.5" in result.notes[0]


# ---------------------------------------------------------------- config and refusals


def test_a_plain_steps_dump_is_what_it_was():
    """Steps that were finished before there was a bias loss keep their keys."""
    plain = FinetuneConfig(epochs=3)
    assert not [name for name in plain.model_dump(mode="json") if name == "loss" or name.startswith("bias")]
    assert not [name for name in plain.identity() if name == "loss" or name.startswith("bias")]
    assert FinetuneConfig(**plain.model_dump()) == plain
    biased = FinetuneConfig(loss="bias", bias_alpha=0.5)
    assert FinetuneConfig(**biased.model_dump()) == biased
    assert biased.identity()["bias_alpha"] == 0.5
    assert digest_of(biased.model_dump(mode="json")) != digest_of(plain.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bias_alpha": 0.5}, 'bias_alpha counts with loss = "bias" alone'),
        ({"bias_features": "3", "loss": "task"}, 'bias_features counts with loss = "bias" alone'),
        ({"loss": "bias", "bias_alpha": float("nan")}, "bias_alpha\n  Input should be"),
        ({"loss": "bias", "bias_beta": 1.0}, "bias_beta\n  Input should be less than 1"),
        ({"loss": "bias", "bias_control": "mean2"}, "bias_control\n  Input should be 'none', 'mean1' or 'shuffled'"),
        ({"loss": "bais"}, "loss\n  Input should be 'task' or 'bias'"),
    ],
)
def test_the_config_refuses(fields, said):
    with pytest.raises(ValueError, match=said):
        FinetuneConfig(**fields)


def test_a_task_without_classes_is_refused(tmp_path):
    regression = SimpleNamespace(name="landmarks", data="faces", metric="nme", contract=SimpleNamespace(classes=()))
    with pytest.raises(
        UserError, match="weighs the cross-entropy of classes; task 'landmarks' on 'faces' has 0 and is judged by 'nme'"
    ):
        run(tmp_path, regression)
    with pytest.raises(UserError, match="accuracy by feature variance weighs"):
        variance_groups(make_net(), regression, runtime=Runtime("cpu"))
    with pytest.raises(UserError, match="the term 'bias' needs class labels"):
        term_of({"kind": "bias"}, FakeSetup(classes=()))


def test_a_network_without_a_map_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="has no feature map"):
        run(tmp_path, net=nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(UserError, match="the network has no module 'nowhere'"):
        run(tmp_path, bias_features="nowhere")


# ---------------------------------------------------------------- as a distillation term


@pytest.mark.parametrize("control", CONTROLS)
def test_the_term_alone_is_the_step(tmp_path, control):
    """label_weight = 0 and nothing but this term: the same run as finetune's, weight for weight."""
    task = make_task()
    student, result = distilled(
        tmp_path / "a",
        task,
        make_net(seed=3),
        [{"kind": "bias", "control": control}],
        student=make_net(),
        label_weight=0.0,
        **BIAS.model_dump(include={"epochs", "batch_size", "lr", "amp"}),
    )
    stepped, told = run(tmp_path / "b", task, bias_control=control)
    assert same(weights(student), weights(stepped))
    assert result.figures["history"]["val"] == told.figures["history"]["val"]


# ---------------------------------------------------------------- accuracy by variance


def test_groups_by_hand():
    variance = np.arange(25.0)[::-1]
    right = variance >= 10  # the ten of lowest variance are wrong
    found = grouped(variance, right, 5)
    assert [(g.low, g.high, g.count, g.accuracy) for g in found] == [
        (0, 4, 5, 0), (5, 9, 5, 0), (10, 14, 5, 1), (15, 19, 5, 1), (20, 24, 5, 1)]  # fmt: skip
    assert [g.count for g in grouped(variance, right)] == [3] * 5 + [2] * 5
    assert len(grouped([1.0, 2.0], [True, False])) == 2
    for wrong in (([], []), ([1.0], [True, False])):
        with pytest.raises(ValueError, match="cannot be put into 10 groups"):
            grouped(*wrong)


def test_variance_groups_read_the_modules_own_map():
    """Against the map computed by hand, on the first 40 samples of a split, in eval mode; the module comes back as it was."""
    task, net = make_task(), make_net().train()
    found = variance_groups(net, task, "test", runtime=Runtime("cpu"), limit=40, groups=4)
    assert all(m.training for m in net.modules())
    assert not any(m._forward_hooks for m in net.modules())
    net.eval()
    batch = task.samples("test").__getitems__(range(40))
    with torch.no_grad():
        maps = net[:4](task.inputs(batch))
        right = (net[4:](maps).argmax(1) == batch.targets).numpy()
    v = maps.flatten(1).double().numpy().var(1, ddof=1)
    order = np.argsort(v)
    assert [g.count for g in found] == [10] * 4
    # float32 variances
    assert [g.low for g in found] == pytest.approx([v[order[k]] for k in (0, 10, 20, 30)], rel=1e-4)
    assert [g.accuracy for g in found] == pytest.approx([right[order[k : k + 10]].mean() for k in (0, 10, 20, 30)])


def test_the_terminal_tells_it(tmp_path, capsys):
    from trimtab.steps_text import say_step

    _, result = run(tmp_path)
    step = SimpleNamespace(index=1, config=BIAS, figures=result.figures, notes=(), seconds=1.0, reused=False)
    say_step(step)
    shown = " ".join(f"{100 * tenth['accuracy']:.0f}" for tenth in result.figures["variance_deciles"])
    assert f"% right by variance of 3, lowest tenth to highest: {shown}" in capsys.readouterr().out
