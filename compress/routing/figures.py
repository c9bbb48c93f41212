"""What the step "route" reports: every branch alone, the calibrated way between them, and what would have predicted difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...models.routed import RoutedNet, plain_branch

if TYPE_CHECKING:
    from torch import Tensor

    from ..cost import Cost
    from .answers import Answers
    from .calibration import Curve, Point
    from .cost import RouteCost
    from .method import RouteConfig

SHOWN = 64
"""Points of the curve that are kept."""


@dataclass(frozen=True)
class Findings:
    """All that a run found. Without thresholds (clusters) `curve`, `chosen`, `answers` and `demand` are None."""

    dense: Cost
    cost: RouteCost
    branches: Sequence[dict[str, float]]
    before: dict[str, float]
    after: dict[str, float]
    shares: tuple[float, ...]
    curve: Curve | None
    chosen: Point | None
    answers: Answers | None
    demand: Tensor | None
    history: dict[str, Any]
    learning: tuple[int, ...]

    @property
    def macs_mean(self) -> float:
        """Expected MACs of a sample, over the validation samples."""
        return sum(share * macs for share, macs in zip(self.shares, self.cost.paths, strict=True))


def figures_of(net: RoutedNet, found: Findings, config: RouteConfig) -> dict[str, Any]:
    """The step's figures, JSON-able. Accuracies and shares are of validation samples; MACs are per sample."""
    dense, cost = found.dense, found.cost
    params = sum(p.numel() for p in {id(p): p for p in net.parameters()}.values())
    figures: dict[str, Any] = {
        "rule": net.spec.rule,
        "by": config.by,
        "nested": config.nested,
        "shared": list(net.spec.shared),
        "macs_before": dense.macs,
        "macs_after": found.macs_mean,
        "mac_ratio": found.macs_mean / dense.macs,
        "macs_worst": cost.worst,
        "worst_ratio": cost.worst / dense.macs,
        "params_before": dense.params,
        "params_after": params,
        "param_ratio": params / dense.params,
        "prefix_macs": cost.prefix,
        "router_macs": cost.router,
        "branches": [_branch(net, i, found) for i in range(len(net.branches))],
        "shares": list(found.shares),
        "thresholds": net.thresholds.tolist(),
        "val_before": found.before,
        "val_after": found.after,
        "history": found.history,
    }
    if found.curve is not None and found.chosen is not None:
        figures["calibration"] = _calibration(found.curve, found.chosen, config)
    if found.answers is not None:
        figures["signals"] = signals(found.answers, found.demand)
    return figures


def _branch(net: RoutedNet, number: int, found: Findings) -> dict[str, Any]:
    """One branch alone: the static network that routing is measured against."""
    macs = found.cost.alone[number]
    return {
        "macs": macs,
        "mac_ratio": macs / found.dense.macs,
        "path_ratio": found.cost.paths[number] / found.dense.macs,
        "params": sum(p.numel() for p in plain_branch(net, number).parameters()),
        "val": found.branches[number],
        "trained": number in found.learning,
        "widths": {e.path: [e.size, len(e.kept)] for e in net.spec.branches[number] if e.side == "out"},
    }


def _calibration(found: Curve, chosen: Point, config: RouteConfig) -> dict[str, Any]:
    """The curve, thinned, and the point chosen on it."""
    from .run import DROP

    points = found.points
    kept = sorted({round(i * (len(points) - 1) / (SHOWN - 1)) for i in range(SHOWN)} | {points.index(chosen)})
    by_macs = config.target_mac_ratio is not None
    drop = DROP if config.max_accuracy_drop is None else config.max_accuracy_drop
    return {
        "samples": found.samples,
        "reference_accuracy": found.reference,
        "target": {"mac_ratio": config.target_mac_ratio} if by_macs else {"max_accuracy_drop": drop},
        "chosen": _point(chosen),
        "curve": [_point(points[i]) for i in kept],
    }


def _point(at: Point) -> dict[str, Any]:
    return {
        "thresholds": list(at.thresholds),
        "accuracy": at.accuracy,
        "mac_ratio": at.cost_ratio,
        "shares": list(at.shares),
        "error": at.error,
    }


def signals(said: Answers, demand: Tensor | None) -> dict[str, list[float | None]]:
    """How well each signal tells, per branch but the last, the samples it gets right from the others: areas under the ROC curve.

    "confidence": the branch's own; "router": the router's score; "mass": how few channels the sample needs (over the first 2048
    samples). None where a branch gets all samples right, or none.
    """
    columns = range(said.label.shape[1] - 1)
    found = {"confidence": [_area(said.right[:, i], said.confidence[:, i]) for i in columns]}
    if said.routed is not None:
        found["router"] = [_area(said.right[:, i], said.routed[:, i]) for i in columns]
    if demand is not None:
        found["mass"] = [_area(said.right[: len(demand), i], -demand) for i in columns]
    return found


def _area(right: Tensor, score: Tensor) -> float | None:
    from sklearn.metrics import roc_auc_score

    if bool(right.all()) or not bool(right.any()):
        return None
    return float(roc_auc_score(right.numpy(), score.numpy()))


def notes_of(found: Findings, config: RouteConfig) -> list[str]:
    """What a user must know."""
    notes = []
    if found.chosen is not None and found.curve is not None:
        unused = [i + 1 for i, share in enumerate(found.shares) if not share]
        if unused:
            which = ", ".join(map(str, unused))
            notes.append(f"the thresholds leave branch {which} unused: fewer branches would do as well")
        if config.target_mac_ratio is None and found.chosen.error > max(0.0, found.curve.reference - found.chosen.accuracy) > 0:
            notes.append(
                f"the accuracy's difference to the largest branch is known to ±{found.chosen.error:.4f} from "
                f"{found.curve.samples} validation samples: more of them would make the thresholds surer"
            )
        alone = [
            i
            for i, branch in enumerate(found.branches)
            if found.cost.alone[i] <= found.macs_mean and branch.get("accuracy", 0.0) >= found.chosen.accuracy
        ]
        if alone:
            notes.append(
                f"branch {alone[0] + 1} alone is as accurate for fewer MACs: routing does not pay here, take it as it is"
            )
    return notes
