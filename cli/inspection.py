"""What `trimtab inspect` finds out: the layers of a network, which channels can be pruned, which layers can be gated, its branches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .compress.cost import Cost
    from .compress.groups import Analysis
    from .models.bundle import Bundle
    from .models.routed import RoutedNet


@dataclass(frozen=True)
class GateRow:
    """A convolution and its gate: `state` "gated", "can be gated" or "no"; the most that it can save, as a share of all MACs."""

    path: str
    channels: int
    state: str
    saves: float
    note: str


@dataclass(frozen=True)
class BranchRow:
    """A branch of a routed network: its own MACs and those of the way to its answer, and both thresholds that concern it."""

    number: int
    macs: int
    path_macs: int
    params: int
    threshold: float | None


@dataclass(frozen=True)
class Inspection:
    """A network looked at; of a routed one, layers are its largest branch's and `rule` says who picks."""

    cost: Cost
    analysis: Analysis
    gates: tuple[GateRow, ...]
    gates_refused: str
    branches: tuple[BranchRow, ...]
    rule: str


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Everything, at batch 1. Raises UserError for a network whose graph can't be followed."""
    import torch

    from .compress.cost import count
    from .compress.groups import analyse
    from .models.gates import detach_gates
    from .models.routed import RoutedNet, plain_branch

    drawn = bundle.contract.random_inputs(bundle.contract.example_dims(), seed=0)
    inputs = [torch.from_numpy(value) for value in drawn.values()]
    module = bundle.module()
    branches: tuple[BranchRow, ...] = ()
    rule = ""
    if isinstance(module, RoutedNet):
        branches, rule = _branches(module, inputs), module.spec.rule
        module = plain_branch(module, len(module.branches) - 1)
    gates, refused = _gates(module, inputs)
    cost = count(module, inputs)
    return Inspection(cost, analyse(detach_gates(copy.deepcopy(module)), inputs), gates, refused, branches, rule)


def _gates(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[tuple[GateRow, ...], str]:
    """A row for every convolution, in the network's order; no rows and the reason where the graph can't be followed back."""
    import torch

    from .compress.dynamic.accounting import MacModel, gate_macs
    from .compress.dynamic.candidates import candidates, spec_of
    from .models.errors import UserError
    from .models.gates import gates_of

    try:
        found = candidates(module, inputs)
    except UserError as error:
        return (), str(error)
    gated = {path: gate.spec for path, gate in gates_of(module).items()}
    specs = {c.conv: gated.get(c.conv) or spec_of(c) for c in found.found}
    model = MacModel(module, inputs, list(specs.values()), found=found)
    rows = {}
    for candidate in found.found:
        spec = specs[candidate.conv]
        off = model.per_sample({candidate.conv: torch.zeros(1, spec.channels)})
        saved = model.dense + model.gate_macs - float(off) - gate_macs(spec)
        rows[candidate.conv] = GateRow(
            candidate.conv,
            spec.channels,
            "gated" if candidate.conv in gated else "can be gated",
            saved / model.dense,
            candidate.note or "its own outputs, and the inputs of what follows",
        )
    for layer in found.ungated:
        if layer.kind != "Linear":
            rows[layer.path] = GateRow(layer.path, 0, "no", 0.0, layer.reason)
    return tuple(rows[path] for path, _ in module.named_modules() if path in rows), ""


def _branches(net: RoutedNet, inputs: Sequence[Tensor]) -> tuple[BranchRow, ...]:
    from .compress.routing.cost import route_cost
    from .models.routed import plain_branch

    cost, limits = route_cost(net, inputs), net.thresholds.tolist()
    return tuple(
        BranchRow(
            number=i + 1,
            macs=cost.alone[i],
            path_macs=cost.paths[i],
            params=sum(p.numel() for p in plain_branch(net, i).parameters()),
            threshold=limits[i] if i < len(limits) else None,
        )
        for i in range(len(net.branches))
    )
