"""Pictures that show nothing: random textures made by code, for whoever has no collection of other pictures at hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

OCTAVES = 4


def textures(count: int, size: tuple[int, int]) -> Tensor:
    """Pictures float32 (count, 3, H, W) in 0…1 from torch's default generator, on the CPU.

    Each lays one random field over another by a third: fields are cloudy noise of several scales, waves bent by such noise, or blotches
    with hard edges, each between two random colours. Three in ten are grey, as the published penalty pictures are.
    """
    over = _noise(count, size) > 0.5
    found = torch.where(over, _coloured(_field(count, size)), _coloured(_field(count, size)))
    found = found + 0.1 * (torch.rand(count, 1, 1, 1) * (torch.rand(count, 3, *size) - 0.5))
    found = torch.where(torch.rand(count, 1, 1, 1) < 0.3, found.mean(1, keepdim=True), found)
    return found.clamp(0, 1)


def _noise(count: int, size: tuple[int, int]) -> Tensor:
    """(count, 1, H, W) in 0…1: grids of random numbers, each twice as fine and half as strong as the one before, enlarged and added."""
    found = torch.zeros(count, 1, *size)
    cells = int(torch.randint(2, 6, ()))
    for octave in range(OCTAVES):
        grid = torch.rand(count, 1, cells * 2**octave, cells * 2**octave)
        found += F.interpolate(grid, size, mode="bilinear", align_corners=False) / 2**octave
    low, high = found.amin((2, 3), keepdim=True), found.amax((2, 3), keepdim=True)
    return (found - low) / (high - low).clamp_min(1e-6)


def _field(count: int, size: tuple[int, int]) -> Tensor:
    """(count, 1, H, W) in 0…1, each picture's of one of the three kinds."""
    noise = _noise(count, size)
    turn, waves, bend = (torch.rand(count, 1, 1, 1) for _ in range(3))
    y, x = (torch.linspace(0, 1, side) for side in size)
    along = x.view(1, 1, 1, -1) * torch.cos(math.pi * turn) + y.view(1, 1, -1, 1) * torch.sin(math.pi * turn)
    wave = 0.5 + 0.5 * torch.sin(2 * math.pi * ((2 + 22 * waves) * along + 2 * bend * noise))
    blotches = (_noise(count, size) > 0.3 + 0.4 * bend).float()
    kind = torch.randint(0, 3, (count, 1, 1, 1))
    return torch.where(kind == 0, noise, torch.where(kind == 1, wave, blotches))


def _coloured(field: Tensor) -> Tensor:
    """(N, 3, H, W): 0 and 1 of (N, 1, H, W) become two random colours."""
    first, second = torch.rand(2, len(field), 3, 1, 1)
    return first + (second - first) * field
