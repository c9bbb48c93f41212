"""MNIST's idx files: `train-images-idx3-ubyte[.gz]` and its three sisters."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import UserError, did_you_mean
from ..files import digest_of
from .images import ArrayImages, Dataset, check_targets

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
LIMIT_BYTES = 8 << 30
"""What one file may unpack to: a damaged or hostile header shall not fill the memory."""


def find_file(folder: Path, name: str) -> Path:
    """`folder/name` or `folder/name.gz`. Raises UserError when neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    near = did_you_mean(name, [p.name for p in folder.iterdir()]) if folder.is_dir() else f"{folder} is not a folder"
    raise UserError(f"{folder} has neither {name} nor {name}.gz", hint=f"idx data has the files {', '.join(FILES)}; {near}")


def read_idx(path: Path, *, dimensions: int, sha256: str | None = None) -> np.ndarray:
    """The uint8 array of one idx file, packed or not.

    `sha256` is the expected digest of the unpacked file. Raises UserError when the file is damaged, cut short, of another
    type or rank, or differs from the digest.
    """
    broken = f"delete {path} and fetch it again"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise UserError(
                    f"{path} is not an idx file of uint8 with {dimensions} dimension(s): it starts with {head[:4].hex(' ')}",
                    hint=f"expected 00 00 08 {dimensions:02x}; {broken}",
                )
            shape = struct.unpack(f">{dimensions}I", head[4:])
            count = int(np.prod(shape, dtype=object))
            if count > LIMIT_BYTES:
                raise UserError(
                    f"{path} claims {count} bytes of data (shape {shape})", hint=f"at most {LIMIT_BYTES} are read; {broken}"
                )
            body = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}", hint=broken) from None
    if len(body) != count:
        have = f"only {len(body)}" if len(body) < count else "more"
        raise UserError(f"{path} says it holds {count} bytes of data (shape {shape}), but has {have}", hint=broken)
    if sha256 is not None and hashlib.sha256(head + body).hexdigest() != sha256:
        raise UserError(f"{path} differs from the published file (sha256 {sha256[:12]}… expected)", hint=broken)
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def read_idx_pair(folder: Path, prefix: str) -> ArrayImages:
    """The images (N, 1, H, W) and labels under `prefix` ("train" or "t10k")."""
    images = read_idx(find_file(folder, f"{prefix}-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(find_file(folder, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
    if len(images) != len(labels):
        raise UserError(
            f"{folder}: {prefix} has {len(images)} images but {len(labels)} labels", hint="the files belong to different sets"
        )
    return ArrayImages(images[:, None], labels.astype(np.int64))


def open_idx(folder: Path) -> Dataset:
    """The data set in an idx folder: classes are named by their number. Raises UserError for missing or damaged files."""
    train, test = read_idx_pair(folder, "train"), read_idx_pair(folder, "t10k")
    check_targets(train.targets, classes=256, where=f"{folder} (train)")
    classes = int(train.targets.max()) + 1
    check_targets(test.targets, classes=classes, where=f"{folder} (t10k)")
    return Dataset(
        train=train,
        val=None,
        test=test,
        classes=tuple(str(i) for i in range(classes)),
        flips=False,
        content=digest_of([train.digest(), test.digest()]),
    )
