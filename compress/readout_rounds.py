"""The rounds of a readout: look for dead channels, prove that they are, cut them, look again."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..models.errors import UserError
from ..models.surgery import SurgeryPlan
from .constant_folding import EXACT, PADDED, Place, fold, places
from .dead_channels import Dead, dead, read_elsewhere, share_left, silence
from .groups import ChannelGroup, Fixed, analyse, build_plan
from .input_dependence import deviation, observe, outputs_of

if TYPE_CHECKING:
    from .readout import ReadoutConfig


@dataclass
class Tally:
    """What was removed so far, by reason, and what still carries a constant."""

    removed: Counter[str] = field(default_factory=Counter)
    stuck: Counter[str] = field(default_factory=Counter)
    mixed: dict[str, int] = field(default_factory=dict)
    rounds: int = 0


class Readout:
    """A readout under way: the module it cuts, the surgery so far, and what is known of its channel groups."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], probes: list[list[Tensor]], config: ReadoutConfig) -> None:
        self.module, self.inputs, self.config = module, inputs, config
        self.probes = [[v.double() if v.is_floating_point() else v for v in probe] for probe in probes]
        self.plan: SurgeryPlan = SurgeryPlan()
        self.exact, self.approximate = Tally(), Tally()
        self.last = self.exact
        self.spared: list[str] = []
        self.fixed: tuple[Fixed, ...] = ()
        self.groups: tuple[ChannelGroup, ...] = ()
        self._mixed: dict[str, bool] = {}

    def run(self, *, approximate: bool) -> None:
        """None; round after round until nothing more goes: a removed channel can leave others without reader or maker."""
        self.last = tally = self.approximate if approximate else self.exact
        while True:
            found, where = self._look(approximate, tally)
            if not found:
                return
            self._take(found, where)
            for each in found:
                tally.removed.update(unread=each.unread, silent=each.silent, folded=each.folded)
            tally.rounds += 1

    def _look(self, approximate: bool, tally: Tally) -> tuple[list[Dead], Mapping[str, Place]]:
        """What can go now. Of channels with few weights only those are counted dead that then really go."""
        analysis = analyse(self.module, self.inputs, keep=self.config.keep)
        self.fixed, self.groups = analysis.fixed, analysis.groups
        whole = copy.deepcopy(self.module).double().eval()
        thin: dict[str, set[int]] = {}
        if approximate and self.config.min_weights > 0:
            for group in analysis.groups:
                few = share_left(whole, group) < self.config.min_weights
                thin[group.root] = set(few.nonzero().flatten().tolist())
        while True:
            silenced = copy.deepcopy(whole)
            for group in analysis.groups:
                if thin.get(group.root):
                    silence(silenced, group, sorted(thin[group.root]))
            found, where = self._dead(silenced, analysis.groups, tally, approximate)
            going = {each.group.root: each.removed for each in found}
            left = {root: roots & going.get(root, frozenset()) for root, roots in thin.items()}
            if left == thin:
                self._prove(silenced, found, where)
                return found, where
            thin = left

    def _dead(
        self, module: nn.Module, groups: Sequence[ChannelGroup], tally: Tally, approximate: bool
    ) -> tuple[list[Dead], Mapping[str, Place]]:
        """The groups of `module` (float64) that can lose something."""
        fed, where = observe(module, self.probes), places(module, self.probes)
        padded = approximate and self.config.fold == "approximate"
        found = []
        tally.stuck.clear()
        tally.mixed.clear()
        for group in groups:
            each = dead(module, group, fed, where, approximate=padded)
            if each is None:
                continue
            if each.removed or each.spared:
                if group.root not in self._mixed:
                    self._mixed[group.root] = read_elsewhere(module, group, self.probes[:1])
                if self._mixed[group.root]:
                    tally.mixed[group.root] = len(each.removed)
                    continue
            tally.stuck.update(each.stuck)
            if each.removed:
                found.append(each)
        return found, where

    def _prove(self, silenced: nn.Module, found: list[Dead], where: Mapping[str, Place]) -> None:
        """None, when `silenced` computes the same in float64 without what was found, but for what is approximated at edges."""
        wanted = outputs_of(silenced, self.probes)
        if deviation(wanted, outputs_of(silenced, self.probes)) > EXACT:
            raise UserError(
                "the network's outputs differ from run to run: no readout can be proven",
                hint="take out what is random in eval mode",
            )
        if any(where[path].why_not == PADDED for each in found for path in each.folds):
            return
        cut = copy.deepcopy(silenced)
        for each in found:
            for path, constants in each.folds.items():
                fold(cut, path, where[path], constants)
        build_plan([(each.group, set(each.removed)) for each in found]).replay(cut)
        if (off := deviation(wanted, outputs_of(cut, self.probes))) > EXACT:
            raise RuntimeError(f"removing dead channels of {[e.group.root for e in found]} changed the outputs by {off:.2g}")

    def _take(self, found: list[Dead], where: Mapping[str, Place]) -> None:
        """None; the module is cut, and the plan says so."""
        for each in found:
            if each.spared:
                self.spared.append(each.group.root)
            for path, constants in each.folds.items():
                fold(self.module, path, where[path], constants)
        step = build_plan([(each.group, set(each.removed)) for each in found])
        step.replay(self.module)
        self.plan = self.plan.then(step)

    @property
    def channels(self) -> int:
        """How many channels the groups have now."""
        return sum(group.channels for group in self.groups)

    def nearly(self, share: float) -> int:
        """How many of them have less than `share` of their incoming weights left."""
        return sum(int((share_left(self.module, group) < share).sum()) for group in self.groups)
