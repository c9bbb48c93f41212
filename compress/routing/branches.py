"""Branches of a network at given MAC ratios, as surgery plans: the channels that matter most, nested from branch to branch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...models.edits import Edit
from ...models.errors import UserError
from ..allocate import Scope, choose
from ..cost import Cost, count
from ..groups import Analysis, ChannelGroup, analyse, build_plan

TOLERANCE = 0.02
"""A branch's MAC ratio lies within so much of what was asked."""
Scored = list[tuple[ChannelGroup, Tensor]]
Removed = dict[str, set[int]]


@dataclass(frozen=True)
class Cutter:
    """Cuts copies of one network. `round_to`, `max_ratio` and `scope` are those of structured pruning."""

    module: nn.Module
    inputs: Sequence[Tensor]
    groups: tuple[ChannelGroup, ...]
    dense: Cost
    round_to: int
    max_ratio: float
    scope: Scope

    @classmethod
    def of(
        cls,
        module: nn.Module,
        inputs: Sequence[Tensor],
        *,
        shared: Sequence[str],
        round_to: int,
        max_ratio: float,
        scope: Scope,
    ) -> Cutter:
        """A cutter of `module` that leaves the modules in `shared` whole, inputs included.

        Raises UserError when nothing is left to cut.
        """
        for name in shared:
            if not name or name not in dict(module.named_modules()):
                raise UserError(f"shared names {name!r}, which the network lacks", hint="`trimtab inspect` lists the names")
        analysis = analyse(module, inputs)
        groups = tuple(group for group in analysis.groups if not _touches(group, shared))
        if not groups:
            raise UserError(_nothing(analysis, shared), hint="`trimtab inspect` lists the reason for every layer")
        return cls(module, inputs, groups, count(module, inputs), round_to, max_ratio, scope)

    def nested(self, scores: Sequence[Tensor], ratios: Sequence[float]) -> tuple[tuple[Edit, ...], ...]:
        """The edits of one branch per ratio, in rising order: what a smaller one keeps, all larger ones keep.

        Ratio 1 is the whole network: no edits. Raises UserError with the nearest reachable ratio when one is out of reach.
        """
        found, gone = [], Removed()
        for ratio in reversed(ratios):
            if ratio < 1:
                gone = self._removed(scores, ratio, gone)
            found.append(self._edits(gone))
        plans = tuple(reversed(found))
        for small, large, ratio in zip(plans, plans[1:], ratios, strict=False):
            if small == large:
                raise UserError(
                    f"the branches of MAC ratio {ratio:g} and the next larger one come out the same",
                    hint="take ratios that lie further apart, or lower round_to",
                )
        return plans

    def at(self, scores: Sequence[Tensor], ratio: float) -> tuple[Edit, ...]:
        """The edits of one branch of this ratio."""
        return self._edits(self._removed(scores, ratio, {}))

    def _edits(self, gone: Removed) -> tuple[Edit, ...]:
        return build_plan([(group, gone[group.root]) for group in self.groups if gone.get(group.root)]).edits

    def _removed(self, scores: Sequence[Tensor], ratio: float, at_least: Removed) -> Removed:
        """The channels that go, by their group's root, those of `at_least` among them.

        The cost model does not see costs outside layers; a second look at the real count corrects for that.
        """
        scored: Scored = list(zip(self.groups, scores, strict=True))
        aim, reached = ratio, 1.0
        for _ in range(6):
            try:
                cuts = choose(
                    self.module,
                    self.dense,
                    scored,
                    target="macs",
                    ratio=aim,
                    tolerance=TOLERANCE,
                    round_to=self.round_to,
                    max_ratio=self.max_ratio,
                    scope=self.scope,
                )
            except UserError as error:
                raise UserError(f"a branch of {error.what}", hint=error.hint) from None
            gone = {root: set(channels) for root, channels in at_least.items()}
            for group, channels in cuts:
                gone.setdefault(group.root, set()).update(channels)
            reached = self.ratio_of(self._edits(gone))
            if abs(reached - ratio) <= TOLERANCE:
                return gone
            aim = min(1.0, max(1e-6, aim - (reached - ratio)))
        raise UserError(
            f"a branch of MAC ratio {ratio:g} can't be reached within {TOLERANCE:.0%}: the last try gave {reached:.3f}",
            hint="raise the ratio, or lower round_to",
        )

    def ratio_of(self, edits: Sequence[Edit]) -> float:
        """The MACs of the network cut by `edits`, as a share of the whole one's."""
        from ...models.surgery import SurgeryPlan

        branch = SurgeryPlan(edits=tuple(edits)).replay(copy.deepcopy(self.module))
        return count(branch, self.inputs).macs / self.dense.macs


def _touches(group: ChannelGroup, shared: Sequence[str]) -> bool:
    return any(m.path == name or m.path.startswith(f"{name}.") for m in group.members for name in shared)


def _nothing(analysis: Analysis, shared: Sequence[str]) -> str:
    if analysis.groups:
        return f"with {', '.join(shared)} shared by all branches, no layer is left to cut"
    return "no layer of this network can be cut"
