"""Runs that are stopped, killed or diverge, and what they resume from."""

from __future__ import annotations

import re
import signal

import pytest
import torch
from training_kit import CONFIG, make_net, make_task, same, train, weights

from trimtab.models.errors import UserError

torch.set_num_threads(1)


# ---------------------------------------------------------------- stopping and resuming


def interrupting(task, step, number):
    """The task's objective, which at its `step`-th call (from 1) sends this process a signal."""
    calls = []

    def objective(network, batch):
        calls.append(batch.index.tolist())
        if len(calls) == step:
            signal.raise_signal(number)
        return task.loss(network(batch.inputs), batch.targets), {}

    return objective, calls


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_run_stopped_by_ctrl_c_resumes_bit_exact(tmp_path, optimizer, amp):
    """Stopped in mid-epoch (step 8 of 12), with dropout, batch norm, augmentation and momentum."""
    task = make_task()
    config = CONFIG.model_copy(update={"optimizer": optimizer, "amp": amp})
    whole, told = train(tmp_path / "whole", config, task=task)
    objective, _ = interrupting(task, 8, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, task=task, objective=objective)
    objective, calls = interrupting(task, 0, signal.SIGINT)
    resumed, history = train(tmp_path / "cut", config, task=task, objective=objective)
    assert history.resumed_at == 8
    assert len(calls) == 4  # the eight steps done are not repeated
    assert same(weights(whole), weights(resumed))
    assert [e.train_loss for e in history.epochs] == [e.train_loss for e in told.epochs]
    assert history.val == told.val


def test_sigterm_saves_and_is_passed_on(tmp_path):
    task, caught = make_task(), []
    objective, _ = interrupting(task, 5, signal.SIGTERM)
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with pytest.raises(SystemExit, match="143"):
            train(tmp_path, task=task, objective=objective)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM]
    _, history = train(tmp_path, task=task)
    assert history.resumed_at == 5


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    """A crash in step 6 (nothing is saved at that moment, as with SIGKILL); checkpoints after every step."""
    task = make_task()
    config = CONFIG.model_copy(update={"checkpoint_s": 0})
    whole, _ = train(tmp_path / "whole", task=task)
    calls = []

    def crash(network, batch):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("power cut")
        return task.loss(network(batch.inputs), batch.targets), {}

    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "cut", config, task=task, objective=crash)
    resumed, history = train(tmp_path / "cut", task=task)  # checkpoint_s differs: it does not decide what is computed
    assert history.resumed_at == 5
    assert same(weights(whole), weights(resumed))


def test_resuming_reads_no_sample_that_was_done(tmp_path):
    task = make_task()
    objective, _ = interrupting(task, 8, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, task=task, objective=objective)
    read = []
    samples = task.samples("train")
    reader = type(samples).__getitems__

    class Counting(type(samples)):
        def __getitems__(self, indices):
            read.append(len(indices))
            return reader(self, indices)

    task._samples["train"] = Counting(samples.images)
    train(tmp_path, task=task)
    assert read == [16] * 4


def test_a_finished_run_is_not_repeated(tmp_path):
    first, told = train(tmp_path)

    def never(network, batch):
        raise AssertionError("no step is left to do")

    again, history = train(tmp_path, objective=never)
    assert same(weights(first), weights(again))
    assert history.epochs == told.epochs
    assert history.resumed_at == 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": CONFIG.model_copy(update={"lr": 0.01})}, r"another run \(lr 0.05 → 0.01\)"),
        ({"task": make_task(seed=1)}, r"another run \(data_id "),
        ({"net": make_net(seed=1)}, r"another run \(start "),
        ({"seed": 4}, r"another run \(seed 0 → 4\)"),
        ({"identity": {"teacher": "b"}}, r"another run \(teacher a → b\)"),
    ],
)
def test_a_checkpoint_of_another_run_is_not_used(tmp_path, caplog, change, said):
    train(tmp_path, identity={"teacher": "a"})
    arguments = {"identity": {"teacher": "a"}} | change
    net, history = train(tmp_path, **arguments)
    assert history.resumed_at == 0
    assert len(history.notes) == 1
    assert re.search("train.safetensors was not used, training starts over: it belongs to " + said, history.notes[0])
    assert history.notes[0] in caplog.text
    start = make_net(seed=1) if "net" in change else make_net()
    alone, _ = train(tmp_path / "alone", **(arguments | {"net": start}))
    assert same(weights(alone), weights(net))


def test_a_damaged_checkpoint_is_named_and_not_used(tmp_path):
    train(tmp_path)
    path = tmp_path / "train.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    _, history = train(tmp_path)
    assert "train.safetensors is damaged and was not used" in history.notes[0]


# ---------------------------------------------------------------- divergence


def test_nan_loss_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    task, calls = make_task(), []

    def objective(network, batch):
        calls.append(1)
        loss = task.loss(network(batch.inputs), batch.targets)
        return loss * (float("nan") if len(calls) == 8 else 1.0), {}

    config = CONFIG.model_copy(update={"checkpoint_s": 0})
    with pytest.raises(UserError, match=r"train: the loss became nan at step 8 of 12 \(epoch 1.17\), lr 0.01") as caught:
        train(tmp_path, config, task=task, objective=objective)
    assert "lr = 0.005" in caught.value.hint
    assert str(tmp_path / "train.safetensors") in caught.value.hint
    net, history = train(tmp_path, config, task=task)
    assert history.resumed_at == 7
    assert all(torch.isfinite(t).all() for t in weights(net).values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """√0 has an infinite gradient: the loss stays finite while the weights do not."""
    net = make_net()

    def objective(network, batch):
        return (0 * network(batch.inputs)).sum().sqrt() + 1, {}

    config = CONFIG.model_copy(update={"epochs": 0.1, "checkpoint_s": 0})
    with pytest.raises(UserError, match=r"the weights are no longer finite at step 1 of 1 .*, lr 0.05") as caught:
        train(tmp_path, config, net=net, objective=objective)
    assert "nothing was saved" in caught.value.hint
    assert not list(tmp_path.iterdir())
