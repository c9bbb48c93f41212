"""From a data spec such as "shapes" or "points:DIR" to pictures with points."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, did_you_mean
from ..files import digest_of
from .images import ArrayImages
from .landmark_data import LandmarkData, check_points, relative, stacked
from .sources_folder import THREADS, FileImages, decoded, look_at_all, report_bad
from .sources_landmark_files import PARTS, Record, read_csv, read_sidecars, read_table
from .sources_npz import image_pixels, read_arrays

NAMED = {"shapes": "drawn faces of 21 points, 48×48 grey, 4 000 + 1 000; needs no download"}
WITH_PATH = {
    "points": "a folder of pictures with .pts (or .ljson, .json) files of the same name beside them",
    "csv": "a table: file,x0,y0,x1,y1,… in pixels counted from 0",
    "json": "{file: [[x, y], …], …} in pixels counted from 0",
    "npz": "images (N, H, W[, C]) and points (N, L, 2) [, parts, groups]",
}


@dataclass(frozen=True)
class ViewImages(FileImages):
    """Picture files, each read through a view of its own: `boxes` int64 (N, 4) = left, top, width, height. Outside is black."""

    boxes: np.ndarray

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 pixels (n, C, H, W). Raises UserError for a file that was readable at the start and no longer is."""
        where = [int(i) for i in indices]
        with ThreadPoolExecutor(THREADS) as pool:
            return np.stack(list(pool.map(self._view, where)))

    def take(self, indices: np.ndarray) -> ViewImages:
        """The pictures at these positions, in this order."""
        paths = tuple(self.paths[int(i)] for i in indices)
        return replace(self, paths=paths, targets=self.targets[indices], boxes=self.boxes[indices])

    def _view(self, row: int) -> np.ndarray:
        channels, height, width = self.shape
        left, top, wide, high = map(int, self.boxes[row])
        picture = decoded(self.paths[row], channels=channels).crop((left, top, left + wide, top + high))
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)


def open_landmarks(
    text: str, *, size: tuple[int, int] | None, crop: float | None, margin: float, skip_bad: bool
) -> LandmarkData:
    """The pictures and points that `text` names, viewed at (H, W) = `size` or the first picture's own.

    A view is the whole picture, with black borders where it has another aspect ratio; with `crop` it is the box of its points,
    widened by this fraction of its sides on each side. Raises UserError where data is missing, damaged or doubtful.
    """
    kind, colon, rest = text.partition(":")
    if kind not in NAMED and kind not in WITH_PATH:
        near = did_you_mean(kind, [*NAMED, *WITH_PATH])
        known = ", ".join([*NAMED, *(f"{name}:PATH" for name in WITH_PATH)])
        raise UserError(f"unknown landmark data {text!r}", hint=near if near.startswith("did") else f"known: {known}")
    if kind in NAMED and colon:
        raise UserError(f"data {text!r}: {kind} takes no path", hint=f"write just {kind!r}")
    if crop is not None and kind in ("shapes", "npz"):
        raise UserError(f"crop={crop:g} works on picture files, not on {kind}", hint="leave it out, or cut the arrays yourself")
    if kind == "shapes":
        from .sources_landmark_shapes import shapes

        return _resized(shapes(), size)
    if not rest:
        raise UserError(f"data {text!r} names no path", hint=f"write {kind}:PATH with {WITH_PATH[kind]}")
    path = Path(rest).expanduser()
    if not path.exists():
        raise UserError(f"{path} (from data {text!r}) does not exist", hint="check the path; `ls` its folder")
    if kind == "npz":
        return _resized(_open_npz(path, margin=margin), size)
    records = {"points": read_sidecars, "csv": read_csv, "json": read_table}[kind](path)
    return _open_files(records, size=size, crop=crop, margin=margin, skip_bad=skip_bad)


def _open_files(
    records: Sequence[Record], *, size: tuple[int, int] | None, crop: float | None, margin: float, skip_bad: bool
) -> LandmarkData:
    looks = look_at_all(list(dict.fromkeys(record.path for record in records)))
    report_bad({path: look.problem for path, look in looks.items() if look.problem}, total=len(looks), skip_bad=skip_bad)
    records = [record for record in records if not looks[record.path].problem]
    if not records:
        raise UserError("no picture is left to read", hint="repair the pictures named above")
    names = tuple(str(record.path) for record in records)
    points = stacked([record.points for record in records], names)
    sizes = np.array([looks[record.path].size for record in records])
    check_points(points, sizes, names, margin=margin)
    if crop is not None and size is None:
        raise UserError(f"crop={crop:g} needs a size", hint="say how large the cut views shall be, such as size=(112, 112)")
    height, width = size or looks[records[0].path].size
    boxes = whole_boxes(sizes, (height, width)) if crop is None else point_boxes(points, (height, width), crop=crop)
    grey = all(looks[record.path].grey for record in records)
    images = ViewImages(names, relative(points, boxes), (1 if grey else 3, height, width), boxes)
    content = digest_of([(looks[r.path].digest, r.points.tolist(), r.part) for r in records] + boxes.tolist())
    groups = np.array([record.group for record in records])
    return LandmarkData(images, names, content, _parts([record.part for record in records]), groups)


