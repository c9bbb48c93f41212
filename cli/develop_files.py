"""Pictures as files, whole or not at all, and side by side with captions."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .models import files
from .models.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
SETTINGS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 3},  # of 9: a third of the time for a few percent more bytes
    "JPEG": {"quality": 95, "subsampling": 0},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
TURNS = (0, 90, 180, 270)
PANEL = 900
"""The longer side of a picture in a strip, in pixels."""


def check_target(path: Path, *, bits: int) -> str:
    """The kind of file that a path's suffix asks for. Raises UserError for an unknown one, and for 16 bits in another than PNG."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"-o {path}: no picture format {path.suffix!r}", hint="end it with " + ", ".join(KINDS))
    if bits == 16 and kind != "PNG":
        raise UserError(f"16 bits a channel are not written as {kind}", hint=f"-o {path.with_suffix('.png')}")
    return kind


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    """`path`, holding `pixels` (H, W, 3), uint8 or (PNG) uint16, by its suffix. Raises UserError as `check_target` does."""
    bits = 8 * pixels.dtype.itemsize
    kind = check_target(path, bits=bits)
    return files.write_bytes(path, png16(pixels) if bits == 16 else _encoded(pixels, kind))


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **SETTINGS[kind])
    return buffer.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of uint16 (H, W, 3), which Pillow can't write: rows as differences to the row above (filter 2), deflated."""
    height, width, _ = pixels.shape
    deflate = zlib.compressobj(3)
    before = np.zeros(6 * width, np.uint8)
    parts = []
    for row in pixels:
        now = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
        parts.append(deflate.compress(b"\x02" + (now - before).tobytes()))
        before = now
    data = b"".join([*parts, deflate.flush()])
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def check_turn(degrees: int) -> int:
    """The turn, when it is one by quarters. Raises UserError otherwise."""
    if degrees not in TURNS:
        raise UserError(f"--rotate {degrees}: pictures turn by quarters", hint="90, 180 or 270, clockwise")
    return degrees


def turned(pixels: np.ndarray, degrees: int) -> np.ndarray:
    """`pixels` (H, W, …) turned clockwise. Raises UserError for what is no quarter turn."""
    return np.rot90(pixels, -check_turn(degrees) // 90)


def strip(pictures: Sequence[np.ndarray], captions: Sequence[str], *, panel: int = PANEL) -> Image.Image:
    """The pictures (uint8 (H, W, 3)) side by side, shrunk to `panel` pixels on the longer side, a caption under each."""
    from PIL import Image, ImageDraw, ImageFont

    shown = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in pictures]
    for image in shown:
        image.thumbnail((panel, panel), Image.Resampling.LANCZOS)
    size = max(12, panel // 40)
    font = ImageFont.load_default(size)
    gap, foot = size // 2, 2 * size
    height = max(image.height for image in shown)
    width = sum(image.width for image in shown) + gap * (len(shown) + 1)
    sheet = Image.new("RGB", (width, height + foot + gap), "white")
    draw, left = ImageDraw.Draw(sheet), gap
    for image, caption in zip(shown, captions, strict=True):
        sheet.paste(image, (left, gap))
        text = _fitting(caption, image.width, draw, font)
        draw.text((left + image.width / 2, height + gap + foot / 2), text, fill="black", font=font, anchor="mm")
        left += image.width + gap
    return sheet


def _fitting(text: str, width: int, draw: Any, font: Any) -> str:
    """`text`, or as much of its end as fits: of a path the end tells most."""
    if draw.textlength(text, font=font) <= width:
        return text
    while len(text) > 1 and draw.textlength("…" + text, font=font) > width:
        text = text[1:]
    return "…" + text
