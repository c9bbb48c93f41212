"""What a vision transformer attends to: how far it looks, and how much that depends on where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...models.bundle import bare
from ...models.errors import UserError, did_you_mean

QKV = "attn.qkv"
"""How the linear layer that makes queries, keys and values is called (timm's name)."""


@dataclass(frozen=True)
class AttentionFigures:
    """Per layer, per head: the average attention distance in pixels, and the normalised mutual information of the attention.

    Long distances beside short ones: heads that look at different scales. Mutual information near 0: every query attends to the
    same keys (collapse); near 1: every query attends to keys of its own.
    """

    layers: tuple[str, ...]
    distance_px: tuple[tuple[float, ...], ...]
    nmi: tuple[tuple[float, ...], ...]


def qkv_layers(root: nn.Module, under: str = "") -> tuple[str, ...]:
    """The paths, in order, of all modules called …attn.qkv, with `under` put before them."""
    prefix = f"{under}." if under else ""
    return tuple(prefix + name for name, _ in root.named_modules() if name == QKV or name.endswith(f".{QKV}"))


def heads_of(attention: nn.Module, path: str) -> int:
    """The number of heads of the attention module at `path`. Raises UserError when it does not say, or normalises its queries."""
    for name in ("q_norm", "k_norm"):
        if not isinstance(getattr(attention, name, None), nn.Identity | None):
            raise UserError(
                f"{path!r} normalises queries and keys after {path}.qkv ({name})", hint="take a transformer without that"
            )
    heads = getattr(attention, "num_heads", None)
    if not isinstance(heads, int) or heads < 1:
        raise UserError(f"{path!r} does not say how many heads it has (no num_heads)", hint="set heads = the number of heads")
    return heads


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """(3, N, heads, T, d): queries, keys and values from (N, T, 3·heads·d), laid out as (3, heads, d)."""
    images, tokens, width = qkv.shape
    return qkv.reshape(images, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)


def attention_map(qkv: Tensor, heads: int) -> Tensor:
    """softmax(Q·Kᵀ/√d) over the keys, (N, heads, T, T) in float32, from (N, T, 3·heads·d)."""
    query, key, _ = split_heads(qkv.float(), heads)
    return (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)


def between_patches(attention: Tensor, prefix: int) -> Tensor:
    """The attention of patches to patches, (N, heads, P, P), each row summing to 1 again; `prefix` tokens are left out."""
    inner = attention[..., prefix:, prefix:]
    return inner / inner.sum(-1, keepdim=True).clamp_min(torch.finfo(inner.dtype).tiny)


def attention_distance(attention: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(N, heads): the distance in pixels between a patch and what it attends to, weighted by the attention, mean over patches.

    D = 1/P · Σ_q Σ_k A_qk · patch · ‖position_q − position_k‖ for attention (N, heads, P, P) over a grid (rows, columns), P = rows
    · columns. Source: Dosovitskiy et al. 2021, figure 7 and appendix D.7; Raghu et al. 2021.
    """
    rows, columns = (torch.arange(n, device=attention.device, dtype=torch.float32) for n in grid)
    places = torch.cartesian_prod(rows, columns) * patch
    return (attention.float() * torch.cdist(places, places)).sum(-1).mean(-1)


def attention_nmi(attention: Tensor) -> Tensor:
    """(N, heads): the normalised mutual information of queries and keys, 0…1.

    I(q; k) / √(H(q)·H(k)) of p(q, k) = A_qk / P, so p(q) = 1/P and p(k) = Σ_q A_qk / P, for attention (N, heads, P, P); 0 where
    every query attends to one and the same key. Source: Park et al.: What Do Self-Supervised Vision Transformers Learn?, 2023, §2.
    """
    patches = attention.shape[-1]
    joint = attention.double() / patches
    keys = joint.sum(-2)
    entropy_keys = -torch.special.xlogy(keys, keys).sum(-1)
    # Σ p·log(p / (p_q·p_k)) = −H(q, k) + H(q) + H(k)
    information = torch.special.xlogy(joint, joint).sum((-2, -1)) + math.log(patches) + entropy_keys
    tiny = 1e-12  # below it the entropy of the keys is rounding
    scale = (math.log(patches) * entropy_keys.clamp_min(tiny)).sqrt()
    return torch.where(entropy_keys > tiny, information / scale, 0.0).clamp(0, 1)


@torch.no_grad()
def measure_attention(
    module: nn.Module, images: Tensor, *, layers: tuple[str, ...] = (), heads: int = 0, prefix: int = 1, batch_size: int = 64
) -> AttentionFigures:
    """The figures of a vision transformer, averaged over images (N, C, H, W) that are normalised for it.

    `layers` are the paths of its qkv layers (default: all that are called …attn.qkv), `heads` their number of heads (0: read from
    the attention module), `prefix` the number of tokens before the patches. Computed in eval mode where the module lies.
    Raises UserError for a layer that is not there and for tokens that are not the image's patches.
    """
    root = bare(module)
    modules = dict(root.named_modules())
    layers = layers or qkv_layers(root)
    if not layers:
        raise UserError("the network has no layer called …attn.qkv", hint="name its qkv layers: layers = (PATH, …)")
    if unknown := [path for path in layers if path not in modules]:
        raise UserError(f"the network has no module {unknown[0]!r}", hint=did_you_mean(unknown[0], modules))
    if len(images) == 0:
        raise UserError("there are no images to measure the attention on", hint="give at least one")
    counts = [heads or heads_of(modules[path.rpartition(".")[0]], path.rpartition(".")[0]) for path in layers]
    patch = _patch(root)
    grid = (images.shape[2] // patch, images.shape[3] // patch)
    sums: list[list[Tensor]] = [[] for _ in layers]

    def keep(at: int, path: str, qkv: Tensor) -> None:
        if qkv.shape[1] - prefix != grid[0] * grid[1]:
            raise UserError(
                f"{path} sees {qkv.shape[1]} tokens, {prefix} of them no patches; the image has {grid[0]}×{grid[1]} patches",
                hint="set prefix to the number of tokens before the patches",
            )
        inner = between_patches(attention_map(qkv, counts[at]), prefix)
        sums[at].append(torch.stack([attention_distance(inner, grid, patch).double(), attention_nmi(inner)], dim=-1))

    training = [(part, part.training) for part in module.modules()]
    hooks = [
        modules[path].register_forward_hook(lambda _m, _a, out, at=at, path=path: keep(at, path, out))
        for at, path in enumerate(layers)
    ]
    try:
        module.eval()
        for start in range(0, len(images), batch_size):
            module(images[start : start + batch_size])
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in training:
            part.training = mode
    figures = [torch.cat(parts).mean(0) for parts in sums]  # (heads, 2) each
    return AttentionFigures(
        layers, tuple(tuple(f[:, 0].tolist()) for f in figures), tuple(tuple(f[:, 1].tolist()) for f in figures)
    )


def _patch(root: nn.Module) -> int:
    """The side of a patch in pixels, from the convolution that cuts the image into patches."""
    projection = getattr(getattr(root, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.stride[0] != projection.stride[1]:
        raise UserError(
            "the network has no convolution patch_embed.proj with square steps", hint="this figure wants a vision transformer"
        )
    return projection.stride[0]
