"""RAW files of one camera and finished pictures that have nothing to do with them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import digest_of
from ..raw.frame import RawFrame
from ..raw.reading import FINISHED, read_raw
from .isp_data import ArrayPatches, ArrayPictures, IspData, Sensor, grid, split_of
from .sources_folder import SUFFIXES, look_at_all, report_bad
from .sources_isp_photos import PARTS, pictures_of
from .task import Split

log = logging.getLogger(__name__)
BESIDE = frozenset((".txt", ".md", ".xmp", ".json", ".pp3", ".dop", ".thm"))
"""Suffixes of what lies beside RAW files and is none."""
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
"""Of the width of each frame, where there are too few frames to split by frame."""
FEWEST = 5


def open_raws(
    root: Path,
    *,
    size: tuple[int, int],
    pattern: str | None,
    black: float | Sequence[float] | None,
    white: float | None,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    patches: int,
    skip_bad: bool,
) -> IspData:
    """Patches of the frames under root/raw, up to `patches` of each, and of the pictures under root/rgb as the unpaired ones.

    One network serves one camera: all frames have the same phase; levels that differ are brought to those of the first. Frames are
    split as a whole by `seed`; fewer than five are each divided from left to right (70, 15 and 15 % of the width), and a note says so.

    Raises UserError for missing folders, files that can't be read (unless `skip_bad`), phases that differ, and frames that are too small.
    """
    files = _files(root / "raw", "RAW files (DNG, ARW, NEF …, or mosaics as .png, .tif or .npy with pattern, black and white)")
    files = [path for path in files if path.suffix.lower() not in BESIDE | FINISHED]
    frames = _frames(files, pattern=pattern, black=black, white=white, skip_bad=skip_bad)
    sensor = _sensor(frames)
    notes = [f"{Path(frame.source).name}: {note}" for frame in frames for note in frame.notes]
    if len(frames) < FEWEST:
        notes.append(
            f"{len(frames)} frame(s) are too few to split by frame: each is divided from left to right, so the splits share scenes"
        )
        areas = {part: [(frame, _band(frame, part, size)) for frame in frames] for part in PARTS}
    else:
        drawn = split_of(len(frames), seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, what="RAW files")
        areas = {part: [(frames[i], (0, frames[i].size[1])) for i in drawn[part]] for part in PARTS}
    parts: dict[Split, ArrayPatches] = {}
    for part in PARTS:
        found = [_cut(frame, band, sensor, size=size, count=patches) for frame, band in areas[part]]
        counts = np.concatenate(found)
        if not len(counts):
            raise UserError(
                f"no frame has room for a {part} patch of {size[0]}×{size[1]}", hint="a smaller size, or larger or more frames"
            )
        parts[part] = ArrayPatches(counts[np.random.default_rng(0).permutation(len(counts))])
    pool, digests = _pool(root / "rgb", size=size, patches=patches, skip_bad=skip_bad)
    hashes = [hashlib.sha256(parts[part].counts.tobytes()).hexdigest() for part in PARTS]
    content = digest_of([hashes, digests, size, patches, sensor.pattern, sensor.black, sensor.white])
    return IspData(parts, pool, sensor, content, tuple(notes))


def _files(folder: Path, wanted: str) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")) if folder.is_dir() else []
    if not found:
        raise UserError(
            f"{folder} {'is empty' if folder.is_dir() else 'is not there'}", hint=f"raws:DIR wants {wanted} in {folder}"
        )
    return found


def _frames(
    files: list[Path], *, pattern: str | None, black: float | Sequence[float] | None, white: float | None, skip_bad: bool
) -> list[RawFrame]:
    frames = []
    for path in files:
        try:
            frames.append(read_raw(path, pattern=pattern, black=black, white=white))
        except UserError as error:
            if not skip_bad:
                raise
            log.warning("left out: %s", error)
    if not frames:
        raise UserError("no RAW file could be read", hint="see the warnings above: each file's reason is there")
    return frames


def _sensor(frames: list[RawFrame]) -> Sensor:
    first = frames[0]
    for frame in frames:
        if frame.pattern != first.pattern:
            raise UserError(
                f"{frame.source} is {frame.pattern}, {first.source} is {first.pattern}",
                hint="one network serves one camera: keep a folder for each",
            )
    return Sensor(first.pattern, first.black, first.white)


def _band(frame: RawFrame, part: Split, size: tuple[int, int]) -> tuple[int, int]:
    """First and last column (excluded) of a split's share of a frame, in whole patches; each split gets one at least."""
    columns = frame.size[1] // size[1]
    least = {name: max(1, round(SHARES[name] * columns)) for name in ("val", "test")}
    train = columns - sum(least.values())
    if train < 1:
        raise UserError(
            f"{frame.source} of {frame.size[0]}×{frame.size[1]} is too narrow for three splits of {size[0]}×{size[1]} patches",
            hint="a smaller size, or five frames or more",
        )
    edges = {"train": (0, train), "val": (train, train + least["val"]), "test": (train + least["val"], columns)}
    return edges[part][0] * size[1], edges[part][1] * size[1]


def _cut(frame: RawFrame, band: tuple[int, int], sensor: Sensor, *, size: tuple[int, int], count: int) -> np.ndarray:
    """uint16 (n, H, W): patches between two columns, counts brought to the sensor's levels."""
    mosaic = frame.mosaic[:, band[0] : band[1]]
    rng = np.random.default_rng([0, *(int(n) for n in mosaic.shape)])
    places = grid(mosaic.shape, size, count, rng)
    if not places:
        return np.empty((0, *size), np.uint16)
    found = np.stack([mosaic[top : top + size[0], left : left + size[1]] for top, left in places])
    if (frame.black, frame.white) == (sensor.black, sensor.white):
        return found
    for site, (black, wanted) in enumerate(zip(frame.black, sensor.black, strict=True)):
        part = found[:, site // 2 :: 2, site % 2 :: 2]
        levelled = wanted + (part.astype(np.float32) - black) * ((sensor.white - wanted) / (frame.white - black))
        part[...] = np.clip(np.rint(levelled), 0, 65535).astype(np.uint16)
    return found


def _pool(folder: Path, *, size: tuple[int, int], patches: int, skip_bad: bool) -> tuple[ArrayPictures, list[str]]:
    """Patches of the unpaired pictures, and the files' digests."""
    paths = [
        path for path in _files(folder, "finished pictures (JPEG, PNG) of other scenes") if path.suffix.lower() in SUFFIXES
    ]
    looks = look_at_all(paths)
    report_bad({path: look.problem for path, look in looks.items() if look.problem}, total=len(looks), skip_bad=skip_bad)
    good = [p for p in paths if not looks[p].problem and looks[p].size[0] >= size[0] and looks[p].size[1] >= size[1]]
    if not good:
        raise UserError(
            f"{folder} has no picture of {size[0]}×{size[1]} or more", hint="finished photographs, several megapixels each"
        )
    pixels = np.concatenate([pictures_of(path, looks[path].digest, size=size, count=patches) for path in good])
    return ArrayPictures(pixels), [looks[path].digest for path in good]
