"""Corruptions: what cameras, weather and compression do to pictures, at five severities.

The kinds follow Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR
2019), re-implemented for images of any size: lengths are shares of the image's shorter side, and the severities are this
project's own, between those of the paper's small and large images. Accuracies are therefore not comparable with its tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import UserError, did_you_mean
from ..registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)
Family = Literal["noise", "blur", "weather", "digital", "geometry"]
Corrupting = Callable[["Tensor", float, "torch.Generator"], "Tensor"]
"""(images float32 (N, C, H, W) in 0…1, the severity's parameter, generator) → the same shape, perhaps beyond 0…1."""


@dataclass(frozen=True)
class Corruption:
    """A kind's record: its family, what it does, and the parameter of each of the five severities with its meaning."""

    name: str
    family: Family
    help: str
    levels: tuple[float, float, float, float, float]
    unit: str


corruptions: Registry[Corrupting, Corruption] = Registry(
    "corruption", modules=tuple(f"trimtab.models.tasks.corruptions_{part}" for part in ("pixels", "space"))
)
"""Every kind of corruption by name; `entry(name).card` is its record. Reading the records imports torch."""


def record_of(kind: str) -> Corruption:
    """The record of a kind. Raises UserError with a did-you-mean."""
    return corruptions.entry(kind).card


def corruption_records(kinds: Sequence[str] = ()) -> tuple[Corruption, ...]:
    """The records of these kinds in their order, or of all kinds, family by family.

    Raises UserError for an unknown kind and for one that is named twice.
    """
    if not kinds:
        order = ("noise", "blur", "weather", "digital", "geometry")
        return tuple(sorted((entry.card for entry in corruptions), key=lambda card: order.index(card.family)))
    if twice := [kind for at, kind in enumerate(kinds) if kind in kinds[:at]]:
        raise UserError(f"corruption {twice[0]!r} is named twice", hint="name each kind once")
    return tuple(record_of(kind) for kind in kinds)


def check_severities(severities: Sequence[int]) -> tuple[int, ...]:
    """The severities, rising, each once. Raises UserError when there are none, or for one that is not 1…5."""
    if not severities:
        raise UserError("no severity was given", hint="one or more of 1, 2, 3, 4, 5")
    for severity in severities:
        if isinstance(severity, bool) or severity not in SEVERITIES:
            raise UserError(
                f"severity={severity!r} must be a whole number in 1…5", hint=did_you_mean(str(severity), map(str, SEVERITIES))
            )
    return tuple(sorted({int(severity) for severity in severities}))


def corrupt(pixels: Tensor, kind: str, severity: int, generator: torch.Generator) -> Tensor:
    """The corrupted pixels, uint8 (N, C, H, W) on the CPU, from uint8 pixels of the same shape.

    All that is random (noise, directions) comes from `generator` (a CPU one): equal state, equal pixels. Raises UserError for an
    unknown kind, a severity outside 1…5, and pixels of another type or shape.
    """
    import torch

    entry = corruptions.entry(kind)
    (severity,) = check_severities((severity,))
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise UserError(
            f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}",
            hint="uint8 (N, C, H, W) is wanted, as data sets store them",
        )
    if not pixels.numel():
        return pixels.clone()
    with torch.no_grad():
        clean = pixels.cpu().float().div_(255)
        changed = entry.value(clean, entry.card.levels[severity - 1], generator)
        return changed.mul(255).round_().clamp_(0, 255).to(torch.uint8)
