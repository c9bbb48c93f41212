"""Folders in MVTec AD's layout, which LOCO, VisA (prepared) and users' own share: train/good, test/KIND, ground_truth/KIND.

Sources of the layouts: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021; Bergmann et al., Beyond Dents and Scratches: Logical
Constraints in Unsupervised Anomaly Detection and Localization (MVTec LOCO AD), IJCV 2022; Zou et al., SPot-the-Difference
Self-supervised Pre-training for Anomaly Detection and Segmentation (VisA), ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import digest_of
from .anomaly_data import GOOD, AnomalyData, Part, constant_note, in_memory, some
from .sources_anomaly_masks import Masks, read_masks
from .sources_folder import SUFFIXES, FileImages, Found, look_at_all, report_bad

MEMORY_BYTES = 1 << 30
"""Pictures of a split that need no more are decoded once and held; larger ones are decoded at every read."""


@dataclass(frozen=True)
class Listed:
    """Picture files of one split, in order, and the kind of each."""

    paths: tuple[Path, ...]
    kinds: tuple[str, ...]


def open_layout(root: Path, *, own_validation: bool, size: tuple[int, int] | None, skip_bad: bool) -> AnomalyData:
    """The pictures under `root`, stretched to `size` (the first training picture's own without it) in colour.

    With `own_validation` (LOCO) validation/good is the validation split. Raises UserError for missing folders, for anomalies among
    the training pictures, for pictures that cannot be read (unless `skip_bad`), and for masks that do not fit (see `read_masks`).
    """
    train, val, test = _listed(root, own_validation)
    masks = Masks.under(root / "ground_truth")
    if misplaced := masks.of_normals(GOOD):
        raise UserError(
            f"{root / 'ground_truth' / GOOD} holds masks for normal pictures: {some(misplaced)}",
            hint="normal pictures have no mask: are there defects among them? move those to test/KIND",
        )
    return assembled(root, {"train": train, "val": val, "test": test}, masks, size=size, skip_bad=skip_bad)


def assembled(
    root: Path,
    listed: Mapping[str, Listed | None],
    masks: Masks,
    *,
    size: tuple[int, int] | None,
    skip_bad: bool,
) -> AnomalyData:
    """The data of these files: looked at, checked, and decoded where they fit into memory."""
    splits = {name: files for name, files in listed.items() if files is not None}
    looks = look_at_all(list(dict.fromkeys(path for files in splits.values() for path in files.paths)))
    report_bad({path: look.problem for path, look in looks.items() if look.problem}, total=len(looks), skip_bad=skip_bad)
    good = {name: _readable(files, looks) for name, files in splits.items()}
    for name, files in good.items():
        if not files.paths:
            raise UserError(f"{root}: no readable picture for {name}", hint=f"endings: {', '.join(sorted(SUFFIXES))}")
    notes = _same_pictures(good, looks)
    shape = (3, *(size or looks[good["train"].paths[0]].size))
    notes += _small(good, looks, shape[1:])
    for name in [name for name in good if name != "test"]:
        flat = [path.name for path in good[name].paths if looks[path].constant]
        notes += constant_note(flat, of=len(good[name].paths), where=str(root / name))
    sizes = {path: look.size for path, look in looks.items()}
    found = read_masks(good["test"].paths, good["test"].kinds, masks, sizes, shape[1:])
    parts = {name: _part(files, shape, found.masks if name == "test" else None) for name, files in good.items()}
    kinds = {name: [(looks[p].digest, kind) for p, kind in zip(f.paths, f.kinds, strict=True)] for name, f in good.items()}
    return AnomalyData(
        parts["train"], parts.get("val"), parts["test"], digest_of([kinds, found.digest]), notes=(*notes, *found.notes)
    )


def _listed(root: Path, own_validation: bool) -> tuple[Listed, Listed | None, Listed]:
    for needed in ("train", "test", *(("validation",) if own_validation else ())):
        if not (root / needed).is_dir():
            there = ", ".join(sorted(p.name for p in root.iterdir())[:10])
            elpv = " (elpv:DIR reads a folder with labels.csv)" if (root / "labels.csv").is_file() else ""
            raise UserError(
                f"{root} has no folder {needed}/; there is: {there or 'nothing'}",
                hint=f"one category, laid out as train/{GOOD}, test/{GOOD}, test/KIND{elpv}",
            )
    train, val = _normals(root / "train"), _normals(root / "validation") if own_validation else None
    kinds = sorted(p.name for p in (root / "test").iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(path, _kind(kind)) for kind in kinds for path in _pictures(root / "test" / kind)]
    test = Listed(tuple(path for path, _ in files), tuple(kind for _, kind in files))
    return train, val, test


def _kind(folder: str) -> str:
    """LOCO's folders are called logical_anomalies and structural_anomalies."""
    return folder.removesuffix("_anomalies")


def _normals(folder: Path) -> Listed:
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if GOOD not in inside:
        raise UserError(
            f"{folder} has no folder {GOOD}/; there is: {some(inside) or 'no folder'}",
            hint=f"normal pictures lie in {folder / GOOD}",
        )
    if others := [name for name in inside if name != GOOD]:
        raise UserError(
            f"{folder} holds {some(others)} beside {GOOD}: anomalies are not for training",
            hint=f"move the other folders to test/, or their pictures to {folder / GOOD} if they are normal",
        )
    paths = _pictures(folder / GOOD)
    return Listed(paths, (GOOD,) * len(paths))


def _pictures(folder: Path) -> tuple[Path, ...]:
    return tuple(
        sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.suffix.lower() in SUFFIXES)
    )


