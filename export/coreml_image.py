"""A Core ML input that is an image: 8-bit pixels, with the contract's normalisation inside the package.

A network takes x = (v − mean) / std with v in the contract's value range; an image has pixels p in 0…255, so v = low + p (high −
low) / 255. Core ML computes scale · p + bias with one scale for all channels and a bias per channel. Where channels want different
scales, a multiplication in front of the network makes up for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.contract import Contract, TensorSpec
from ..models.errors import UserError

_TOP = 255.0
_SNAP = 1e-3
"""Pixels this near a whole number are one: float32 keeps 24 bits, of which normalising and back costs a few in 255."""


@dataclass(frozen=True)
class Pixels:
    """How pixels 0…255 become the network's numbers, per channel: x = slope · pixel + offset."""

    slope: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def rest(self) -> tuple[float, ...]:
        """What is left to multiply, per channel, after Core ML's single scale (the first channel's)."""
        return tuple(slope / self.slope[0] for slope in self.slope)

    @property
    def even(self) -> bool:
        """Whether one scale does for all channels."""
        return bool(np.allclose(self.rest, 1.0, rtol=1e-7, atol=0.0))

    def feature(self, name: str, shape: Any) -> Any:
        """coremltools' description of the input."""
        import coremltools as ct

        bias = [offset / rest for offset, rest in zip(self.offset, self.rest, strict=True)]
        grey = len(bias) == 1
        layout = ct.colorlayout.GRAYSCALE if grey else ct.colorlayout.RGB
        return ct.ImageType(
            name=name, shape=shape, scale=self.slope[0], bias=bias[0] if grey else bias, color_layout=layout, channel_first=True
        )


def image_of(contract: Contract) -> tuple[str, Pixels]:
    """(the name of the one input that is an image, its normalisation).

    Raises UserError when no or several inputs are (N, 1 or 3, H, W), and when the contract does not say what values pixels have.
    """
    images = [spec for spec in contract.inputs if len(spec.shape) == 4 and spec.layout != "NHWC" and spec.shape[1] in (1, 3)]
    if len(images) != 1 or images[0].dtype != "float32":
        shown = ", ".join(f"{spec.name} {spec.shape} {spec.dtype}" for spec in contract.inputs)
        raise UserError(
            f"an image package wants one float32 input (N, 1 or 3, H, W), this network takes {shown}",
            hint="export without image (arrays)",
        )
    return images[0].name, pixels_of(images[0])


def pixels_of(spec: TensorSpec) -> Pixels:
    """The normalisation of an input (N, C, H, W), from its value range, mean and std."""
    if spec.value_range is None or spec.value_range[0] >= spec.value_range[1]:
        raise UserError(
            f"the contract does not say which values the pixels of {spec.name!r} have before normalisation "
            f"(value_range {spec.value_range})",
            hint="give the contract value_range, 0…1 or 0…255, and mean and std",
        )
    low, high = spec.value_range
    channels = int(spec.shape[spec.channel_axis])
    mean = np.broadcast_to(np.asarray(spec.mean or (0.0,), np.float64), (channels,))
    std = np.broadcast_to(np.asarray(spec.std or (1.0,), np.float64), (channels,))
    slope, offset = (high - low) / _TOP / std, (low - mean) / std
    return Pixels(tuple(slope.tolist()), tuple(offset.tolist()))


def image_contract(contract: Contract, name: str, pixels: Pixels) -> Contract:
    """The contract with the image described in pixels: the same numbers, (pixel − mean) / std, of values 0…255.

    Feeds stay normalised tensors, as for every artifact; the runner gives the package the pixels that they come from.
    """

    def described(spec: TensorSpec) -> TensorSpec:
        if spec.name != name:
            return spec
        mean = tuple(-offset / slope for offset, slope in zip(pixels.offset, pixels.slope, strict=True))
        return spec.model_copy(
            update={"value_range": (0.0, _TOP), "mean": mean, "std": tuple(1.0 / slope for slope in pixels.slope)}
        )

    return contract.model_copy(update={"inputs": tuple(map(described, contract.inputs))})


def to_pixels(values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """The pixels (N, C, H, W) float32 that normalised `values` come from; `spec` is of an `image_contract`.

    Whole numbers come back exactly. Numbers between them stay: the package's arithmetic takes them, though a pixel buffer does
    not. Raises UserError for values that no pixel has.
    """
    pixels = pixels_of(spec)
    slope, offset = (np.asarray(part).reshape(1, -1, 1, 1) for part in (pixels.slope, pixels.offset))
    found = (values.astype(np.float64) - offset) / slope
    whole = np.round(found)
    found = np.where(np.abs(found - whole) < _SNAP, whole, found)
    if found.size and not (found.min() >= 0 and found.max() <= _TOP):
        raise UserError(
            f"input {spec.name!r} holds what is pixels {found.min():.1f}…{found.max():.1f}, an image has 0…255",
            hint="feed values in the contract's value range, normalised by its mean and std",
        )
    return found.astype(np.float32)
