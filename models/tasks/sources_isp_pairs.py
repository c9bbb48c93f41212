"""Published pairs of RAW and picture patches: Zurich RAW-to-RGB and Fujifilm UltraISP, read where their owners keep them.

Ignatov et al., Replacing Mobile Camera ISP with a Single Deep Learning Model, CVPR workshops 2020 (Zurich: Huawei P20 and Canon 5D);
Ignatov et al., MicroISP, ECCV workshops 2022 (UltraISP: a Sony IMX586 behind MediaTek's platform, and Fujifilm GFX100).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import digest_of
from ..raw.frame import checked_levels
from ..raw.packing import checked_pattern
from ..raw.plain import read_counts
from ..raw.reading import read_raw
from .isp_data import IspData, Sensor, share_of
from .sources_folder import decoded
from .task import Split

FOLDERS = {"zurich": ("huawei_raw", "canon"), "fujifilm": ("mediatek_raw", "fujifilm")}
"""Folders of mosaics and of pictures inside train/, val/ and test/."""
BLACK = (58.0, 60.0, 61.0, 62.0)
"""By the cell's sites in reading order, as the released code of Arhire & Timofte (CVPRW 2025) has them."""
WHITE = 1023.0
RAWS = frozenset((".png", ".tif", ".tiff", ".npy"))
PICTURES = frozenset((".png", ".jpg", ".jpeg"))


@dataclass(frozen=True)
class FilePatches:
    """Pairs of files, decoded at every read and cut to `size` from the middle, where both keep the mosaic's phase."""

    raws: tuple[Path, ...]
    finished: tuple[Path, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.raws)

    def mosaics(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint16 counts (n, H, W). Raises UserError for a file that is no mosaic or too small."""
        return np.stack([self._mosaic(self.raws[int(i)]) for i in indices])

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (n, 3, H, W)."""
        return np.stack([self._picture(self.finished[int(i)]) for i in indices])

    def take(self, indices: np.ndarray) -> FilePatches:
        """The pairs at these positions, in this order."""
        chosen = [int(i) for i in indices]
        return FilePatches(tuple(self.raws[i] for i in chosen), tuple(self.finished[i] for i in chosen), self.size)

    def _mosaic(self, path: Path) -> np.ndarray:
        counts = read_counts(path)
        return np.asarray(self._middle(counts, path), np.uint16)

    def _picture(self, path: Path) -> np.ndarray:
        return self._middle(np.asarray(decoded(str(path), channels=3)).transpose(2, 0, 1), path)

    def _middle(self, values: np.ndarray, path: Path) -> np.ndarray:
        height, width = values.shape[-2:]
        top, left = ((have - want) // 4 * 2 for have, want in zip((height, width), self.size, strict=True))
        if top < 0 or left < 0:
            raise UserError(
                f"{path} is {height}×{width}, patches are {self.size[0]}×{self.size[1]}", hint="choose a smaller size"
            )
        return values[..., top : top + self.size[0], left : left + self.size[1]]


@dataclass(frozen=True)
class FilePictures:
    """The finished pictures of pairs, without their mosaics."""

    pairs: FilePatches

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (n, 3, H, W)."""
        return self.pairs.pictures(indices)


def open_pairs(
    root: Path,
    kind: str,
    *,
    size: tuple[int, int] | None,
    pattern: str | None,
    black: float | Sequence[float] | None,
    white: float | None,
    seed: int,
    val_fraction: float,
) -> IspData:
    """The pairs under `root`, in the layout of `kind` ("zurich", "fujifilm"): train/, test/, and val/ or a part of train drawn by `seed`.

    `size` is that of the files unless given. The unpaired pictures are the training pictures, drawn at random, as in the paper. RGGB,
    the levels of the released code, unless told otherwise. Raises UserError for missing folders, files without a partner, and the
    first file that is no mosaic.
    """
    levels, top = checked_levels(BLACK if black is None else black, WHITE if white is None else white, source=kind)
    phase = checked_pattern(pattern or "RGGB")
    splits: tuple[Split, ...] = ("train", "val", "test")
    listed = {part: _pairs(root / part, kind) for part in splits if (root / part).is_dir()}
    if "train" not in listed or "test" not in listed:
        raise UserError(
            f"{root} needs train/ and test/",
            hint=f"{kind}:DIR is laid out as train/{FOLDERS[kind][0]}/NAME.png and train/{FOLDERS[kind][1]}/NAME",
        )
    first = read_raw(listed["train"][0][0], pattern=phase, black=levels, white=top)
    chosen = size or first.size
    parts = {
        part: _shuffled(FilePatches(tuple(r for r, _ in pairs), tuple(p for _, p in pairs), chosen))
        for part, pairs in listed.items()
    }
    if "val" not in parts:
        whole = parts["train"]
        held = share_of(len(whole), val_fraction, "val_fraction")
        if held >= len(whole):
            raise UserError(f"{root}: {len(whole)} training pair(s) can't give {held} to validation", hint="add pairs, or val/")
        order = np.random.default_rng(seed).permutation(len(whole))
        parts["train"], parts["val"] = whole.take(np.sort(order[held:])), whole.take(np.sort(order[:held]))
    # tens of thousands of files: their names and sizes stand for their content
    names = {part: [(p.name, p.stat().st_size) for p in files.raws] for part, files in parts.items()}
    content = digest_of([kind, names, chosen, phase, levels, top])
    return IspData(parts, FilePictures(parts["train"]), Sensor(phase, levels, top), content, first.notes)


def _shuffled(patches: FilePatches) -> FilePatches:
    return patches.take(np.random.default_rng(0).permutation(len(patches)))


def _pairs(folder: Path, kind: str) -> list[tuple[Path, Path]]:
    """The mosaics of a split with their pictures, by name. Raises UserError when one lacks the other."""
    raws, pictures = (
        {p.stem: p for p in sorted((folder / name).glob("*")) if p.suffix.lower() in suffixes}
        for name, suffixes in zip(FOLDERS[kind], (RAWS, PICTURES), strict=True)
    )
    alone = sorted(raws.keys() ^ pictures.keys())
    if not raws or alone:
        said = f"{len(alone)} without a partner, such as {alone[0]!r}" if alone else "no mosaics"
        raise UserError(
            f"{folder} has {said}", hint=f"{FOLDERS[kind][0]}/NAME.png and {FOLDERS[kind][1]}/NAME.png (or .jpg) go together"
        )
    return [(raws[stem], pictures[stem]) for stem in raws]
