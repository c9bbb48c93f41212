"""The teacher's logits on disk: right, used, and thrown away when they belong to something else."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from training_kit import FakeBundle, make_context, make_net, make_task, same, weights

from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.models.files import read_json, write_json

torch.set_num_threads(1)
CONFIG = DistillConfig(epochs=2, batch_size=16, lr=0.05, amp="off", cache_teacher=True, augment=False)


def run(folder, config=CONFIG, *, teacher=None, task=None, name="teacher-1", label_net=0):
    """(student, result, teacher forwards by batch size)."""
    task, teacher = task or make_task(), teacher or make_net(seed=3)
    sizes = []
    handle = teacher.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    student = make_net(seed=label_net)
    result = distill(student, task, config, make_context(folder, parent=FakeBundle(task.contract, teacher, hash=name)))
    handle.remove()
    return student, result, sizes


def clean_logits(task, teacher):
    with torch.no_grad():
        return teacher.eval()(task.inputs(task.samples("train").__getitems__(range(len(task.samples("train")))))).numpy()


def test_the_file_holds_the_clean_views_logits_in_split_order(tmp_path):
    """float32, same network and layout, other batch grouping: 1e-5 absolute."""
    task, teacher = make_task(), make_net(seed=3)
    run(tmp_path, CONFIG.model_copy(update={"augment": True}), task=task, teacher=teacher)
    stored = np.load(tmp_path / "teacher_logits.npy", allow_pickle=False)
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored, clean_logits(task, teacher), atol=1e-5)


def test_training_with_the_cache_equals_training_without_on_the_clean_view(tmp_path):
    """Same loss and gradients up to the float32 rounding of the teacher's logits: weights after 12 steps within 1e-4."""
    cached, a, _ = run(tmp_path / "a")
    live, b, _ = run(tmp_path / "b", CONFIG.model_copy(update={"cache_teacher": False}))
    for mine, its in zip(weights(cached).values(), weights(live).values(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)
    assert (a.figures["teacher_cache"], b.figures["teacher_cache"]) == ("made", "off")


def test_no_step_runs_the_teacher(tmp_path):
    """One image to check its output, one pass over val (64), one over train (96); the second run needs no pass over train."""
    _, first, sizes = run(tmp_path)
    assert sizes == [1, 64, 96]
    _, second, sizes = run(tmp_path, CONFIG.model_copy(update={"lr": 0.01}))
    assert sizes == [1, 64]
    assert (first.figures["teacher_cache"], second.figures["teacher_cache"]) == ("made", "hit")
    _, _, live = run(tmp_path / "live", CONFIG.model_copy(update={"cache_teacher": False}))
    assert live == [1, 64] + [16] * 12


def test_the_result_says_which_view_the_teacher_saw(tmp_path):
    _, result, _ = run(tmp_path, CONFIG.model_copy(update={"augment": True}))
    assert "computed once, on un-augmented training images; the student saw an augmented view of them" in result.notes[-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "teacher-2", "teacher": make_net(seed=8)}, "(teacher changed)"),
        ({"task": make_task(seed=1)}, "(data_id, normalisation changed)"),
        ({"config": CONFIG.model_copy(update={"cache_dtype": "float16"})}, "(dtype changed)"),
        ({"config": CONFIG.model_copy(update={"max_train": 48})}, "(positions changed)"),
        ({"config": CONFIG.model_copy(update={"amp": "bf16"})}, "(precision changed)"),
    ],
)
def test_a_stale_cache_is_made_again_and_said_so(tmp_path, caplog, change, said):
    run(tmp_path)
    _, result, _ = run(tmp_path, **change)
    assert result.figures["teacher_cache"] == "made"
    note = f"the teacher's cached logits are stale {said} and are made again"
    assert note in result.notes
    assert note in caplog.text
    config, task = change.get("config", CONFIG), change.get("task", make_task())
    if not config.max_train:
        stored = np.load(tmp_path / "teacher_logits.npy", allow_pickle=False).astype(np.float32)
        expected = clean_logits(task, change.get("teacher", make_net(seed=3)))
        loose = config.cache_dtype == "float16" or config.amp == "bf16"  # half precisions: 2-3 significant digits
        np.testing.assert_allclose(stored, expected, atol=0.03 if loose else 1e-5)


def test_a_subset_stores_its_rows_alone_and_reads_the_right_ones(tmp_path):
    config = CONFIG.model_copy(update={"max_train": 32})
    cached, _, _ = run(tmp_path / "a", config)
    assert np.load(tmp_path / "a" / "teacher_logits.npy").shape == (32, 4)
    live, _, _ = run(tmp_path / "b", config.model_copy(update={"cache_teacher": False}))
    for mine, its in zip(weights(cached).values(), weights(live).values(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)


def test_a_damaged_file_is_made_again(tmp_path):
    run(tmp_path)
    path = tmp_path / "teacher_logits.npy"
    path.write_bytes(path.read_bytes()[:200])
    _, result, _ = run(tmp_path, CONFIG.model_copy(update={"lr": 0.01}))
    assert any("cached logits cannot be read" in note and "are made again" in note for note in result.notes)
    assert result.figures["teacher_cache"] == "made"


def test_pickles_are_not_read(tmp_path):
    run(tmp_path)
    np.save(tmp_path / "teacher_logits.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    _, result, _ = run(tmp_path, CONFIG.model_copy(update={"lr": 0.01}))
    assert any("cannot be read (Array can't be memory-mapped: Python objects in dtype" in note for note in result.notes)


def test_a_killed_pass_leaves_nothing_to_trust(tmp_path):
    teacher = make_net(seed=3)

    def power_cut(module, inputs):
        if len(inputs[0]) == 96:
            raise RuntimeError("power cut")

    handle = teacher.register_forward_pre_hook(power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, teacher=teacher)
    assert not list(tmp_path.iterdir())
    handle.remove()
    _, result, _ = run(tmp_path, teacher=teacher)
    assert result.figures["teacher_cache"] == "made"


def test_a_file_without_its_key_is_not_trusted(tmp_path):
    run(tmp_path)
    (tmp_path / "teacher_logits.json").unlink()
    _, result, _ = run(tmp_path, CONFIG.model_copy(update={"lr": 0.01}))
    assert result.figures["teacher_cache"] == "made"


def test_the_key_names_what_the_logits_depend_on(tmp_path):
    run(tmp_path)
    key = read_json(tmp_path / "teacher_logits.json")["key"]
    assert set(key) == {"format", "data_id", "teacher", "normalisation", "view", "dtype", "precision", "positions"}
    assert key["view"] == "clean"
    write_json(tmp_path / "teacher_logits.json", {"key": key | {"view": "augmented"}})
    _, result, _ = run(tmp_path, CONFIG.model_copy(update={"lr": 0.01}))
    assert any("stale (view changed)" in note for note in result.notes)


def test_a_distillation_stopped_by_ctrl_c_resumes_bit_exact_on_the_cache(tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"augment": True})
    whole, _, _ = run(tmp_path / "whole", config)
    task, calls = make_task(), []
    loss = task.loss

    def stopping(outputs, targets):
        calls.append(1)
        if len(calls) == 8:
            signal.raise_signal(signal.SIGINT)
        return loss(outputs, targets)

    monkeypatch.setattr(task, "loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config, task=task)
    resumed, result, _ = run(tmp_path / "cut", config)
    assert result.figures["history"]["resumed_at"] == 8
    assert result.figures["teacher_cache"] == "hit"
    assert same(weights(whole), weights(resumed))
