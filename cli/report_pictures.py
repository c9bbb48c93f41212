"""The report's pictures of networks that make some: a RAW patch developed, and maps of what is odd."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .models.errors import UserError
from .record import PictureRecord

if TYPE_CHECKING:
    from torch import Tensor

    from .models.bundle import Bundle
    from .models.tasks.task import Task

SIDE = 256
"""Pictures smaller than this are shown enlarged by a whole factor, so that pixels stay pixels."""
LARGEST = 512
LOOKED_AT = 400
"""Test samples among which the most telling anomaly maps are looked for."""
BATCH = 16
GAP = 8
BAR = 12
"""Width of the colour bar in pixels."""


def isp_pictures(bundle: Bundle, task: Task, count: int = 6) -> list[PictureRecord]:
    """For each of the first `count` test patches: fixed rendering, the network's picture and the target, with PSNR in dB to the target.

    `task` is an ISP task that fits the Bundle's contract (`loading.fitted`). Where there is no paired target, the first two alone.
    """
    import torch

    _wants(task, "isp", "references")
    own: Any = task
    samples = task.samples("test")
    module = bundle.module().eval()
    found = []
    for position in range(min(count, len(samples))):
        batch = samples.__getitems__([position])
        with torch.inference_mode():
            shown = {"fixed rendering": own.references(batch)[0], "network": module(task.inputs(batch)).float()[0]}
        shown = {name: picture.clamp(0, 1) for name, picture in shown.items()}
        captions = list(shown)
        if own.paired:
            target = batch.targets[0].float()
            captions = [*(f"{name}, {psnr(picture, target):.1f} dB" for name, picture in shown.items()), "target"]
            shown["target"] = target
        found.append(record(f"test patch {position}", side_by_side([_bytes(p) for p in shown.values()]), ", ".join(captions)))
    return found


def psnr(picture: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0…1: −10·log10 of the mean squared difference; at most 100."""
    error = float((picture.double() - target.double()).square().mean())
    return min(100.0, -10 * float(np.log10(max(error, 1e-10))))


def anomaly_pictures(bundle: Bundle, task: Task, count: int = 6) -> list[PictureRecord]:
    """The most anomalous, the most normal and the wrongly judged test pictures, `count` in all, each beside its map.

    Judged at the task's threshold, over the first test samples (400 at most). One colour scale for all: from the median of the
    maps of normal validation pictures to the largest value shown. Where the data has masks, their outline is drawn.
    """
    from .models.tasks.anomaly_metrics import threshold_at

    _wants(task, "anomaly", "masks")
    own: Any = task
    module = bundle.module().eval()
    usual, maps = _maps(module, task, "val"), _maps(module, task, "test")
    threshold = float(threshold_at(usual.reshape(len(usual), -1).max(1), own.fpr))
    scores = maps.reshape(len(maps), -1).max(1)
    odd = np.asarray(task.samples("test").__getitems__(range(len(maps))).targets) > 0
    chosen = telling(scores, odd, threshold, count)
    scale = (float(np.median(usual)), float(max((scores[at] for _, at in chosen), default=1.0)))
    masks, kinds = own.masks("test"), own.kinds("test")
    found = []
    for title, at in chosen:
        pixels = _shown(np.asarray(task.samples("test").__getitems__([at]).pixels)[0])
        mask = masks[at] if masks is not None and masks[at].any() else None
        outline = None if mask is None else _resized(mask.astype(np.float32), pixels.shape[:2], smooth=False) > 0.5
        over = with_bar(overlaid(pixels, maps[at], scale, outline), scale, threshold)
        drawn = "; white line: the true region" if mask is not None else ""
        caption = (
            f"{kinds[at]}, score {scores[at]:.3g} (threshold {threshold:.3g}); map from {scale[0]:.3g} to {scale[1]:.3g}{drawn}"
        )
        found.append(record(title, side_by_side([pixels, over]), caption))
    return found


def telling(scores: np.ndarray, odd: np.ndarray, threshold: float, count: int) -> list[tuple[str, int]]:
    """(title, position) of `count` samples: the highest scores of anomalous ones, the lowest of normal ones, and those on the wrong
    side of the threshold, the worst first; the groups take turns, and are listed one after the other."""
    high, above = np.argsort(-scores, kind="stable"), scores > threshold
    low = np.argsort(scores, kind="stable")
    groups = {
        "most anomalous": [int(i) for i in high if odd[i] and above[i]],
        "most normal": [int(i) for i in low if not odd[i] and not above[i]],
        "false alarm": [int(i) for i in high if not odd[i] and above[i]],
        "missed": [int(i) for i in low if odd[i] and not above[i]],
    }
    turns = [(turn, title) for title, places in groups.items() for turn in range(len(places))]
    taken = sorted(turns, key=lambda entry: entry[0])[:count]
    return [(title, groups[title][turn]) for turn, title in turns if (turn, title) in taken]


