"""The classification task: splits, inputs, loss and metrics."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import DataLoader

from trimtab.models.errors import UserError
from trimtab.models.tasks.classification import classification
from trimtab.models.tasks.task import tasks


@pytest.fixture(scope="module")
def digits():
    return tasks.get("classification")(data="digits")


def write_npz(path, *, per_class=20, classes=3, **extra):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), per_class)
    x = rng.integers(0, 256, (len(y), 8, 8, 3), dtype=np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x[::2], y_test=y[::2], **extra)
    return f"npz:{path}"


def everything(samples):
    return samples.__getitems__(range(len(samples)))


def test_cards_and_data_need_no_torch():
    code = (
        "import sys; from trimtab.models.tasks.task import tasks; print(tasks.entry('classification').card.title);"
        "from trimtab.models.tasks.datasets import open_dataset; open_dataset('digits', size=(8, 8)); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert out[:2] == ["Image classification", "False"]


def test_unknown_task_gets_a_suggestion():
    with pytest.raises(UserError, match=r"unknown task 'clasification'[\s\S]*did you mean 'classification'"):
        tasks.get("clasification")


class TestSplits:
    def test_digits_are_disjoint_complete_and_stratified(self, digits):
        parts = {split: everything(digits.samples(split)) for split in ("train", "val", "test")}
        assert [len(b.targets) for b in parts.values()] == [1293, 144, 360]
        rows = [row.tobytes() for b in parts.values() for row in b.pixels.numpy()]
        assert len(set(rows)) == 1797
        for part in parts.values():
            shares = np.bincount(part.targets, minlength=10) / len(part.targets)
            # classes hold 9.7…10.2 % of the whole; a stratified part of ≥ 144 rounds by less than one image in each
            np.testing.assert_allclose(shares, 0.1, atol=0.012)

    def test_the_seed_decides_training_and_validation_but_not_the_test(self, digits):
        again, other = classification(data="digits"), classification(data="digits", seed=1)
        assert again.data_id == digits.data_id != other.data_id
        for split in ("train", "val"):
            assert torch.equal(everything(again.samples(split)).pixels, everything(digits.samples(split)).pixels)
            assert not torch.equal(everything(other.samples(split)).pixels, everything(digits.samples(split)).pixels)
        assert torch.equal(everything(other.samples("test")).pixels, everything(digits.samples("test")).pixels)

    def test_data_id_depends_on_content_size_and_share_only(self, tmp_path):
        first = classification(data=write_npz(tmp_path / "a.npz"))
        assert classification(data=write_npz(tmp_path / "moved.npz")).data_id == first.data_id
        ids = {
            first.data_id,
            classification(data=f"npz:{tmp_path / 'a.npz'}", size=(16, 16)).data_id,
            classification(data=f"npz:{tmp_path / 'a.npz'}", val_fraction=0.2).data_id,
            classification(data=f"npz:{tmp_path / 'a.npz'}", max_train=30).data_id,
            classification(data=write_npz(tmp_path / "b.npz", per_class=21)).data_id,
        }
        assert len(ids) == 5

    def test_max_train_stays_stratified_and_inside_the_training_split(self, tmp_path):
        spec = write_npz(tmp_path / "a.npz")
        full, small = classification(data=spec), classification(data=spec, max_train=15)
        part = everything(small.samples("train"))
        assert np.bincount(part.targets).tolist() == [5, 5, 5]
        rows = {row.tobytes() for row in everything(full.samples("train")).pixels.numpy()}
        assert {row.tobytes() for row in part.pixels.numpy()} <= rows
        assert torch.equal(everything(small.samples("val")).pixels, everything(full.samples("val")).pixels)

    def test_first_samples_are_a_fair_sample_of_sorted_data(self, tmp_path):
        task = classification(data=write_npz(tmp_path / "a.npz", per_class=100))
        assert min(np.bincount(task.samples("test").targets[:60], minlength=3)) >= 8

    def test_own_validation_part_is_used_as_it_is(self, tmp_path):
        x = np.full((6, 8, 8, 3), 7, dtype=np.uint8)
        task = classification(data=write_npz(tmp_path / "a.npz", x_val=x, y_val=np.arange(6) % 3))
        assert everything(task.samples("val")).pixels.unique().tolist() == [7]
        assert len(task.samples("train")) == 60

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"val_fraction": 0.0}, r"val_fraction=0.0 must lie between 0 and 1"),
            ({"val_fraction": 1.0}, r"val_fraction=1.0 must lie between 0 and 1"),
            ({"max_train": 2}, r"max_train=2 is below the number of classes, 3"),
            ({"seed": -1}, r"seed=-1 must be 0 or more"),
            ({"size": (0, 8)}, r"size=\(0, 8\) must be a height and a width of 1 or more"),
            ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must be in 0 … 1"),
        ],
    )
    def test_values_out_of_range_are_named(self, tmp_path, arguments, message):
        with pytest.raises(UserError, match=message):
            classification(data=write_npz(tmp_path / "a.npz"), **arguments)

    def test_too_few_images_of_a_class(self, tmp_path):
        with pytest.raises(UserError, match=r"class 0 has 1\) cannot be split"):
            classification(data=write_npz(tmp_path / "a.npz", per_class=1))

    def test_one_class(self, tmp_path):
        with pytest.raises(UserError, match=r"one class only \('0'\)"):
            classification(data=write_npz(tmp_path / "a.npz", classes=1))


class TestInputs:
    def test_contract_and_statistics_of_the_training_split(self, tmp_path):
        task = classification(data=write_npz(tmp_path / "a.npz"))
        spec = task.contract.inputs[0]
        assert spec.shape == ("N", 3, 8, 8)
        assert task.contract.outputs[0].shape == ("N", 3)
        assert task.contract.classes == ("0", "1", "2")
        pixels = everything(task.samples("train")).pixels.numpy() / 255
        # six decimals are kept
        np.testing.assert_allclose(spec.mean, pixels.mean((0, 2, 3)), atol=1e-6)
        np.testing.assert_allclose(spec.std, pixels.std((0, 2, 3)), atol=1e-6)

    def test_inputs_agree_with_the_contracts_own_normalisation(self, digits):
        batch = digits.samples("test").__getitems__([5, 0, 9])
        assert batch.pixels.dtype == torch.uint8
        assert batch.index.tolist() == [5, 0, 9]
        assert batch.targets.tolist() == digits.samples("test").targets[[5, 0, 9]].tolist()
        expected = digits.contract.inputs[0].normalised(batch.pixels.numpy() / 255)
        x = digits.inputs(batch)
        assert x.dtype == torch.float32
        # float32 rounding of values up to 3
        np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)

    def test_a_constant_channel_is_not_divided_by_zero(self, tmp_path):
        x = np.zeros((40, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(40) % 2, x_test=x, y_test=np.arange(40) % 2)
        task = classification(data=f"npz:{tmp_path / 'a.npz'}")
        assert task.contract.inputs[0].std == (0.003922,) * 3
        assert not task.inputs(task.samples("test").__getitems__([0])).any()

    def test_augmentation_follows_its_generator_and_leaves_the_batch_alone(self, digits):
        batch = digits.samples("train").__getitems__(range(32))
        kept = batch.pixels.clone()
        draws = [digits.inputs(batch, augment=True, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert torch.equal(batch.pixels, kept)
        with pytest.raises(ValueError, match="needs a generator"):
            digits.inputs(batch, augment=True)

    def test_digits_are_never_mirrored_unless_asked(self, digits):
        assert digits.flip is False
        assert classification(data="digits", flip=True).flip is True

    def test_size_is_bilinear_and_keeps_the_aspect_ratio(self, tmp_path):
        task = classification(data=write_npz(tmp_path / "a.npz"), size=(4, 8))
        assert task.contract.inputs[0].shape == ("N", 3, 4, 8)
        plain = classification(data=f"npz:{tmp_path / 'a.npz'}")
        # 8×8 → 4×8: the middle four rows, untouched
        assert torch.equal(everything(task.samples("test")).pixels, everything(plain.samples("test")).pixels[:, :, 2:6])

    def test_a_data_loader_reads_whole_batches(self, digits):
        samples = pickle.loads(pickle.dumps(digits.samples("val")))  # noqa: S301 (our own, as a worker receives it)
        loader = DataLoader(samples, batch_size=50, collate_fn=lambda b: b)
        assert [len(b.targets) for b in loader] == [50, 50, 44]
        assert torch.equal(torch.cat([b.pixels for b in loader]), everything(digits.samples("val")).pixels)


class TestLossAndMetrics:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_loss_by_the_formula(self, tmp_path, smoothing):
        task = classification(data=write_npz(tmp_path / "a.npz"), label_smoothing=smoothing)
        logits, targets = np.random.default_rng(0).normal(size=(7, 3)), np.array([0, 1, 2, 0, 1, 2, 0])
        wanted = np.eye(3)[targets] * (1 - smoothing) + smoothing / 3
        expected = -(wanted * log_softmax(logits, axis=1)).sum(1).mean()
        got = task.loss(torch.from_numpy(logits), torch.from_numpy(targets))
        assert got.item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("limit", [None, 100])
    def test_metrics_agree_with_scikit_learn(self, digits, limit):
        seen: list[np.ndarray] = []
        generator = torch.Generator().manual_seed(0)

        def predict(x):
            logits = torch.randn(len(x), 10, generator=generator)
            seen.append(logits.numpy().astype(np.float64))
            return logits.requires_grad_()

        got = digits.evaluate(predict, limit=limit, batch_size=64)
        logits, targets = np.concatenate(seen), digits.samples("test").targets[:limit]
        assert len(logits) == (limit or 360)
        guess = logits.argmax(1)
        # float64 on both sides
        assert got["accuracy"] == pytest.approx(accuracy_score(targets, guess), rel=1e-12)
        assert got["macro_f1"] == pytest.approx(f1_score(targets, guess, average="macro"), rel=1e-12)
        picked = log_softmax(logits, axis=1)[np.arange(len(targets)), targets]
        assert got["loss"] == pytest.approx(-picked.mean(), rel=1e-5)

    def test_a_class_that_never_occurs_has_no_share_in_macro_f1(self, digits):
        targets = digits.samples("test").targets[:8]
        guess = np.where(targets == targets[0], targets[1], targets)
        got = digits.evaluate(lambda _x: torch.eye(10)[torch.from_numpy(guess)], limit=8)
        assert len(set(targets)) < 10
        assert got["macro_f1"] == pytest.approx(f1_score(targets, guess, average="macro"), rel=1e-12)

    def test_a_perfect_network(self, digits):
        targets = digits.samples("val").targets
        place = iter(np.split(targets, [100]))
        got = digits.evaluate(lambda _x: torch.eye(10)[torch.from_numpy(next(place))] * 50, "val", batch_size=100)
        assert got == {"accuracy": 1.0, "loss": pytest.approx(0, abs=1e-6), "macro_f1": 1.0}

    def test_wrong_class_count_names_both(self, digits):
        message = r"output has shape \(\d+, 7\), but digits has 10 classes[\s\S]*num_classes=10"
        with pytest.raises(UserError, match=message):
            digits.evaluate(lambda x: torch.zeros(len(x), 7))
        with pytest.raises(UserError, match=message):
            digits.loss(torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64))

    def test_limit_below_one(self, digits):
        with pytest.raises(UserError, match="limit=0 and batch_size=256 must be 1 or more"):
            digits.evaluate(lambda x: torch.zeros(len(x), 10), limit=0)
