"""EfficientAD's three networks as they learn together: one pass, and the loss of what it saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .efficientad_losses import FEW, changed, hard_count, hard_loss, penalty_loss


class Lesson(nn.Module):
    """(pictures, changed pictures or None, penalty pictures or None) → the features that the loss compares.

    Holds the whole network, so that a checkpoint does. `few` says where the hard elements of a picture are too few ("" otherwise).
    """

    def __init__(self, net: Any, *, p_hard: float, l2: float) -> None:
        super().__init__()
        self.net, self.p_hard, self.l2 = net, p_hard, l2
        elements = net.out_channels * net.map_size[0] * net.map_size[1]
        self.hard_elements = hard_count(elements, p_hard) if p_hard > 0 else elements
        self.few = ""
        if self.hard_elements < FEW:
            enough = max(0.0, 1 - FEW / elements)
            self.few = (
                f"p_hard = {p_hard} leaves {self.hard_elements} of the {elements} elements of a map of {net.map_size[0]}×"
                f"{net.map_size[1]}×{net.out_channels}: too few for a steady mean; p_hard = {enough:.3g} would leave {FEW}"
            )

    def frozen_teacher(self) -> None:
        """None; the teacher learns nothing from here on, the others do."""
        self.net.requires_grad_(True)
        self.net.teacher.requires_grad_(False)

    def forward(self, images: Tensor, altered: Tensor | None, strange: Tensor | None) -> dict[str, Tensor]:
        """See the class: "wanted" (N, C, h, w) twice where there are changed pictures, "guessed", "whole" and "strange"."""
        net, count = self.net, len(images)
        shown = [images, *([altered] if altered is not None else [])]
        known = net.norm(torch.cat(shown))
        with torch.no_grad():
            wanted = net.describe(known)
        guessed = net.student.features(known if strange is None else torch.cat([known, net.norm(strange)]))
        found = {"wanted": wanted, "guessed": guessed[: len(known)]}
        if altered is not None:
            found["whole"] = net.autoencoder(known[count:])
        if strange is not None:
            found["strange"] = guessed[len(known) :]
        return found

    def loss(self, network: nn.Module, images: Tensor, strange: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(L_ST + L_AE + L_STAE + the pull on the weights, its parts) by EfficientAD's equations 1 to 5. `network` is this module, wrapped."""
        altered = changed(images) if self.net.autoencoder is not None else None
        strange = strange.to(images) if strange is not None else None
        parts = self.parts(network(images, altered, strange), len(images))
        if self.l2:
            learning = [p for p in self.net.parameters() if p.requires_grad]
            parts["l2"] = 0.5 * self.l2 * torch.stack([p.square().sum() for p in learning]).sum()
        return torch.stack(list(parts.values())).sum(), parts

    def parts(self, seen: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """{"hard", "penalty", "ae", "stae"}, those that there are, from what `forward` returned for `count` pictures."""
        channels = self.net.out_channels
        wanted, guessed = seen["wanted"], seen["guessed"]
        parts = {"hard": hard_loss((wanted[:count] - guessed[:count, :channels]).square(), self.p_hard)}
        if "strange" in seen:
            parts["penalty"] = penalty_loss(seen["strange"][:, :channels])
        if "whole" in seen:
            parts["ae"] = (wanted[count:] - seen["whole"]).square().mean()
            parts["stae"] = (seen["whole"] - guessed[count:, channels:]).square().mean()
        return parts
