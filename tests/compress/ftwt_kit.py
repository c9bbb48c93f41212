"""Small networks with the joints that gates meet, for the tests of dynamic pruning."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from trimtab.compress.groups import analyse, build_plan

X = torch.zeros(1, 3, 12, 12)


def conv_bn(inputs, outputs, kernel=3, **more):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **more), nn.BatchNorm2d(outputs))


class Chain(nn.Module):
    """Two gateable convolutions, the second flattened into a linear layer, activations as functions."""

    def __init__(self, first=F.relu, second=F.relu):
        super().__init__()
        self.a, self.b, self.fc = conv_bn(3, 6), conv_bn(6, 8), nn.Linear(8 * 36, 5)
        self.first, self.second = first, second

    def forward(self, x):
        x = F.max_pool2d(self.first(self.a(x)), 2)
        return self.fc(self.second(self.b(x)).flatten(1))


class Wrapped(nn.Module):
    """A body between a stem and a classifier; `body` maps 8 channels to 8 and is a module or a function of (net, x)."""

    def __init__(self, body, **parts):
        super().__init__()
        self.stem, self.fc = conv_bn(3, 8), nn.Linear(8, 5)
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = body

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.fc(self.body(self, x).mean((2, 3)))


def lively(net, *, seed=0):
    """`net` in eval mode with norm statistics under which every channel matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.3)
                part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
                part.weight.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(part.bias.shape, generator=generator) * 0.3)
    return net.eval()


def random_masks(found, samples, *, seed=0, on=0.5):
    """Masks bool (N, C) by path with at least one channel on in every row."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for c in found:
        mask = torch.rand(samples, c.channels, generator=generator) < on
        mask[torch.arange(samples), torch.randint(c.channels, (samples,), generator=generator)] = True
        masks[c.conv] = mask
    return masks


def sliced(net, x, rows):
    """A copy of `net` cut by the dependency graph to the channels that are on: `rows` bool (C,) by the convolution's path."""
    cuts = []
    for group in analyse(copy.deepcopy(net), [x]).groups:
        for member in group.members:
            if member.side == "out" and member.path in rows:
                gone = {r for o, r in zip(member.own, member.root, strict=True) if not rows[member.path][o]}
                cuts.append((group, gone))
    return build_plan(cuts).replay(copy.deepcopy(net))
