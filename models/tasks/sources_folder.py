"""Folders of images, one folder per class, decoded when they are asked for."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from ..files import digest_of
from .images import Dataset

log = logging.getLogger("trimtab")

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"))
GREY_MODES = frozenset(("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"))
THREADS = min(8, os.cpu_count() or 1)
"""Decoding leaves Python's lock to others, so a batch is decoded by several threads."""


@dataclass(frozen=True)
class FileImages:
    """Image files; each is decoded at every read, cropped around its centre to the aspect ratio of `shape` and scaled.

    With `stretch` nothing is cropped: height and width are scaled each by its own factor.
    """

    paths: tuple[str, ...]
    targets: np.ndarray
    shape: tuple[int, int, int]
    stretch: bool = field(default=False, kw_only=True)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 pixels (n, C, H, W). Raises UserError for a file that was readable at the start and no longer is."""
        paths = [self.paths[int(i)] for i in indices]
        with ThreadPoolExecutor(THREADS) as pool:
            return np.stack(list(pool.map(self._decode, paths)))

    def take(self, indices: np.ndarray) -> FileImages:
        """The images at these positions, in this order."""
        return replace(self, paths=tuple(self.paths[int(i)] for i in indices), targets=self.targets[indices])

    def resized(self, size: tuple[int, int]) -> FileImages:
        """The same files, read at (H, W)."""
        return replace(self, shape=(self.shape[0], *size))

    def _decode(self, path: str) -> np.ndarray:
        channels, height, width = self.shape
        plain = decoded(path, channels=channels)
        fitted = plain
        if plain.size != (width, height):
            way = Image.Resampling.BILINEAR
            fitted = plain.resize((width, height), way) if self.stretch else ImageOps.fit(plain, (width, height), way)
        return np.atleast_3d(np.asarray(fitted)).transpose(2, 0, 1)


def decoded(path: str, *, channels: int) -> Image.Image:
    """The picture, turned upright by its EXIF tag, as 8-bit grey (1 channel) or RGB (3). Raises UserError when it cannot be read."""
    try:
        with Image.open(path) as image:
            return _eight_bit(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} can no longer be read: {error}", hint="it was readable when the folder was opened") from None


@dataclass(frozen=True)
class Found:
    """What the first look at a file told: its digest, its size (H, W) after rotation, whether it is grey, and whether it has one
    single colour; or what is wrong."""

    digest: str = ""
    size: tuple[int, int] = (0, 0)
    grey: bool = False
    problem: str = ""
    constant: bool = False


def open_folder(root: Path, *, size: tuple[int, int] | None, skip_bad: bool) -> Dataset:
    """The data set under `root`: train/CLASS/… with val/CLASS/… or test/CLASS/… or both.

    With val/ alone, val/ is the test split and validation comes out of train/: nothing is ever chosen on the images that
    give the final figure. Classes are the sorted folder names. Without `size`, the first training image's counts. The
    channels are 1 when every image is grey, else 3. Every file is decoded once here; the broken ones are named.

    Raises UserError for missing or empty folders, unequal classes, and broken images (unless `skip_bad`).
    """
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" not in parts or len(parts) == 1:
        there = ", ".join(sorted(p.name for p in root.iterdir())[:10]) if root.is_dir() else "no folder"
        raise UserError(
            f"{root} needs train/ and val/ or test/; there is: {there or 'nothing'}",
            hint="lay the images out as train/CLASS/image.jpg and val/CLASS/image.jpg",
        )
    if "test" not in parts:
        parts["test"] = parts.pop("val")
    classes = _classes(parts["train"])
    for folder in parts.values():
        _same_classes(classes, folder, parts["train"])
    listed = {name: _list_files(folder, classes) for name, folder in parts.items()}
    looks = look_at_all([path for files in listed.values() for path, _ in files])
    report_bad({path: look.problem for path, look in looks.items() if look.problem}, total=len(looks), skip_bad=skip_bad)
    good = {name: [(path, label) for path, label in files if not looks[path].problem] for name, files in listed.items()}
    for name, files in good.items():
        _every_class(files, classes, parts[name])
    first = looks[good["train"][0][0]]
    channels = 1 if all(looks[path].grey for files in good.values() for path, _ in files) else 3
    shape = (channels, *(size or first.size))
    images = {
        name: FileImages(tuple(str(path) for path, _ in files), np.array([label for _, label in files], dtype=np.int64), shape)
        for name, files in good.items()
    }
    content = digest_of({name: [(looks[path].digest, label) for path, label in files] for name, files in good.items()})
    return Dataset(images["train"], images.get("val"), images["test"], classes, flips=True, content=content)


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(names) < 2:
        raise UserError(
            f"{folder} holds {len(names)} class folder(s){': ' + names[0] if names else ''}",
            hint="classification needs two or more, each a folder of images",
        )
    return names


def _same_classes(classes: tuple[str, ...], folder: Path, train: Path) -> None:
    other = _classes(folder)
    if other != classes:
        lacking, extra = sorted(set(classes) - set(other)), sorted(set(other) - set(classes))
        said = [f"{folder} lacks {', '.join(lacking)}"] if lacking else []
        said += [f"{train} lacks {', '.join(extra)}"] if extra else []
        raise UserError(f"the class folders differ: {'; '.join(said)}", hint="every split needs the same class folders")


def _list_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """(path, label) of all image files, by class and name; other files are counted in a warning."""
    files: list[tuple[Path, int]] = []
    others = 0
    for label, name in enumerate(classes):
        visible = sorted(p for p in (folder / name).rglob("*") if p.is_file() and not p.name.startswith("."))
        pictures = [(p, label) for p in visible if p.suffix.lower() in SUFFIXES]
        others += len(visible) - len(pictures)
        files += pictures
    if others:
        log.warning("%s: %d file(s) are not images by their ending and were left out", folder, others)
    return files


def _every_class(files: list[tuple[Path, int]], classes: tuple[str, ...], folder: Path) -> None:
    present = {label for _, label in files}
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        raise UserError(
            f"{folder} has no readable image of {', '.join(empty)}",
            hint=f"put images ({', '.join(sorted(SUFFIXES))}) into each class folder",
        )


def look_at_all(paths: list[Path]) -> dict[Path, Found]:
    """What each file is, in order, looked at by several threads."""

    def portions() -> Iterator[list[Path]]:
        for start in range(0, len(paths), 2048):
            yield paths[start : start + 2048]

    looks: dict[Path, Found] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for portion in portions():
            looks.update(zip(portion, pool.map(_look, portion), strict=True))
            if len(paths) > 2048:
                log.info("checked %d of %d images", len(looks), len(paths))
    return looks


def _look(path: Path) -> Found:
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode == "F":
                return Found(problem="holds floating-point pixels, which have no fixed range")
            width, height = ImageOps.exif_transpose(image).size
            bands = np.reshape(image.getextrema(), (-1, 2))
            return Found(
                hashlib.sha256(data).hexdigest(),
                (height, width),
                image.mode in GREY_MODES,
                constant=bool((bands[:, 0] == bands[:, 1]).all()),
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's message ends in the address of our buffer, which helps nobody
        said = "not an image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        return Found(problem=said)


def report_bad(bad: dict[Path, str], *, total: int, skip_bad: bool) -> None:
    """None; a warning that names the broken files when `skip_bad`. Raises UserError that names them otherwise."""
    if not bad:
        return
    lines = [f"  {path}: {problem}" for path, problem in list(bad.items())[:10]]
    if len(bad) > 10:
        lines.append(f"  … and {len(bad) - 10} more")
    text = f"{len(bad)} of {total} images cannot be read:\n" + "\n".join(lines)
    if not skip_bad:
        raise UserError(text, hint="repair or remove them, or leave them out with skip_bad")
    log.warning("left out: %s", text)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image with 16-bit grey scaled to 8 bits, where Pillow's own conversion would clip."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
