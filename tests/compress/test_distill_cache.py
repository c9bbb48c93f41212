"""The teacher's signals on disk: right, used, and thrown away when they belong to something else."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from training_kit import FakeBundle, make_context, make_net, make_task, same, weights

from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.models.files import read_json

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


def kept(folder, tap="logits", end=".npy"):
    """The only file of a signal."""
    (path,) = (folder / "teacher").glob(f"{tap}-*{end}")
    return path


def clean_logits(task, teacher):
    with torch.no_grad():
        return teacher.eval()(task.inputs(task.samples("train").__getitems__(range(len(task.samples("train")))))).numpy()


def test_the_file_holds_the_clean_views_logits_in_split_order(tmp_path):
    """float32, same network and layout, other batch grouping: 1e-5 absolute."""
    task, teacher = make_task(), make_net(seed=3)
    run(tmp_path, CONFIG.model_copy(update={"augment": True}), task=task, teacher=teacher)
    stored = np.load(kept(tmp_path), allow_pickle=False)
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
        newest = max((tmp_path / "teacher").glob("logits-*.npy"), key=lambda path: path.stat().st_mtime_ns)
        stored = np.load(newest, allow_pickle=False).astype(np.float32)
        expected = clean_logits(task, change.get("teacher", make_net(seed=3)))
        loose = config.cache_dtype == "float16" or config.amp == "bf16"  # half precisions: 2-3 significant digits
        np.testing.assert_allclose(stored, expected, atol=0.03 if loose else 1e-5)


def test_a_subset_stores_its_rows_alone_and_reads_the_right_ones(tmp_path):
    config = CONFIG.model_copy(update={"max_train": 32})
    cached, _, _ = run(tmp_path / "a", config)
    assert np.load(kept(tmp_path / "a")).shape == (32, 4)
    live, _, _ = run(tmp_path / "b", config.model_copy(update={"cache_teacher": False}))
    for mine, its in zip(weights(cached).values(), weights(live).values(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)


def truncated(path):
    path.write_bytes(path.read_bytes()[:200])


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def of_another_shape(path):
    np.save(path, np.zeros((96, 3), dtype=np.float32))


@pytest.mark.parametrize("damage", [truncated, pickled, of_another_shape])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    run(tmp_path)
    before = np.load(kept(tmp_path))
    damage(kept(tmp_path))
    _, result, _ = run(tmp_path, CONFIG.model_copy(update={"lr": 0.01}))
    assert "the teacher's cached logits are damaged and are made again" in result.notes
    assert result.figures["teacher_cache"] == "made"
    np.testing.assert_array_equal(np.load(kept(tmp_path)), before)


def test_a_file_without_its_key_is_not_trusted(tmp_path):
    run(tmp_path)
    kept(tmp_path, end=".json").unlink()
    _, result, _ = run(tmp_path, CONFIG.model_copy(update={"lr": 0.01}))
    assert result.figures["teacher_cache"] == "made"


def test_the_key_names_what_the_signals_depend_on(tmp_path):
    run(tmp_path)
    about = read_json(kept(tmp_path, end=".json"))
    wanted = {"format", "data_id", "teacher", "normalisation", "view", "dtype", "precision", "positions"}
    assert set(about["key"]) == wanted
    assert (about["tap"], about["done"], about["shape"], about["key"]["view"]) == ("logits", 96, [96, 4], "clean")


def test_a_killed_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    """600 images are three batches; a power cut in the third leaves two on disk, and the next run computes one."""
    monkeypatch.setattr("trimtab.compress.distill.cache.SAVE_S", 0.0)
    task, teacher, seen = make_task(train=600), make_net(seed=3), []

    def power_cut(module, inputs):
        seen.append(len(inputs[0]))
        if seen.count(256) == 2 and seen[-1] == 88:
            raise RuntimeError("power cut")

    handle = teacher.register_forward_pre_hook(power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, task=task, teacher=teacher)
    handle.remove()
    _, result, sizes = run(tmp_path, task=task, teacher=teacher)
    assert [size for size in sizes if size > 64] == [88]
    assert result.figures["teacher_cache"] == "made"
    np.testing.assert_allclose(np.load(kept(tmp_path)), clean_logits(task, teacher), atol=1e-5)


def test_a_folder_of_ones_own_serves_other_runs(tmp_path):
    config = CONFIG.model_copy(update={"cache_folder": str(tmp_path / "kept")})
    run(tmp_path / "a", config)
    assert not (tmp_path / "a" / "teacher").exists()
    _, result, sizes = run(tmp_path / "b", config, label_net=5)
    assert result.figures["teacher_cache"] == "hit"
    assert sizes == [1, 64]


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
