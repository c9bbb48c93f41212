"""Folders of images: layout, decoding, and what is said about broken ones."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from trimtab.models.errors import UserError
from trimtab.models.tasks.classification import classification
from trimtab.models.tasks.datasets import open_dataset


def write_folder(root: Path, *, parts=("train", "val"), classes=("ant", "bee"), count=6, mode="RGB", size=(12, 10)) -> Path:
    """Noise images `size` = (H, W), `count` per class and part."""
    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, size if mode == "L" else (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def same(batch):
    return batch


class TestLayout:
    def test_val_alone_is_the_test_and_validation_comes_out_of_train(self, tmp_path):
        data = open_dataset(f"folder:{write_folder(tmp_path)}")
        assert data.val is None
        assert data.classes == ("ant", "bee")
        assert data.train.targets.tolist() == [0] * 6 + [1] * 6
        assert data.train.shape == (3, 12, 10)
        first = np.asarray(Image.open(tmp_path / "val/ant/0.png")).transpose(2, 0, 1)
        assert np.array_equal(data.test.read([0])[0], first)
        assert data.flips

    def test_three_parts(self, tmp_path):
        data = open_dataset(f"folder:{write_folder(tmp_path, parts=('train', 'val', 'test'))}")
        assert data.val is not None
        pixels = [np.asarray(Image.open(tmp_path / part / "bee/5.png")).transpose(2, 0, 1) for part in ("val", "test")]
        assert np.array_equal(data.val.read([11])[0], pixels[0])
        assert np.array_equal(data.test.read([11])[0], pixels[1])

    def test_grey_images_have_one_channel_and_one_colour_image_makes_three(self, tmp_path):
        write_folder(tmp_path, mode="L")
        assert open_dataset(f"folder:{tmp_path}").train.shape == (1, 12, 10)
        Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(tmp_path / "val/bee/colour.jpg")
        assert open_dataset(f"folder:{tmp_path}").train.shape == (3, 12, 10)

    def test_sixteen_bit_grey_is_scaled_not_clipped(self, tmp_path):
        write_folder(tmp_path, mode="L")
        Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)).save(tmp_path / "train/ant/0.png")
        data = open_dataset(f"folder:{tmp_path}")
        assert data.train.read([0]).tolist() == [[[[0, 100], [200, 255]]]]

    def test_size_covers_and_crops_around_the_centre(self, tmp_path):
        write_folder(tmp_path)
        data = open_dataset(f"folder:{tmp_path}", size=(10, 10))
        whole = np.asarray(Image.open(tmp_path / "train/ant/0.png")).transpose(2, 0, 1)
        assert np.array_equal(data.train.read([0])[0], whole[:, 1:11])

    def test_content_digest_sees_pixels_and_labels_but_not_the_place(self, tmp_path):
        first = open_dataset(f"folder:{write_folder(tmp_path / 'a')}").content
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert open_dataset(f"folder:{tmp_path / 'b'}").content == first
        (tmp_path / "b/train/ant/0.png").rename(tmp_path / "b/train/bee/moved.png")
        moved = open_dataset(f"folder:{tmp_path / 'b'}").content
        Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(tmp_path / "b/train/bee/moved.png")
        assert len({first, moved, open_dataset(f"folder:{tmp_path / 'b'}").content}) == 3

    def test_other_files_are_counted_in_a_warning(self, tmp_path, caplog):
        write_folder(tmp_path)
        (tmp_path / "train/ant/notes.txt").write_text("hello")
        (tmp_path / "train/ant/.DS_Store").write_text("hidden files are nobody's concern")
        with caplog.at_level(logging.WARNING, "trimtab"):
            open_dataset(f"folder:{tmp_path}")
        assert "1 file(s) are not images by their ending" in caplog.text


class TestWrongFolders:
    def test_parts(self, tmp_path):
        (tmp_path / "pictures").mkdir()
        with pytest.raises(UserError, match=r"needs train/ and val/ or test/; there is: pictures"):
            open_dataset(f"folder:{tmp_path}")
        write_folder(tmp_path, parts=("train",))
        with pytest.raises(UserError, match=r"there is: pictures, train"):
            open_dataset(f"folder:{tmp_path}")

    def test_classes(self, tmp_path):
        write_folder(tmp_path)
        (tmp_path / "val/bee").rename(tmp_path / "val/wasp")
        with pytest.raises(UserError, match=r"class folders differ: \S*val lacks bee; \S*train lacks wasp"):
            open_dataset(f"folder:{tmp_path}")

    def test_one_class_and_none(self, tmp_path):
        write_folder(tmp_path, classes=("ant",))
        with pytest.raises(UserError, match=r"train holds 1 class folder\(s\): ant"):
            open_dataset(f"folder:{tmp_path}")
        shutil.rmtree(tmp_path / "train/ant")
        with pytest.raises(UserError, match=r"train holds 0 class folder\(s\)"):
            open_dataset(f"folder:{tmp_path}")

    def test_empty_class(self, tmp_path):
        write_folder(tmp_path)
        for path in (tmp_path / "val/bee").iterdir():
            path.unlink()
        with pytest.raises(UserError, match=r"val has no readable image of bee"):
            open_dataset(f"folder:{tmp_path}")


def spoil(root: Path, count: int) -> None:
    for i in range(count):
        path = root / "train/ant" / f"{i}.png"
        path.write_bytes(path.read_bytes()[:120] if i else b"not an image")


class TestBrokenImages:
    def test_named_counted_and_refused(self, tmp_path):
        spoil(write_folder(tmp_path, count=15), 12)
        with pytest.raises(UserError) as caught:
            open_dataset(f"folder:{tmp_path}")
        text = str(caught.value)
        assert text.startswith("12 of 60 images cannot be read:")
        assert f"{tmp_path}/train/ant/0.png: not an image that Pillow knows" in text
        assert text.count("train/ant/") == 10
        assert "… and 2 more" in text
        assert "skip_bad" in text

    def test_left_out_with_a_warning(self, tmp_path, caplog):
        spoil(write_folder(tmp_path), 2)
        with caplog.at_level(logging.WARNING, "trimtab"):
            data = open_dataset(f"folder:{tmp_path}", skip_bad=True)
        assert "left out: 2 of 24 images cannot be read" in caplog.text
        assert "train/ant/1.png" in caplog.text
        assert data.train.targets.tolist() == [0] * 4 + [1] * 6

    def test_a_file_that_vanishes_later(self, tmp_path):
        data = open_dataset(f"folder:{write_folder(tmp_path)}")
        (tmp_path / "train/ant/3.png").unlink()
        with pytest.raises(UserError, match=r"train/ant/3.png can no longer be read"):
            data.train.read([3])


class TestTask:
    def test_workers_deliver_the_same_batches(self, tmp_path):
        task = classification(data=f"folder:{write_folder(tmp_path, count=20)}", size=(8, 8))
        samples = task.samples("train")
        assert [len(task.samples(split)) for split in ("train", "val", "test")] == [36, 4, 40]
        here = samples.__getitems__(range(36))
        loader = DataLoader(samples, batch_size=16, num_workers=1, collate_fn=same)
        there = list(loader)
        assert [len(batch.targets) for batch in there] == [16, 16, 4]
        assert np.array_equal(np.concatenate([batch.pixels for batch in there]), here.pixels)
        copy = pickle.loads(pickle.dumps(samples))  # noqa: S301 (our own, as a worker receives it)
        assert np.array_equal(copy.__getitems__([7]).pixels, here.pixels[7:8])
        assert classification(data=f"folder:{tmp_path}", size=(8, 8)).data_id == task.data_id
