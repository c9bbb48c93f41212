"""What a patch description network learns to say: a frozen network's features around every place, as PatchCore gathers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.errors import UserError

if TYPE_CHECKING:
    from ...models.backbones import FeatureNet

STRIDES = (8, 16)
"""Of the stages that are taken unless some are named: layer2 and layer3 of a residual network."""
PATCH = 3


class PatchFeatures(nn.Module):
    """Pictures (N, 3, H, W) in 0…1 → (N, C, h, w), h×w the map of the finest stage.

    Of every stage the 3×3 neighbours of a place (0 beyond the edge), channel by channel, are averaged in groups to `pooled` numbers; the
    coarser stages are enlarged to the finest (bilinear); all stages' numbers in a row are averaged in groups to C. All of that is
    linear, so per stage it is one fixed 3×3 convolution before the enlargement.
    Source: Roth et al.: Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, section 3.1, as EfficientAD uses it.
    """

    def __init__(self, backbone: FeatureNet, *, pooled: int, out_channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        for number, kernel in enumerate(kernels(backbone.channels, pooled=pooled, out_channels=out_channels)):
            self.register_buffer(f"kernel{number}", kernel, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """See the class."""
        maps = self.backbone(pictures)
        fine = max(tuple(found.shape[2:]) for found in maps)
        total = torch.zeros(())
        for number, found in enumerate(maps):
            part = F.conv2d(found, self.get_buffer(f"kernel{number}"), padding=PATCH // 2)
            whole = part if part.shape[2:] == fine else F.interpolate(part, fine, mode="bilinear", align_corners=False)
            total = whole + total.to(whole)
        return total


def kernels(channels: Sequence[int], *, pooled: int, out_channels: int) -> list[Tensor]:
    """Per stage the weights (out_channels, Cᵢ, 3, 3) that do both averagings of `PatchFeatures`."""
    found = []
    for number, count in enumerate(channels):
        patch = count * PATCH**2
        groups = F.adaptive_avg_pool1d(torch.eye(patch, dtype=torch.float64), pooled)  # (Cᵢ·9, pooled)
        row = torch.zeros(patch, pooled * len(channels), dtype=torch.float64)
        row[:, number * pooled : (number + 1) * pooled] = groups
        last = F.adaptive_avg_pool1d(row, out_channels)  # (Cᵢ·9, out_channels)
        found.append(last.T.float().reshape(out_channels, count, PATCH, PATCH).contiguous())
    return found


def open_features(text: str, *, stages: Sequence[int], pooled: int, out_channels: int) -> PatchFeatures:
    """The features that `text` and `stages` name, frozen; without stages the deepest of stride 8 and of stride 16.

    Raises UserError when the weights are missing, or when the network has no such stages and none are named.
    """
    from ...models.backbones import open_backbone

    chosen = tuple(stages)
    if not chosen:
        chosen = _deepest(open_backbone(text), text)
    return PatchFeatures(open_backbone(text, stages=chosen), pooled=pooled, out_channels=out_channels).eval()


@torch.no_grad()
def _deepest(net: FeatureNet, text: str) -> tuple[int, ...]:
    side, strides = 256, []
    side = int(net.kwargs.get("image_size", side))
    x = torch.zeros(1, 3, side, side)
    for stage in net.body:
        x = stage(x)
        as_map: Callable[[Tensor], Tensor] | None = getattr(stage, "as_map", None)
        shown = as_map(x) if as_map else x
        strides.append(round(side / shown.shape[2]))
    found = [max((n for n, stride in enumerate(strides) if stride == wanted), default=-1) for wanted in STRIDES]
    if -1 in found:
        raise UserError(
            f"backbone {text!r} has no stages of stride {STRIDES[0]} and {STRIDES[1]} (its strides: {strides})",
            hint="name the stages: stages = [4, 8]",
        )
    return tuple(found)
