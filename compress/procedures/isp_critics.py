"""The critics (discriminators) that tell developed pictures from target pictures by their frozen features."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

CONVOLUTIONS = ((5, 2, 48), (3, 2, 128), (3, 1, 192), (3, 1, 192), (3, 2, 128))
"""(kernel, stride, channels) at width 1."""
HIDDEN, TOKEN_HIDDEN = 1024, 512
LEAK = 0.2


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class MapCritic(nn.Module):
    """Feature maps (N, C, h, w) → one score each (N, 1): five convolutions and two linear layers, LeakyReLU 0.2 between them.

    The released code makes the first linear layer in the first forward pass, after its optimiser was built, and so never trains
    it; here it is built for maps of `size` (h, w) and trained like the rest.
    """

    def __init__(self, channels: int, size: tuple[int, int], *, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for kernel, stride, made in CONVOLUTIONS:
            layers += [
                nn.Conv2d(channels, _scaled(made, width), kernel, stride, padding=kernel // 2),
                nn.LeakyReLU(LEAK),
            ]
            channels = _scaled(made, width)
            size = (-(-size[0] // stride), -(-size[1] // stride))
        self.convolutions = nn.Sequential(*layers)
        hidden = _scaled(HIDDEN, width)
        self.head = nn.Sequential(nn.Linear(channels * size[0] * size[1], hidden), nn.LeakyReLU(LEAK), nn.Linear(hidden, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return cast(Tensor, self.head(self.convolutions(maps).flatten(1)))


class TokenCritic(nn.Module):
    """Feature maps (N, C, h, w) → one score each (N, 1): every position is judged by one small perceptron, the mean counts."""

    def __init__(self, channels: int, *, width: float = 1.0) -> None:
        super().__init__()
        hidden = _scaled(TOKEN_HIDDEN, width)
        self.judge = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return torch.mean(self.judge(maps.flatten(2).transpose(1, 2)), dim=1)
