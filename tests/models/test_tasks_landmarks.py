"""The landmarks task: splits, augmentation that moves points with the picture, loss and normalised error."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from landmarks_kit import folder, picture, pts

from trimtab.models.errors import UserError
from trimtab.models.tasks.augment_points import Movement, mirrored_order, moved
from trimtab.models.tasks.landmarks import landmarks
from trimtab.models.tasks.task import RawBatch, tasks

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shapes():
    return tasks.get("landmarks")(data="shapes")


@pytest.fixture
def faces(tmp_path):
    return folder(tmp_path / "faces")


def everything(samples):
    return samples.__getitems__(range(len(samples)))


def test_its_card_needs_no_torch():
    code = "import sys; from trimtab.models.tasks.task import tasks; print(tasks.entry('landmarks').card.title, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "Landmarks False\n"


def test_the_contract(shapes):
    image, points = shapes.contract.inputs[0], shapes.contract.outputs[0]
    assert (image.name, image.shape, image.layout, image.value_range) == ("image", ("N", 1, 48, 48), "NCHW", (0.0, 1.0))
    assert (points.name, points.shape, points.layout, shapes.contract.classes) == ("landmarks", ("N", 42), "NC", ())
    assert shapes.metric == "nme"
    pixels = everything(shapes.samples("train")).pixels.numpy() / 255
    # six decimals are kept
    np.testing.assert_allclose((image.mean[0], image.std[0]), (pixels.mean(), pixels.std()), atol=1e-6)


class TestSplits:
    def test_shapes_keep_their_test(self, shapes):
        assert [len(shapes.samples(s)) for s in ("train", "val", "test")] == [3600, 400, 1000]
        other = landmarks(data="shapes", seed=1)
        assert torch.equal(everything(other.samples("test")).pixels, everything(shapes.samples("test")).pixels)
        assert not torch.equal(everything(other.samples("val")).targets, everything(shapes.samples("val")).targets)
        assert other.data_id != shapes.data_id == landmarks(data="shapes", norm="box", loss="l1").data_id

    def test_data_id_depends_on_what_is_delivered(self, faces):
        first = {"data": f"points:{faces}", "norm": "box"}
        ids = [
            landmarks(**first, **more).data_id
            for more in (
                {},
                {"size": (16, 16)},
                {"size": (16, 16), "crop": 0.1},
                {"val_fraction": 0.3},
                {"max_train": 8},
                {"soft": 0.9},
                {"groups": True},
            )
        ]
        assert len(set(ids)) == len(ids)
        assert landmarks(**first).data_id == ids[0]

    def test_undivided_data(self, faces):
        task = landmarks(data=f"points:{faces}", norm="box")
        parts = [everything(task.samples(s)) for s in ("train", "val", "test")]
        assert [len(p.targets) for p in parts] == [14, 2, 4]
        assert len({row.tobytes() for p in parts for row in p.pixels.numpy()}) == 20

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_people_stay_together(self, faces, seed):
        task = landmarks(data=f"points:{faces}", norm="box", groups=True, val_fraction=0.25, seed=seed)
        people = [{path.split("/")[-2] for path in task.samples(s).images.paths} for s in ("train", "val", "test")]
        assert [len(p) for p in people] == [3, 1, 1]
        assert len(set.union(*people)) == 5

    def test_folders_divide_the_data_and_val_alone_is_the_test(self, tmp_path):
        root = folder(tmp_path, parts=("train", "val", "test"), people=2)
        task = landmarks(data=f"points:{root}", norm="box", groups=True)
        assert [len(task.samples(s)) for s in ("train", "val", "test")] == [8, 8, 8]
        assert all("/val/" in path for path in task.samples("val").images.paths)
        other = folder(tmp_path / "two", parts=("train", "val"), people=2)
        task = landmarks(data=f"points:{other}", norm="box", val_fraction=0.25)
        assert [len(task.samples(s)) for s in ("train", "val", "test")] == [6, 2, 8]
        assert all("/val/" in path for path in task.samples("test").images.paths)

    def test_a_person_in_two_folders(self, tmp_path):
        for part in ("train", "test"):
            for i in range(3):
                pts(picture(tmp_path / part / "ann" / f"{i}.png", seed=i).with_suffix(".pts"), np.array([[3, 4], [9, 9 + i]]))
        with pytest.raises(UserError, match=r"group 'ann' is in train and in test"):
            landmarks(data=f"points:{tmp_path}", norm="box", groups=True)

    def test_options_open_it_again(self, faces):
        """Through JSON, as a Bundle keeps them: tuples become lists."""
        given = {
            "data": f"points:{faces}",
            "eyes": ((0,), (1, 2)),
            "flip_pairs": ((0, 1),),
            "size": (16, 24),
            "seed": 3,
            "soft": 0.9,
        }
        task = landmarks(**given)
        again = tasks.get(task.name)(**json.loads(json.dumps(task.options)))
        assert task.options == given
        assert again.data_id == task.data_id
        assert again.measure == task.measure
        assert again.movement == task.movement

    def test_workers_can_read_it(self, faces):
        samples = pickle.loads(pickle.dumps(landmarks(data=f"points:{faces}", norm="box").samples("train")))  # noqa: S301 (our own)
        assert samples.__getitems__([1, 0]).pixels.shape == (2, 3, 20, 30)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"val_fraction": 0.0}, r"val_fraction=0.0 must lie between 0 and 1"),
            ({"test_fraction": 1}, r"test_fraction=1 must lie between 0 and 1"),
            ({"val_fraction": 0.01}, r"val_fraction=0.01 of 16 samples leaves one side empty"),
            ({"groups": True, "test_fraction": 0.95}, r"test_fraction=0.95 of 5 group\(s\) \(person0, person1, person2\)"),
            ({"max_train": 1}, "max_train=1 must be 2 or more"),
            ({"seed": -1}, "seed=-1 must be 0 or more"),
            ({"size": (0, 8)}, r"size=\(0, 8\) must be a height and a width"),
            ({"soft": 1.5}, "soft=1.5 must lie in 0 … 1"),
            ({"zoom": 0.9}, "zoom=0.9 must lie in 0 … 0.5"),
            ({"norm": "pupil"}, "norm='pupil' is unknown[\\s\\S]*interocular, box, diagonal"),
            ({"loss": "huber"}, "loss='huber' is unknown"),
            ({"mean": (0.5,)}, "go together"),
            ({"mean": (0.5,), "std": (0.5,)}, "one number for each of the 3 channels"),
            ({"norm": "interocular"}, r"needs eyes: which points are the outer corners"),
            ({"norm": "interocular", "eyes": (0, 4)}, r"eyes=\(0, 4\) names point 4, the data has points 0 … 3"),
            ({"eyes": (0, 1, 2)}, r"eyes=\(0, 1, 2\) are not two"),
            ({"eyes": ((), (1,))}, "has an eye without points"),
            ({"flip_pairs": ((0, 4),)}, r"flip_pairs names point 4, the data has points 0 … 3"),
            ({"flip_pairs": ((0, 1), (1, 2))}, "flip_pairs names point 1 twice"),
            ({"flip_pairs": (0, 1)}, "flip_pairs: 0 is not a pair"),
        ],
    )
    def test_values_out_of_range_are_named(self, faces, arguments, message):
        with pytest.raises(UserError, match=message):
            landmarks(**{"data": f"points:{faces}", "norm": "box", **arguments})

    def test_no_groups_in_arrays(self, shapes):
        with pytest.raises(UserError, match="the data has no groups"):
            landmarks(data="shapes", groups=True)

    @pytest.mark.parametrize(("norm", "points"), [("interocular", [[3, 4], [3, 4], [9, 9]]), ("box", [[3, 4], [8, 4], [9, 4]])])
    def test_a_divisor_of_zero_names_the_sample(self, faces, norm, points):
        for file in faces.rglob("*.pts"):
            pts(file, np.array([[3, 4], [8, 5], [9, 9]]))
        pts(faces / "person2" / "3.pts", np.array(points))
        with pytest.raises(UserError, match=rf"1 of 20 samples have the {norm} size 0, .*person2/3\.png"):
            landmarks(data=f"points:{faces}", norm=norm, eyes=(0, 1))


class TestAugmentation:
    @staticmethod
    def spots(count=32, *, height=40, width=60):
        """Pictures with one bright blob per point, of a brightness of its own."""
        rng = np.random.default_rng(0)
        points = rng.uniform((20, 12), (40, 28), (count, 2, 2))
        points[:, 1, 0] = 60 - points[:, 0, 0] + rng.uniform(6, 9, count)
        y, x = np.mgrid[:height, :width]
        blobs = [
            np.exp(-((x - p[:, 0, None, None]) ** 2 + (y - p[:, 1, None, None]) ** 2) / 4) for p in points.transpose(1, 0, 2)
        ]
        pixels = torch.from_numpy(np.stack([blob * 255 for blob in blobs], axis=1))  # a channel per point
        targets = torch.from_numpy((points + 0.5) / (width, height) - 0.5).flatten(1).float()
        return pixels, targets

    @staticmethod
    def found(pictures):
        """(N, L, 2): the centroid of each channel, relative."""
        _, _, height, width = pictures.shape
        total = pictures.sum((2, 3))
        x = (pictures.sum(2) * torch.arange(width)).sum(2) / total
        y = (pictures.sum(3) * torch.arange(height)).sum(2) / total
        return torch.stack([(x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5], dim=2)

    @pytest.mark.parametrize(
        "movement", [Movement(0, 0, 0), Movement(0.1, 0, 0), Movement(0, 40, 0), Movement(0, 0, 0.3), Movement(0.08, 30, 0.2)]
    )
    def test_points_move_with_the_picture(self, movement):
        """Centroids of the moved blobs, on pictures that are not square; bilinear sampling shifts a centroid by < 0.1 pixel."""
        pixels, targets = self.spots()
        pictures, points = moved(pixels, targets, movement, torch.Generator().manual_seed(0))
        error = (self.found(pictures) - points.view(-1, 2, 2)) * torch.tensor([60.0, 40.0])
        assert error.abs().max() < 0.1
        shifted = (points - targets).abs().max()
        assert shifted < 1e-6 if movement == Movement(0, 0, 0) else shifted > 0.05

    def test_mirroring_swaps_the_pairs(self):
        """In half of the pictures x changes sign and the points change places; the channels, which mark points, tell which."""
        pixels, targets = self.spots(200)
        order = mirrored_order(2, [(0, 1)])
        pictures, points = moved(pixels, targets, Movement(0, 0, 0, order), torch.Generator().manual_seed(0))
        points = points.view(-1, 2, 2)
        x, before = self.found(pictures)[..., 0], targets.view(-1, 2, 2)[..., 0]
        mirrored = (x + before).abs().sum(1) < (x - before).abs().sum(1)
        assert 70 < mirrored.sum() < 130  # 100 ± 4.2 standard deviations of a fair coin
        expected = torch.where(mirrored[:, None, None], self.found(pictures)[:, [1, 0]], self.found(pictures))
        torch.testing.assert_close(points, expected.float(), atol=0.003, rtol=0)

    def test_the_range_is_used_and_kept(self):
        """Shifts uniform in ±0.1 of either side, from the points of many pictures."""
        pixels, targets = torch.zeros(2000, 1, 4, 6), torch.zeros(2000, 4)
        _, points = moved(pixels, targets, Movement(0.1, 15, 0.1), torch.Generator().manual_seed(0))
        assert 0.099 < points.abs().max() <= 0.1
        # the middle does not turn: uniform, so its deviation is 0.1/√3, known to 2 % from 8 000 draws in pairs
        assert points.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.03)

    def test_the_task_follows_its_generator(self, shapes):
        batch = shapes.samples("train").__getitems__(range(16))
        kept = batch.pixels.clone()
        pairs = [shapes.training_pair(batch, augment=True, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
        assert torch.equal(pairs[0][0], pairs[1][0])
        assert torch.equal(pairs[0][1], pairs[1][1])
        assert not torch.equal(pairs[0][1], pairs[2][1])
        assert torch.equal(shapes.inputs(batch, augment=True, generator=torch.Generator().manual_seed(0)), pairs[0][0])
        assert torch.equal(batch.pixels, kept)
        x, y = shapes.training_pair(batch, augment=False, generator=torch.Generator())
        assert torch.equal(x, shapes.inputs(batch))
        assert torch.equal(y, batch.targets)
        with pytest.raises(ValueError, match="needs a generator"):
            shapes.inputs(batch, augment=True)

    def test_nothing_is_mirrored_without_pairs(self, shapes):
        assert shapes.movement.mirrored == mirrored_order(
            21, [(0, 6), (1, 5), (2, 4), (7, 10), (8, 9), (11, 14), (12, 13), (17, 19)]
        )
        assert landmarks(data="shapes", flip_pairs=()).movement.mirrored == ()

    def test_inputs_agree_with_the_contract(self, shapes):
        batch = shapes.samples("test").__getitems__([5, 0, 9])
        expected = shapes.contract.inputs[0].normalised(batch.pixels.numpy() / 255)
        # float32 rounding of values up to 5
        np.testing.assert_allclose(shapes.inputs(batch).numpy(), expected, atol=1e-5)
        twin = shapes.normalised_by((0.0,), (1.0,))
        np.testing.assert_allclose(twin.inputs(batch).numpy(), batch.pixels.numpy() / 255, atol=1e-6)
        assert twin.options == {**shapes.options, "mean": (0.0,), "std": (1.0,)}
        assert shapes.contract.inputs[0].mean != (0.0,)


class TestLossAndMetrics:
    @pytest.mark.parametrize("kind", ["mse", "l1"])
    def test_loss_by_the_formula(self, faces, kind):
        task = landmarks(data=f"points:{faces}", norm="box", loss=kind)
        a, b = np.random.default_rng(0).normal(size=(2, 5, 8))
        expected = np.mean((a - b) ** 2) if kind == "mse" else np.mean(np.abs(a - b))
        assert task.loss(torch.from_numpy(a), torch.from_numpy(b)).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("norm", ["interocular", "box", "diagonal"])
    def test_metrics_by_the_formulas(self, faces, norm):
        """A loop over samples and points in pixels of the view; pictures are 20 high and 30 wide."""
        task = landmarks(data=f"points:{faces}", norm=norm, eyes=((0, 1), (2,)), test_fraction=0.5)
        rng = np.random.default_rng(1)
        truth = task.samples("test").targets.reshape(-1, 4, 2)
        guess = truth + rng.normal(0, 0.02, truth.shape).astype(np.float32)
        errors = []
        for t, g in zip(truth.astype(float) * (30, 20), guess.astype(float) * (30, 20), strict=True):
            (width, height), eye = np.ptp(t, axis=0), np.hypot(*((t[0] + t[1]) / 2 - t[2]))
            divisor = {"interocular": eye, "box": (width * height) ** 0.5, "diagonal": np.hypot(width, height)}[norm]
            errors.append(np.mean([np.hypot(*(a - b)) for a, b in zip(t, g, strict=True)]) / divisor)
        place = iter(np.split(guess.reshape(-1, 8), [4, 8]))
        got = task.evaluate(lambda _x: torch.from_numpy(next(place)).requires_grad_(), batch_size=4)
        # the area by a fine Riemann sum of the empirical curve: 1e-4 absolute for 8 000 steps
        steps = (np.arange(8000) + 0.5) / 8000 * 0.08
        area = np.mean([np.mean(np.array(errors) <= t) for t in steps])
        assert got["nme"] == pytest.approx(np.mean(errors), rel=1e-6)
        assert got["auc_0.08"] == pytest.approx(area, abs=1e-4)
        assert got["failure_0.08"] == np.mean(np.array(errors) > 0.08)
        assert got["loss"] == pytest.approx(np.mean((truth.astype(float) - guess) ** 2), rel=1e-6)

    def test_perfect_hopeless_and_broken_networks(self, shapes):
        truth = torch.from_numpy(shapes.samples("test").targets[:50])
        perfect = shapes.evaluate(lambda _x: truth, limit=50)
        assert perfect == {"nme": 0.0, "auc_0.08": 1.0, "failure_0.08": 0.0, "loss": 0.0}
        hopeless = shapes.evaluate(lambda _x: truth + 1, limit=50)
        assert (hopeless["auc_0.08"], hopeless["failure_0.08"]) == (0.0, 1.0)
        broken = shapes.evaluate(lambda _x: truth * float("nan"), limit=50)
        assert np.isnan(broken["nme"])
        assert (broken["auc_0.08"], broken["failure_0.08"]) == (0.0, 1.0)

    def test_soft_targets_train_and_true_points_judge(self):
        hard, soft = landmarks(data="shapes"), landmarks(data="shapes", soft=0.9)
        assert torch.equal(everything(hard.samples("train")).pixels, everything(soft.samples("train")).pixels)
        a, b = everything(hard.samples("train")).targets, everything(soft.samples("train")).targets
        # 90 % of the variance is kept, the clipping at 3σ takes next to nothing more
        assert ((a - b).square().sum() / (a - a.mean(0)).square().sum()).item() == pytest.approx(0.1, abs=0.04)
        assert torch.equal(everything(hard.samples("test")).targets, everything(soft.samples("test")).targets)
        truth = torch.split(a, 256)
        place = iter(truth)
        assert soft.evaluate(lambda _x: next(place), "train")["nme"] == 0.0
        assert soft.data_id != hard.data_id

    def test_wrong_outputs_and_limits_are_named(self, shapes):
        message = r"output has shape \(\d+, 7\), but shapes has 21 points: 42 coordinates[\s\S]*num_classes=42"
        with pytest.raises(UserError, match=message):
            shapes.evaluate(lambda x: torch.zeros(len(x), 7))
        with pytest.raises(UserError, match=message):
            shapes.loss(torch.zeros(4, 7), torch.zeros(4, 42))
        with pytest.raises(UserError, match="limit=0 and batch_size=256 must be 1 or more"):
            shapes.evaluate(lambda x: torch.zeros(len(x), 42), limit=0)


def test_a_moved_batch_keeps_its_type(shapes):
    raw = shapes.samples("train").__getitems__([3, 1])
    assert isinstance(raw, RawBatch)
    x, y = shapes.training_pair(raw, augment=True, generator=torch.Generator().manual_seed(0))
    assert (x.dtype, y.dtype, x.shape, y.shape) == (torch.float32, torch.float32, (2, 1, 48, 48), (2, 42))
