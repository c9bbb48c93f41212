"""Masks of anomalous pictures: which file belongs to which picture, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import digest_of
from .anomaly_data import GOOD, some
from .sources_folder import SUFFIXES

COVERED = 0.5
"""A pixel of the shrunk mask is anomalous from this share of anomalous area on."""


@dataclass(frozen=True)
class Masks:
    """Mask files by (kind, the picture's name without ending), in the order in which they are united."""

    files: Mapping[tuple[str, str], tuple[Path, ...]] = field(default_factory=dict)

    @staticmethod
    def under(root: Path) -> Masks:
        """Those in `root`/KIND: NAME_mask.png (MVTec), NAME.png (VisA), or NAME/*.png, one a defect (LOCO)."""
        found: dict[tuple[str, str], list[Path]] = {}
        for path in sorted(root.rglob("*")) if root.is_dir() else []:
            if not path.is_file() or path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            kind, *rest = path.relative_to(root).parts
            if rest:
                name = Path(rest[0]).stem.removesuffix("_mask") if len(rest) == 1 else rest[0]
                found.setdefault((kind.removesuffix("_anomalies"), name), []).append(path)
        return Masks({key: tuple(paths) for key, paths in found.items()})

    def of_normals(self, kind: str) -> list[str]:
        """The names of masks that were made for this kind, of which some pixel is marked."""
        return [name for (of, name), paths in self.files.items() if of == kind and any(_marked(path).any() for path in paths)]


@dataclass(frozen=True)
class Read:
    """Masks uint8 (N, H, W) in the pictures' order (None without any), a digest over their content, and what was noticed."""

    masks: np.ndarray | None
    digest: str
    notes: tuple[str, ...] = ()


def read_masks(
    paths: Sequence[Path],
    kinds: Sequence[str],
    masks: Masks,
    sizes: Mapping[Path, tuple[int, int]],
    size: tuple[int, ...],
) -> Read:
    """The masks of these pictures, shrunk to `size` (H, W); without any mask file None and a note.

    Raises UserError for an anomalous picture without a mask where others have one, for a mask without a picture, for one that
    cannot be read, and for one whose size is not its picture's (`sizes`).
    """
    wanted = {(kind, path.stem): i for i, (path, kind) in enumerate(zip(paths, kinds, strict=True)) if kind != GOOD}
    given = {key: files for key, files in masks.files.items() if key[0] != GOOD}
    if not given:
        return Read(None, "", ("there are no masks: figures are per picture, pixels are not judged",))
    if lacking := [paths[i] for key, i in wanted.items() if key not in given]:
        raise UserError(
            f"{len(lacking)} anomalous picture(s) have no mask, others do: {some(lacking)}",
            hint="masks lie in ground_truth/KIND as NAME_mask.png, NAME.png or NAME/*.png; without any, pixels are not judged",
        )
    if len(wanted) < sum(kind != GOOD for kind in kinds):
        raise UserError(
            "two anomalous pictures of one kind have the same name but for their ending: whose mask is whose?",
            hint="rename one of them and its mask",
        )
    if alone := [files[0] for key, files in given.items() if key not in wanted]:
        raise UserError(
            f"{len(alone)} mask(s) have no picture in test/: {some(alone)}", hint="remove them, or bring the pictures"
        )
    out = np.zeros((len(paths), *size), dtype=np.uint8)
    digests, empty = [], []
    for key, i in wanted.items():
        whole = _united(given[key], paths[i], sizes[paths[i]])
        digests.append((str(key), hashlib.sha256(np.packbits(whole).tobytes()).hexdigest()))
        out[i] = shrunk(whole, (size[0], size[1]))
        empty += [] if whole.any() else [given[key][0]]
    notes = (f"{len(empty)} mask(s) mark nothing, though their pictures count as anomalous: {some(empty)}",) if empty else ()
    return Read(out, digest_of(digests), notes)


def _united(files: Sequence[Path], picture: Path, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W): what any of a picture's masks marks."""
    whole = np.zeros(size, dtype=bool)
    for path in files:
        mask = _marked(path)
        if mask.shape != size:
            raise UserError(
                f"{path} has size {mask.shape[0]}×{mask.shape[1]}, its picture {picture} {size[0]}×{size[1]}",
                hint="a mask has the size of its picture, 0 where it is normal",
            )
        whole |= mask
    return whole


def _marked(path: Path) -> np.ndarray:
    """bool (H, W): where the file is not 0."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the mask {path} cannot be read: {error}", hint="repair it, or remove ground_truth/") from None
    return np.asarray((pixels if pixels.ndim == 2 else pixels[..., :3].max(-1)) > 0)


def shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 `size` of a mask bool (H, W): 1 where half of a pixel's area is marked; the fullest pixels, where nothing would remain."""
    if mask.shape == size:
        return mask.astype(np.uint8)
    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX))
    limit = min(COVERED, float(share.max()))
    return ((share >= limit) & (share > 0)).astype(np.uint8)
