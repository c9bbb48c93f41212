"""Random shifts, turns, zooms and mirrorings that move points with their picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Movement:
    """How far pictures move: `shift` as a fraction of the sides, `rotation` in degrees, `zoom` as a fraction, each ± and uniform.

    `mirrored` is the order of the points in a mirrored picture; empty = no mirroring.
    """

    shift: float
    rotation: float
    zoom: float
    mirrored: tuple[int, ...] = ()


def moved(pixels: Tensor, targets: Tensor, movement: Movement, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(pictures float32 (N, C, H, W) in 0…255, targets float32 (N, 2L)), each sample moved in its own way about its centre.

    Turned by an angle, zoomed, shifted and, in half the cases, mirrored with the points in the order `mirrored`. What comes in
    from outside is black; points may leave the picture. Rotation is one of pixels, also where height and width differ.
    The draws come from `generator`, on its own device, so that a batch is moved alike wherever it lies.
    """
    import torch
    from torch.nn import functional as F

    count, _, height, width = pixels.shape
    drawn = torch.rand((5, count), generator=generator, device=generator.device).to(pixels.device)
    side = torch.where(drawn[4] < 0.5, -1.0, 1.0) if movement.mirrored else torch.ones_like(drawn[4])
    angle, zoom = (2 * drawn[0] - 1) * math.radians(movement.rotation), 1 + (2 * drawn[1] - 1) * movement.zoom
    shift = (2 * drawn[2:4].T - 1) * movement.shift
    cos, sin, aspect = angle.cos(), angle.sin(), width / height
    # u ↦ A·u + shift in coordinates relative to (W, H): pixels are turned, so the off-diagonal terms carry the aspect ratio
    forward = torch.stack([side * zoom * cos, -zoom * sin / aspect, side * zoom * sin * aspect, zoom * cos], 1).view(-1, 2, 2)
    back = torch.stack([side * cos / zoom, side * sin / zoom / aspect, -sin / zoom * aspect, cos / zoom], 1).view(-1, 2, 2)
    x, y = ((2 * torch.arange(n, device=pixels.device) + 1) / n - 1 for n in (width, height))
    rows = back[:, None, :, 1] * y[:, None] - 2 * (back @ shift[:, :, None]).transpose(1, 2)  # (N, H, 2)
    # what F.affine_grid returns, in a fifth of its time on a CPU
    grid = back[:, None, None, :, 0] * x[:, None] + rows[:, :, None]
    pictures = F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    points = targets.view(count, -1, 2)
    if movement.mirrored:
        swapped = points[:, torch.tensor(movement.mirrored, device=points.device)]
        points = torch.where(side[:, None, None] < 0, swapped, points)
    return pictures, (points @ forward.transpose(1, 2) + shift[:, None]).flatten(1)


def mirrored_order(count: int, pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The order of `count` points after mirroring: each pair changes places, the others (on the axis) stay."""
    order = list(range(count))
    for a, b in pairs:
        order[a], order[b] = b, a
    return tuple(order)