def _readable(files: Listed, looks: Mapping[Path, Found]) -> Listed:
    keep = [i for i, path in enumerate(files.paths) if not looks[path].problem]
    return Listed(tuple(files.paths[i] for i in keep), tuple(files.kinds[i] for i in keep))


def _same_pictures(good: Mapping[str, Listed], looks: Mapping[Path, Found]) -> tuple[str, ...]:
    """A note on test normals that also train. Raises UserError for anomalies of the test that lie among the normals, byte for byte."""
    normal = {looks[path].digest: path for name, files in good.items() if name != "test" for path in files.paths}
    twice = [
        (path, kind) for path, kind in zip(good["test"].paths, good["test"].kinds, strict=True) if looks[path].digest in normal
    ]
    if wrong := [path for path, kind in twice if kind != GOOD]:
        pairs = [f"{normal[looks[path].digest]} = {path}" for path in wrong]
        raise UserError(
            f"{len(wrong)} anomalous test picture(s) lie among the normal ones: {some(pairs)}",
            hint="training sees normal pictures alone: take them out of there",
        )
    if not twice:
        return ()
    return (f"{len(twice)} normal test picture(s) also train, figures will be too good: {some([path for path, _ in twice])}",)


def _small(good: Mapping[str, Listed], looks: Mapping[Path, Found], size: tuple[int, ...]) -> tuple[str, ...]:
    every = [path for files in good.values() for path in files.paths]
    small = [path for path in every if looks[path].size[0] < size[0] or looks[path].size[1] < size[1]]
    if not small:
        return ()
    height, width = looks[small[0]].size
    return (
        f"{len(small)} of {len(every)} pictures are smaller than {size[0]}×{size[1]} and are enlarged, which adds no detail: "
        f"{some([path.name for path in small])} ({height}×{width})",
    )


def _part(files: Listed, shape: Sequence[int], masks: np.ndarray | None) -> Part:
    targets = np.array([int(kind != GOOD) for kind in files.kinds], dtype=np.int64)
    images = FileImages(tuple(map(str, files.paths)), targets, (3, shape[1], shape[2]), stretch=True)
    part = Part(images, files.kinds, masks)
    if len(files.paths) * int(np.prod(shape)) > MEMORY_BYTES:
        return part
    return in_memory(part, images.read(np.arange(len(files.paths))))
