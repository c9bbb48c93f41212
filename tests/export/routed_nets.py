"""Small routed networks: branches of a plain convolutional net that share the stem, with weights that make them disagree."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.models.contract import Contract, image_classifier
from trimtab.models.edits import Edit
from trimtab.models.routed import RoutedNet, RouterSpec, RouteSpec, Rule

CONTRACT = image_classifier(channels=3, height=16, width=16, classes=tuple("abcde"), mean=(0.4,) * 3, std=(0.2,) * 3)
WIDE = 12


class Plain(nn.Module):
    """A stem, two convolutions with a residual around the second, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.first, self.norm1 = nn.Conv2d(8, WIDE, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(WIDE)
        self.second, self.norm2 = nn.Conv2d(WIDE, WIDE, 3, padding=1, bias=False), nn.BatchNorm2d(WIDE)
        self.head = nn.Linear(WIDE, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(self.stem(x))))
        x = torch.relu(x + self.norm2(self.second(x)))
        return 4 * self.head(x.mean((2, 3)))


def kept(count: int) -> tuple[Edit, ...]:
    """The edits that leave the first `count` channels of both convolutions."""
    if count == WIDE:
        return ()
    these = tuple(range(count))
    places = [("first", "out"), ("norm1", "out"), ("second", "in"), ("second", "out"), ("norm2", "out"), ("head", "in")]
    return tuple(Edit(path=path, side=side, size=WIDE, kept=these) for path, side in places)


def routed_net(rule: Rule = "cascade", *, shared: bool = True, at: str = "", nested: bool = False, seed: int = 0) -> RoutedNet:
    """Three branches of 4, 8 and 12 channels; statistics and weights are seeded, so that every branch says something else."""
    torch.manual_seed(seed)
    router = None if rule == "cascade" else RouterSpec(at=at, inputs=8 if at else 3, pool=2, width=4)
    spec = RouteSpec(
        branches=(kept(4), kept(8), kept(WIDE)), rule=rule, shared=("stem",) if shared else (), nested=nested, router=router
    )
    net = RoutedNet(Plain(), spec)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    if net.router is not None:
        for layer in net.router.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.data.mul_(4)
    net.eval()
    if net.router is not None and rule == "cluster":  # every cluster gets some inputs
        with torch.no_grad():
            x = torch.cat(samples(24))
            net.router.head[-1].bias.data -= net.router.logits(net.router_input(x)).mean(0)
    return net


def samples(count: int, seed: int = 0) -> list[Tensor]:
    """Seeded normalised inputs, each (1, 3, 16, 16)."""
    arrays = [CONTRACT.random_inputs({"N": 1}, seed=seed + k)["image"] for k in range(count)]
    return [torch.from_numpy(array) * (0.5 + k % 4) for k, array in enumerate(arrays)]


def contract() -> Contract:
    """The contract of the plain net."""
    return CONTRACT
