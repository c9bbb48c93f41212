"""Train, validation and test parts of pictures with points; people are not torn apart when asked."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import digest_of
from .landmark_data import LandmarkData
from .splits import Splits

Indices = np.ndarray


def landmark_splits(
    data: LandmarkData, *, seed: int, val_fraction: float, test_fraction: float, groups: bool, max_train: int | None
) -> tuple[Splits, dict[str, Indices]]:
    """The splits of `data`, and the positions in it that each consists of.

    Parts that the data brings are kept (val alone becomes the test split); else `test_fraction` is drawn for the test, the same
    for every seed. Validation is the data's own or `val_fraction` of the rest, drawn by `seed`. With `groups` no group has
    samples in two splits. Raises UserError for values out of range, data too small, and groups that parts tear apart.
    """
    _check(data, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, groups=groups, max_train=max_train)
    people = data.groups if groups else None
    order = np.random.default_rng(0).permutation(len(data.names))
    if data.parts is None:
        train, test = _held_out(order, test_fraction, people, seed=0, what="test_fraction")
        val = order[:0]
    else:
        part = {name: order[data.parts[order] == name] for name in ("train", "val", "test")}
        train, val, test = part["train"], part["val"], part["test"]
        if len(test) == 0:
            test, val = val, test
        if people is not None:
            _whole(people, {"train": train, "val": val, "test": test})
    if len(val) == 0:
        train, val = _held_out(train, val_fraction, people, seed=seed, what="val_fraction")
    if max_train is not None and max_train < len(train):
        train = train[np.random.default_rng(seed).permutation(len(train))[:max_train]]
    where = {"train": train, "val": val, "test": test}
    identity: dict[str, Any] = {"content": data.content, "shape": data.images.shape, "seed": seed}
    identity |= {name: hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest() for name, rows in where.items()}
    images = {name: data.images.take(rows) for name, rows in where.items()}
    return Splits(**images, classes=(), flips=False, data_id=digest_of(identity)), where


def _held_out(rows: Indices, fraction: float, people: np.ndarray | None, *, seed: int, what: str) -> tuple[Indices, Indices]:
    """`rows` in two parts of which the second holds `fraction` of the samples, or of the groups (one at least)."""
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    if people is None:
        count = round(fraction * len(rows))
        if not 1 <= count < len(rows):
            raise UserError(
                f"{what}={fraction} of {len(rows)} samples leaves one side empty", hint="change it, or bring more samples"
            )
        first, second = train_test_split(rows, test_size=count, random_state=seed)
        return first, second
    present = len(np.unique(people[rows]))
    count = max(1, round(fraction * present))  # groups are few: a tenth of four is one
    if count >= present:
        raise UserError(
            f"{what}={fraction} of {present} group(s) ({', '.join(map(str, np.unique(people[rows])[:3]))}) leaves one side empty",
            hint="a group is the folder that a picture lies in, or the table's column group; more of them are needed",
        )
    kept, held = next(GroupShuffleSplit(1, test_size=count, random_state=seed).split(rows, groups=people[rows]))
    return rows[kept], rows[held]


def _whole(people: np.ndarray, where: dict[str, Indices]) -> None:
    seen: dict[str, str] = {}
    for name, rows in where.items():
        for person in map(str, np.unique(people[rows])):
            if seen.setdefault(person, name) != name:
                raise UserError(
                    f"group {person!r} is in {seen[person]} and in {name}",
                    hint="move it to one of them, or leave groups out: the figures then count people that were trained on",
                )


def _check(
    data: LandmarkData, *, seed: int, val_fraction: float, test_fraction: float, groups: bool, max_train: int | None
) -> None:
    if seed < 0:
        raise UserError(f"seed={seed} must be 0 or more", hint="any whole number from 0 up")
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise UserError(f"{name}={value} must lie between 0 and 1", hint="0.1 holds back a tenth")
    if max_train is not None and max_train < 2:
        raise UserError(f"max_train={max_train} must be 2 or more", hint="leave it out to train on all samples")
    if groups and data.groups is None:
        raise UserError("the data has no groups", hint="leave groups out, or name them: a column group, or an array groups")
