"""What a Core ML package can be told beside its precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..models.contract import Contract
from ..models.errors import UserError
from .exporter import Options

MOST_SIZES = 128
"""Core ML takes no more enumerated shapes (Apple's guide to flexible input shapes)."""


class CoremlOptions(Options):
    """Shapes, classifier and image packages, and the oldest system. Defaults: one package for all sizes, arrays in and out."""

    shapes: Literal["range", "enumerated"] = Field(
        default="range",
        description="free dimensions: range (any size in bounds) or enumerated (the listed sizes alone, each made ready for speed)",
    )
    sizes: tuple[tuple[int, ...], ...] = Field(
        default=(),
        validate_default=True,
        description="the enumerated sizes, the default first: 224x224,192x192 (height x width), 1,4 (batches) or full shapes",
    )
    classifier: bool = Field(
        default=False, description="true: a Core ML classifier, which names the class and gives probabilities by class name"
    )
    image: bool = Field(
        default=False, description="true: the input is an image of 8-bit pixels, and normalisation lies in the package"
    )
    minimum_target: Literal["", "iOS16", "iOS17", "iOS18"] = Field(
        default="", description="the oldest system that must run it: iOS16, iOS17 or iOS18; empty: the oldest that can"
    )
    group: int = Field(
        default=0, ge=0, description="palettes: output channels that share one; 0: all of them; others need iOS18"
    )

    @field_validator("sizes", mode="before")
    @classmethod
    def _spelled(cls, given: Any) -> Any:
        """Sizes given as text or single numbers, as tuples."""
        if isinstance(given, str):
            given = [part for part in given.split(",") if part.strip()]
        if isinstance(given, int):
            given = [given]
        if isinstance(given, Sequence):
            return tuple(_size(entry) for entry in given)
        return given

    @field_validator("sizes")
    @classmethod
    def _enumerated(cls, sizes: tuple[tuple[int, ...], ...], info: ValidationInfo) -> tuple[tuple[int, ...], ...]:
        if any(n < 1 for size in sizes for n in size):
            raise ValueError("sizes are 1 and more")
        if info.data.get("shapes") == "enumerated":
            if not 2 <= len(set(sizes)) <= MOST_SIZES:
                raise ValueError(f"enumerated shapes want 2 to {MOST_SIZES} different sizes")
        elif sizes:
            raise ValueError("sizes go with shapes = enumerated")
        return tuple(dict.fromkeys(sizes))

    def dims(self, contract: Contract) -> tuple[dict[str, int], ...]:
        """A size for every free dimension, for each of the listed sizes; () when any size in bounds will do.

        A size says all free dimensions in order, or all but the batch (then 1), or one side of a square, or a full shape.
        Raises UserError for a contract with no free dimension or with several inputs that have some, and for sizes that don't fit.
        """
        if self.shapes != "enumerated":
            return ()
        flexible = [spec for spec in contract.inputs if spec.symbols]
        if len(flexible) != 1:
            raise UserError(
                f"Core ML enumerates the shapes of one input, and {len(flexible)} inputs of this network have free dimensions",
                hint="fix the dimensions of the others in the contract" if flexible else "leave height and width free in it",
            )
        (spec,) = flexible
        return tuple(dict(pairs) for pairs in dict.fromkeys(_told(size, spec.shape, spec.name) for size in self.sizes))


def _size(entry: Any) -> Any:
    """ "224x192", 224 or [224, 192] as a tuple; anything else unchanged, for pydantic to refuse."""
    if isinstance(entry, str):
        return tuple(part.strip() for part in entry.lower().replace("×", "x").split("x"))
    return (entry,) if isinstance(entry, int) else entry


def _told(size: tuple[int, ...], shape: tuple[int | str, ...], name: str) -> tuple[tuple[str, int], ...]:
    """The pairs (symbol, size) that one listed size says of `shape`."""
    symbols = tuple(dict.fromkeys(dim for dim in shape if isinstance(dim, str)))
    batch = symbols[:1] if shape[0] == symbols[0] else ()
    sides = symbols[len(batch) :]
    if len(size) == len(shape) and all(isinstance(dim, str) or dim == n for dim, n in zip(shape, size, strict=True)):
        return tuple((dim, n) for dim, n in zip(shape, size, strict=True) if isinstance(dim, str))
    if len(size) == len(symbols):
        return tuple(zip(symbols, size, strict=True))
    one = tuple((symbol, 1) for symbol in batch)
    if sides and len(size) == len(sides):
        return one + tuple(zip(sides, size, strict=True))
    if sides and len(size) == 1:
        return one + tuple((symbol, size[0]) for symbol in sides)
    raise UserError(
        f"the size {'x'.join(map(str, size))} does not fit input {name!r} {shape}: it has {len(symbols)} free dimensions "
        f"({', '.join(symbols)})",
        hint="give one number for each of them, or height and width, or a full shape",
    )
