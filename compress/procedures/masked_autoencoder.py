"""A vision transformer that sees a part of its patches, and a light decoder that guesses the others' pixels (He et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ..distill.masking import take_tokens

PARTS = ("patch_embed", "cls_token", "pos_embed", "blocks", "norm")
"""What a vision transformer must have, by timm's names; cls_token may be None."""
HEADS = 4
"""Attention heads of the decoder."""


def check_vit(vit: Any) -> None:
    """None, when `vit` is a vision transformer whose parts can be run one by one. Raises UserError naming what it lacks."""
    lacks = [name for name in PARTS if not hasattr(vit, name) or (name != "cls_token" and getattr(vit, name) is None)]
    if not lacks and not isinstance(getattr(vit.patch_embed, "proj", None), nn.Conv2d):
        lacks = ["patch_embed.proj (a convolution)"]
    if lacks:
        raise UserError(
            f"mae needs a vision transformer with {', '.join(PARTS)}; {type(vit).__name__} lacks {', '.join(lacks)}",
            hint="take vit_nano, deit_tiny or deit_small, or a network with timm's attribute names",
        )
    extra = [name for name in ("dist_token", "reg_token") if getattr(vit, name, None) is not None]
    if extra:
        raise UserError(
            f"mae knows no token besides the class token, and {type(vit).__name__} has a {extra[0]}", hint="take one without it"
        )


def patchify(images: Tensor, patch: int) -> Tensor:
    """(N, P, patch²·C): the pixels of every patch, row by row, of images (N, C, H, W); a remainder of the sides is left out."""
    count, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    tiles = images[:, :, : rows * patch, : columns * patch].reshape(count, channels, rows, patch, columns, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, patch * patch * channels)


def normalised_patches(patches: Tensor) -> Tensor:
    """Patches (N, P, d) with mean 0 and variance 1 (unbiased) each; a patch of one colour becomes 0. Source: He et al. 2022, §4."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_loss(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """The mean squared error over the hidden patches alone; (N, P, d) twice and hidden (N, P), 1 where a patch was not shown."""
    per_patch = (prediction.float() - target.float()).square().mean(-1)
    return (per_patch * hidden).sum() / hidden.sum()


def sine_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """(1, rows·columns, dim): half the channels encode the row, half the column, as sines and cosines of falling frequency.

    Source: Vaswani et al. 2017, §3.5, in two dimensions as He et al. 2022 use it; dim is a multiple of 4.
    """
    rate = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))  # (P, 2)
    angles = places[:, :, None] * rate  # (P, 2, dim/4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).float()[None]


class MaskedAutoencoder(nn.Module):
    """Images → {"prediction" (N, P, patch²·C), "hidden" (N, P)}: what the decoder guesses, and which patches were not shown.

    The encoder runs on the class token and the visible patches alone. `vit` is the caller's own module.
    """

    places: Tensor
    vit: Any  # a module with the PARTS, which torch's annotations can't say

    def __init__(
        self,
        vit: Any,
        *,
        image: tuple[int, ...],
        mask_ratio: float,
        decoder_dim: int,
        decoder_depth: int,
        norm_pixels: bool,
    ) -> None:
        super().__init__()
        check_vit(vit)
        projection = vit.patch_embed.proj
        channels, height, width = image
        self.patch, dim = int(projection.kernel_size[0]), int(projection.out_channels)
        grid = (height // self.patch, width // self.patch)
        self.patches, self.norm_pixels = grid[0] * grid[1], norm_pixels
        self._check_size(vit, image, grid)
        self.shown = max(1, min(self.patches - 1, round(self.patches * (1 - mask_ratio))))
        self.vit = vit
        self.enter = nn.Linear(dim, decoder_dim)
        self.blank = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.register_buffer("places", sine_positions(grid, decoder_dim), persistent=False)
        self.decoder = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    decoder_dim, HEADS, 4 * decoder_dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(decoder_depth)
            ),
            nn.LayerNorm(decoder_dim),
            nn.Linear(decoder_dim, self.patch**2 * channels),
        )
        nn.init.normal_(self.blank, std=0.02)

    def _check_size(self, vit: Any, image: tuple[int, ...], grid: tuple[int, int]) -> None:
        positions = vit.pos_embed.shape[1]
        if self.patches < 2:
            raise UserError(
                f"an image of {image[1]}×{image[2]} is {self.patches} patch of {self.patch}: nothing to hide",
                hint="build the network with a smaller patch",
            )
        if positions - self.patches not in (0, 1):
            raise UserError(
                f"the network has positions for {positions} tokens, and an image of {image[1]}×{image[2]} makes "
                f"{grid[0]}×{grid[1]} patches of {self.patch}",
                hint=f"build it for these images: --model-arg image_size={image[1]}",
            )

    @contextmanager
    def only_trained_parts(self) -> Iterator[None]:
        """A context in which parameters that this training never reaches (the classifier) are frozen."""
        idle = [
            p
            for name, p in self.vit.named_parameters()
            if name.partition(".")[0] not in (*PARTS, "norm_pre") and p.requires_grad
        ]
        for parameter in idle:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in idle:
                parameter.requires_grad_(True)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """See the class. Of every image the patches with the smallest `noise` (N, P) are shown (default: drawn here)."""
        if noise is None:
            noise = torch.rand(len(images), self.patches, device=images.device)
        order = noise.argsort(dim=1)
        shown, back = order[:, : self.shown], order.argsort(dim=1)
        tokens = self.enter(self._encoded(images, shown))
        front, visible = tokens[:, : -self.shown], tokens[:, -self.shown :]
        blanks = self.blank.to(tokens.dtype).expand(len(images), self.patches - self.shown, -1)
        whole = take_tokens(torch.cat([visible, blanks], dim=1), back) + self.places
        guessed = self.decoder(torch.cat([front, whole], dim=1))[:, front.shape[1] :]
        return {"prediction": guessed, "hidden": (back >= self.shown).float()}

    def _encoded(self, images: Tensor, shown: Tensor) -> Tensor:
        """(N, front + K, dim): the class token, if there is one, and the patches at `shown` (N, K) after the encoder."""
        vit = self.vit
        patches, positions = vit.patch_embed(images), vit.pos_embed
        patches = patches.flatten(1, 2) if patches.ndim == 4 else patches
        front = positions.shape[1] - self.patches
        tokens = take_tokens(patches + positions[:, front:], shown)
        if vit.cls_token is not None:
            token = vit.cls_token + positions[:, :front] if front else vit.cls_token
            tokens = torch.cat([token.to(tokens.dtype).expand(len(images), -1, -1), tokens], dim=1)
        tokens = vit.norm_pre(tokens) if hasattr(vit, "norm_pre") else tokens
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.norm(tokens)

    def loss(self, images: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        """The masked loss of what `forward` returned for these images."""
        target = patchify(images, self.patch)
        return masked_loss(seen["prediction"], normalised_patches(target) if self.norm_pixels else target, seen["hidden"])
