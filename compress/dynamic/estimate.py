"""How many MACs masks will save, before anything is trained: the frozen dense network under ground-truth masks.

Source: Elkerdawy et al., "Fire Together Wire Together" (CVPR 2022), §3.4: r is chosen by this curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from ...models.errors import UserError
from ...models.gates import GateSpec
from ..evaluation import evaluate
from .accounting import MacModel
from .candidates import Candidates, candidates, dense_copy, spec_of
from .gating import choosing, forget, gated
from .ground_truth import Criterion, Rule
from .observe import Observation, observe

if TYPE_CHECKING:
    from ...models.tasks.task import Split, Task
    from ..runtime import Runtime

GRID = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 1.0)
"""The r of a curve, unless others are asked for."""
LOWEST = 0.05
"""The smallest level that a target is sought with."""
CLOSE = 0.0025
"""A target is met when the measured MAC reduction is so near to it."""


@dataclass(frozen=True)
class Point:
    """One setting, measured: the MAC reduction (0 … 1, gates counted) and what is left, on average and per layer."""

    level: float
    mac_reduction: float
    macs: float
    metrics: dict[str, float]
    keep: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Estimate:
    """A measured curve over rising levels, for a dense network of `dense_macs` under gates that cost `gate_macs`."""

    criterion: Criterion
    points: tuple[Point, ...]
    dense_macs: int
    gate_macs: int
    samples: int
    split: str
    dense_metrics: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return vars(self) | {"points": [point.as_dict() for point in self.points]}


class Estimator:
    """A frozen copy of a dense network under ground-truth masks; every setting is measured once.

    With `specs` the cost of these gates is counted, otherwise of the paper's at every candidate. Raises UserError when there is
    nothing to gate, and with fewer than 32 samples.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        inputs: Sequence[Tensor],
        *,
        runtime: Runtime,
        specs: Sequence[GateSpec] = (),
        found: Candidates | None = None,
        criterion: Criterion = "mass",
        split: Split = "val",
        images: int = 1024,
    ) -> None:
        self.found = found or candidates(module, inputs)
        require_some(self.found)
        self.specs = tuple(specs) or tuple(spec_of(candidate) for candidate in self.found.found)
        self.task, self.runtime, self.criterion = task, runtime, criterion
        self.split, self.images = split, images
        self.cost = MacModel(module, inputs, self.specs, found=self.found)
        self.net = dense_copy(module)
        self.gates = gated(self.net, self.specs, seed=0)
        self._points: dict[float, Point] = {}

    def look(self, level: float | Mapping[str, float], *, images: int = 0) -> Observation:
        """The network at work under the masks of one level (or one per layer)."""
        rule = Rule(level, self.criterion)
        return observe(
            self.net,
            self.task,
            rule,
            runtime=self.runtime,
            split=self.split,
            limit=images or self.images,
            follow_truth=True,
        )

    def point(self, level: float) -> Point:
        """One level for all layers, measured."""
        if level not in self._points:
            self._points[level] = self.summary(level, self.look(level))
        return self._points[level]

    def summary(self, level: float, seen: Observation) -> Point:
        """What an observation comes to; `level` is the one it is filed under."""
        macs = float(self.cost.per_sample(seen.masks).mean())
        keep = {path: float(mask.double().mean()) for path, mask in seen.masks.items()}
        return Point(level, 1 - macs / self.cost.dense, macs, seen.metrics, keep)

    def measured(self) -> tuple[Point, ...]:
        """All points so far, by rising level."""
        return tuple(self._points[level] for level in sorted(self._points))

    def estimate(self) -> Estimate:
        """All points so far beside the dense network's metrics on the same samples."""
        count = self._count()
        with choosing(self.gates, lambda _path, saliency: torch.ones_like(saliency)):
            dense = evaluate(self.net, self.task, self.split, runtime=self.runtime, limit=count)
        forget(self.gates)
        return Estimate(self.criterion, self.measured(), self.cost.dense, self.cost.gate_macs, count, self.split, dense)

    def _count(self) -> int:
        available = len(self.task.samples(self.split))
        return min(self.images or available, available)

    def level_for(self, target: float) -> Point:
        """The point whose MAC reduction is nearest to `target` (0 … 1), sought by measuring.

        Raises UserError, naming the nearest reachable, when no level from 0.05 to 1 reaches it.
        """
        most, least = self.point(LOWEST), self.point(1.0)
        name = _NAMES[self.criterion]
        refuse_unreachable(target, {f"{name} = 1": least.mac_reduction, f"{name} = {LOWEST:g}": most.mac_reduction})

        def gap(level: float) -> float:
            short = self.point(level).mac_reduction - target
            return 0.0 if abs(short) <= CLOSE else short

        if gap(LOWEST) > 0 > gap(1.0):
            brentq(gap, LOWEST, 1.0, xtol=1e-5, maxiter=40, disp=False)
        return min(self._points.values(), key=lambda point: abs(point.mac_reduction - target))


