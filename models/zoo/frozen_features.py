"""What networks on frozen features share: their backbone by keyword arguments, the maps' sizes, and the features of many pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backbones import FeatureNet
from ..errors import UserError
from ..fitting import Pictures

BACKBONE = "efficientnet_lite0"
SMALLEST = 32
"""Below so many pixels a side the deep maps of a backbone that halves five times vanish."""


def frozen_features(backbone: str, args: Mapping[str, Any] | None, stages: Sequence[int]) -> FeatureNet:
    """The backbone's stages, frozen; its weights are random until a Bundle or a fit brings them."""
    return FeatureNet(backbone, stages=tuple(stages), kwargs=args).eval().requires_grad_(False)


def two_sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) from one number or two. Raises UserError for sides below 32."""
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(int(side) for side in image_size)
    if len(pair) != 2 or min(pair) < SMALLEST:
        raise UserError(
            f"image_size={image_size} must be {SMALLEST} or more: deep features of smaller pictures have no place left",
            hint="enlarge the pictures (--size 64, 224 or 256)",
        )
    return pair[0], pair[1]


@torch.no_grad()
def map_sizes(features: FeatureNet, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(h, w) of each stage's map for pictures of (H, W) = `size`."""
    return [(int(m.shape[2]), int(m.shape[3])) for m in features(torch.zeros(1, 3, *size, device=features.mean.device))]


@torch.no_grad()
def feature_maps(features: FeatureNet, pictures: Pictures) -> Iterator[list[Tensor]]:
    """The stages' maps of each batch, on the CPU, computed where the features lie."""
    device = features.mean.device
    for batch in pictures():
        yield [found.float().cpu() for found in features(batch.to(device))]


def refuse_unknown(options: Mapping[str, Any], known: Sequence[str], network: str) -> None:
    """None, when all options are known. Raises UserError that names the others and what there is."""
    if wrong := [name for name in options if name not in known]:
        raise UserError(
            f"{network} has no {', '.join(wrong)}: its fit takes {', '.join(known)}", hint=f"leave {wrong[0]} out of the step"
        )
