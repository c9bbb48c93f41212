"""The router in training: what it is to say about each training image, learnt from pixels or from a module's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.routed import RoutedNet
from .training import frozen_parts, imitation, judged

if TYPE_CHECKING:
    from ...models.tasks.task import Task
    from ..loop import Objective, TrainBatch
    from ..runtime import Runtime

Signal = Literal["suffices", "mass", "both"]


def easiness(demand: Tensor) -> Tensor:
    """1 for the sample that needs the fewest channels, 0 for the one that needs the most, by rank (equals share theirs): (N,)."""
    if len(demand) < 2:
        return torch.full_like(demand, 0.5)
    _, place, count = torch.unique(demand, return_inverse=True, return_counts=True)
    below = count.cumsum(0) - count
    middle = below.double() + (count.double() - 1) / 2
    return (1 - middle[place] / (len(demand) - 1)).float()


def router_targets(signal: Signal, suffices: Tensor, demand: Tensor | None) -> Tensor:
    """What the router learns to say of each sample, in 0…1, float32 (N, K−1), for `suffices` bool (N, K−1) and `demand` (N,).

    "suffices": whether a branch is good enough; "mass": how few channels the sample needs by the mass criterion, as a rank;
    "both": their mean.
    """
    if signal == "suffices":
        return suffices.float()
    if demand is None:
        raise ValueError(f"signal {signal!r} needs the samples' demand")
    easy = easiness(demand)[:, None].expand(suffices.shape)
    return easy.contiguous() if signal == "mass" else (suffices.float() + easy) / 2


class Routing(nn.Module):
    """The router of a network as the engine trains it: an input ↦ logits (N, outputs). All else stays as it is."""

    def __init__(self, net: RoutedNet) -> None:
        super().__init__()
        self.net = net

    def train(self, mode: bool = True) -> Routing:
        """The router in this mode, the branches in eval mode."""
        super().train(mode)
        self.net.branches.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits for (N, C, H, W)."""
        return router_of(self.net).logits(self.net.router_input(x))


def router_of(net: RoutedNet) -> Any:
    """The router. Raises ValueError for a network without one."""
    if net.router is None:
        raise ValueError("a cascade has no router")
    return net.router


def router_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy to `wanted` float (N, K−1), or cross-entropy to clusters int64 (N,); in nats, mean over samples."""
    if wanted.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits.float(), wanted)
    return F.cross_entropy(logits.float(), wanted)


def routing_objective(table: Tensor) -> Objective:
    """The objective of `Routing`: `table` holds what is wanted of each training sample, by its position in the split."""

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Any, dict[str, Any]]:
        wanted = table.index_select(0, batch.index.to(table.device)).to(batch.inputs.device)
        return router_loss(network(batch.inputs), wanted), {}

    return objective


class Together(nn.Module):
    """A routed network as it works, in training: every branch on the samples that the router sends it, and the router's logits.

    Branch-wise batch norms thus see what they will see. With `learn` the router learns as well.
    """

    def __init__(self, net: RoutedNet, learning: Sequence[int], *, learn: bool) -> None:
        super().__init__()
        self.net, self.learning, self.learn = net, tuple(learning), learn

    def train(self, mode: bool = True) -> Together:
        """The network, what does not learn in eval mode."""
        super().train(mode)
        for part in frozen_parts(self.net, self.learning):
            if part is not self.net.router:
                part.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]], Tensor]:
        """(logits (N, outputs), [(branch, its rows (n,), its answers (n, …))], 0).

        A branch with fewer than two samples sits out. The zero hangs on all weights that learn, so that each takes part in each step.
        """
        with torch.set_grad_enabled(self.learn and torch.is_grad_enabled()):
            logits = router_of(self.net).logits(self.net.router_input(x))
        taken = self._pick(logits.detach())
        parts = []
        nothing = 0.0 * torch.stack([p.float().sum() for p in self.parameters() if p.requires_grad]).sum()
        for i in self.learning:
            rows = (taken == i).nonzero()[:, 0]
            if len(rows) > 1:
                parts.append((i, rows, self.net.branches[i](x[rows])))
        return logits, parts, nothing

    def _pick(self, logits: Tensor) -> Tensor:
        from ...models.routed import first_reaching

        if self.net.spec.rule == "cluster":
            return logits.argmax(1)
        return first_reaching(torch.sigmoid(logits.float()), self.net.thresholds.to(logits.device))


def together_objective(
    table: Tensor,
    teacher: nn.Module | None,
    task: Task,
    runtime: Runtime,
    *,
    weight: float,
    temperature: float,
    classes: bool,
    learn: bool,
) -> Objective:
    """The objective of `Together`: each branch's losses over its own samples, weighted by how many they are, and the router's."""

    def objective(network: nn.Module, batch: TrainBatch) -> tuple[Any, dict[str, Any]]:
        logits, parts, nothing = network(batch.inputs)
        wanted = table.index_select(0, batch.index.to(table.device)).to(batch.inputs.device)
        router = router_loss(logits, wanted)
        total = nothing + router if learn else nothing
        label = torch.zeros((), device=logits.device)
        said = judged(teacher, batch.inputs, runtime) if teacher is not None and weight and parts else None
        for _, rows, answer in parts:
            share = len(rows) / len(batch.inputs)
            own = task.loss(answer, batch.targets[rows])
            label = label + share * own
            if said is not None:
                own = own + weight * imitation(answer, said[rows], temperature=temperature, classes=classes)
            total = total + share * own
        return total, {"label": label, "router": router.detach()}

    return objective
