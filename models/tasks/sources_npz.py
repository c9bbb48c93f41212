"""One .npz file with x_train, y_train, x_test, y_test and perhaps x_val, y_val."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import digest_of
from .images import ArrayImages, Dataset, check_targets

NEEDED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("x_val", "y_val", "classes")
CHANNELS = (1, 2, 3, 4)
LIMIT_BYTES = 16 << 30
"""What an archive may unpack to in memory."""
SHAPES = "(N,H,W), (N,H,W,C) or (N,C,H,W) with 1…4 channels"


def open_npz(path: Path) -> Dataset:
    """The data set in one .npz: images uint8, or float in 0…1; labels whole numbers from 0; `classes` may hold their names.

    Raises UserError for missing keys, pickled content (never loaded), and shapes, types or ranges that fit no image.
    """
    arrays = read_arrays(path, needed=NEEDED, optional=OPTIONAL)
    x_train, x_test = (image_pixels(arrays[key], f"{key} in {path}") for key in ("x_train", "x_test"))
    names = _names(arrays, path)
    train = ArrayImages(x_train, _labels(arrays["y_train"], len(x_train), len(names), f"y_train in {path}"))
    test = ArrayImages(x_test, _labels(arrays["y_test"], len(x_test), len(names), f"y_test in {path}"))
    val = None
    if "x_val" in arrays:
        x_val = image_pixels(arrays["x_val"], f"x_val in {path}")
        val = ArrayImages(x_val, _labels(arrays["y_val"], len(x_val), len(names), f"y_val in {path}"))
    for key, part in (("x_test", test), ("x_val", val)):
        if part is not None and part.shape != train.shape:
            raise UserError(
                f"{path}: x_train holds images (C, H, W) = {train.shape}, {key} {part.shape}", hint="all parts need one shape"
            )
    content = digest_of([part.digest() for part in (train, val, test) if part is not None])
    return Dataset(train, val, test, names, flips=False, content=content)


def read_arrays(path: Path, *, needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays under these keys. Raises UserError for missing keys, pickled content (never loaded) and damaged files."""
    damaged = (
        "the file is damaged or of another kind; " + f"save with np.savez(path, {', '.join(f'{key}=…' for key in needed)})"
    )
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not an .npz archive", hint=damaged)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > LIMIT_BYTES:
            raise UserError(
                f"{path} unpacks to {unpacked} bytes", hint=f"at most {LIMIT_BYTES} are read; use folder:PATH for more"
            )
        with np.load(path, allow_pickle=False) as file:
            _check_keys(set(file.files), path, needed, optional)
            return {key: file[key] for key in (*needed, *optional) if key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path} holds pickled objects, which could run code when loaded; they are refused",
                hint="save plain number arrays (uint8 images, integer labels) and string class names, not objects or lists",
            ) from None
        raise UserError(f"{path} is not a readable .npz: {error}", hint=damaged) from None


def _check_keys(keys: set[str], path: Path, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    missing = [key for key in needed if key not in keys]
    if "x_val" in optional and len(keys & {"x_val", "y_val"}) == 1:
        missing += sorted({"x_val", "y_val"} - keys)
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(keys)) or 'nothing'}",
            hint=f"needed: {', '.join(needed)}; optional: {', '.join(optional)}",
        )


def image_pixels(values: np.ndarray, where: str) -> np.ndarray:
    """uint8 (N, C, H, W) of images uint8 or float in 0…1, channels first, last or none. Raises UserError naming `where`."""
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4:
        first, last = values.shape[1] in CHANNELS, values.shape[3] in CHANNELS
        if first == last:
            why = "both its second and its last side could be channels" if first else "no side of it could be channels"
            raise UserError(f"{where} has shape {values.shape}: {why}", hint=f"expected {SHAPES}")
        values = values.transpose(0, 3, 1, 2) if last else values
    else:
        raise UserError(f"{where} has shape {values.shape}", hint=f"expected {SHAPES}")
    if values.size == 0:
        raise UserError(f"{where} is empty (shape {values.shape})", hint="every split needs at least one image")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"{where} has type {values.dtype}", hint="images are uint8 in 0…255 or float in 0…1")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{where} holds floats from {low:g} to {high:g}", hint="float images must lie in 0…1, without NaN; divide by 255?"
        )
    return np.ascontiguousarray(np.round(values * 255).astype(np.uint8))


def _labels(values: np.ndarray, count: int, classes: int, where: str) -> np.ndarray:
    values = values.reshape(len(values)) if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise UserError(
            f"{where} has shape {values.shape} and type {values.dtype}", hint="labels are whole numbers, one per image"
        )
    if len(values) != count:
        raise UserError(f"{where} has {len(values)} labels for {count} images", hint="one label per image, in the same order")
    return check_targets(values, classes=classes, where=where)


def _names(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    if "classes" not in arrays:
        labels = arrays["y_train"]
        top = int(labels.max()) if labels.size and np.issubdtype(labels.dtype, np.integer) else 0
        if top >= 100_000:
            raise UserError(f"y_train in {path} holds label {top}", hint="labels count classes from 0; map them to 0…K−1")
        return tuple(str(i) for i in range(max(top, 0) + 1))
    names = tuple(str(name) for name in arrays["classes"].ravel())
    if len(set(names)) != len(names):
        raise UserError(f"classes in {path} repeats a name: {', '.join(names)}", hint="give each class a name of its own")
    return names
