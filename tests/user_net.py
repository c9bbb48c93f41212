"""A user's own network, as trimtab meets it: defined outside the package, with the joints that break pruners and exporters.

Residual addition, concatenation, depthwise and grouped convolutions, squeeze-and-excitation, and module names of its own.
"""

import torch
from torch import nn


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels, reduced):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, reduced, 1)
        self.excite = nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        s = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(s))))


class Block(nn.Module):
    """Expand, depthwise, gate, project, add."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()
        )
        self.gate = Gate(hidden, hidden // 4)
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        return x + self.project(self.gate(self.depth(self.expand(x))))


class UserNet(nn.Module):
    """Two branches concatenated, then a grouped convolution and a residual."""

    def __init__(self, classes=10, channels=3, width=32):
        super().__init__()
        self.entry = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.inverted = Block(width, 3 * width)
        self.left = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.mix = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.grouped = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1, groups=4, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image):
        x = self.inverted(self.entry(image))
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        x = self.grouped(self.mix(x))
        return self.head(torch.flatten(self.pool(x), 1))


def make(classes=10, channels=3, width=32):
    """The factory that `--model user_net.py:make` names."""
    return UserNet(classes, channels, width)


def make_dict(classes=10, channels=3):
    """A network that returns a dict."""
    return _Dict(UserNet(classes, channels, 16))


class _Dict(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, image):
        logits = self.net(image)
        return {"logits": logits, "probabilities": torch.softmax(logits, 1)}


def broken():
    """A factory that raises."""
    raise ValueError("no such variant")


def not_a_module():
    """A factory that returns something else."""
    return 7
