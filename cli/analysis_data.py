"""What the page of an analysis draws: the record's samples in few bytes, survival by tenths, thumbnails."""

from __future__ import annotations

import base64
import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .compress.analyse.analysis_record import AnalysisRecord

CELLS = 900_000
"""Samples × models × (clean and every corruption) in a page; of more, some samples are left out. Keeps the page below 8 MB."""
LEVELS = 1023
"""Steps between the least and the largest norm or angle: 10 bits, finer than a screen's pixels."""
MARGIN_LEVELS = 254
TENTHS = 10
PICTURE_BYTES = 500_000
PLAIN_SIDE = 32


class Pack:
    """Arrays one behind the other, and where each is: `index` for the page's script, `packed()` their bytes."""

    def __init__(self) -> None:
        self.index: dict[str, dict[str, Any]] = {}
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, name: str, array: np.ndarray, **more: float) -> None:
        """None; a uint8, uint16 or uint32 array is in. Its bytes lie plane by plane, lowest first: the high ones compress well."""
        width = array.dtype.itemsize
        flat = np.ascontiguousarray(array.astype(f"<u{width}")).reshape(-1)
        data = flat.view(np.uint8).reshape(-1, width).T.tobytes()
        self.index[name] = {"offset": self._length, "count": flat.size, "bytes": width, "shape": list(array.shape), **more}
        self._parts.append(data)
        self._length += len(data)

    def packed(self) -> str:
        """All bytes, deflated, in base 64."""
        return deflated(b"".join(self._parts))


def deflated(data: bytes) -> str:
    """The bytes, deflated (zlib's format), in base 64."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def page_arrays(record: AnalysisRecord, *, cells: int = CELLS) -> Pack:
    """The samples that the page draws, quantised, and the counts of survivors of all samples.

    `index` (s,) positions of the samples drawn, `targets` (s,), `norm`, `angle`, `margin`, `predicted` (m, 1 + k, s) with clean first,
    `tries` (m, 2, tenths, classes) and `survived` (m, 2, k, tenths, classes) by tenths of the clean margin and of the confidence.
    """
    arrays = record.arrays
    models, kinds, samples = arrays["margin"].shape
    chosen = drawn(samples, arrays["image_index"], room=cells // (models * (kinds + 1)), seed=record.info["seed"])
    pack = Pack()
    pack.add("index", chosen.astype(np.uint32))
    pack.add("targets", _narrow(arrays["targets"][chosen]))
    for name, levels in (("norm", LEVELS), ("angle", LEVELS), ("margin", MARGIN_LEVELS)):
        both = np.concatenate([arrays[f"clean_{name}"][:, None], arrays[name].astype(np.float32)], axis=1)[:, :, chosen]
        steps, low, high = quantised(both, levels)
        pack.add(name, steps, low=low, high=high, levels=levels)
    predicted = np.concatenate([arrays["clean_predicted"][:, None], arrays["predicted"]], axis=1)
    pack.add("predicted", _narrow(predicted[:, :, chosen]))
    for name, counts in survival_by_tenths(record).items():
        pack.add(name, _narrow(counts))
    return pack


def drawn(samples: int, wanted: np.ndarray, *, room: int, seed: int) -> np.ndarray:
    """Sorted positions of at most `room` samples: all that are `wanted` (as far as there is room), the others at random."""
    if samples <= room:
        return np.arange(samples)
    first = wanted[: max(room, 1)]
    others = np.setdiff1d(np.arange(samples), first)
    more = np.random.default_rng(seed).choice(others, max(room - len(first), 0), replace=False)
    return np.sort(np.concatenate([first, more])).astype(np.int64)


def quantised(values: np.ndarray, levels: int) -> tuple[np.ndarray, float, float]:
    """(steps 0…levels between the least and the largest finite value, these two); levels + 1 stands for what is not finite."""
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    width = high - low or 1.0
    steps = np.where(finite, np.rint((np.where(finite, values, low).astype(np.float64) - low) * (levels / width)), levels + 1)
    return steps.astype(np.uint8 if levels < 255 else np.uint16), low, low + width


def _narrow(counts: np.ndarray) -> np.ndarray:
    """The same whole numbers in the narrowest unsigned type."""
    top = int(counts.max()) if counts.size else 0
    return counts.astype(np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.uint32)


def survival_by_tenths(record: AnalysisRecord) -> dict[str, np.ndarray]:
    """Counts over all samples that are right when clean, by tenths of their clean margin [0] and confidence [1], and by class.

    `tries` (m, 2, tenths, classes): samples × severities; `survived` (m, 2, k, tenths, classes): those that stayed right.
    """
    arrays, classes = record.arrays, len(record.info["classes"])
    models, kinds, _ = arrays["survived"].shape
    tries = np.zeros((models, 2, TENTHS, classes), np.int64)
    survived = np.zeros((models, 2, kinds, TENTHS, classes), np.int64)
    for m in range(models):
        right = np.flatnonzero(arrays["clean_predicted"][m] == arrays["targets"])
        target = arrays["targets"][right].astype(np.int64)
        for s, score in enumerate(("clean_margin", "clean_confidence")):
            cell = tenths(arrays[score][m, right]) * classes + target
            size = TENTHS * classes
            tries[m, s] = np.bincount(cell, minlength=size).reshape(TENTHS, classes) * len(record.info["severities"])
            for k in range(kinds):
                stayed = np.bincount(cell, weights=arrays["survived"][m, k, right], minlength=size)
                survived[m, s, k] = stayed.reshape(TENTHS, classes)
    return {"tries": tries, "survived": survived}


def tenths(score: np.ndarray) -> np.ndarray:
    """Which tenth of the samples each is in by its score, 0 (least) … 9; equal scores share the tenth of their middle."""
    from scipy.stats import rankdata

    return np.minimum((rankdata(score) - 0.5) * TENTHS // max(len(score), 1), TENTHS - 1).astype(np.int64)


def thumbnails(record: AnalysisRecord, *, limit: int = PICTURE_BYTES) -> list[dict[str, Any]]:
    """[{"index", "src"}] of the samples whose pictures are kept, as `data:` addresses; the last are left out above `limit` bytes."""
    found, used = [], 0
    for index, pixels in zip(record.arrays["image_index"].tolist(), record.arrays["images"], strict=True):
        source = picture(pixels)
        used += len(source)
        if used > limit:
            break
        found.append({"index": index, "src": source})
    return found


def picture(pixels: np.ndarray) -> str:
    """A `data:` address of (C, H, W) uint8 pixels: PNG up to 32 pixels wide, JPEG above; grey or the first three channels."""
    from PIL import Image

    shown = pixels[0] if len(pixels) < 3 else pixels[:3].transpose(1, 2, 0)
    kind = "png" if max(shown.shape[:2]) <= PLAIN_SIDE else "jpeg"
    buffer = io.BytesIO()
    settings: dict[str, Any] = {"optimize": True} if kind == "png" else {"quality": 75}
    Image.fromarray(np.ascontiguousarray(shown)).save(buffer, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
