"""The latency part of the report: measurements by device and runtime, each tied to its network, with plots and conditions in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from . import plots
from .devices.measurement import AAPair, Comparison, Measurement, ProfileResult, Skipped
from .record import ArtifactRecord, RunRecord
from .report_conditions import shared_conditions
from .report_devices import DevicesView, devices_view
from .report_text import by_reason, fixed, significant


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
    """All of one runtime on one device. `headline` compares parent and compressed in the same format and precision.

    `name` is the runtime with its version, `title` the same with the device where there are several. Of emulated times no
    distribution is drawn: `ridges` is None.
    """

    index: int
    device: str
    runtime: str
    name: str
    title: str
    emulated: bool
    rows: tuple[LatencyRow, ...]
    comparisons: tuple[Comparison, ...]
    aa: tuple[AAPair, ...]
    headline: Comparison | None
    pair: tuple[LatencyRow, ...]
    conditions: tuple[tuple[str, str], ...]
    ridges: Markup | None
    forest: Markup | None


@dataclass(frozen=True)
class LatencyView:
    """Everything measured; `skipped` is what was not, as (names, reason). `how` names preset and seed."""

    device: str
    how: str
    groups: tuple[RuntimeView, ...]
    devices: DevicesView
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
    if record.profile is None:
        return None

    def model_of(measurement: Measurement) -> str:
        entry = artifact_of(record, measurement)
        return entry.model if entry else ""

    host = {
        entry.artifact.name: (model.metrics, record.test_samples)
        for entry in record.artifacts
        for model in record.models
        if model.name == entry.model
    }
    profile = record.profile
    how = f"{profile.preset} preset, seed {profile.seed}"
    return profile_view(profile, model_of=model_of, order=order, host=host, how=how, also_skipped=_never_tried(record))


def profile_view(
    profile: ProfileResult,
    *,
    model_of: Callable[[Measurement], str],
    order: Sequence[str],
    host: Mapping[str, tuple[Mapping[str, float], int]],
    how: str,
    also_skipped: Sequence[Skipped] = (),
) -> LatencyView:
    """The view of one profile. `model_of` names a measurement's network, `host` has artifact → the network's own metrics, samples."""
    places = list(dict.fromkeys((m.conditions.device, m.runtime) for m in profile.measurements))
    several = len({*profile.devices, *(device for device, _ in places)}) > 1
    groups = []
    for index, place in enumerate(places):
        found = [m for m in profile.measurements if (m.conditions.device, m.runtime) == place]
        names = [model_of(m) for m in found]
        rows = [LatencyRow(m, n, order.index(n) if n in order else len(order)) for m, n in zip(found, names, strict=True)]
        groups.append(_group(profile, rows, place=place, index=index, order=order, several=several))
    skipped = (*profile.skipped, *also_skipped)
    return LatencyView(
        device=", ".join(profile.devices),
        how=how,
        groups=tuple(groups),
        devices=devices_view(profile, skipped=skipped, host=host),
        skipped=tuple(by_reason((_where(s), s.reason) for s in skipped)),
        warnings=profile.warnings,
        partial=profile.partial,
        few_rounds=any(m.rounds < 100 for m in profile.measurements if not m.conditions.emulated),
    )


def artifact_of(record: RunRecord, measurement: Measurement) -> ArtifactRecord | None:
    """The record's artifact that was measured: the same bytes, and the same name where several files are equal."""
    same = [a for a in record.artifacts if a.artifact.sha256 == measurement.sha256]
    return next((a for a in same if a.artifact.name == measurement.artifact), same[0] if same else None)


def _where(skipped: Skipped) -> str:
    """What was skipped, and where: a device is named only beside another word for the same place."""
    places = [place for place in (skipped.device if skipped.device != "local" else None, skipped.runtime) if place]
    return f"{skipped.label} on {', '.join(places)}" if places else skipped.label


def _group(
    profile: ProfileResult,
    rows: Sequence[LatencyRow],
    *,
    place: tuple[str, str],
    index: int,
    order: Sequence[str],
    several: bool,
) -> RuntimeView:
    device, runtime = place
    comparisons = tuple(c for c in profile.comparisons if (c.device, c.runtime) == place)
    conditions = rows[0].measurement.conditions
    headline, pair = _headline(rows, comparisons, order)
    name = f"{runtime} {conditions.runtime_version.partition('-')[0]}".strip()  # builds and hashes are in the conditions
    title = f"{name} on {device}" if several else name
    emulated = any(row.measurement.conditions.emulated for row in rows)
    return RuntimeView(
        index=index,
        device=device,
        runtime=runtime,
        name=name,
        title=title,
        emulated=emulated,
        rows=tuple(rows),
        comparisons=comparisons,
        aa=tuple(a for a in profile.aa if (a.device, a.runtime) == place),
        headline=headline,
        pair=pair,
        conditions=tuple(shared_conditions([(row.label, row.measurement.conditions) for row in rows])),
        ridges=None if emulated else _ridges(rows, title, index),
        forest=_forest(comparisons, title, index, emulated=emulated),
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