_NAMES: dict[Criterion, str] = {"mass": "r", "uniform": "keep"}


def estimate(
    module: nn.Module,
    task: Task,
    inputs: Sequence[Tensor],
    *,
    runtime: Runtime,
    levels: Sequence[float] = GRID,
    criterion: Criterion = "mass",
    split: Split = "val",
    images: int = 1024,
    specs: Sequence[GateSpec] = (),
    found: Candidates | None = None,
    on_point: Callable[[Point], None] | None = None,
) -> Estimate:
    """The curve of MAC reduction and metrics of a dense `module` over r (or over the share kept, with criterion "uniform").

    Nothing is trained: masks change what later layers see, so all layers are masked at once. The gates' own MACs are counted.
    `inputs` of batch 1 say how large the images are. Raises UserError when no layer can be gated, with fewer than 32 samples, and
    for a level outside (0, 1].
    """
    for level in levels:
        if not 0 < level <= 1:
            raise UserError(f"{_NAMES[criterion]} = {level} must be above 0 and at most 1", hint="for example 0.9")
    estimator = Estimator(
        module,
        task,
        inputs,
        runtime=runtime,
        specs=specs,
        found=found,
        criterion=criterion,
        split=split,
        images=images,
    )
    for level in sorted(levels):
        point = estimator.point(level)
        if on_point:
            on_point(point)
    return estimator.estimate()


def require_some(found: Candidates) -> None:
    """None, when a layer can be gated. Raises UserError with the first layers' reasons otherwise."""
    if found.found:
        return
    convolutions = [u for u in found.ungated if u.kind != "Linear"] or list(found.ungated)
    shown = "; ".join(f"{u.path}: {u.reason}" for u in convolutions[:3])
    raise UserError(
        "no layer of this network can be gated" + (f" ({shown})" if shown else ""),
        hint="`trimtab inspect` lists the reason for every layer",
    )


def refuse_unreachable(target: float, ends: Mapping[str, float]) -> None:
    """None, when `target` lies between the two MAC reductions of `ends`, the smaller first, each with the setting's name.

    Raises UserError, naming the nearest that can be reached, otherwise.
    """
    (mild, least), (strict, most) = ends.items()
    if target < least - CLOSE:
        raise UserError(
            f"target_mac_reduction = {target:g} is out of reach: {mild} saves {least:.3f} already",
            hint=f"the nearest that can be reached is {least:.3f}",
        )
    if target > most + CLOSE:
        raise UserError(
            f"target_mac_reduction = {target:g} is out of reach: even {strict} saves no more than {most:.3f}",
            hint=f"the nearest that can be reached is {most:.3f}; cut channels first (structured) for more",
        )


def channel_means(seen: Observation) -> dict[str, Tensor]:
    """How often each filter is on, float32 (C,) by path."""
    return {path: truth.float().mean(0) for path, truth in seen.truths.items()}
