"""Corruptions that change pixels where they stand: noise, light, fog and lossy storage."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .corruptions import Corruption, corruptions


@corruptions.register(
    "gaussian_noise",
    Corruption(
        "gaussian_noise",
        "noise",
        "normal noise on every value: sensors in low light",
        (0.04, 0.08, 0.12, 0.18, 0.26),
        "standard deviation, share of full scale",
    ),
)
def gaussian_noise(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Images plus normal noise of standard deviation `level`."""
    return torch.randn(images.shape, generator=generator).mul_(level).add_(images)


@corruptions.register(
    "shot_noise",
    Corruption("shot_noise", "noise", "Poisson noise: too few photons", (250, 100, 50, 25, 12), "photons that make full scale"),
)
def shot_noise(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Counts of photons, Poisson with mean `level` · image, over `level`."""
    return torch.poisson(images * level, generator=generator).div_(level)


@corruptions.register(
    "impulse_noise",
    Corruption(
        "impulse_noise", "noise", "salt and pepper: values stuck at 0 or full scale", (0.01, 0.03, 0.06, 0.1, 0.17), "share hit"
    ),
)
def impulse_noise(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Images in which a share `level` of all values is 0 or 1, half of each."""
    draw = torch.rand(images.shape, generator=generator)
    return torch.where(draw < level / 2, 0.0, torch.where(draw > 1 - level / 2, 1.0, images))


@corruptions.register(
    "brightness",
    Corruption("brightness", "weather", "every value raised: daylight", (0.08, 0.16, 0.24, 0.34, 0.45), "share of full scale"),
)
def brightness(images: Tensor, level: float, _generator: torch.Generator) -> Tensor:
    """Images plus `level`."""
    return images + level


@corruptions.register(
    "fog",
    Corruption("fog", "weather", "a cloud of all scales laid over the picture", (0.2, 0.4, 0.7, 1.1, 1.6), "strength"),
)
def fog(images: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """(image + `level` · cloud) / (1 + `level`), where the cloud (0…1) sums random grids of 2, 4, 8, … 32 cells, each half as strong."""
    cloud = torch.zeros(len(images), 1, *images.shape[2:])
    for octave in range(5):
        cells = torch.rand(len(images), 1, 2 << octave, 2 << octave, generator=generator)
        cloud += F.interpolate(cells, size=images.shape[2:], mode="bilinear", align_corners=True) / 2**octave
    return (images + level * cloud / cloud.amax((2, 3), keepdim=True)) / (1 + level)


@corruptions.register(
    "contrast",
    Corruption("contrast", "digital", "values drawn towards their mean", (0.7, 0.5, 0.35, 0.22, 0.12), "contrast left"),
)
def contrast(images: Tensor, level: float, _generator: torch.Generator) -> Tensor:
    """mean + `level` · (image − mean), the mean of each channel of each image."""
    return torch.lerp(images.mean((2, 3), keepdim=True), images, level)


@corruptions.register(
    "pixelate",
    Corruption("pixelate", "digital", "scaled down and up again", (0.7, 0.55, 0.45, 0.35, 0.25), "side of the small picture"),
)
def pixelate(images: Tensor, level: float, _generator: torch.Generator) -> Tensor:
    """Means over blocks, each shown as one flat block; `level` · H × `level` · W blocks."""
    small = [max(1, round(side * level)) for side in images.shape[2:]]
    return F.interpolate(F.interpolate(images, size=small, mode="area"), size=images.shape[2:], mode="nearest-exact")


@corruptions.register(
    "jpeg", Corruption("jpeg", "digital", "stored as JPEG of low quality", (50, 30, 18, 10, 5), "JPEG quality, 1…95")
)
def jpeg(images: Tensor, level: float, _generator: torch.Generator) -> Tensor:
    """What Pillow's JPEG leaves: three channels as colour, any other number channel by channel as grey pictures."""
    pixels = images.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    colour = pixels.shape[3] == 3
    pictures = pixels if colour else pixels.transpose(0, 3, 1, 2).reshape(-1, *pixels.shape[1:3])
    stored = np.stack([_through_jpeg(picture, int(level)) for picture in pictures])
    if colour:
        stored = stored.transpose(0, 3, 1, 2)
    return torch.from_numpy(stored.reshape(images.shape)).float().div_(255)


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))
