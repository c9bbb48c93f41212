"""A small network for landmarks that keeps its map until the last layer: an average over the map would lose where things are."""

from __future__ import annotations

from torch import Tensor, nn


class PointNet(nn.Module):
    """Four strided convolutions, then one linear layer on the whole map, a sixteenth of the pictures' `side` wide."""

    def __init__(self, width: int, points: int, *, side: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for outputs in (width, 2 * width, 4 * width, 4 * width):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.fc = nn.Linear(inputs * (side // 16) ** 2, 2 * points)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2L) from (N, 1, side, side)."""
        return self.fc(self.features(x))


def make(width: int = 16, points: int = 21) -> nn.Module:
    """The network, as trimtab's --model wants it."""
    return PointNet(width, points)
