"""The pictures that a patch description network (EfficientAD's PDN) can describe."""

from __future__ import annotations

from .errors import UserError

RECEPTIVE_FIELD = 33
"""Pixels a side that one output of a PDN sees; a smaller image has no output at all."""


def sides(image_size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """(H, W) from one number or two. Raises UserError below the receptive field."""
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(int(side) for side in image_size)
    if len(pair) != 2 or min(pair) < RECEPTIVE_FIELD:
        raise UserError(
            f"image_size={image_size} must be {RECEPTIVE_FIELD} or more: a PDN describes patches of "
            f"{RECEPTIVE_FIELD}×{RECEPTIVE_FIELD} pixels, and a smaller image holds none",
            hint="enlarge the images (--size 64, or 256 as published)",
        )
    return pair[0], pair[1]
