"""Train, validation and test splits that depend on the data and the seed alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..files import digest_of
from .images import Dataset, Images


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set; `data_id` is equal exactly when they deliver the same samples."""

    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    flips: bool
    data_id: str


def make_splits(dataset: Dataset, *, seed: int, val_fraction: float, max_train: int | None) -> Splits:
    """The splits of `dataset`: its own validation part, or a stratified `val_fraction` of its training part drawn by `seed`.

    Every split comes in a shuffled order, so that its first n samples are a fair sample even where the data was sorted by
    class; the test order is the same for every seed. Raises UserError for values out of range and for data too small.
    """
    if len(dataset.classes) < 2:
        raise UserError(f"the data has one class only ({dataset.classes[0]!r})", hint="classification needs two or more")
    if seed < 0:
        raise UserError(f"seed={seed} must be 0 or more", hint="any whole number from 0 up")
    train = _shuffled(len(dataset.train.targets))
    held = train[:0]
    if dataset.val is None:
        if not 0 < val_fraction < 1:
            raise UserError(
                f"val_fraction={val_fraction} must lie between 0 and 1", hint="0.1 holds back a tenth for validation"
            )
        train, held = stratified(train, dataset.train.targets, round(val_fraction * len(train)), seed=seed)
    if max_train is not None:
        if max_train < len(dataset.classes):
            raise UserError(
                f"max_train={max_train} is below the number of classes, {len(dataset.classes)}",
                hint="keep one image per class at least",
            )
        if max_train < len(train):
            _, train = stratified(train, dataset.train.targets, max_train, seed=seed)
    val = _reordered(dataset.val) if dataset.val is not None else dataset.train.take(held)
    identity = {
        "content": dataset.content,
        "classes": dataset.classes,
        "shape": dataset.train.shape,
        "seed": seed,
        "train": _digest(train),
        "val": _digest(held),
    }
    return Splits(dataset.train.take(train), val, _reordered(dataset.test), dataset.classes, dataset.flips, digest_of(identity))


def stratified(indices: np.ndarray, targets: np.ndarray, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`indices` in two parts of which the second has `count` members, each class in proportion; the same for the same seed.

    `targets` are those of the whole data. Raises UserError when a class has too few members to stand in both.
    """
    from sklearn.model_selection import train_test_split

    labels = targets[indices]
    present, members = np.unique(labels, return_counts=True)
    smallest = int(members.argmin())
    if members[smallest] < 2 or count < len(present) or len(indices) - count < len(present):
        raise UserError(
            f"{len(indices)} training images of {len(present)} classes (class {int(present[smallest])} has {members[smallest]}) "
            f"cannot be split {len(indices) - count} to {count} with every class on both sides",
            hint="add images, bring a validation part of its own, or change val_fraction / max_train",
        )
    first, second = train_test_split(indices, test_size=count, random_state=seed, stratify=labels)
    return first, second


def _shuffled(count: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(count)


def _reordered(images: Images) -> Images:
    return images.take(_shuffled(len(images.targets)))


def _digest(indices: np.ndarray) -> str:
    return hashlib.sha256(indices.astype(np.int64).tobytes()).hexdigest()
