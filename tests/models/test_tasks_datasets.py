"""Data specs and the sources of arrays: digits, Fashion-MNIST, idx, npz, CIFAR."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from trimtab.models.errors import UserError
from trimtab.models.tasks import sources_fashion, sources_npz
from trimtab.models.tasks.datasets import DataSpec, open_dataset
from trimtab.models.tasks.images import ArrayImages, cover_box
from trimtab.models.tasks.sources_idx import read_idx

DEBIAN = sources_fashion.DEBIAN


def need_fashion_mnist():
    if not all((DEBIAN / f"{name}.gz").is_file() for name in sources_fashion.SHA256):
        pytest.skip(f"no Fashion-MNIST in {DEBIAN}: apt-get install dataset-fashion-mnist")


class TestSpec:
    def test_kinds_and_paths(self, tmp_path):
        assert DataSpec.parse("digits") == DataSpec("digits", None)
        assert DataSpec.parse(f"folder:{tmp_path}") == DataSpec("folder", tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("fashion_mnist", r"unknown data 'fashion_mnist'[\s\S]*did you mean 'fashion-mnist'"),
            ("foldr:/tmp", r"unknown data 'foldr:/tmp'[\s\S]*did you mean 'folder'"),
            ("zzz", r"unknown data 'zzz'[\s\S]*known: fashion-mnist, digits, elpv, folder:PATH"),
            ("", r"unknown data ''[\s\S]*known: "),
            ("digits:/tmp", r"digits takes no path"),
            ("npz:", r"data 'npz:' names no path[\s\S]*write npz:PATH"),
            ("npz:/no/such/file.npz", r"/no/such/file.npz .* does not exist"),
        ],
    )
    def test_wrong_specs(self, text, message):
        with pytest.raises(UserError, match=message):
            open_dataset(text)


class TestResize:
    def test_digits_are_shown_at_32_or_at_their_own_8(self):
        small = open_dataset("digits", size=(8, 8))
        assert small.train.shape == (1, 8, 8)
        assert open_dataset("digits").train.shape == (1, 32, 32)
        wanted = {np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images}
        got = {image.tobytes() for part in (small.train, small.test) for image in part.read(range(len(part.targets)))}
        assert got == wanted

    @pytest.mark.parametrize("size", [(32, 32), (5, 7), (20, 40)])
    def test_bilinear_agrees_with_pillow(self, size):
        pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), dtype=np.uint8)
        got = ArrayImages(pixels, np.zeros(3, dtype=np.int64)).resized(size)
        top, left, height, width = cover_box((16, 16), size)
        for image, small in zip(pixels[:, 0], got.pixels[:, 0], strict=True):
            box = Image.fromarray(image[top : top + height, left : left + width])
            expected = np.asarray(box.resize(size[::-1], Image.Resampling.BILINEAR))
            # Pillow rounds after each of its two passes
            assert np.abs(small.astype(int) - expected).max() <= 1

    @pytest.mark.parametrize(
        ("have", "want", "box"),
        [((16, 16), (8, 8), (0, 0, 16, 16)), ((16, 16), (8, 16), (4, 0, 8, 16)), ((10, 30), (224, 224), (0, 10, 10, 10))],
    )
    def test_cover_box(self, have, want, box):
        assert cover_box(have, want) == box


def write_idx(folder: Path, *, packed: bool = True, train: int = 12, test: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return folder


class TestIdx:
    @pytest.mark.parametrize("packed", [True, False])
    def test_reads_what_was_written(self, tmp_path, packed):
        data = open_dataset(f"idx:{write_idx(tmp_path, packed=packed)}")
        images = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
        assert np.array_equal(data.train.read(range(12))[:, 0], images)
        assert data.train.targets.tolist() == [0, 1, 2] * 4
        assert data.train.targets.dtype == np.int64
        assert data.classes == ("0", "1", "2")
        assert data.val is None

    def test_size_applies_to_every_part(self, tmp_path):
        data = open_dataset(f"idx:{write_idx(tmp_path)}", size=(10, 8))
        assert data.train.shape == data.test.shape == (1, 10, 8)

    def test_missing_file_is_named(self, tmp_path):
        (write_idx(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(UserError, match=r"has neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"):
            open_dataset(f"idx:{tmp_path}")

    def test_unequal_counts(self, tmp_path):
        write_idx(tmp_path)
        shutil.copy(tmp_path / "t10k-labels-idx1-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz")
        with pytest.raises(UserError, match="train has 12 images but 6 labels"):
            open_dataset(f"idx:{tmp_path}")

    def test_damage_is_named(self, tmp_path):
        write_idx(tmp_path, packed=False)
        path = tmp_path / "train-images-idx3-ubyte"
        whole = path.read_bytes()
        path.write_bytes(whole[:-7])
        with pytest.raises(UserError, match=r"says it holds 240 bytes of data \(shape \(12, 5, 4\)\), but has only 233"):
            read_idx(path, dimensions=3)
        path.write_bytes(whole + b"x")
        with pytest.raises(UserError, match="but has more"):
            read_idx(path, dimensions=3)
        path.write_bytes(b"PK" + whole)
        with pytest.raises(UserError, match=r"not an idx file of uint8 with 3 dimension\(s\): it starts with 50 4b"):
            read_idx(path, dimensions=3)
        path.write_bytes(whole[:4] + struct.pack(">3I", 2**31, 2**10, 2**10))
        with pytest.raises(UserError, match="claims 2251799813685248 bytes"):
            read_idx(path, dimensions=3)

    def test_damaged_gzip(self, tmp_path):
        path = write_idx(tmp_path) / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(UserError, match=r"cannot be read: .*end-of-stream"):
            read_idx(path, dimensions=3)

    def test_label_unknown_in_training(self, tmp_path):
        write_idx(tmp_path)
        labels = bytes((0, 0, 8, 1)) + struct.pack(">I", 6) + bytes((0, 1, 2, 0, 1, 9))
        (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
        with pytest.raises(UserError, match=r"label 9 in .* is outside 0…2"):
            open_dataset(f"idx:{tmp_path}")


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Fashion-MNIST is neither installed nor cached."""
    monkeypatch.setattr(sources_fashion, "DEBIAN", tmp_path / "no-debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TRIMTAB_DATA", raising=False)
    return tmp_path


