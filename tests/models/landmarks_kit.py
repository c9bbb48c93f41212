"""Small folders of pictures with points, for the tests of landmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, *, size: tuple[int, int] = (20, 30), seed: int = 0, colour: bool = True) -> Path:
    """A PNG of noise, (H, W) = size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, 3) if colour else size
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def pts(path: Path, points: np.ndarray, *, promised: int | None = None) -> Path:
    """A .pts file; `points` (L, 2) count from 0, the file from 1."""
    rows = "\n".join(f"{x + 1} {y + 1}" for x, y in points)
    path.write_text(f"version: 1\nn_points:  {len(points) if promised is None else promised}\n{{\n{rows}\n}}\n")
    return path


def some_points(seed: int = 0, count: int = 4) -> np.ndarray:
    """Points (L, 2) inside a picture of 20×30."""
    return np.round(np.random.default_rng(seed).uniform((2, 2), (27, 17), (count, 2)), 2)


def folder(root: Path, *, per_person: int = 4, people: int = 5, parts: tuple[str, ...] = ("",)) -> Path:
    """Pictures with .pts beside them: root/[part/]person/i.png."""
    seed = 0
    for part in parts:
        for person in range(people):
            for i in range(per_person):
                path = picture(root / part / f"{part}person{person}" / f"{i}.png", seed=seed)
                pts(path.with_suffix(".pts"), some_points(seed))
                seed += 1
    return root
