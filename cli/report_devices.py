"""What the report shows of devices besides latencies: artifact × device, operations, long runs, metrics there, counted instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .devices.measurement import Measurement, ProfileResult, Skipped
from .devices.records import Evaluated, InstructionCount, OpRecord
from .report_ops import OpsView, Placement, ops_views, placements
from .report_sustained import SustainedView, sustained_views
from .report_text import by_reason, significant, whole

Host = Mapping[str, tuple[Mapping[str, float], int]]
"""Artifact's name → the metrics of the network that it came from, and over how many samples."""


@dataclass(frozen=True)
class Line:
    """What one runtime says of an artifact on a device: a figure or a verdict, and a word more."""

    runtime: str
    text: str
    note: str
    state: Literal["measured", "wrong", "none"]


@dataclass(frozen=True)
class Matrix:
    """Artifacts (rows) on devices (columns); a cell has a line a runtime."""

    devices: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[Line, ...], ...]], ...]


@dataclass(frozen=True)
class MetricRow:
    """One metric of one artifact on a device. `reference` is the same metric elsewhere (`origin`), None where none is known."""

    label: str
    device: str
    runtime: str
    emulated: bool
    data: str
    metric: str
    value: float
    samples: int
    reference: float | None
    origin: str


@dataclass(frozen=True)
class CountRow:
    """Instructions per inference; `ratio` is to the first artifact on the same device and runtime."""

    count: InstructionCount
    ratio: float


@dataclass(frozen=True)
class DevicesView:
    """All of it. `unprofiled`: (names, why nothing is known of their operations)."""

    matrix: Matrix | None
    ops: tuple[OpsView, ...]
    placements: tuple[Placement, ...]
    unprofiled: tuple[tuple[str, str], ...]
    sustained: tuple[SustainedView, ...]
    metrics: tuple[MetricRow, ...]
    counts: tuple[CountRow, ...]


def devices_view(profile: ProfileResult, *, skipped: Sequence[Skipped], host: Host) -> DevicesView:
    """The view of a profile; `skipped` is all that was not measured, also what the profile itself does not know of."""
    medians = {(m.label, m.conditions.device, m.runtime): m.p50_ms for m in profile.measurements}
    return DevicesView(
        matrix=_matrix(profile, skipped),
        ops=tuple(ops_views(profile.ops, medians)),
        placements=tuple(placements(profile.ops)),
        unprofiled=tuple(by_reason((_title(r), _no_ops(r)) for r in profile.ops if _no_ops(r))),
        sustained=tuple(sustained_views(profile.sustained)),
        metrics=tuple(_metrics(profile, host)),
        counts=tuple(_counts(profile.counts)),
    )


def _title(record: OpRecord) -> str:
    return f"{record.label} on {record.device}, {record.runtime}"


def _no_ops(record: OpRecord) -> str:
    if record.reason:
        return record.reason
    if record.emulated and record.unit == "ns":
        return "timed under emulation, where an operation's share of time says nothing about a device"
    return "" if record.total > 0 else "the runtime's profiler told no time"


def _matrix(profile: ProfileResult, skipped: Sequence[Skipped]) -> Matrix | None:
    """None when there is nothing to show. Columns: the devices asked for, then others that something came from."""
    asked = dict.fromkeys(profile.devices)
    found = dict.fromkeys([*(m.conditions.device for m in profile.measurements), *(c.device for c in profile.counts)])
    devices = tuple(asked | found)
    cells: dict[str, dict[str, list[Line]]] = {}
    told: list[tuple[str, tuple[str, ...], Line]] = [
        (m.label, (m.conditions.device,), _measured(m)) for m in profile.measurements
    ]
    told += [(c.label, (c.device,), _counted(c)) for c in profile.counts]
    told += [(s.label, (s.device,) if s.device else devices, _skipped(s)) for s in skipped]
    for label, places, line in told:
        for device in places:
            cells.setdefault(label, {}).setdefault(device, []).append(line)
    if not cells:
        return None
    rows = [(label, tuple(tuple(by_device.get(device, ())) for device in devices)) for label, by_device in cells.items()]
    return Matrix(devices, tuple(rows))


def _measured(m: Measurement) -> Line:
    ms = f"{significant(m.p50_ms)} ms"
    parts = ["interrupted"] if m.partial else []
    if m.conditions.emulated:
        state: Literal["measured", "wrong"] = "wrong" if m.outputs_ok is False else "measured"
        checked = {True: "outputs as golden", False: "wrong outputs", None: "outputs not checked"}[m.outputs_ok]
        return Line(m.runtime, "emulated: no latency" if state == "measured" else "wrong outputs", checked, state)
    if m.outputs_ok is False:
        return Line(m.runtime, "wrong outputs", "; ".join([*parts, f"timed all the same: {ms}"]), "wrong")
    low, high = m.median_low_ms, m.median_high_ms
    known = low is not None and high is not None
    interval = f"{significant(low)}–{significant(high)}" if known else "too few sittings for an interval"
    return Line(m.runtime, ms, "; ".join([*parts, interval]), "measured")


def _counted(count: InstructionCount) -> Line:
    if count.outputs_ok is False:
        return Line(count.runtime, "wrong outputs", f"{whole(count.instructions)} instructions", "wrong")
    return Line(count.runtime, f"{whole(count.instructions)} instructions", "counted, not timed", "measured")


def _skipped(s: Skipped) -> Line:
    wrong = s.kind == "wrong outputs"
    return Line(s.runtime or "", "wrong outputs" if wrong else "not measured", s.reason, "wrong" if wrong else "none")


def _metrics(profile: ProfileResult, host: Host) -> list[MetricRow]:
    artifacts = {c.label: c.artifact for c in profile.counts} | {m.label: m.artifact for m in profile.measurements}
    rows = []
    for e in profile.evaluated:
        reference, samples, origin = _reference(e, profile.evaluated, host.get(artifacts.get(e.label, e.label)))
        for metric, value in e.metrics.items():
            other = reference.get(metric)
            where = f"{origin}, {whole(samples)} samples" if other is not None else ""
            rows.append(MetricRow(e.label, e.device, e.runtime, e.emulated, e.data, metric, value, e.samples, other, where))
    return rows


def _reference(
    e: Evaluated, everywhere: Sequence[Evaluated], network: tuple[Mapping[str, float], int] | None
) -> tuple[Mapping[str, float], int, str]:
    """(metrics, samples, where) to set beside the device's: this computer's over the same samples, else the network's own."""
    for other in everywhere:
        if e.device != "local" == other.device and (other.label, other.data, other.samples) == (e.label, e.data, e.samples):
            return other.metrics, other.samples, f"local, {other.runtime}"
    return (network[0], network[1], "the network itself") if network else ({}, 0, "")


def _counts(counts: Sequence[InstructionCount]) -> list[CountRow]:
    first: dict[tuple[str, str], int] = {}
    return [
        CountRow(count, count.instructions / max(1, first.setdefault((count.device, count.runtime), count.instructions)))
        for count in counts
    ]