class TestFashionMnist:
    def test_installed_copy_is_the_published_one(self):
        need_fashion_mnist()
        data = open_dataset("fashion-mnist", download=False)
        assert data.train.shape == (1, 28, 28)
        assert np.bincount(data.train.targets).tolist() == [6000] * 10
        assert np.bincount(data.test.targets).tolist() == [1000] * 10
        assert data.classes[9] == "Ankle boot"
        assert data.flips
        # the first training image is an ankle boot, and its soles are at the bottom
        assert data.train.targets[0] == 9

    def test_absent_without_network_names_three_ways_out(self, nowhere, monkeypatch):
        def refuse(*_args, **_kwargs):
            raise urllib.error.URLError("no route to host")

        monkeypatch.setattr("urllib.request.urlopen", refuse)
        with pytest.raises(UserError) as caught:
            open_dataset("fashion-mnist")
        for words in ("no route to host", "apt-get install dataset-fashion-mnist", "TRIMTAB_DATA", "run again"):
            assert words in str(caught.value)

    def test_no_download_when_told_not_to(self, nowhere, monkeypatch):
        monkeypatch.setattr("urllib.request.urlopen", lambda *_a, **_k: pytest.fail("it went to the network"))
        with pytest.raises(UserError, match="was not to be downloaded"):
            open_dataset("fashion-mnist", download=False)

    def test_a_wrong_download_is_refused_and_not_kept(self, nowhere, monkeypatch):
        body = gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 1, 2, 2) + b"abcd")
        monkeypatch.setattr("urllib.request.urlopen", lambda *_a, **_k: io.BytesIO(body))
        with pytest.raises(UserError, match="differs from the published file"):
            open_dataset("fashion-mnist")
        assert not [p for p in (nowhere / "cache").rglob("*") if p.is_file()]

    def test_download_fills_the_cache_once(self, nowhere, monkeypatch):
        need_fashion_mnist()
        asked: list[str] = []

        def serve(url, timeout):
            asked.append(url)
            return io.BytesIO((DEBIAN / url.rsplit("/", 1)[1]).read_bytes())

        monkeypatch.setattr("urllib.request.urlopen", serve)
        assert len(open_dataset("fashion-mnist").test.targets) == 10_000
        assert sorted(p.name for p in (nowhere / "cache/trimtab/fashion-mnist").iterdir()) == sorted(
            f"{name}.gz" for name in sources_fashion.SHA256
        )
        open_dataset("fashion-mnist", download=False)
        assert len(asked) == 4
        assert all(url.startswith("https://") for url in asked)

    def test_own_folder_comes_first_and_is_checked(self, nowhere, monkeypatch):
        write_idx(nowhere / "data" / "fashion-mnist")
        monkeypatch.setenv("TRIMTAB_DATA", str(nowhere / "data"))
        with pytest.raises(UserError, match=r"data/fashion-mnist/train-images.* differs from the published file"):
            open_dataset("fashion-mnist")


