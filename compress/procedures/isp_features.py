"""What the losses of an ISP network see of a picture: frozen features of its lightness, its grey picture and its blurred colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.errors import UserError
from .isp_losses import BLUR_SIDE, blurred, grey, lightness

if TYPE_CHECKING:
    from ...models.backbones import FeatureNet
    from .unpaired_isp import IspConfig

SUBSTITUTE = (
    "the published run takes VGG-19 relu5_4 (content), an AlexNet (texture) and a ViT-B/16 (colour); this one took {nets}: "
    "its figures are not comparable with the paper's"
)


@dataclass(frozen=True)
class Eyes:
    """Frozen networks and what they are shown. A critic's name is the term's: texture_shallow, texture_deep, colour."""

    content: FeatureNet
    texture: FeatureNet
    colour: FeatureNet
    luminance: bool = True
    sigma: float = 3.0
    colour_size: int = 0

    def to(self, device: torch.device) -> Eyes:
        """The same eyes, their networks moved to `device`."""
        for net in (self.content, self.texture, self.colour):
            net.to(device)
        return self

    def content_maps(self, pictures: Tensor) -> Tensor:
        """(N, C, h, w): deep features of CIELab's lightness as a grey picture, or of the colours themselves."""
        return self.content(lightness(pictures).expand(-1, 3, -1, -1) if self.luminance else pictures)[-1]

    def texture_maps(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Shallow and deep features (N, Cᵢ, hᵢ, wᵢ) of the grey pictures, from one pass."""
        shallow, deep = self.texture(grey(pictures))
        return shallow, deep

    def colour_maps(self, pictures: Tensor) -> Tensor:
        """(N, C, h, w): features of the blurred picture, resized to `colour_size` first unless that is 0."""
        seen = blurred(pictures, self.sigma)
        if self.colour_size:
            seen = F.interpolate(seen, (self.colour_size,) * 2, mode="bilinear", align_corners=False, antialias=True)
        return self.colour(seen)[-1]

    @torch.no_grad()
    def sizes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """The shape (C, h, w) that each critic is shown of a picture of this size."""
        blank = torch.zeros(1, 3, height, width, device=self.content.mean.device)
        maps = (*self.texture_maps(blank), self.colour_maps(blank))
        names = ("texture_shallow", "texture_deep", "colour")
        return {name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in zip(names, maps, strict=True)}

    def cards(self) -> dict[str, dict[str, Any]]:
        """Network, stages and digest of the weights by use, for the record."""
        nets = {"content": self.content, "texture": self.texture, "colour": self.colour}
        return {
            use: {"source": net.source, "stages": list(net.stages), "channels": list(net.channels), "sha256": net.digest}
            for use, net in nets.items()
        }

    def note(self) -> str:
        """One sentence: which networks stand in for the published ones."""
        return SUBSTITUTE.format(nets=", ".join(f"{card['source']} ({use})" for use, card in self.cards().items()))


def open_eyes(config: IspConfig) -> Eyes:
    """The frozen networks that `config` names, on the CPU. Raises UserError for weights and stages that are not there."""
    from ...models.backbones import open_backbone

    def late(text: str, stage: int) -> FeatureNet:
        return open_backbone(text, stages=(open_backbone(text).stages[-1] if stage < 0 else stage,))

    usual = open_backbone(config.texture_features).stages
    pair = config.texture_stages or (usual[0], usual[-1])
    return Eyes(
        content=late(config.content_features, config.content_stage),
        texture=open_backbone(config.texture_features, stages=pair),
        colour=late(config.colour_features, config.colour_stage),
        luminance=config.content_channels == "luminance",
        sigma=config.blur_sigma,
        colour_size=config.colour_size,
    )


def check_size(height: int, width: int) -> None:
    """None. Raises UserError for pictures that are smaller than the Gaussian in front of the colour critic."""
    least = BLUR_SIDE // 2 + 1
    if min(height, width) < least:
        raise UserError(
            f"pictures of {height}×{width} are too small for a Gaussian of {BLUR_SIDE}×{BLUR_SIDE} pixels",
            hint=f"take patches of {least} pixels and more: --data-arg size=128,128 (256 is published)",
        )
