"""CIFAR's original pickles: read without running what they ask for."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from trimtab.models.errors import UserError
from trimtab.models.tasks.datasets import open_dataset


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def dump(path: Path, data, protocol: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(data, protocol=protocol))


def write_cifar(folder: Path, *, fine: bool = False, protocol: int = 3) -> Path:
    rng = np.random.default_rng(0)
    label = b"fine_labels" if fine else b"labels"
    names = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        dump(folder / name, {b"data": data, label: [0, 1, 2, 1], b"filenames": [b"x.png"] * 4}, protocol)
    dump(
        folder / ("meta" if fine else "batches.meta"),
        {b"fine_label_names" if fine else b"label_names": [b"cat", b"dog", b"owl"]},
    )
    return folder


class TestCifar:
    @pytest.mark.parametrize("protocol", [3, 4])
    @pytest.mark.parametrize("fine", [False, True])
    def test_reads_what_was_written(self, tmp_path, fine, protocol):
        kind = "cifar100" if fine else "cifar10"
        data = open_dataset(f"{kind}:{write_cifar(tmp_path, fine=fine, protocol=protocol)}")
        rng = np.random.default_rng(0)
        expected = [rng.integers(0, 256, (4, 3072), dtype=np.uint8) for _ in range(1 if fine else 5)]
        assert np.array_equal(data.train.read(range(len(data.train.targets))), np.concatenate(expected).reshape(-1, 3, 32, 32))
        assert data.test.targets.tolist() == [0, 1, 2, 1]
        assert data.classes == ("cat", "dog", "owl")
        assert data.flips

    def test_python_2s_own_pickles(self, tmp_path):
        """As the published files are: protocol 2, byte strings, numpy.core; here in Fortran order."""
        write_cifar(tmp_path)
        pixels = np.random.default_rng(1).integers(0, 256, (2, 3072), dtype=np.uint8)
        body = pixels.tobytes("F")
        array = (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01bt\x52"
            b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            b"\x88T" + struct.pack("<i", len(body)) + body + b"tb"
        )
        (tmp_path / "test_batch").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x02K\x00eu.")
        data = open_dataset(f"cifar10:{tmp_path}")
        assert np.array_equal(data.test.read([0, 1]), pixels.reshape(2, 3, 32, 32))
        assert data.test.targets.tolist() == [2, 0]

    def test_a_pickle_that_would_run_code_is_refused_by_name(self, tmp_path):
        write_cifar(tmp_path)
        dump(tmp_path / "data_batch_3", {b"data": Trap(tmp_path / "ran"), b"labels": []})
        with pytest.raises(UserError, match=r"data_batch_3: the pickle asks for (posix|nt|os).mkdir, which is refused"):
            open_dataset(f"cifar10:{tmp_path}")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        "hostile",
        [
            b"cbuiltins\neval\n.",
            b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
            b"cnumpy\nload\n.",
            b"cnumpy.core.multiarray\nscalar\n.",
        ],
    )
    def test_other_names_are_refused(self, tmp_path, hostile):
        write_cifar(tmp_path)
        (tmp_path / "batches.meta").write_bytes(hostile)
        with pytest.raises(UserError, match=r"asks for (builtins|numpy)\S*, which is refused"):
            open_dataset(f"cifar10:{tmp_path}")

    def test_arrays_of_objects_and_lying_lengths_are_refused(self, tmp_path):
        write_cifar(tmp_path)
        dump(tmp_path / "test_batch", {b"data": np.array([b"a", 1], dtype=object), b"labels": [0, 1]})
        with pytest.raises(UserError, match="array type 'O8' is not a plain number"):
            open_dataset(f"cifar10:{tmp_path}")
        short = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, protocol=3)
        (tmp_path / "test_batch").write_bytes(short.replace(struct.pack("<H", 3072), struct.pack("<H", 3073)))
        with pytest.raises(UserError, match="damaged or of another kind: ValueError: cannot reshape"):
            open_dataset(f"cifar10:{tmp_path}")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({b"data": np.zeros((2, 3072), np.uint8)}, "lacks 'data' or 'labels'; it has data"),
            ({b"data": np.zeros((2, 99), np.uint8), b"labels": [0, 1]}, r"is uint8 \(2, 99\), not uint8 \(N, 3072\)"),
            ({b"data": [1], b"labels": [0]}, "is list, not uint8"),
            ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "does not hold one whole number per image"),
            ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 7]}, "label 7 in .* is outside 0…2"),
            ([1, 2], "holds a list, not a dictionary"),
        ],
    )
    def test_wrong_content_is_named(self, tmp_path, content, message):
        write_cifar(tmp_path)
        dump(tmp_path / "test_batch", content)
        with pytest.raises(UserError, match=message):
            open_dataset(f"cifar10:{tmp_path}")

    def test_damaged_and_missing_files(self, tmp_path):
        write_cifar(tmp_path)
        (tmp_path / "data_batch_2").write_bytes((tmp_path / "data_batch_2").read_bytes()[:-20])
        with pytest.raises(UserError, match="data_batch_2 is damaged or of another kind"):
            open_dataset(f"cifar10:{tmp_path}")
        (tmp_path / "data_batch_2").unlink()
        with pytest.raises(UserError, match=r"data_batch_2 does not exist[\s\S]*cifar-10-batches-py"):
            open_dataset(f"cifar10:{tmp_path}")

    def test_the_other_cifar(self, tmp_path):
        write_cifar(tmp_path, fine=True)
        with pytest.raises(UserError, match=r"batches.meta does not exist"):
            open_dataset(f"cifar10:{tmp_path}")
