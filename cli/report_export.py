"""The report's export part: what converters did unasked, which layers stayed in float and at what price, and what failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .export.artifact import Audit, Reverts
from .record import RunRecord


@dataclass(frozen=True)
class AuditRow:
    """One artifact's audit: operators in all, layout moves, casts, float islands, and what each delegate would leave."""

    name: str
    ops: int
    transposes: int
    casts: int
    islands: str
    delegates: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RevertView:
    """How one artifact met the loss it was allowed: losses in points, layers kept in float with their sensitivity, the price."""

    name: str
    metric: str
    samples: int
    allowed: float
    before: float
    after: float
    tries: int
    kept: tuple[tuple[str, str, float], ...]
    price: str


def export_views(record: RunRecord) -> dict[str, Any]:
    """The template's variables of the export part."""
    return {
        "audits": [audit_row(a.artifact.name, a.artifact.ops, a.artifact.audit) for a in record.artifacts if a.artifact.audit],
        "reverts": [
            revert_view(a.artifact.name, a.artifact.kept_float, a.artifact.reverts)
            for a in record.artifacts
            if a.artifact.reverts
        ],
        "by_metric": [(a.artifact.name, a.artifact.parity.reason) for a in record.artifacts if a.artifact.parity.metric],
        "failed": record.failed,
    }


def counted(kinds: Mapping[str, int]) -> str:
    """Operators by kind in words: "3 Add, 1 Softmax"."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def audit_row(name: str, ops: Mapping[str, int], audit: Audit) -> AuditRow:
    """An artifact's audit as a row of the table."""
    left = tuple(
        (delegate, "; ".join(f"{each.count} {each.op}: {each.reason}" for each in unplaced) or "takes everything")
        for delegate, unplaced in audit.delegates.items()
    )
    return AuditRow(name, sum(ops.values()), audit.transposes, audit.casts, counted(audit.islands), left)


def revert_view(name: str, kept: tuple[str, ...], reverts: Reverts) -> RevertView:
    """The search for layers to keep in float, as the reader wants it: losses in points."""
    last = next(trial for trial in reversed(reverts.trials) if set(trial.kept) == set(kept))
    price = ""
    if reverts.latency is not None and reverts.over_fp32 is not None:
        price = (
            f"{reverts.latency:.2f}× the time of all integers and {reverts.over_fp32:.2f}× as fast as fp32 on {reverts.runtime}"
        )
    return RevertView(
        name=name,
        metric=reverts.metric,
        samples=reverts.samples,
        allowed=100 * reverts.max_drop,
        before=100 * reverts.trials[0].drop,
        after=100 * last.drop,
        tries=len(reverts.trials),
        kept=tuple((each.node, each.op, each.sqnr_db) for each in reverts.ranking if each.node in set(kept)),
        price=price or ("none: nothing was kept" if not kept else "not measured: no runtime here runs it"),
    )
