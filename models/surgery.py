"""The surgery plan: the exact structural edits of a network, as data that replays on a fresh module."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from torch import nn

from .edits import Edit, Side, cut
from .errors import UserError
from .gates import GateSpec, attach
from .routed import RoutedNet, RouteSpec

__all__ = ["Edit", "Side", "SurgeryPlan", "describe"]


class SurgeryPlan(BaseModel):
    """All that was done to a network's structure since its stock architecture: cuts, then gates, then branches. Empty: as built."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edits: tuple[Edit, ...] = ()
    gates: tuple[GateSpec, ...] = ()
    routes: RouteSpec | None = None

    def then(self, later: SurgeryPlan) -> SurgeryPlan:
        """One plan that does this one, then `later` (whose indices count on the already edited network)."""
        if later.edits and (self.gates or self.routes):
            raise UserError(
                "a gated or routed network can't be cut",
                hint="put the steps that remove channels before the one that makes it dynamic",
            )
        if (later.gates and self.gates) or (self.routes and (later.gates or later.routes)):
            raise UserError(
                "the network is dynamic already", hint="take one of the two steps that make it so out of the recipe"
            )
        merged = list(self.edits)
        last = {_dimension(e): i for i, e in enumerate(merged)}
        for edit in later.edits:
            at = last.get(_dimension(edit))
            before = merged[at] if at is not None else None
            if before is not None and len(before.kept) != edit.size:
                raise ValueError(
                    f"{edit.path} ({edit.side}): the later plan expects {edit.size} channels, there are {len(before.kept)}"
                )
            if at is not None and before is not None and before.side == edit.side:
                merged[at] = before.model_copy(update={"kept": tuple(before.kept[i] for i in edit.kept)})
            else:  # "in" and "prefix" cut the same dimension in two ways: one after the other
                last[_dimension(edit)] = len(merged)
                merged.append(edit)
        return SurgeryPlan(edits=tuple(merged), gates=self.gates or later.gates, routes=self.routes or later.routes)

    def replay(self, module: nn.Module) -> nn.Module:
        """`module`, cut in place to the plan and gated; with routes, a `RoutedNet` made of it.

        Raises UserError when the plan is for another network.
        """
        for edit in self.edits:
            cut(module, edit)
        attach(module, self.gates)
        return RoutedNet(module, self.routes) if self.routes else module


def _dimension(edit: Edit) -> tuple[str, str, int]:
    """What an edit cuts: edits of one dimension depend on their order, all others commute."""
    return edit.path, "in" if edit.side == "prefix" else edit.side, edit.dim


def describe(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter's and buffer's shape by name: what two equal structures share."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
