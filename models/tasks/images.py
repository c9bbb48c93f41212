"""Labelled images, in memory or on disk, behind one small interface."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import UserError


class Images(Protocol):
    """Labelled images that are read in batches: `targets` int64 (N,), `shape` = (C, H, W) of every image read."""

    @property
    def targets(self) -> np.ndarray: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 pixels (n, C, H, W) of the images at these positions."""

    def take(self, indices: np.ndarray) -> Images:
        """The images at these positions, in this order."""

    def resized(self, size: tuple[int, int]) -> Images:
        """The same images at (H, W): cropped around the centre to the new aspect ratio, then scaled."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: `pixels` uint8 (N, C, H, W)."""

    pixels: np.ndarray
    targets: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 pixels (n, C, H, W), gathered in one step."""
        return self.pixels[np.asarray(indices, dtype=np.int64)]

    def take(self, indices: np.ndarray) -> ArrayImages:
        """The images at these positions, copied."""
        return ArrayImages(self.pixels[indices], self.targets[indices])

    def resized(self, size: tuple[int, int]) -> ArrayImages:
        """The images at (H, W): centre crop to the aspect ratio, then bilinear, antialiased when it shrinks."""
        if self.shape[1:] == size:
            return self
        import torch
        from torch.nn import functional as F

        top, left, height, width = cover_box(self.shape[1:], size)
        out = np.empty((len(self.pixels), self.shape[0], *size), dtype=np.uint8)
        for start in range(0, len(out), 1024):
            part = self.pixels[start : start + 1024, :, top : top + height, left : left + width]
            large = F.interpolate(torch.from_numpy(part.astype(np.float32)), size=size, mode="bilinear", antialias=True)
            out[start : start + 1024] = large.round_().clamp_(0, 255).to(torch.uint8).numpy()
        return ArrayImages(out, self.targets)

    def digest(self) -> str:
        """The hex digest of pixels, shape and targets."""
        sha = hashlib.sha256(repr(self.pixels.shape).encode())
        sha.update(np.ascontiguousarray(self.pixels).data)
        sha.update(np.ascontiguousarray(self.targets).data)
        return sha.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A data set as its source delivers it.

    `val` is None where the data has no validation part of its own. `flips` says whether a mirrored image is still a fair
    sample of its class. `content` is a digest of all pixels and labels.
    """

    train: Images
    val: Images | None
    test: Images
    classes: tuple[str, ...]
    flips: bool
    content: str


def cover_box(have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest centred box inside `have` (H, W) with the aspect ratio of `want` (H, W)."""
    scale = min(have[0] / want[0], have[1] / want[1])
    height, width = (min(h, max(1, round(w * scale))) for h, w in zip(have, want, strict=True))
    return (have[0] - height) // 2, (have[1] - width) // 2, height, width


def check_targets(targets: np.ndarray, *, classes: int, where: str) -> np.ndarray:
    """Targets as int64 (N,). Raises UserError when there are none, or when one lies outside 0 … classes − 1."""
    if len(targets) == 0:
        raise UserError(f"{where} holds no samples", hint="every split needs at least one image")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        bad = low if low < 0 else high
        raise UserError(
            f"label {bad} in {where} is outside 0…{classes - 1}", hint=f"the data has {classes} classes, counted from 0"
        )
    return targets.astype(np.int64)
