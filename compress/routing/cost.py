"""What a routed network costs: each branch alone, the whole way of a sample that a branch answers, and the average over samples.

A prefix that all branches share is counted once, as it is computed once in an artifact. A cascade's sample pays for every branch
that it passed; a routed one for the router, for what the router reads (unless that lies in the prefix), and for its branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.edits import submodule
from ...models.errors import UserError
from ...models.routed import RoutedNet, features_at, plain_branch
from ..cost import count


@dataclass(frozen=True)
class RouteCost:
    """MACs of one sample: of every branch `alone`, of the `prefix` within each, and of the `router` with what it reads beyond that.

    `paths` is what a sample costs that the i-th branch answers.
    """

    alone: tuple[int, ...]
    prefix: int
    router: int
    paths: tuple[int, ...]

    @property
    def worst(self) -> int:
        """The dearest way: a cascade's last, a router's largest."""
        return max(self.paths)


@dataclass(frozen=True)
class ExpectedMacs:
    """MACs per sample over the samples given: the mean and the dearest way possible; branches' own, and how many took each."""

    mean: float
    worst: int
    branches: tuple[int, ...]
    shares: tuple[float, ...]
    samples: int


def route_cost(net: RoutedNet, inputs: Sequence[Tensor]) -> RouteCost:
    """The costs of `net` for one sample; batch-1 `inputs` say how large the images are."""
    alone = tuple(count(plain_branch(net, i), inputs).macs for i in range(len(net.branches)))
    shared = prefix_of(net, inputs)
    prefix = _macs_under(net.branches[-1], shared, inputs)
    router = 0
    if net.router is not None and net.spec.router is not None:
        at = net.spec.router.at
        with torch.no_grad():
            seen = net.eval().router_input(inputs[0])
        router = count(net.router, [seen]).macs
        if at and not any(at == path or at.startswith(f"{path}.") for path in shared):
            router += count(_UpTo(net.branches[-1], at), inputs).macs - prefix
    if net.spec.rule == "cascade":
        paths = tuple(prefix + sum(m - prefix for m in alone[: i + 1]) for i in range(len(alone)))
    else:
        paths = tuple(router + m for m in alone)
    return RouteCost(alone, prefix, router, paths)


def expected_macs(net: RoutedNet, samples: Tensor | Iterable[Tensor]) -> ExpectedMacs:
    """The average over `samples`, normalised inputs (N, C, H, W) or batches of them, by the branches that `net` takes.

    The network keeps its device (samples are moved there) and comes back in the mode it had. Raises UserError without samples.
    """
    batches = [samples] if isinstance(samples, Tensor) else samples
    home = next(net.parameters()).device
    modes = [(part, part.training) for part in net.modules()]
    cost: RouteCost | None = None
    taken = torch.zeros(len(net.branches), dtype=torch.int64)
    net.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                inputs = batch.to(home)
                cost = cost or route_cost(net, [inputs[:1]])
                net(inputs)
                taken += torch.bincount(net.taken.cpu(), minlength=len(taken))
    finally:
        for part, training in modes:
            part.training = training
    total = int(taken.sum())
    if cost is None or not total:
        raise UserError("there are no samples to average MACs over", hint="give at least one")
    shares = (taken.double() / total).tolist()
    mean = sum(share * macs for share, macs in zip(shares, cost.paths, strict=True))
    return ExpectedMacs(mean, cost.worst, cost.alone, tuple(shares), total)


def prefix_of(net: RoutedNet, inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """The shared modules that say the same in every branch: those before any difference."""
    said = [_outputs_of(branch.eval(), net.spec.shared, inputs) for branch in net.branches]
    return tuple(
        path for path in net.spec.shared if all(path in words and torch.equal(words[path], said[-1][path]) for words in said)
    )


@torch.no_grad()
def _outputs_of(module: nn.Module, paths: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What the submodules at `paths` return in one run; those that do not run, run twice, or return no tensor are left out."""
    seen: dict[str, list[Any]] = {path: [] for path in paths}
    handles = [
        submodule(module, path).register_forward_hook(lambda _m, _a, output, key=path: seen[key].append(output))
        for path in paths
    ]
    try:
        module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: found[0] for path, found in seen.items() if len(found) == 1 and isinstance(found[0], Tensor)}


def _macs_under(module: nn.Module, paths: Sequence[str], inputs: Sequence[Tensor]) -> int:
    """The MACs of the modules at `paths` with all that is below them, each once."""
    layers = count(module, inputs).layers
    return sum(layer.macs for layer in layers if any(layer.path == p or layer.path.startswith(f"{p}.") for p in paths))


class _UpTo(nn.Module):
    """A network as far as the module at `at`."""

    def __init__(self, module: nn.Module, at: str) -> None:
        super().__init__()
        self.module, self.at = module, at

    def forward(self, x: Tensor) -> Tensor:
        return features_at(self.module, self.at, x)
