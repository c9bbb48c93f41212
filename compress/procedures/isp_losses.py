"""The terms that an ISP network is trained with, each a scalar of pictures, feature maps or critics' scores.

Source: Arhire, Timofte: Learned Lightweight Smartphone ISP with Unpaired Data, CVPR workshops 2025 (arXiv 2505.10420); the game
between network and critics is the one of Huang et al.: The GAN is dead; long live the GAN! A Modern Baseline GAN, NeurIPS 2024.
Pictures are float32 (N, 3, H, W), 0…1 or somewhat beyond: a network in training is not clamped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LUMINANCE = (0.2126729, 0.7151522, 0.0721750)
"""Linear sRGB → the Y of CIE XYZ under D65."""
GREY = (0.299, 0.587, 0.114)
BLUR_SIDE = 21
"""Pixels across the Gaussian that the colour critic sees through."""


def _weighted(pictures: Tensor, weights: tuple[float, float, float]) -> Tensor:
    factors = torch.tensor(weights, dtype=pictures.dtype, device=pictures.device).view(1, 3, 1, 1)
    return (pictures * factors).sum(1, keepdim=True)


def lightness(pictures: Tensor) -> Tensor:
    """(N, 1, H, W): CIELab's L / 100 of sRGB pictures, 0 for black and 1 for white.

    Both curves have their straight part near black (and below), so the gradient is finite everywhere.
    """
    linear = torch.where(pictures > 0.04045, ((pictures.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, pictures / 12.92)
    y = _weighted(linear, LUMINANCE)
    knee = (6 / 29) ** 3
    f = torch.where(y > knee, y.clamp_min(knee) ** (1 / 3), y / (3 * (6 / 29) ** 2) + 4 / 29)
    return 1.16 * f - 0.16


def grey(pictures: Tensor) -> Tensor:
    """(N, 3, H, W): 0.299 R + 0.587 G + 0.114 B, three times."""
    return _weighted(pictures, GREY).expand(-1, 3, -1, -1)


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """The pictures under a Gaussian of 21×21 pixels and this σ; the border is mirrored. Sides must exceed 10 pixels."""
    reach = BLUR_SIDE // 2
    at = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
    row = torch.exp(-(at**2) / (2 * sigma**2))
    row = (row / row.sum()).expand(3, 1, 1, -1)
    wide = F.pad(pictures, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(wide, row, groups=3), row.transpose(2, 3), groups=3)


def content_loss(features: Tensor, reference: Tensor) -> Tensor:
    """2 Σ (difference²) / (C·H·W), summed over the batch, of feature maps (N, C, H, W)."""
    return 2 * (features - reference).square().sum() / features[0].numel()


def total_variation(pictures: Tensor) -> Tensor:
    """2 (½ Σ dx² / ((W−1)·H·C) + ½ Σ dy² / ((H−1)·W·C)) / N."""
    count, channels, height, width = pictures.shape
    across = (pictures[..., 1:] - pictures[..., :-1]).square().sum() / ((width - 1) * height * channels)
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).square().sum() / ((height - 1) * width * channels)
    return (across + down) / count


def network_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Mean softplus(−(D(fake) − D(real))) of paired scores (N, 1): what the network minimises."""
    return F.softplus(real - fake).mean()


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean softplus(−(D(real) − D(fake))) of paired scores (N, 1): what a critic minimises, beside its penalties."""
    return F.softplus(fake - real).mean()


def gradient_penalty(scores: Tensor, features: Tensor) -> Tensor:
    """Mean over the batch of ‖∇ D‖² with respect to the feature maps (R1 on real ones, R2 on made ones), itself differentiable.

    `scores` (N, 1) were computed from `features` (N, C, h, w), each from its own alone.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), features, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
