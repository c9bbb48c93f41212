"""Random crops and mirrorings of whole batches, reproducible from one generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def crop_padding(size: int) -> int:
    """The border in pixels that a random crop of a side of `size` pixels is drawn from: 4 at 32, in proportion elsewhere."""
    return max(1, round(size / 8))


def crop_and_flip(pixels: Tensor, *, flip: bool, generator: torch.Generator) -> Tensor:
    """Pixels (N, C, H, W), each image shifted by a random crop from its zero-padded self and, if `flip`, mirrored in half the cases.

    The usual CIFAR augmentation (He et al. 2016, §4.2: 4 pixels at 32×32). The draws come from `generator`, on its own
    device, so that a batch is augmented alike wherever it lies; the gather runs in one step on the pixels' device.
    """
    import torch
    from torch.nn import functional as F

    count, channels, height, width = pixels.shape
    pad_y, pad_x = crop_padding(height), crop_padding(width)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (count, 1), generator=generator, device=generator.device).to(pixels.device)

    rows = draw(2 * pad_y + 1) + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device).expand(count, width)
    left = draw(2 * pad_x + 1)
    if flip:
        columns = torch.where(draw(2).bool(), width - 1 - columns, columns)
    columns = columns + left
    padded = F.pad(pixels, (pad_x, pad_x, pad_y, pad_y))
    n = torch.arange(count, device=pixels.device)[:, None, None, None]
    c = torch.arange(channels, device=pixels.device)[None, :, None, None]
    return padded[n, c, rows[:, None, :, None], columns[:, None, None, :]]
