"""The standardised features that a teacher is trained to reproduce, computed once where they fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .efficientad_calibrate import BATCH, batches_of, channel_statistics

if TYPE_CHECKING:
    from ...models.tasks.task import Task
    from ..runtime import Runtime
    from .patch_features import PatchFeatures

GREY = (0.299, 0.587, 0.114)


def grey_of(pictures: Tensor) -> Tensor:
    """(N, 3, H, W), three times 0.299 R + 0.587 G + 0.114 B."""
    weights = torch.tensor(GREY, dtype=pictures.dtype, device=pictures.device).view(1, 3, 1, 1)
    return (pictures * weights).sum(1, keepdim=True).expand_as(pictures)


class Targets:
    """Features of pictures, standardised per channel by what `fitted` saw.

    `size` is what the network that learns takes in; the backbone gets each picture `scale` times as large. Targets are (N, C, h, w) with
    h×w = `map_size`, the padded PDN's map.
    """

    def __init__(
        self, features: PatchFeatures, *, size: tuple[int, int], map_size: tuple[int, int], scale: float, runtime: Runtime
    ) -> None:
        self.features, self.size, self.map_size, self.runtime = features, size, map_size, runtime
        self.large = (round(size[0] * scale), round(size[1] * scale))
        self.mean = self.std = torch.zeros(())
        self.kept: list[Tensor] = []

    def small(self, pictures: Tensor) -> Tensor:
        """The pictures at `size`, as the network that learns sees them."""
        return pictures if tuple(pictures.shape[2:]) == self.size else _resized(pictures, self.size)

    @torch.no_grad()
    def raw(self, pictures: Tensor) -> Tensor:
        """Features float32 (N, C, h, w) before they are standardised."""
        large = pictures if tuple(pictures.shape[2:]) == self.large else _resized(pictures, self.large)
        with torch.autocast(large.device.type, enabled=False):
            found = self.features(large)
        shape = tuple(found.shape[2:])
        return found if shape == self.map_size else F.interpolate(found, self.map_size, mode="bilinear", align_corners=False)

    def of(self, pictures: Tensor) -> Tensor:
        """Standardised features of pictures at either size."""
        return (self.raw(pictures) - self.mean) / self.std

    def fitted(self, task: Task, *, limit: int, keep: bool, grey: bool) -> None:
        """None; takes mean and standard deviation from the first `limit` training pictures.

        With `keep` all of them (and, with `grey`, all of them without colour) are stored as float16, to be asked for by number.
        """
        stored: list[Tensor] = []

        def maps(pictures: Tensor) -> Tensor:
            found = self.raw(pictures)
            if keep:
                stored.append(found.half())
            return found

        self.mean, self.std = channel_statistics(maps, self._shown(task, limit))
        if keep:
            self.kept = [self._standardised(stored)]
        if keep and grey:
            self.kept.append(self._standardised([self.raw(grey_of(p)).half() for p in self._shown(task, limit)]))

    def stored(self, index: Tensor, grey: Tensor) -> Tensor:
        """The kept targets of training pictures by number (N,), of their grey versions where `grey` (N,) says so."""
        found = self.kept[0][index].float()
        if len(self.kept) > 1 and bool(grey.any()):
            found[grey] = self.kept[1][index[grey]].float()
        return found

    def _shown(self, task: Task, limit: int) -> Iterator[Tensor]:
        return batches_of(task, "train", runtime=self.runtime, limit=limit, batch=BATCH)

    def _standardised(self, stored: list[Tensor]) -> Tensor:
        for part in stored:
            part.copy_((part.float() - self.mean) / self.std)
        return torch.cat(stored)


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    shrinks = size[0] < pictures.shape[2]
    return F.interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=shrinks)