def overlaid(pixels: np.ndarray, map_: np.ndarray, scale: tuple[float, float], outline: np.ndarray | None) -> np.ndarray:
    """uint8 (H, W, 3): the map's colours over the picture in grey, strong where it is high; `outline` (bool (H, W)) as a white line."""
    import matplotlib as mpl

    level = _resized(map_.astype(np.float32), pixels.shape[:2], smooth=True)
    strength = np.clip((level - scale[0]) / max(scale[1] - scale[0], 1e-12), 0, 1)
    colours = mpl.colormaps["inferno"](strength)[..., :3]
    grey = np.repeat(pixels.mean(2, keepdims=True) / 255, 3, 2)
    share = (0.25 + 0.6 * strength)[..., None]
    mixed = np.rint(255 * ((1 - share) * grey + share * colours)).astype(np.uint8)
    if outline is not None:
        from scipy.ndimage import binary_dilation

        mixed[binary_dilation(outline, iterations=1) & ~outline] = 255
    return mixed


def with_bar(pixels: np.ndarray, scale: tuple[float, float], threshold: float) -> np.ndarray:
    """The picture with its colour bar on the right, high on top, and the threshold as a white tick where it lies on the scale."""
    import matplotlib as mpl

    height = len(pixels)
    colours = mpl.colormaps["inferno"](np.linspace(1, 0, height))[:, None, :3]
    bar = np.rint(255 * np.repeat(colours, BAR, 1)).astype(np.uint8)
    place = (threshold - scale[0]) / max(scale[1] - scale[0], 1e-12)
    if 0 <= place <= 1:
        row = round((1 - place) * (height - 2))
        bar[row : row + 2] = 255
    return np.concatenate([pixels, np.full((height, 4, 3), 255, np.uint8), bar], axis=1)


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): the picture, each pixel repeated so often that the longer side has 256 at least, or shrunk to 512."""
    from PIL import Image

    longest = max(pixels.shape[:2])
    if longest <= LARGEST:
        factor = -(-SIDE // longest)
        return pixels.repeat(factor, 0).repeat(factor, 1)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(image)


def data_uri(pixels: np.ndarray) -> str:
    """A `data:` address of uint8 (H, W, 3) as JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _bytes(picture: Tensor) -> np.ndarray:
    """uint8 (H, W, 3), at least 256 pixels on the longer side, of a picture (3, H, W) in 0…1."""
    return enlarged(np.rint(picture.clamp(0, 1).numpy() * 255).astype(np.uint8).transpose(1, 2, 0))


def _resized(values: np.ndarray, size: Sequence[int], *, smooth: bool) -> np.ndarray:
    """float32 (H, W): a map brought to `size`, bilinearly or by the nearest pixel."""
    from PIL import Image

    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(values, "F").resize((size[1], size[0]), how))


def _maps(module: Any, task: Task, split: Any) -> np.ndarray:
    """float32 (N, h, w): the network's maps of a split's first samples."""
    import torch

    from .models.outputs import first_tensor

    samples = task.samples(split)
    count, found = min(LOOKED_AT, len(samples)), []
    for start in range(0, count, BATCH):
        batch = samples.__getitems__(range(start, min(start + BATCH, count)))
        with torch.inference_mode():
            found.append(first_tensor(module(task.inputs(batch))).float()[:, 0].numpy())
    return np.concatenate(found)


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 (H, W, 3): pictures of one height beside each other, a white gap between."""
    gap = np.full((len(pictures[0]), GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=1)


def record(title: str, pixels: np.ndarray, caption: str) -> PictureRecord:
    """The picture as the report has it; `caption` names its parts from left to right, and so does the text for those who can't see it."""
    height, width = pixels.shape[:2]
    alt = f"{title}, from left to right: {caption}"
    return PictureRecord(title=title, caption=caption, alt=alt, width=width, height=height, data=data_uri(pixels))


def _shown(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of stored pixels (C, H, W), grey or colour, enlarged."""
    return enlarged((np.repeat(pixels, 3, 0) if len(pixels) == 1 else pixels[:3]).transpose(1, 2, 0))


def _wants(task: Task, name: str, method: str) -> None:
    """None, when the task is of the kind whose pictures are asked for. Raises UserError otherwise."""
    if not hasattr(task, method):
        raise UserError(f"the task {task.name!r} makes no such pictures", hint=f"they belong to networks of the task {name!r}")
