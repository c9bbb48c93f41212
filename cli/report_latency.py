"""The latency part of the report: measurements by runtime, each tied to its network, with plots and conditions in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from . import plots
from .devices.measurement import AAPair, Comparison, Conditions, Measurement, Reading, Skipped
from .record import ArtifactRecord, RunRecord
from .report_text import fixed, plain, significant


@dataclass(frozen=True)
class LatencyRow:
    """A measurement and the network it is of ("" when the record knows no such artifact); `series` is its colour."""

    measurement: Measurement
    model: str
    series: int

    @property
    def label(self) -> str:
        """The measurement's own label, with precision where it doesn't say so itself."""
        m = self.measurement
        return m.label if m.precision in m.label else f"{m.label} {m.precision}"


@dataclass(frozen=True)
class RuntimeView:
    """All of one runtime. `headline` compares parent and compressed in the same format and precision."""

    index: int
    runtime: str
    title: str
    emulated: bool
    rows: tuple[LatencyRow, ...]
    comparisons: tuple[Comparison, ...]
    aa: tuple[AAPair, ...]
    headline: Comparison | None
    pair: tuple[LatencyRow, ...]
    conditions: tuple[tuple[str, str], ...]
    ridges: Markup
    forest: Markup | None


@dataclass(frozen=True)
class LatencyView:
    """Everything measured; `skipped` is what was not, as (names, reason)."""

    device: str
    groups: tuple[RuntimeView, ...]
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    partial: bool
    few_rounds: bool

    @property
    def headlines(self) -> list[RuntimeView]:
        """The runtimes whose ratio may be called a speed-up: parent against compressed, on hardware that is not emulated."""
        return [group for group in self.groups if group.headline and not group.emulated]


def latency_view(record: RunRecord, order: Sequence[str]) -> LatencyView | None:
    """The view, None when the run measured nothing at all. `order` gives the networks their colours: parent, compressed, …"""
    profile = record.profile
    if profile is None:
        return None
    runtimes = dict.fromkeys(m.runtime for m in profile.measurements)
    return LatencyView(
        device=profile.device,
        groups=tuple(_group(record, name, i, order) for i, name in enumerate(runtimes)),
        skipped=tuple(by_reason((_where(s), s.reason) for s in (*profile.skipped, *_never_tried(record)))),
        warnings=profile.warnings,
        partial=profile.partial,
        few_rounds=any(m.rounds < 100 for m in profile.measurements),
    )


def artifact_of(record: RunRecord, measurement: Measurement) -> ArtifactRecord | None:
    """The record's artifact that was measured: the same bytes, and the same name where several files are equal."""
    same = [a for a in record.artifacts if a.artifact.sha256 == measurement.sha256]
    return next((a for a in same if a.artifact.name == measurement.artifact), same[0] if same else None)


