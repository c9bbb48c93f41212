"""ELPV: labels.csv, the fixed test split and decoding, on a small folder of the same layout; the real images where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from trimtab.models.errors import UserError
from trimtab.models.tasks import sources_elpv
from trimtab.models.tasks.classification import classification
from trimtab.models.tasks.datasets import DataSpec, open_dataset

LEVELS = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")


def write_elpv(root: Path, *, each: int = 6, size: int = 20) -> Path:
    """`each` noise images per probability and type; an image's mean grey level is unique."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    lines = []
    for kind in ("mono", "poly"):
        for level in LEVELS:
            for _ in range(each):
                name = f"images/cell{len(lines) + 1:04d}.png"
                pixels = random.integers(0, 200, (size, size), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name)
                lines.append(f"{name}  {level:<20}{kind}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def folder(tmp_path):
    return write_elpv(tmp_path / "elpv")


def rows(images):
    """The images as a set of bytes."""
    return {image.tobytes() for image in images.read(np.arange(len(images.targets)))}


class TestSplits:
    def test_a_quarter_is_the_test_and_every_image_is_somewhere(self, folder):
        data = open_dataset(f"elpv:{folder}")
        assert data.classes == ("functional", "defective")
        assert (data.val, data.flips) == (None, True)
        assert (len(data.train.targets), len(data.test.targets)) == (36, 12)
        every = {np.asarray(Image.open(path))[None].tobytes() for path in (folder / "images").iterdir()}
        assert rows(data.train) | rows(data.test) == every
        assert not rows(data.train) & rows(data.test)

    def test_labels_and_strata(self, folder):
        """From 0.5 on a cell is defective; class and type are in proportion, 3 of each in the test."""
        cells = sources_elpv.read_labels(folder)
        assert [cell.label for cell in cells[::6]] == [0, 0, 1, 1, 0, 0, 1, 1]
        known = {np.asarray(Image.open(cell.path))[None].tobytes(): cell for cell in cells}
        data = open_dataset(f"elpv:{folder}")
        for images in (data.train, data.test):
            found = [known[image.tobytes()] for image in images.read(np.arange(len(images.targets)))]
            assert [cell.label for cell in found] == images.targets.tolist()
        strata = [known[image].stratum for image in rows(data.test)]
        assert np.bincount(strata).tolist() == [3, 3, 3, 3]

    def test_the_seed_moves_validation_and_not_the_test(self, folder):
        a, b = (classification(data=f"elpv:{folder}", seed=seed, val_fraction=0.25) for seed in (0, 1))
        test = [task.samples("test").__getitems__(range(12)).pixels.numpy() for task in (a, b)]
        assert np.array_equal(*test)
        val = [task.samples("val").__getitems__(range(9)).pixels.numpy().tobytes() for task in (a, b)]
        assert val[0] != val[1]
        assert a.data_id != b.data_id
        assert a.data_id == classification(data=f"elpv:{folder}", val_fraction=0.25, critical="defective").data_id


class TestPixels:
    def test_size(self, folder):
        data = open_dataset(f"elpv:{folder}", size=(10, 5))
        assert data.train.shape == data.test.shape == (1, 10, 5)
        assert data.train.read([0]).dtype == np.uint8
        wanted = {
            np.asarray(ImageOps.fit(Image.open(path), (5, 10), Image.Resampling.BILINEAR))[None].tobytes()
            for path in (folder / "images").iterdir()
        }
        assert rows(data.train) | rows(data.test) == wanted

    def test_broken_images_are_named_or_left_out(self, folder, caplog):
        (folder / "images/cell0002.png").write_bytes(b"no picture")
        (folder / "images/cell0003.png").unlink()
        with pytest.raises(UserError, match=r"2 of 48 images cannot be read[\s\S]*cell0002[\s\S]*Pillow[\s\S]*cell0003"):
            open_dataset(f"elpv:{folder}")
        data = open_dataset(f"elpv:{folder}", size=(8, 8), skip_bad=True)
        assert len(data.train.targets) + len(data.test.targets) == 46
        assert "cell0003" in caplog.text

    def test_nothing_left(self, folder):
        for path in (folder / "images").iterdir():
            path.write_bytes(b"")
        with pytest.raises(UserError, match="no image of ELPV can be read"):
            open_dataset(f"elpv:{folder}", skip_bad=True)


class TestBadInput:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("images/cell0001.png 0.5", r"labels.csv, line 49 is not a label: 'images/cell0001.png 0.5'"),
            ("images/cell0001.png 0.5 thin", r"line 49 is not a label"),
            ("images/cell0001.png much mono", r"line 49: 'much' is not a probability"),
            ("images/cell0001.png 1.5 mono", r"line 49: '1.5' is not a probability"),
            ("images/cell0001.png nan mono", r"line 49: 'nan' is not a probability"),
            ("../cell0001.png 0.5 mono", r"line 49: '../cell0001.png' lies outside"),
            ("/etc/cell.png 0.5 mono", r"line 49: '/etc/cell.png' lies outside"),
        ],
    )
    def test_labels(self, folder, line, message):
        with (folder / "labels.csv").open("a") as file:
            file.write(line + "\n")
        with pytest.raises(UserError, match=message):
            open_dataset(f"elpv:{folder}")

    def test_no_labels(self, tmp_path):
        with pytest.raises(UserError, match=r"labels.csv does not exist[\s\S]*elpv:DIR"):
            open_dataset(f"elpv:{tmp_path}")
        (tmp_path / "labels.csv").write_text("\n")
        with pytest.raises(UserError, match="lists no image"):
            open_dataset(f"elpv:{tmp_path}")
        (tmp_path / "labels.csv").write_bytes(b"\xff\xfe")
        with pytest.raises(UserError, match="cannot be read"):
            open_dataset(f"elpv:{tmp_path}")

    def test_not_installed(self, monkeypatch):
        monkeypatch.setattr(sources_elpv, "PACKAGE", "no_such_package_elpv")
        with pytest.raises(UserError, match=r"not installed[\s\S]*pip install --no-deps elpv-dataset[\s\S]*CC BY-NC-SA 4.0"):
            open_dataset("elpv")

    def test_specs(self, tmp_path):
        assert DataSpec.parse("elpv") == DataSpec("elpv", None)
        assert DataSpec.parse(f"elpv:{tmp_path}") == DataSpec("elpv", tmp_path)
        with pytest.raises(UserError, match="did you mean 'elpv'\\?"):
            DataSpec.parse("elvp")


def test_the_installed_package_is_found_and_not_imported(folder, monkeypatch, tmp_path):
    package = tmp_path / "site" / "fake_elpv"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    folder.rename(package / "data")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sources_elpv, "PACKAGE", "fake_elpv")
    assert len(open_dataset("elpv").test.targets) == 12


def test_the_real_images():
    """The published counts: 2 624 cells, 821 of them with a probability of 0.5 or more (mono 56 + 313, poly 50 + 402)."""
    if importlib.util.find_spec("elpv_dataset") is None:
        pytest.skip("elpv-dataset is not installed: pip install --no-deps elpv-dataset")
    cells = sources_elpv.read_labels(sources_elpv.find_elpv())
    counts = np.bincount([cell.stratum for cell in cells])
    assert counts.tolist() == [588 + 117, 920 + 178, 56 + 313, 50 + 402]
    data = open_dataset("elpv", size=(16, 16))
    assert (len(data.train.targets), len(data.test.targets)) == (1968, 656)
    assert (int(data.train.targets.sum()), int(data.test.targets.sum())) == (616, 205)
    assert 100 < data.train.read(np.arange(256)).mean() < 200  # cells glow: mid-grey on average
