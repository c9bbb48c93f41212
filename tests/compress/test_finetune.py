"""The recipe step "finetune"."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from training_kit import make_context, make_net, make_task, same, task_loss, train, weights

from trimtab.compress.finetune import FinetuneConfig, finetune
from trimtab.compress.method import methods
from trimtab.compress.train import TrainConfig
from trimtab.models.errors import UserError

torch.set_num_threads(1)
CONFIG = FinetuneConfig(epochs=3, batch_size=16, lr=0.05, augment=False, amp="off")


def test_it_is_registered_with_its_card():
    entry = methods.entry("finetune")
    assert entry.value.config is FinetuneConfig
    assert entry.card.trains
    assert entry.card.needs_data
    assert not entry.card.changes_structure


def test_it_trains_with_the_tasks_loss_and_reports(tmp_path):
    task, net = make_task(), make_net()
    result = finetune(net, task, CONFIG, make_context(tmp_path / "a"))
    assert result.module is net
    assert result.plan is None
    assert result.figures["val_after"]["accuracy"] > 0.8 > result.figures["val_before"]["accuracy"]
    assert json.loads(json.dumps(result.figures)) == result.figures
    plain = TrainConfig(**CONFIG.model_dump(exclude={"kind", "version"}))
    twin, _ = train(tmp_path / "b", plain, task=task, objective=task_loss(task))
    assert same(weights(net), weights(twin))


def test_label_smoothing_of_the_task_reaches_training(tmp_path):
    """ε-smoothed cross-entropy of a perfect fit stays above its entropy bound; unsmoothed loss falls below it."""
    losses = []
    for name, smoothing in (("a", 0.0), ("b", 0.3)):
        task = make_task()
        task.label_smoothing = smoothing
        config = CONFIG.model_copy(update={"epochs": 10})
        result = finetune(make_net(dropout=0.0), task, config, make_context(tmp_path / name))
        losses.append(result.figures["history"]["epochs"][-1]["train_loss"])
    bound = -(0.775 * torch.tensor(0.775).log() + 3 * 0.075 * torch.tensor(0.075).log()).item()  # 1 − ε + ε/4, ε/4
    assert losses[0] < bound < losses[1]


def test_no_task():
    with pytest.raises(UserError, match="finetune needs data, and this run has none"):
        finetune(make_net(), None, CONFIG, make_context(None))


def test_the_checkpoint_note_reaches_the_result(tmp_path):
    task = make_task()
    finetune(make_net(), task, CONFIG, make_context(tmp_path))
    other = CONFIG.model_copy(update={"weight_decay": 0.0})
    result = finetune(make_net(), task, other, make_context(tmp_path))
    assert "finetune.safetensors was not used, training starts over" in result.notes[0]
    assert "weight_decay 0.0005 → 0.0" in result.notes[0]


def test_its_progress_is_labelled(tmp_path):
    labels = []

    class Progress:
        @contextmanager
        def meter(self, label, total, unit, *, done=0):
            labels.append(label)
            yield type("Meter", (), {"advance": lambda self, units=1, **figures: None})()

    finetune(make_net(), make_task(), CONFIG, make_context(tmp_path, progress=Progress()))
    assert labels == ["finetune"]
