"""What a source of RAW patches delivers: mosaics, the pictures that belong to them where there are some, and pictures that don't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..contract import TensorSpec
from ..errors import UserError
from .task import Split


@dataclass(frozen=True)
class Sensor:
    """What the counts of all mosaics mean: the phase, the black level of the cell's four sites in reading order, the white level."""

    pattern: str
    black: tuple[float, float, float, float]
    white: float


def takes_counts(spec: TensorSpec) -> bool:
    """Whether an ISP network's input holds sensor counts, not numbers normalised to 0…1: its range says it."""
    return spec.value_range is not None and spec.value_range[1] > 1


class Patches(Protocol):
    """Mosaics of one size, read in batches."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every mosaic."""

    def __len__(self) -> int: ...

    def mosaics(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint16 counts (n, H, W)."""

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """uint8 (n, 3, H, W), the finished pictures of the same scenes; None where the data has no pairs."""

    def take(self, indices: np.ndarray) -> Patches:
        """The patches at these positions, in this order."""


@dataclass(frozen=True)
class ArrayPatches:
    """Patches in memory: counts uint16 (N, H, W), and finished pictures uint8 (N, 3, H, W) or None."""

    counts: np.ndarray
    finished: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.counts.shape[1], self.counts.shape[2]

    def __len__(self) -> int:
        return len(self.counts)

    def mosaics(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `Patches`."""
        return self.counts[np.asarray(indices, dtype=np.int64)]

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """See `Patches`."""
        return None if self.finished is None else self.finished[np.asarray(indices, dtype=np.int64)]

    def take(self, indices: np.ndarray) -> ArrayPatches:
        """The patches at these positions, copied."""
        return ArrayPatches(self.mosaics(indices), self.pictures(indices))


class Pictures(Protocol):
    """Finished pictures of one size, read in batches."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (n, 3, H, W)."""


@dataclass(frozen=True)
class ArrayPictures:
    """Pictures in memory: `pixels` uint8 (N, 3, H, W)."""

    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `Pictures`."""
        return self.pixels[np.asarray(indices, dtype=np.int64)]


@dataclass(frozen=True)
class IspData:
    """Patches in three splits, finished pictures of other scenes for training without pairs, and what was noticed on opening.

    `content` is a digest of all that can be read, and of how it was split.
    """

    parts: Mapping[Split, Patches]
    pool: Pictures
    sensor: Sensor
    content: str
    notes: tuple[str, ...] = ()


def grid(whole: tuple[int, ...], size: tuple[int, int], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(top, left) of up to `count` patches of `size` that don't overlap, in a picture whose last two sides are `whole`'s, drawn by `rng`.

    Patches start at whole multiples of their size, which is even: each has the mosaic's own phase.
    """
    rows, columns = whole[-2] // size[0], whole[-1] // size[1]
    drawn = rng.permutation(rows * columns)[:count]
    return [(int(cell) // columns * size[0], int(cell) % columns * size[1]) for cell in drawn]


def split_of(count: int, *, seed: int, val_fraction: float, test_fraction: float, what: str) -> dict[Split, np.ndarray]:
    """Positions of `count` scenes for each split, drawn by `seed`: at least one for each.

    Raises UserError for fractions out of range and for fewer than three scenes.
    """
    val, test = share_of(count, val_fraction, "val_fraction"), share_of(count, test_fraction, "test_fraction")
    if val + test >= count:
        raise UserError(
            f"{count} {what} can't give {val} to validation and {test} to the test",
            hint="add some, or lower val_fraction and test_fraction; a split never tears one apart",
        )
    order = np.random.default_rng(seed).permutation(count)
    return {"test": order[:test], "val": order[test : test + val], "train": order[test + val :]}


def share_of(count: int, fraction: float, name: str) -> int:
    """The nearest number to that fraction of `count`, 1 at least. Raises UserError for a fraction out of range."""
    if not 0 < fraction < 1:
        raise UserError(f"{name}={fraction} must lie between 0 and 1", hint="0.1 holds back a tenth")
    return max(1, round(fraction * count))


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the mosaic patches. Raises UserError for odd sides and sides below 16 (what the figures can be taken of)."""
    found = (int(size[0]), int(size[1]))
    if min(found) < 16 or found[0] % 2 or found[1] % 2:
        raise UserError(f"size={found}", hint="height and width of the mosaic patches: even, 16 or more, such as 128x128")
    return found