def npz(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


def plain(shape=(6, 9, 8), **changes):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return {"x_train": x, "y_train": np.arange(6) % 2, "x_test": x[:4], "y_test": np.arange(4) % 2} | changes


class TestNpz:
    @pytest.mark.parametrize(
        ("shape", "axes", "channels"), [((6, 9, 8), None, 1), ((6, 9, 8, 3), (0, 3, 1, 2), 3), ((6, 3, 9, 8), (0, 1, 2, 3), 3)]
    )
    def test_layouts(self, tmp_path, shape, axes, channels):
        arrays = plain(shape)
        data = open_dataset(npz(tmp_path / "a.npz", **arrays))
        x = arrays["x_train"]
        assert data.train.shape == (channels, 9, 8)
        assert np.array_equal(data.train.read(range(6)), x[:, None] if axes is None else x.transpose(axes))

    def test_floats_in_0_to_1_are_the_same_pixels(self, tmp_path):
        arrays = plain()
        floats = arrays | {key: arrays[key].astype(np.float32) / 255 for key in ("x_train", "x_test")}
        a, b = (open_dataset(npz(tmp_path / name, **content)) for name, content in (("a.npz", arrays), ("b.npz", floats)))
        assert np.array_equal(a.train.read(range(6)), b.train.read(range(6)))
        assert a.content == b.content

    def test_class_names_and_validation_part(self, tmp_path):
        x = np.zeros((2, 9, 8), dtype=np.uint8)
        data = open_dataset(
            npz(tmp_path / "a.npz", **plain(classes=np.array(["cat", "dog"]), x_val=x, y_val=np.array([[0], [1]])))
        )
        assert data.classes == ("cat", "dog")
        assert data.val is not None
        assert data.val.targets.tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"x_val": np.zeros((2, 9, 8), np.uint8)}, "lacks y_val"),
            ({"x_test": np.zeros((4, 9, 7), np.uint8)}, r"x_train holds images \(C, H, W\) = \(1, 9, 8\), x_test \(1, 9, 7\)"),
            ({"x_train": np.zeros((6, 72), np.uint8)}, r"x_train .* has shape \(6, 72\)"),
            ({"x_train": np.zeros((6, 3, 9, 3), np.uint8)}, "both its second and its last side could be channels"),
            ({"x_train": np.zeros((6, 9, 8, 7), np.uint8)}, "no side of it could be channels"),
            ({"x_train": np.zeros((6, 9, 8), np.int32)}, "has type int32"),
            ({"x_train": np.full((6, 9, 8), 255.0)}, r"holds floats from 255 to 255[\s\S]*divide by 255"),
            ({"x_train": np.full((6, 9, 8), np.nan)}, "holds floats from nan to nan"),
            ({"x_test": np.zeros((0, 9, 8), np.uint8), "y_test": np.zeros(0, int)}, "x_test .* is empty"),
            ({"y_train": np.arange(5) % 2}, "has 5 labels for 6 images"),
            ({"y_train": np.zeros(6)}, r"has shape \(6,\) and type float64"),
            ({"y_test": np.array([0, 1, 2, 0])}, "label 2 in y_test .* is outside 0…1"),
            ({"y_test": np.array([0, 1, -1, 0])}, "label -1 in y_test .* is outside 0…1"),
            ({"classes": np.array(["a", "a"])}, "repeats a name: a, a"),
        ],
    )
    def test_wrong_content_is_named(self, tmp_path, changes, message):
        with pytest.raises(UserError, match=message):
            open_dataset(npz(tmp_path / "a.npz", **plain(**changes)))

    def test_missing_keys_and_what_is_there(self, tmp_path):
        with pytest.raises(UserError, match="lacks y_train, x_test, y_test; it has images, x_train"):
            open_dataset(npz(tmp_path / "a.npz", x_train=np.zeros(1), images=np.zeros(1)))

    def test_pickled_objects_are_never_loaded(self, tmp_path):
        with pytest.raises(UserError, match="holds pickled objects, which could run code"):
            open_dataset(npz(tmp_path / "a.npz", **plain(y_train=np.array([Trap(tmp_path / "ran")] * 6, dtype=object))))
        assert not (tmp_path / "ran").exists()

    def test_not_an_npz(self, tmp_path):
        (tmp_path / "a.npz").write_bytes(b"hello")
        np.save(tmp_path / "b.npy", np.zeros(3))
        for name in ("a.npz", "b.npy"):
            with pytest.raises(UserError, match=r"is not an .npz archive[\s\S]*save with np.savez\(path, x_train="):
                open_dataset(f"npz:{tmp_path / name}")

    def test_damaged_archives(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez_compressed(path, **plain())
        data = bytearray(path.read_bytes())
        data[200:260] = bytes(60)
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"is not a readable .npz: "):
            open_dataset(f"npz:{path}")

    def test_archives_that_would_fill_the_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources_npz, "LIMIT_BYTES", 100)
        with pytest.raises(UserError, match=r"unpacks to \d+ bytes[\s\S]*at most 100 are read"):
            open_dataset(npz(tmp_path / "a.npz", **plain()))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
