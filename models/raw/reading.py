"""Bayer mosaics from files: cameras' RAW formats through LibRaw, and plain images or arrays whose levels the user tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from .checks import checked
from .frame import RawFrame, checked_levels
from .libraries import library
from .packing import PATTERNS, checked_pattern
from .plain import PLAIN, check_depth, read_counts
from .unprocess import SRGB_TO_XYZ

FINISHED = frozenset((".jpg", ".jpeg", ".webp", ".heic", ".heif", ".avif", ".gif", ".bmp"))
"""Suffixes of finished pictures; some of them can hold RAW (Raspberry Pi), so LibRaw is asked all the same."""
TURNS = {3: "by 180°", 5: "by 90° anticlockwise", 6: "by 90° clockwise"}


def read_raw(
    path: str | Path,
    *,
    pattern: str | None = None,
    black: float | Sequence[float] | None = None,
    white: float | None = None,
) -> RawFrame:
    """The Bayer mosaic in a file, with what was noticed about it among its notes.

    .png, .tif, .tiff and .npy are single-channel mosaics whose `pattern`, `black` (one level or four by position in the cell) and
    `white` must be given. Everything else (DNG, ARW, NEF, CR2, CR3, RAF, ORF, RW2, …) is read by LibRaw, the area without masked
    borders; there the three may be given to overrule the file. An odd last row or column is cut off, and nothing is rotated.

    Raises UserError for a missing, damaged or truncated file, RAW that is not Bayer (with the reason), a picture in the place of
    RAW, missing levels, black ≥ white, an unknown pattern, sides below 2, and a missing rawpy.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file} is {'a folder' if file.is_dir() else 'not there'}", hint="give the path of a RAW file")
    try:
        file.open("rb").close()
    except OSError as error:
        raise UserError(f"{file} can't be opened: {error.strerror or error}", hint="is it readable by you?") from None
    known = None if pattern is None else checked_pattern(pattern)
    if file.suffix.lower() in PLAIN:
        return checked(_plain(file, pattern=known, black=black, white=white))
    return checked(_camera(file, pattern=known, black=black, white=white))


def _plain(file: Path, *, pattern: str | None, black: float | Sequence[float] | None, white: float | None) -> RawFrame:
    """The mosaic of an image or array file."""
    counts = read_counts(file)  # first: a finished picture is refused as such, before anything is asked of it
    missing = [name for name, value in (("pattern", pattern), ("black", black), ("white", white)) if value is None]
    if pattern is None or black is None or white is None:
        raise UserError(
            f"{file} doesn't say its {', '.join(missing)}",
            hint="a mosaic in an image file needs all three, for example pattern=GRBG, black=64, white=1023",
        )
    levels, top = checked_levels(black, white, source=str(file))
    check_depth(counts, file, white=top)
    mosaic, cut = _even(counts, file)
    return RawFrame(mosaic, pattern, levels, top, notes=cut, source=str(file))


def _camera(file: Path, *, pattern: str | None, black: float | Sequence[float] | None, white: float | None) -> RawFrame:
    """The mosaic of a camera's RAW file."""
    rawpy = library("rawpy")
    try:
        with rawpy.imread(str(file)) as raw:
            own = _bayer(raw, file)
            index = np.asarray(raw.raw_pattern)
            levels = [float(level) for level in raw.black_level_per_channel]
            mosaic, cut = _even(raw.raw_image_visible, file)
            notes = [*cut, *_overruled(file, own, pattern), *_geometry(raw.sizes)]
            if black is None and not any(levels):
                notes.append("the file gives no black level: 0 is taken")
            found, top = checked_levels(
                [levels[index[row, column]] for row in (0, 1) for column in (0, 1)] if black is None else black,
                _white(raw, max(levels)) if white is None else white,
                source=str(file),
            )
            return RawFrame(
                mosaic, pattern or own, found, top, gains=_gains(raw), matrix=_matrix(raw), notes=tuple(notes), source=str(file)
            )
    except (rawpy.LibRawError, rawpy.NotSupportedError) as error:
        raise _unreadable(rawpy, file, error) from None


def _bayer(raw: Any, file: Path) -> str:
    """The pattern of the visible area. Raises UserError, with the reason, for RAW that is not Bayer."""
    colours = raw.color_desc.decode("ascii", "replace")
    if raw.raw_type.name != "Flat" or raw.raw_image_visible.ndim != 2:
        why = "each pixel has several values: Foveon, linear DNG, or a stack that the camera made of it (Kodak's YRGB, sRAW)"
    elif raw.raw_pattern is None or raw.raw_pattern.shape == (1, 1):
        why = "its sensor has no colour filters (monochrome)"
    elif raw.raw_pattern.shape == (6, 6):
        why = "its colour filters repeat every 6×6 pixels: Fujifilm X-Trans"
    elif raw.raw_pattern.shape != (2, 2):
        why = f"its colour filters repeat every {raw.raw_pattern.shape[0]}×{raw.raw_pattern.shape[1]} pixels"
    else:
        cell = "".join(colours[at] for at in raw.raw_pattern.ravel())
        if cell in PATTERNS:
            return cell
        quad = ", as the corner of a quad-Bayer mosaic is" if len(set(cell)) < 3 else ""
        why = f"the colours of its 2×2 cell are {cell}{quad}"
    raise UserError(
        f"{file} is RAW but not Bayer: {why}",
        hint="Bayer cells are "
        + ", ".join(PATTERNS)
        + "; a converter (remosaic of quad-Bayer, for one) must make a Bayer DNG first",
    )


