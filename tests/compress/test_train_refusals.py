"""What the engine says when it is asked for something wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from training_kit import make_net, make_task, train

from trimtab.compress.runtime import Runtime, choose_amp, cpu_has_bf16
from trimtab.compress.train import TrainConfig
from trimtab.models.errors import UserError

torch.set_num_threads(1)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch_size": 0}, r"batch_size\n.*greater than or equal to 1 .*input_value=0"),
        ({"lr": 0}, r"lr\n.*greater than 0 .*input_value=0"),
        ({"lr": -1.0}, r"lr\n.*greater than 0 .*input_value=-1.0"),
        ({"lr": float("nan")}, r"lr\n.*(greater than 0|finite)"),
        ({"epochs": 0}, r"epochs\n.*greater than 0 .*input_value=0"),
        ({"epochs": float("inf")}, r"epochs\n.*finite"),
        ({"milestones": (0.8, 0.5)}, r"milestones \(0.8, 0.5\) must rise: write \(0.5, 0.8\)"),
        ({"milestones": (0.5, 1.0)}, r"milestones \(0.5, 1.0\) must lie strictly between 0 and 1"),
        ({"milestones": (0.0,)}, r"strictly between 0 and 1"),
        ({"epochs": 1, "warmup_epochs": 1}, r"warmup_epochs 1.0 must be below epochs 1.0"),
        ({"momentum": 0}, r"nesterov needs momentum > 0"),
        ({"learning_rate": 1}, r"learning_rate\n.*Extra inputs"),
        ({"optimizer": "lion"}, r"optimizer\n.*'sgd' or 'adamw'"),
    ],
)
def test_config_refuses(fields, said):
    with pytest.raises(ValidationError, match=said):
        TrainConfig(**fields)


def test_empty_split(tmp_path):
    task = make_task()
    task._samples["train"] = replace(task._samples["train"], images=task._samples["train"].images.take(np.arange(0)))
    with pytest.raises(UserError, match="the training split of 'toy' is empty"):
        train(tmp_path, task=task)


def test_nothing_to_train(tmp_path):
    with pytest.raises(UserError, match="no trainable parameters"):
        train(tmp_path, net=make_net().requires_grad_(False))


def test_devices_and_precisions_that_are_not_there():
    with pytest.raises(UserError, match=r"unknown training device 'gpu'.*\n.*auto, cpu, cuda, mps"):
        Runtime("gpu")
    with pytest.raises(UserError, match="amp 'fp16' needs a GPU"):
        Runtime("cpu", amp="fp16")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device 'cuda' is not available"):
            Runtime("cuda")


def test_auto_precision_follows_the_cpu(monkeypatch):
    cpu = torch.device("cpu")
    for flags, amp in [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx2": True, "avx512_bf16": False}, "off"),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert choose_amp("auto", cpu) == amp
    monkeypatch.undo()
    assert Runtime("cpu", amp="auto").describe()["amp"] == ("bf16" if cpu_has_bf16() else "off")


def test_recipes_are_validated_without_torch():
    code = (
        "import sys, trimtab.compress.finetune, trimtab.compress.distill.method as m;"
        "m.DistillConfig(); print([n for n in ('torch', 'accelerate') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
