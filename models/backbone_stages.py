"""A classifier as a chain of stages: what runs one after the other before the global average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError


def tokens_as_map(tokens: Tensor) -> Tensor:
    """(N, D, √P, √P): the patch tokens of (N, 1 + P, D) at their places in a square picture."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)


class PatchTokens(nn.Module):
    """A vision transformer's entry: pictures (N, C, H, W) → tokens (N, 1 + P, D), the class token first, positions added."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.patch_embed, self.cls_token, self.pos_embed = vit.patch_embed, vit.cls_token, vit.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        tokens = self.patch_embed(x)
        tokens = tokens.flatten(1, 2) if tokens.ndim == 4 else tokens
        return torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed

    as_map = staticmethod(tokens_as_map)


class TokenBlock(nn.Module):
    """One transformer block, whose patch tokens can be laid out as a map."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, 1 + P, D) from (N, 1 + P, D)."""
        return self.block(tokens)

    as_map = staticmethod(tokens_as_map)


def stages_of(module: nn.Module, name: str) -> list[nn.Module]:
    """The network's stages in order; running them one by one gives its last feature map. They share its weights.

    Known are networks whose maps come from an `nn.Sequential` named `features` (VGG, MobileNets, SkipblockNet's relatives), ResNets,
    EfficientNet-Lite and vision transformers with timm's names. Raises UserError for others.
    """
    net: Any = module
    if isinstance(getattr(net, "features", None), nn.Sequential):
        return list(net.features)
    if all(hasattr(net, part) for part in ("_conv_stem", "_blocks", "_conv_head")):
        stem = nn.Sequential(net._pad, net._conv_stem, net._bn0, net._relu0)
        return [stem, *net._blocks, nn.Sequential(net._conv_head, net._bn1, net._relu1)]
    if all(hasattr(net, part) for part in ("conv1", "layer1", "fc")):
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        layers = [f"layer{i}" for i in range(1, 9) if hasattr(net, f"layer{i}")]
        return [stem, *(getattr(net, layer) for layer in layers)]
    if all(hasattr(net, part) for part in ("patch_embed", "pos_embed", "blocks")) and net.cls_token is not None:
        return [PatchTokens(net), *(TokenBlock(block) for block in net.blocks)]
    raise UserError(
        f"{name} ({type(module).__name__}) has no known chain of stages",
        hint="take a VGG, ResNet, MobileNet, EfficientNet-Lite or ViT of the zoo as backbone",
    )
