"""What a source of pictures with anomalies delivers, and its three splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import UserError
from ..files import digest_of
from .images import ArrayImages, Images
from .task import Split

GOOD = "good"
"""The kind of every normal picture, and the folder that normal pictures lie in."""
SHOWN = 5
"""So many names are shown of what is wrong."""


@dataclass(frozen=True)
class Part:
    """Pictures of one split: targets 0 (normal) or 1 (anomalous), each one's kind ("good" where normal), and masks where there are some.

    `masks` is uint8 (N, H, W), 1 where a picture is anomalous, at the pictures' size.
    """

    images: Images
    kinds: tuple[str, ...]
    masks: np.ndarray | None = None

    def take(self, indices: np.ndarray) -> Part:
        """The pictures at these positions, in this order."""
        masks = None if self.masks is None else self.masks[indices]
        return Part(self.images.take(indices), tuple(self.kinds[int(i)] for i in indices), masks)

    def __len__(self) -> int:
        return len(self.kinds)


@dataclass(frozen=True)
class AnomalyData:
    """Pictures as a source delivers them: `train` and `val` (None: comes out of train) hold normal ones alone.

    `content` is a digest of all pixels, kinds and masks; `groups` says which kinds are counted together, beside each alone;
    `notes` what was noticed on opening, for the user to read.
    """

    train: Part
    val: Part | None
    test: Part
    content: str
    groups: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnomalySplits:
    """The three splits; `data_id` is equal exactly when they deliver the same samples."""

    parts: Mapping[Split, Part]
    groups: Mapping[str, str]
    notes: tuple[str, ...]
    data_id: str


def normal_part(images: Images) -> Part:
    """A part of normal pictures alone."""
    return Part(images, (GOOD,) * len(images.targets))


def anomaly_splits(data: AnomalyData, *, seed: int, val_fraction: float, max_train: int | None) -> AnomalySplits:
    """The splits of `data`: its own validation pictures, or `val_fraction` of the training normals drawn by `seed`.

    Each comes in a shuffled order; the test is the same for every seed. Raises UserError for values out of range, for fewer than two
    normals, and for a test that lacks normal or anomalous pictures.
    """
    check_test(data.test)
    if seed < 0:
        raise UserError(f"seed={seed} must be 0 or more", hint="any whole number from 0 up")
    order = _shuffled(len(data.train), 0)
    held = order[:0]
    if data.val is None:
        order, held = _held_back(order, seed, val_fraction)
    if max_train is not None:
        if max_train < 1:
            raise UserError(f"max_train={max_train} must be 1 or more", hint="how many normal pictures to learn from")
        order = order[_shuffled(len(order), seed)[:max_train]] if max_train < len(order) else order
    val = data.train.take(held) if data.val is None else data.val.take(_shuffled(len(data.val), 0))
    test = data.test.take(_shuffled(len(data.test), 0))
    identity = ["anomaly", data.content, data.train.images.shape, seed, order.tolist(), held.tolist()]
    parts: dict[Split, Part] = {"train": data.train.take(order), "val": val, "test": test}
    return AnomalySplits(parts, data.groups, data.notes, digest_of(identity))


def _held_back(order: np.ndarray, seed: int, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={val_fraction} must lie between 0 and 1", hint="0.1 holds back a tenth for validation")
    count = max(1, round(val_fraction * len(order)))
    if count >= len(order):
        raise UserError(
            f"{len(order)} normal training picture(s) cannot give {count} to validation",
            hint="add normal pictures, or lower val_fraction",
        )
    held = np.zeros(len(order), dtype=bool)
    held[_shuffled(len(order), seed)[:count]] = True
    return order[~held], order[held]


def check_test(test: Part) -> None:
    """None, when the test can be judged. Raises UserError when it has no anomalous or no normal picture."""
    anomalous = int(np.asarray(test.images.targets).sum())
    if anomalous in (0, len(test)):
        lacks = "anomalous" if anomalous == 0 else "normal"
        raise UserError(
            f"the test has {len(test)} picture(s), none of them {lacks}: nothing can be told apart",
            hint=f"normal pictures lie in test/{GOOD}, anomalous ones in a folder per kind beside it",
        )


def some(names: Sequence[object]) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(str(name) for name in names[:SHOWN]) + more


def constant_note(constant: Sequence[object], *, of: int, where: str) -> tuple[str, ...]:
    """A note that names pictures of one single colour; () when there is none. Raises UserError when all are such."""
    if not constant:
        return ()
    if len(constant) == of:
        raise UserError(
            f"all {of} pictures of {where} have one single colour", hint="nothing can be learned from them: check the files"
        )
    return (f"{len(constant)} of {of} pictures of {where} have one single colour (a dead camera?): {some(constant)}",)


def in_memory(part: Part, pixels: np.ndarray) -> Part:
    """The same part with its pixels uint8 (N, C, H, W) held in memory."""
    return replace(part, images=ArrayImages(pixels, part.images.targets))


def _shuffled(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
