"""Sensor counts out of PNG, TIFF and NumPy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError

PLAIN = frozenset((".png", ".tif", ".tiff", ".npy"))
MOST = 65535
SIXTEEN = "save it as one channel of 16 bits: the sensor's counts, unscaled"


def read_counts(file: Path) -> np.ndarray:
    """The counts of a single-channel file, integers (H, W) in 0…65535; an array file stays on the disk.

    Raises UserError for a file that can't be decoded, colour pictures, and other types of number.
    """
    counts = _array(file) if file.suffix.lower() == ".npy" else _image(file)
    if counts.ndim != 2:
        raise UserError(
            f"{file} holds values of shape {counts.shape}{_meaning(counts.shape)}",
            hint=f"one mosaic (H, W) is wanted; {SIXTEEN}",
        )
    if counts.dtype.kind not in "iu":
        raise UserError(f"{file} holds {counts.dtype}, not counts", hint="whole numbers are wanted, such as uint16")
    if counts.size and counts.dtype != np.uint16 and not (int(counts.min()) >= 0 and int(counts.max()) <= MOST):
        raise UserError(f"{file} holds values in {counts.min()}…{counts.max()}", hint=f"sensor counts lie in 0…{MOST}")
    return counts


def check_depth(counts: np.ndarray, file: Path, *, white: float) -> None:
    """Raises UserError for counts of 8 bits with a white level that they can't reach."""
    if counts.dtype.itemsize == 1 and white > 255:
        raise UserError(
            f"{file} has 8 bits, but the white level is {white:g}",
            hint="an 8-bit picture is no RAW: use the file as the sensor gave it, or say a white level of at most 255 if it really is",
        )


def _array(file: Path) -> np.ndarray:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{file} can't be read: {error}", hint="a .npy file of whole numbers (H, W) is wanted, saved without pickle"
        ) from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{file} is an archive of arrays", hint="save the mosaic alone, with numpy.save")
    return found


def _image(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            image.load()
            mode, size, pages = image.mode, image.size, getattr(image, "n_frames", 1)
            counts = np.asarray(image)
    except UnidentifiedImageError:
        raise UserError(
            f"{file} is not an image that Pillow can decode",
            hint="a TIFF with a camera's own colour filter tags may be a DNG: name it .dng",
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is truncated or damaged: {error}", hint="write it again, or copy it again") from None
    if pages > 1:
        raise UserError(f"{file} holds {pages} pictures", hint="save the mosaic alone")
    if mode not in {"L", "I", "I;16", "I;16B", "I;16L", "F"}:
        raise UserError(
            f"{file} is a picture of mode {mode}, {size[1]}×{size[0]}, not a mosaic",
            hint=f"RAW has one value per pixel and no colours yet; {SIXTEEN}",
        )
    return counts


def _meaning(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and 3 in {shape[0], shape[2]}:
        return ", an RGB picture and not a mosaic"
    return ", four colours already apart" if len(shape) == 3 and 4 in {shape[0], shape[2]} else ""