def by_reason(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(names joined, reason) from (name, reason): every reason once, in the order of its first name."""
    names: dict[str, list[str]] = {}
    for name, reason in pairs:
        names.setdefault(reason, []).append(name)
    return [(", ".join(who), reason) for reason, who in names.items()]


def _where(skipped: Skipped) -> str:
    return f"{skipped.label} on {skipped.runtime}" if skipped.runtime else skipped.label


def _group(record: RunRecord, runtime: str, index: int, order: Sequence[str]) -> RuntimeView:
    profile = record.profile
    assert profile is not None  # noqa: S101 (latency_view asked)
    rows = []
    for measurement in (m for m in profile.measurements if m.runtime == runtime):
        entry = artifact_of(record, measurement)
        model = entry.model if entry else ""
        rows.append(LatencyRow(measurement, model, order.index(model) if model in order else len(order)))
    comparisons = tuple(c for c in profile.comparisons if c.runtime == runtime)
    conditions = rows[0].measurement.conditions
    headline, pair = _headline(rows, comparisons, order)
    title = f"{runtime} {conditions.runtime_version.partition('-')[0]}".strip()  # builds and hashes are in the conditions
    return RuntimeView(
        index=index,
        runtime=runtime,
        title=title,
        emulated=conditions.emulated,
        rows=tuple(rows),
        comparisons=comparisons,
        aa=tuple(a for a in profile.aa if a.runtime == runtime),
        headline=headline,
        pair=pair,
        conditions=tuple(_conditions(conditions)),
        ridges=_ridges(rows, title, index),
        forest=_forest(comparisons, title, index, emulated=conditions.emulated),
    )


def _headline(
    rows: Sequence[LatencyRow], comparisons: Sequence[Comparison], order: Sequence[str]
) -> tuple[Comparison | None, tuple[LatencyRow, ...]]:
    """The comparison that says what compression did, and its two rows; without one, (None, ())."""
    by_label = {row.measurement.label: row for row in rows}
    for comparison in comparisons:
        a, b = by_label.get(comparison.a), by_label.get(comparison.b)
        if a is None or b is None or len(order) < 2 or (a.model, b.model) != tuple(order[:2]):
            continue
        if (a.measurement.format, a.measurement.precision) == (b.measurement.format, b.measurement.precision):
            return comparison, (a, b)
    return None, ()


def _ridges(rows: Sequence[LatencyRow], title: str, index: int) -> Markup:
    drawn = [plots.Ridge(row.label, np.asarray(row.measurement.samples_ns) / 1e6, row.series) for row in rows]
    said = "; ".join(f"{row.label}: median {significant(row.measurement.p50_ms)} ms" for row in rows)
    return plots.ridges(drawn, name=f"latency-{index}", alt=f"Distributions of latency on {title}. {said}.")


def _forest(comparisons: Sequence[Comparison], title: str, index: int, *, emulated: bool) -> Markup | None:
    """The plot of the comparisons that have an interval; None when none has."""
    drawn = [
        plots.Interval(f"{c.b} against {c.a}", c.speedup, c.low, c.high, c.noise_floor or 0.0, c.significant)
        for c in comparisons
        if c.low is not None and c.high is not None
    ]
    if not drawn:
        return None
    said = "; ".join(f"{i.label}: {fixed(i.value)} times, interval {fixed(i.low)} to {fixed(i.high)}" for i in drawn)
    x_label = "ratio of emulated latency (×)" if emulated else "speed-up (×)"
    return plots.forest(
        drawn, name=f"ratios-{index}", x_label=x_label, alt=f"Ratios of latency on {title} with 95 % intervals. {said}."
    )


def _never_tried(record: RunRecord) -> list[Skipped]:
    """Artifacts of the run that the profile neither measured nor lists, with the reason that the record holds."""
    profile = record.profile
    assert profile is not None  # noqa: S101 (latency_view asked)
    measured = {m.sha256 for m in profile.measurements}
    listed = {entry.label.partition(" #")[0] for entry in profile.skipped}
    missing = []
    for entry in record.artifacts:
        artifact = entry.artifact
        long = f"{artifact.name} {artifact.format} {artifact.precision}"
        if artifact.sha256 in measured or listed & {artifact.name, long}:
            continue
        rejected = entry.status == "rejected" or not artifact.parity.ok
        label = artifact.name if artifact.precision in artifact.name else long
        reason = "failed its parity check: its speed would mean nothing" if rejected else "was not handed to this profile"
        missing.append(Skipped(label=label, runtime=None, kind="rejected" if rejected else "no runtime", reason=reason))
    return missing


def _conditions(c: Conditions) -> list[tuple[str, str]]:
    """The conditions as (name, text) pairs; what the machine would not tell is said with its reason."""
    affinity = ", ".join(map(str, c.affinity)) if c.affinity is not None else f"not known ({c.affinity_reason or 'not asked'})"
    facts = [
        ("Device", c.device),
        ("CPU", _reading(c.cpu_model)),
        ("Machine", f"{c.machine}, {c.cores_online} cores online"),
        ("CPU quota", _reading(c.cpu_quota)),
        ("Affinity", affinity),
        ("Virtualised", _reading(c.virtualised)),
        ("Emulated", "yes: these are no device's milliseconds" if c.emulated else "no"),
        ("Power source", _reading(c.power_source)),
        ("System", f"{c.os}, Python {c.python}"),
        ("Runtime", f"{c.runtime} {c.runtime_version}, {c.provider}, {c.threads} thread{'s' if c.threads != 1 else ''}"),
        ("In force", plain(c.hints)),
        ("Timed region", c.timed_region),
    ]
    for name, key in (
        ("Governor", "governor"),
        ("Clock", "clock_mhz"),
        ("Temperature", "temperature_c"),
        ("Load", "load_average"),
    ):
        before, after = _reading(getattr(c.before, key)), _reading(getattr(c.after, key))
        facts.append((name, before if before == after else f"{before} before, {after} after"))
    return facts


def _reading(reading: Reading) -> str:
    if reading.value is None:
        return f"not known ({reading.reason})"
    return f"{plain(reading.value)} {reading.unit}".strip()
