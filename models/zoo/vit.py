"""Vision transformers (Dosovitskiy et al. 2021) at the sizes of DeiT (Touvron et al. 2021), and one small enough for 28×28 images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import ArchitectureCard, architectures
from ..errors import UserError
from .layers import check_arguments

Pool = Literal["cls", "mean"]


@contextmanager
def _constants() -> Iterator[None]:
    """A context in which a tracer takes numbers as constants without a warning: positions belong to one image size anyway."""
    if not torch.jit.is_tracing():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def _fixed(size: int) -> int:
    """A dimension as a plain number: all but the batch is a constant of a traced graph, whose reshapes then need no arithmetic."""
    if not torch.jit.is_tracing():
        return size
    with _constants():
        return int(size)


def bicubic(size: int, given: int) -> np.ndarray:
    """The matrix (size, given) that resizes `given` samples to `size` by Keys' cubic convolution (1981, a = −3/4, edges repeated).

    The weights that torch's bicubic interpolation uses, as a constant: a product exports to every format, a resize does not.
    """
    middle = (np.arange(size) + 0.5) * given / size - 0.5
    weights = np.zeros((size, given))
    for tap in range(-1, 3):
        near = np.floor(middle) + tap
        x, a = np.abs(middle - near), -0.75
        inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
        outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(weights, (np.arange(size), near.clip(0, given - 1).astype(int)), np.where(x <= 1, inner, outer))
    return weights


class PatchEmbed(nn.Module):
    """Every patch × patch square of an image, mapped to a token by one linear layer: a convolution that does not overlap."""

    def __init__(self, *, in_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, dim) from (N, C, H, W), row by row, P = ⌊H/patch⌋·⌊W/patch⌋."""
        x = self.proj(x)
        dim, height, width = (_fixed(size) for size in x.shape[1:])
        return x.reshape(-1, dim, height * width).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention: softmax(Q·Kᵀ/√d)·V in `num_heads` heads of d = dim/heads, and a projection.

    `qkv` returns (N, T, 3·dim), laid out as (3, heads, d).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, dim) from (N, T, dim)."""
        tokens, dim = _fixed(x.shape[1]), _fixed(x.shape[2])
        qkv = self.qkv(x).reshape(-1, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, d)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(-1, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers around a GELU, the same for every token."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, dim) from (N, T, dim)."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each on the normalised tokens and added to them (pre-norm)."""

    def __init__(self, dim: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, dim) from (N, T, dim)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches and a class token plus learned positions, `depth` blocks, a layer norm, and one linear layer.

    The classifier sees the class token (`pool="cls"`) or the average of the patch tokens (`pool="mean"`), both after the norm.
    An image of another size than `image_size` gets its positions from the learned ones by bicubic interpolation (Touvron et al.
    2021); a remainder of its sides by the patch is left out. No dropout and no stochastic depth. Parameter names are timm's.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        pool: Pool,
    ) -> None:
        super().__init__()
        self.patch, self.pool = patch, pool
        self.side = image_size // patch
        self.patch_embed = PatchEmbed(in_channels=in_channels, dim=dim, patch=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads=heads, hidden=int(dim * mlp_ratio)) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights of deviation 0.02, truncated, and zero biases, as DeiT has them; the patch convolution is torch's."""
        for tensor in (self.pos_embed, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(tensor, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.cls_token, std=1e-6)

    def positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + height·width, dim): the embedding of the class token's place and of every patch in a grid."""
        if height == self.side and width == self.side:
            return self.pos_embed
        weights = np.kron(bicubic(height, self.side), bicubic(width, self.side)).astype(np.float32)
        with _constants():
            resize = torch.from_numpy(weights).to(self.pos_embed)
        return torch.cat([self.pos_embed[:, :1], resize @ self.pos_embed[:, 1:]], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) from images (N, in_channels, H, W) with H, W ≥ patch."""
        height, width = _fixed(x.shape[2]) // self.patch, _fixed(x.shape[3]) // self.patch
        tokens = self.patch_embed(x)
        # the class token goes in front by padding and adding, which is what concatenating comes to, whatever the batch
        constant = self.positions(height, width) + F.pad(self.cls_token, (0, 0, 0, height * width))
        tokens = self.norm(self.blocks(F.pad(tokens, (0, 0, 1, 0)) + constant))
        return self.head(tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(1))


def _build(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    patch: int,
    dim: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    pool: Pool,
) -> VisionTransformer:
    """The network. Raises UserError for arguments that do not go together."""
    check_arguments(num_classes=num_classes, in_channels=in_channels)
    for name, value in {"image_size": image_size, "patch": patch, "dim": dim, "depth": depth, "heads": heads}.items():
        if value < 1:
            raise UserError(f"{name}={value} must be 1 or more", hint="leave it out for the published size")
    if image_size % patch:
        near = max(1, round(image_size / patch)) * patch
        raise UserError(f"image_size={image_size} is not a multiple of patch={patch}", hint=f"take image_size={near}")
    if dim % heads:
        raise UserError(f"dim={dim} can't be split among heads={heads}", hint=f"take a multiple of {heads}")
    if not 0 < mlp_ratio <= 16 or int(dim * mlp_ratio) < 1:
        raise UserError(f"mlp_ratio={mlp_ratio} must be above 0 and at most 16", hint="4.0 is published")
    if pool not in get_args(Pool):
        raise UserError(f"pool={pool!r} must be 'cls' or 'mean'", hint="'cls' is published")
    return VisionTransformer(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        pool=pool,
    )


@architectures.register(
    "vit_nano",
    ArchitectureCard(
        "Vision transformer for 28×28 images: 49 patches, dim 64, 4 blocks", "Dosovitskiy et al. 2021, scaled down", (3, 28, 28)
    ),
)
def vit_nano(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 28,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: float = 4.0,
    pool: Pool = "cls",
) -> VisionTransformer:
    """A small vision transformer; for images of other sizes give `image_size` and `patch`."""
    return _build(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        pool=pool,
    )


def _deit(dim: int, heads: int, *, num_classes: int, in_channels: int, image_size: int, patch: int, pool: Pool) -> nn.Module:
    return _build(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch=patch,
        dim=dim,
        depth=12,
        heads=heads,
        mlp_ratio=4.0,
        pool=pool,
    )


@architectures.register(
    "deit_tiny",
    ArchitectureCard(
        "DeiT tiny", "Touvron et al.: Training data-efficient image transformers, ICML 2021, table 1", (3, 224, 224)
    ),
)
def deit_tiny(
    *, num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, patch: int = 16, pool: Pool = "cls"
) -> nn.Module:
    """DeiT-Ti without its distillation token: dim 192, 12 blocks, 3 heads."""
    return _deit(192, 3, num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch=patch, pool=pool)


@architectures.register(
    "deit_small",
    ArchitectureCard(
        "DeiT small", "Touvron et al.: Training data-efficient image transformers, ICML 2021, table 1", (3, 224, 224)
    ),
)
def deit_small(
    *, num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, patch: int = 16, pool: Pool = "cls"
) -> nn.Module:
    """DeiT-S without its distillation token: dim 384, 12 blocks, 6 heads."""
    return _deit(384, 6, num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch=patch, pool=pool)


@architectures.register(
    "deit_base",
    ArchitectureCard(
        "DeiT base", "Touvron et al.: Training data-efficient image transformers, ICML 2021, table 1", (3, 224, 224)
    ),
)
def deit_base(
    *, num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, patch: int = 16, pool: Pool = "cls"
) -> nn.Module:
    """DeiT-B without its distillation token, which is ViT-B/16: dim 768, 12 blocks, 12 heads."""
    return _deit(768, 12, num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch=patch, pool=pool)
