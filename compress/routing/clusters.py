"""Clusters of inputs that use the same channels, or of classes that do: what branches of equal size specialise in."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...models.errors import UserError
from .activity import Activity

By = Literal["masks", "classes"]


@dataclass(frozen=True)
class Clusters:
    """K clusters. `of_class` (classes,) int64 says each class's; without it `centres` (K, Σ channels) are the clusters' mean masks."""

    count: int
    centres: Tensor
    of_class: Tensor | None = None

    def assign(self, activity: Activity) -> Tensor:
        """The cluster of every sample, int64 (N,): its class's, or the one with the nearest centre."""
        if self.of_class is not None:
            return self.of_class[activity.targets]
        return torch.cdist(activity.pattern().double(), self.centres.double()).argmin(1)


def find_clusters(activity: Activity, by: By, count: int, *, classes: int, seed: int) -> Clusters:
    """K-means over the samples' masks ("masks"), or over the mean masks of the classes ("classes").

    Raises UserError when there are fewer different masks, or classes, than clusters.
    """
    if by == "masks":
        points = activity.pattern()
        what = "different masks"
    else:
        if count > classes:
            raise UserError(f"{count} clusters of {classes} classes can't be made", hint=f"clusters = {classes} at most")
        seen = [activity.targets == label for label in range(classes)]
        if missing := [label for label, rows in enumerate(seen) if not rows.any()]:
            raise UserError(
                f"class {missing[0]} has none of the {len(activity)} training images looked at", hint="raise score_images"
            )
        points = torch.stack([activity.pattern()[rows].mean(0) for rows in seen])
        what = "classes with different masks"
    distinct = len(torch.unique(points, dim=0))
    if distinct < count:
        raise UserError(
            f"there are only {distinct} {what} for {count} clusters",
            hint="lower clusters or mass, or look at more images (score_images)",
        )
    labels, centres = _k_means(points.numpy(), count, seed)
    return Clusters(count, centres, labels if by == "classes" else None)


def _k_means(points: np.ndarray, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(labels int64 (n,), centres (K, D))."""
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = KMeans(n_clusters=count, n_init=4, random_state=seed).fit(points.astype(np.float64))
    return torch.from_numpy(found.labels_).long(), torch.from_numpy(found.cluster_centers_)
