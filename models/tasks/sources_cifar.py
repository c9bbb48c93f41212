"""CIFAR-10 and CIFAR-100 from their original Python files, read by `plain_pickle`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import digest_of
from .images import ArrayImages, Dataset, check_targets
from .plain_pickle import read_plain_pickle

FETCH = "give the unpacked folder (cifar-10-batches-py or cifar-100-python) of https://www.cs.toronto.edu/~kriz/cifar.html"


def open_cifar(folder: Path, *, fine: bool) -> Dataset:
    """CIFAR-10, or CIFAR-100 with its fine labels (`fine`): 50 000 and 10 000 colour images (3, 32, 32) in the published files.

    Source: A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    if fine:
        files, test_file, meta_file, label, names_key = ["train"], "test", "meta", "fine_labels", "fine_label_names"
    else:
        files = [f"data_batch_{i}" for i in range(1, 6)]
        test_file, meta_file, label, names_key = "test_batch", "batches.meta", "labels", "label_names"
    meta = read_plain_pickle(folder / meta_file, hint=FETCH).get(names_key)
    if not isinstance(meta, list) or not meta:
        raise UserError(
            f"{folder / meta_file} has no list {names_key!r}", hint="is this the right one of cifar10 and cifar100?"
        )
    names = tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in meta)
    parts = [_read_batch(folder / name, label=label, classes=len(names)) for name in files]
    train = ArrayImages(np.concatenate([p.pixels for p in parts]), np.concatenate([p.targets for p in parts]))
    test = _read_batch(folder / test_file, label=label, classes=len(names))
    return Dataset(train, None, test, names, flips=True, content=digest_of([train.digest(), test.digest()]))


def _read_batch(path: Path, *, label: str, classes: int) -> ArrayImages:
    batch = read_plain_pickle(path, hint=FETCH)
    if "data" not in batch or label not in batch:
        raise UserError(
            f"{path} lacks 'data' or {label!r}; it has {', '.join(sorted(batch))}",
            hint="is this the right one of cifar10 and cifar100?",
        )
    pixels = batch["data"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        seen = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise UserError(f"'data' in {path} is {seen}, not uint8 (N, 3072)", hint="the file is damaged or of another kind")
    labels = np.asarray(batch[label])
    if labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{label!r} in {path} does not hold one whole number per image", hint="the file is damaged or of another kind"
        )
    return ArrayImages(pixels.reshape(-1, 3, 32, 32), check_targets(labels, classes=classes, where=str(path)))
