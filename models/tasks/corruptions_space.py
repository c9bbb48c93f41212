"""Corruptions that move or mix pixels: blurs, turns and shifts. Lengths are shares of the image's shorter side."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .corruptions import Corruption, corruptions

ZOOMS = 6
"""Pictures that a zoom blur averages."""


@corruptions.register(
    "gaussian_blur",
    Corruption(
        "gaussian_blur", "blur", "a Gaussian blur", (0.014, 0.02, 0.027, 0.036, 0.048), "standard deviation, share of the side"
    ),
)
def gaussian_blur(images: Tensor, level: float, _generator: torch.Generator) -> Tensor:
    """Images blurred by a Gaussian; mirrored beyond the border."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(images.numpy(), level * _side(images), axes=(2, 3)))


@corruptions.register(
    "defocus_blur",
    Corruption("defocus_blur", "blur", "out of focus: a disc", (0.025, 0.04, 0.055, 0.07, 0.09), "radius, share of the side"),
)
def defocus_blur(images: Tensor, level: float, _generator: torch.Generator) -> Tensor:
    """Means over a disc; the border's pixels go on beyond it."""
    radius = level * _side(images)
    reach = math.ceil(radius)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    distance = torch.hypot(steps[:, None], steps[None])
    disc = (radius + 0.5 - distance).clamp_(0, 1)  # the share of each pixel that the disc covers, to first order
    planes = F.pad(images.reshape(-1, 1, *images.shape[2:]), (reach,) * 4, mode="replicate")
    return F.conv2d(planes, (disc / disc.sum())[None, None]).reshape(images.shape)


@corruptions.register(
    "motion_blur",
    Corruption("motion_blur", "blur", "moved while exposed", (0.06, 0.09, 0.12, 0.16, 0.21), "path, share of the side"),
)
def motion_blur(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Means along a straight path, centred, in a random direction of its own for each image."""
    length = level * _side(images)
    direction = _direction(images, generator)
    taps = 2 * math.ceil(length / 2) + 1
    total = torch.zeros_like(images)
    for at in torch.linspace(-length / 2, length / 2, taps).tolist():
        total += _shifted(images, at * direction)
    return total / taps


@corruptions.register(
    "zoom_blur",
    Corruption("zoom_blur", "blur", "zoomed while exposed", (0.06, 0.1, 0.15, 0.21, 0.28), "zoom at the end, above 1"),
)
def zoom_blur(images: Tensor, level: float, _generator: torch.Generator) -> Tensor:
    """The mean of six pictures, from the image itself to its centre enlarged by 1 + `level`."""
    total = torch.zeros_like(images)
    for zoom in np.linspace(1, 1 + level, ZOOMS):
        total += _mapped(
            images, torch.tensor([[1 / zoom, 0, 0], [0, 1 / zoom, 0]], dtype=torch.float32).expand(len(images), 2, 3)
        )
    return total / ZOOMS


@corruptions.register("rotate", Corruption("rotate", "geometry", "turned to the left or right", (5, 10, 16, 23, 32), "degrees"))
def rotate(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Images turned about their centre by `level` degrees, to a random side each; the border's pixels go on beyond it."""
    sign = torch.randint(2, (len(images),), generator=generator) * 2 - 1
    angle = torch.deg2rad(level * sign.float())
    aspect = images.shape[2] / images.shape[3]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(images))
    rows = [torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)]
    return _mapped(images, torch.stack(rows, 1))


@corruptions.register(
    "translate",
    Corruption("translate", "geometry", "moved out of the centre", (0.03, 0.06, 0.09, 0.13, 0.17), "way, share of the side"),
)
def translate(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Images moved by `level` of their side in a random direction each; the border's pixels go on beyond it."""
    return _shifted(images, level * _side(images) * _direction(images, generator))


def _side(images: Tensor) -> int:
    return min(images.shape[2:])


def _direction(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random unit vector (x, y) for each image, (N, 2)."""
    angle = 2 * math.pi * torch.rand(len(images), generator=generator)
    return torch.stack([angle.cos(), angle.sin()], 1)


def _shifted(images: Tensor, way: Tensor) -> Tensor:
    """Images seen from `way` (N, 2) = (x, y) pixels aside."""
    height, width = images.shape[2:]
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    theta[:, :, 2] = way * torch.tensor([2 / width, 2 / height])
    return _mapped(images, theta)


def _mapped(images: Tensor, theta: Tensor) -> Tensor:
    """Images read at positions moved by the affine maps (N, 2, 3), bilinearly; the border's pixels go on beyond it."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
