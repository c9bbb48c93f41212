"""Where an inference's time goes, and where its operations ran: the report's waterfalls and the placement on delegates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .devices.records import OpRecord
from .plots_devices import Bar, waterfall
from .report_text import fixed, percent, significant, whole

TOP = 10


@dataclass(frozen=True)
class OpRow:
    """One operation, or the rest together (`kind` then says how many); `amount` is µs or instructions per inference."""

    name: str
    kind: str
    where: str
    share: float
    amount: str


@dataclass(frozen=True)
class OpsView:
    """One artifact's operations on a device and runtime: the waterfall, its key (places with their colours), the same as rows."""

    index: int
    title: str
    plot: Markup
    places: tuple[str, ...]
    caption: str
    unit: str
    rows: tuple[OpRow, ...]


@dataclass(frozen=True)
class Placement:
    """How many operations ran at one place, and their share of the time (or of the instructions)."""

    label: str
    device: str
    runtime: str
    where: str
    ops: int
    share: float
    unit: str


def shown(record: OpRecord) -> bool:
    """Whether there is something to draw: times under emulation are not."""
    return record.total > 0 and not (record.emulated and record.unit == "ns")


def ops_views(records: Sequence[OpRecord], medians: Mapping[tuple[str, str, str], float]) -> list[OpsView]:
    """A view of every record that tells something. `medians`: (label, device, runtime) → the median latency in ms, unprofiled."""
    drawn = [record for record in records if shown(record)]
    return [_view(record, i, medians.get((record.label, record.device, record.runtime))) for i, record in enumerate(drawn)]


def placements(records: Sequence[OpRecord]) -> list[Placement]:
    """A row for every place that operations of a record ran at."""
    return [
        Placement(record.label, record.device, record.runtime, where or "not told", count, share, _unit(record))
        for record in records
        if shown(record)
        for where, (count, share) in record.placement().items()
    ]


def _unit(record: OpRecord) -> str:
    return "time" if record.unit == "ns" else "instructions"


def _view(record: OpRecord, index: int, median_ms: float | None) -> OpsView:
    title = f"{record.label} on {record.device}, {record.runtime}"
    places = tuple(dict.fromkeys(op.where for op in record.ops))
    colours = {place: i + 1 for i, place in enumerate(places)}
    top = record.top(TOP)
    rows = [OpRow(op.name, op.kind, op.where, share, _amount(record, op.ns)) for op, share in top]
    bars = [Bar(op.name, share, colours[op.where]) for op, share in top]
    rest = len(record.ops) - len(top)
    if rest > 0:
        share = max(0.0, 1 - sum(share for _, share in top))
        rows.append(OpRow("other", f"{rest} operations", "", share, _amount(record, share * record.total)))
        bars.append(Bar(f"other ({rest})", share, None))
    said = "; ".join(f"{row.name} {percent(row.share, 1)}" for row in rows)
    unit = _unit(record)
    alt = f"Waterfall of the share of {unit} by operation: {title}. {said}."
    return OpsView(
        index=index,
        title=title,
        plot=waterfall(bars, name=f"ops-{index}", x_label=f"share of {unit} (%)", alt=alt),
        places=tuple(place or "not told" for place in places),
        caption=_caption(record, min(TOP, len(record.ops)), median_ms),
        unit="µs" if record.unit == "ns" else "instructions",
        rows=tuple(rows),
    )


def _amount(record: OpRecord, value: float) -> str:
    return fixed(value / 1000, 1) if record.unit == "ns" else whole(value)


def _caption(record: OpRecord, top: int, median_ms: float | None) -> str:
    """What was drawn, in which unit, and what profiling costs."""
    parts = [f"The {top} dearest of {len(record.ops)} operations, by share of {_unit(record)}."]
    if record.unit == "instructions":
        parts.append(f"Together {whole(record.total)} instructions an inference, counted under emulation; no time.")
    else:
        runs = f" (mean of {whole(record.runs)} inferences)" if record.runs else ""
        parts.append(f"Together {significant(record.total / 1e6)} ms an inference under the profiler{runs}")
        cost = f", where the median without it is {significant(median_ms)} ms" if median_ms is not None else ""
        parts[-1] += f"{cost}: profiling costs time, so read the shares."
    return " ".join([*parts, record.note]).strip()