def _even(counts: np.ndarray, file: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """A copy of the counts with even sides, and the note that says what was cut. Raises UserError for sides below 2."""
    height, width = counts.shape
    if height < 2 or width < 2:
        raise UserError(f"{file}: a mosaic of {height}×{width} is too small", hint="the 2×2 cell is the least")
    cut = [name for name, side in (("row", height), ("column", width)) if side % 2]
    mosaic = np.array(counts[: height - height % 2, : width - width % 2], dtype=np.uint16)
    return mosaic, (f"the odd last {' and '.join(cut)} of {height}×{width} was cut off",) if cut else ()


def _overruled(file: Path, own: str, pattern: str | None) -> tuple[str, ...]:
    return (f"the pattern {pattern} was given, {file.name} itself says {own}",) if pattern not in {None, own} else ()


def _geometry(sizes: Any) -> list[str]:
    notes = [f"the file asks to be turned {TURNS[sizes.flip]}: the mosaic is not turned"] if sizes.flip in TURNS else []
    if abs(sizes.pixel_aspect - 1) > 0.01:
        notes.append(f"pixels are not square: width to height is {sizes.pixel_aspect:.3g}")
    return notes


def _white(raw: Any, black: float) -> float:
    """The saturation level: the file's own per-channel one where it is plausible, else LibRaw's."""
    top = float(raw.white_level)
    stated = [float(level) for level in raw.camera_white_level_per_channel or () if level > 0]
    # makers write odd numbers there too; below half of the range it can't be saturation
    return min(stated) if stated and max(black, top / 2) < min(stated) < top else top


def _gains(raw: Any) -> tuple[float, float, float] | None:
    """White-balance gains as shot, green = 1; None where the file has none."""
    red, green, blue = (float(gain) for gain in raw.camera_whitebalance[:3])
    if not (np.isfinite([red, green, blue]).all() and min(red, green, blue) > 0):
        return None
    return red / green, 1.0, blue / green


def _matrix(raw: Any) -> np.ndarray | None:
    """float64 (3, 3): white-balanced camera RGB → linear sRGB, rows of sum 1; None where neither file nor LibRaw knows it.

    From the camera's XYZ → RGB matrix as dcraw does: with sRGB in front, rows scaled so that white stays white, inverted.
    """
    from_xyz = np.asarray(raw.rgb_xyz_matrix, np.float64)[:3]
    if np.isfinite(from_xyz).all() and np.abs(from_xyz).sum(axis=1).all():
        forward = from_xyz @ SRGB_TO_XYZ
        sums = forward.sum(axis=1, keepdims=True)
        if (sums > 0).all() and abs(np.linalg.det(forward)) > 1e-6:
            return np.linalg.inv(forward / sums)
    direct = np.asarray(raw.color_matrix, np.float64)[:, :3]
    # white must stay white in a matrix that takes balanced colours
    return direct if np.isfinite(direct).all() and np.allclose(direct.sum(axis=1), 1, atol=0.02) else None


def _unreadable(rawpy: Any, file: Path, error: Exception) -> UserError:
    """What LibRaw's error means to the user."""
    said = error.args[0] if error.args else ""
    words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    if isinstance(error, rawpy.LibRawFileUnsupportedError):
        if kind := _picture(file):
            return UserError(
                f"{file} is a finished picture ({kind}), not RAW",
                hint="the camera's own RAW file is wanted (DNG, ARW, NEF, CR3, …)",
            )
        return UserError(
            f"{file} is no RAW file that LibRaw {'.'.join(map(str, rawpy.libraw_version))} knows",
            hint="DNG is read of nearly every camera; a mosaic may also be given as .png, .tif or .npy",
        )
    if isinstance(error, (rawpy.LibRawIOError, rawpy.LibRawDataError)):
        return UserError(f"{file} is truncated or damaged: {words}", hint="copy it from the camera again")
    return UserError(f"{file} can't be read: {words}", hint="is it a whole RAW file of a camera?")


def _picture(file: Path) -> str | None:
    """The format of a finished picture, by its contents or else its suffix; None for what may be RAW, as any TIFF may."""
    try:
        with Image.open(file) as image:
            found = image.format
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return file.suffix[1:].upper() if file.suffix.lower() in FINISHED else None
    return None if found == "TIFF" else found
