"""RAW files for tests: a DNG writer of a few tags (TIFF 6, Adobe DNG 1.4), and synthetic frames of scikit-learn's photographs."""

import struct
from functools import cache
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_image

from trimtab.models.raw.frame import RawFrame
from trimtab.models.raw.unprocess import Camera, to_camera, unprocess

BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 1, 2, 3, 4, 5, 10
PACKING = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "I", SRATIONAL: "i"}
COLOURS = {"R": 0, "G": 1, "B": 2}
XTRANS = "GBGGRGRGRBGBGBGGRGGRGGBGBGBRGRGRGGBG"
QUAD = "RRGGRRGGGGBBGGBB"
N900 = Path(__file__).parents[2] / "benchmarks" / "data" / "n900_bayer_raw.png"


def fractions(values):
    return [part for value in values for part in (round(value * 10_000), 10_000)]


def write_dng(path, pixels, *, pattern="RGGB", black=None, white=1023, neutral=(0.5, 1.0, 0.625), matrix=None, more=()):
    """A little-endian, uncompressed DNG: (H, W) a mosaic of the pattern, (H, W, 3) linear raw; `more` = further tags."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    tags = {
        254: (LONG, [0]),
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [16] * samples),
        259: (SHORT, [1]),
        262: (SHORT, [32803 if samples == 1 else 34892]),
        271: (ASCII, [*b"Trimtab\0"]),
        272: (ASCII, [*b"Test\0"]),
        273: (LONG, [0]),
        274: (SHORT, [1]),
        277: (SHORT, [samples]),
        278: (LONG, [height]),
        279: (LONG, [pixels.nbytes]),
        284: (SHORT, [1]),
        50706: (BYTE, [1, 4, 0, 0]),
        50707: (BYTE, [1, 1, 0, 0]),
        50708: (ASCII, [*b"Trimtab Test\0"]),
        50717: (LONG, [white] * samples),
    }
    if samples == 1:
        side = {4: 2, 16: 4, 36: 6}[len(pattern)]
        tags[33421] = (SHORT, [side, side])
        tags[33422] = (BYTE, [COLOURS[letter] for letter in pattern])
    if black is not None:
        levels = [black] if isinstance(black, int) else list(black)
        tags[50713] = (SHORT, [1, 1] if len(levels) == 1 else [2, 2])
        tags[50714] = (LONG, levels)
    if neutral is not None:
        tags[50728] = (RATIONAL, fractions(neutral))
    if matrix is not None:
        tags[50721] = (SRATIONAL, fractions(np.ravel(matrix)))
        tags[50778] = (SHORT, [21])
    tags.update(dict(more))
    path.write_bytes(tiff_bytes(tags, pixels.astype("<u2").tobytes()))
    return path


def tiff_bytes(tags, strip):
    """Header, one directory, the values that don't fit into it, then the strip."""
    at = 8 + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    size = sum((len(packed(*tag)) + 1) // 2 * 2 for tag in tags.values() if len(packed(*tag)) > 4)
    tags = {**tags, 273: (LONG, [at + size])}
    for number, (kind, numbers) in sorted(tags.items()):
        data = packed(kind, numbers)
        count = len(numbers) // (2 if kind in (RATIONAL, SRATIONAL) else 1)
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", at + len(values))
        values += b"" if len(data) <= 4 else data + b"\0" * (len(data) % 2)
        entries += struct.pack("<HHI", number, kind, count) + place
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + values + strip


def packed(kind, numbers):
    return struct.pack(f"<{len(numbers)}{PACKING[kind]}", *numbers)


@cache
def photograph(name):
    """uint8 (3, 426, 640): china.jpg or flower.jpg (CC BY 2.0), one row cut."""
    return np.ascontiguousarray(load_sample_image(f"{name}.jpg").transpose(2, 0, 1)[:, :426])


def synthetic(name, *, pattern="RGGB", seed=0, **camera):
    """A synthetic mosaic of a photograph."""
    return unprocess(photograph(name), Camera(pattern=pattern, **camera), np.random.default_rng(seed))


@cache
def cells(name, pattern):
    """uint16 (H, W): the counts (black 63, white 1023) of a photograph under filters of another cell: 4, 16 or 36 letters."""
    side = {4: 2, 16: 4, 36: 6}[len(pattern)]
    made = synthetic(name)
    rgb = to_camera(photograph(name), gains=made.gains, exposure=made.exposure, matrix=made.matrix)
    height, width = (length // (2 * side) * 2 * side for length in rgb.shape[1:])
    mosaic = np.empty((height, width), np.float32)
    for at, letter in enumerate(pattern):
        site = np.s_[at // side : height : side, at % side : width : side]
        mosaic[site] = rgb[(COLOURS[letter], *site)]
    return counts(mosaic)


def counts(signal):
    """uint16: a signal in 0…1 with black at 63 and white at 1023."""
    return np.rint(63 + 960 * np.asarray(signal)).astype(np.uint16)


def framed(mosaic, pattern="RGGB", *, black=63.0, white=1023.0):
    """A frame of these counts, one black level for all sites."""
    return RawFrame(mosaic, pattern, (black,) * 4, white)