def whole_boxes(sizes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """int64 (N, 4) = left, top, width, height: the smallest boxes of `size`'s aspect ratio around whole pictures (N, 2) = (H, W)."""
    scale = (sizes / size).max(1, keepdims=True)
    extent = np.maximum(np.round(scale * size).astype(np.int64), sizes)
    corner = -((extent - sizes) // 2)
    return np.concatenate([corner[:, ::-1], extent[:, ::-1]], axis=1)


def point_boxes(points: np.ndarray, size: tuple[int, int], *, crop: float) -> np.ndarray:
    """int64 (N, 4) = left, top, width, height: boxes around points (N, L, 2), widened by `crop` of their sides on each side and
    then to the aspect ratio of (H, W) = `size`."""
    low, high = points.min(1), points.max(1)
    centre = (low + high) / 2 + 0.5
    scale = ((high - low) * (1 + 2 * crop) / (size[1], size[0])).max(1, keepdims=True)
    extent = np.maximum(np.ceil(scale * (size[1], size[0])), 1)
    return np.concatenate([np.round(centre - extent / 2), extent], axis=1).astype(np.int64)


def _open_npz(path: Path, *, margin: float) -> LandmarkData:
    arrays = read_arrays(path, needed=("images", "points"), optional=("parts", "groups"))
    pixels, points = image_pixels(arrays["images"], f"images in {path}"), arrays["points"]
    count = len(pixels)
    if points.ndim == 2 and points.shape[1] % 2 == 0:
        points = points.reshape(len(points), -1, 2)
    if points.ndim != 3 or points.shape[2] != 2 or len(points) != count or not np.issubdtype(points.dtype, np.number):
        raise UserError(
            f"points in {path} has shape {arrays['points'].shape} and type {points.dtype}, for {count} images",
            hint="expected numbers (N, L, 2): (x, y) in pixels counted from 0, in the images' order",
        )
    for key in ("parts", "groups"):
        if key in arrays and arrays[key].shape != (count,):
            raise UserError(f"{key} in {path} has shape {arrays[key].shape}", hint=f"one entry for each of the {count} images")
    names = tuple(f"{path}, image {i}" for i in range(count))
    points = stacked(list(points), names)
    check_points(points, np.tile(pixels.shape[2:], (count, 1)), names, margin=margin)
    parts = [str(part) for part in arrays["parts"]] if "parts" in arrays else [""] * count
    if unknown := sorted(set(parts) - {*PARTS, ""}):
        raise UserError(f"parts in {path} holds {unknown[0]!r}", hint="train, val, test, or no parts at all")
    images = ArrayImages(pixels, relative(points, _own_boxes(pixels)))
    groups = arrays["groups"].astype(str) if "groups" in arrays else None
    return LandmarkData(images, names, digest_of([images.digest(), parts]), _parts(parts), groups)


def _own_boxes(pixels: np.ndarray) -> np.ndarray:
    return np.tile((0, 0, pixels.shape[3], pixels.shape[2]), (len(pixels), 1))


def _parts(parts: Sequence[str]) -> np.ndarray | None:
    """(N,) parts, None where nothing is divided. Raises UserError when only some samples have one, or none is for training."""
    there = set(parts)
    if there == {""}:
        return None
    if "" in there:
        raise UserError(
            f"{sum(not part for part in parts)} of {len(parts)} samples belong to no part",
            hint="name a part for all or for none",
        )
    if "train" not in there or len(there) == 1:
        raise UserError(
            f"the data has the part(s) {', '.join(sorted(there))} only",
            hint="train and test (or val) are needed, or no parts at all",
        )
    return np.array(parts)


def _resized(data: LandmarkData, size: tuple[int, int] | None) -> LandmarkData:
    """Arrays at (H, W) = `size`: padded with black to its aspect ratio, then scaled; the points follow."""
    images = data.images
    if size is None or images.shape[1:] == size or not isinstance(images, ArrayImages):
        return data
    own = np.array([images.shape[1:]])
    left, top, wide, high = map(int, whole_boxes(own, size)[0])
    height, width = images.shape[1:]
    sides = ((0, 0), (0, 0), (-top, high - height + top), (-left, wide - width + left))
    points = (images.targets.reshape(len(images.targets), -1, 2).astype(np.float64) + 0.5) * (width, height) - 0.5
    moved = relative(points, np.tile((left, top, wide, high), (len(points), 1)))
    return replace(data, images=ArrayImages(np.pad(images.pixels, sides), moved).resized(size))
