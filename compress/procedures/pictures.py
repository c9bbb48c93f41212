"""Pictures that are not the task's: what a teacher is trained on, or what a student shall not learn to imitate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...models.errors import UserError
from ...models.files import digest_of
from ...models.tasks.task import RawBatch

if TYPE_CHECKING:
    from ...models.tasks.task import Samples, Split, Task

PHOTOS = "photos:"
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Pictures:
    """Pictures by number: `read(numbers)` gives uint8 (n, 3, H, W). `content` is their digest, `about` says what they are."""

    count: int
    read: Callable[[Sequence[int]], np.ndarray]
    content: str
    about: str

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> RawBatch:
        """As a task's samples, all with target 0."""
        index = torch.as_tensor(list(indices), dtype=torch.int64)
        return RawBatch(torch.from_numpy(self.read(list(indices))), torch.zeros_like(index), index)

    def drawn(self, count: int) -> Tensor:
        """`count` of them, float32 (count, 3, H, W) in 0…1, drawn with replacement from torch's default generator."""
        return torch.from_numpy(self.read(torch.randint(0, self.count, (count,)).tolist())).float() / 255


def open_pictures(text: str, size: tuple[int, int], *, what: str) -> Pictures:
    """The pictures that `text` names, at (H, W) = `size`: "photos:DIR", any picture file below a folder, or a data set's training part.

    Photographs are scaled until the size is half of what fits, and cut out at the centre (the published code: 512, then 256).
    `what` names the option in errors. Raises UserError where there are none.
    """
    if text.startswith(PHOTOS):
        return _photographs(Path(text.removeprefix(PHOTOS)).expanduser(), size, what=what)
    from ...models.tasks.datasets import open_dataset

    try:
        data = open_dataset(text, size=size)
    except UserError as error:
        raise error.reworded(f"{what} {text!r}: {error.what}") from None
    images = data.train

    def read(numbers: Sequence[int]) -> np.ndarray:
        pixels = images.read(numbers)
        return np.ascontiguousarray(np.broadcast_to(pixels, (len(pixels), 3, *size)) if pixels.shape[1] == 1 else pixels)

    return Pictures(len(images.targets), read, digest_of([data.content, size]), f"{text} ({len(images.targets)} pictures)")


def _photographs(folder: Path, size: tuple[int, int], *, what: str) -> Pictures:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if not paths:
        raise UserError(
            f"{what} '{PHOTOS}{folder}': no picture lies there", hint=f"name a folder with {', '.join(sorted(ENDINGS))} files"
        )
    known = [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in paths]

    def read(numbers: Sequence[int]) -> np.ndarray:
        return np.stack([_decoded(paths[number], size, what) for number in numbers])

    return Pictures(len(paths), read, digest_of([known, size]), f"{len(paths)} photographs")


def _decoded(path: Path, size: tuple[int, int], what: str) -> np.ndarray:
    """uint8 (3, H, W): the middle of the picture at twice the size."""
    from PIL import Image, ImageOps

    twice = (2 * size[1], 2 * size[0])
    try:
        with Image.open(path) as image:
            image.draft("RGB", twice)
            upright = ImageOps.exif_transpose(image).convert("RGB")
            large = ImageOps.fit(upright, twice, Image.Resampling.BILINEAR)
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {path} can't be read as a picture: {error}", hint="take it out of the folder") from None
    left, top = size[1] // 2, size[0] // 2
    return np.asarray(large.crop((left, top, left + size[1], top + size[0]))).transpose(2, 0, 1).copy()


class PictureTask:
    """A task whose training pictures are others: pixels in 0…1 as they were read, no targets; all else is the task's own."""

    def __init__(self, task: Task, pictures: Pictures) -> None:
        self._task, self._pictures = task, pictures
        self.data, self.data_id = pictures.about, digest_of([task.data_id, pictures.content])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def samples(self, split: Split) -> Samples:
        """The pictures, as every split."""
        return self._pictures

    def inputs(self, batch: RawBatch, *, augment: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """float32 (N, 3, H, W) in 0…1; nothing is augmented."""
        return batch.pixels.float() / 255

    def training_pair(self, batch: RawBatch, *, augment: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`inputs` and the targets, which are all 0."""
        return self.inputs(batch), batch.targets
