"""A profile in words and tables, for the terminal."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from .console import output

if TYPE_CHECKING:
    from .devices.measurement import Measurement, ProfileResult
    from .devices.records import OpRecord, OpTime, Sustained

TOP = 3
"""Operations that the terminal shows of an artifact."""
WIDE = 110
"""Columns from which on loading, the first inference and memory are shown too."""


def input_spread(m: Measurement) -> str:
    """How the latency of an adaptive network is spread over its inputs, in words."""
    p50, p99 = m.input_percentile_ms(50), m.input_percentile_ms(99)
    return f"over {len(m.inputs_ns)} real inputs, one by one: median {p50:.3f} ms, p99 {p99:.3f} ms; the times above are their mean"


def say_profile(result: ProfileResult, *, top: int = 0) -> None:
    """Latencies and comparisons as tables, the `top` operations of each artifact, then what was left out and why."""
    several = len(result.devices) > 1
    _say_latencies(result, several=several)
    _say_counts(result)
    for m in result.measurements:
        if m.inputs_ns:
            output.say(f"{m.label} on {m.runtime}: {input_spread(m)}")
    for c in result.comparisons:
        interval = f" [{c.low:.2f}, {c.high:.2f}]" if c.low is not None and c.high is not None else ""
        floor = f"noise floor {c.noise_floor:.1%}" if c.noise_floor is not None else "no noise floor"
        verdict = "" if c.significant else "  (not significant)"
        where = f"{c.device}, {c.runtime}" if several else c.runtime
        if any(m.conditions.emulated for m in result.measurements if m.conditions.device == c.device):
            continue  # what an emulator is quick or slow at says nothing about a device
        output.say(f"{where}: {c.b} is {c.speedup:.2f}×{interval} as fast as {c.a}, {c.rounds} rounds, {floor}{verdict}")
    for record in result.ops:
        _say_ops(record, top)
    for long in result.sustained:
        _say_sustained(long)
    for e in result.evaluated:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in e.metrics.items())
        output.say(f"{e.label} on {e.device}, {e.runtime}: {metrics} over {e.samples} samples of {e.data}")
    for s in result.skipped:
        places = [place for place in (s.device if several else None, s.runtime) if place]
        output.say(f"not measured: {s.label}{f' on {chr(44).join(places)}' if places else ''}: {s.reason}")
    for warning in result.warnings:
        output.say(f"warning: {warning}")


def _say_latencies(result: ProfileResult, *, several: bool) -> None:
    """The table of latencies. An emulated CPU's are left out: they are no device's."""
    width = shutil.get_terminal_size((100, 24)).columns
    columns = ["device, runtime" if several else "runtime", "artifact", ">p50 ms", ">p90 ms", ">p99 ms", ">samples"]
    columns = columns[:5] if width < 80 else [*columns, ">load ms", ">first ms", ">peak MB"] if width >= WIDE else columns
    rows = []
    for m in result.measurements:
        where = f"{m.conditions.device}, {m.runtime}" if several else m.runtime
        figures = (m.p50_ms, m.p90_ms, m.p99_ms)
        shown = ("emulated", "–", "–") if m.conditions.emulated else tuple(f"{value:.3f}" for value in figures)
        rows.append((where, m.label, *shown, len(m.samples_ns), *_start(m))[: len(columns)])
    if rows or not result.counts:
        output.table("", columns, rows)
    if any(m.conditions.emulated for m in result.measurements):
        output.say(
            "emulated: another CPU's instructions were interpreted, so these milliseconds are no device's and are not shown"
        )


def _start(m: Measurement) -> tuple[str, str, str]:
    """Loading, the first inference, and the peak of memory while at it."""
    peak = m.peak_memory_bytes.value
    memory = f"{peak / 1e6:.1f}" if isinstance(peak, float) else "–"
    return ("–", "–", memory) if m.conditions.emulated else (f"{m.load_ms:.1f}", f"{m.first_inference_ms:.2f}", memory)


def _say_counts(result: ProfileResult) -> None:
    """The table of counted instructions, with each artifact's ratio to the first on the same core."""
    if not result.counts:
        return
    rows, first = [], dict[str, int]()
    for count in result.counts:
        base = first.setdefault(count.device, count.instructions)
        steady = "yes" if count.stable else "no"
        rows.append((count.core, count.label, f"{count.instructions:,}", f"{count.instructions / base:.3f}", steady))
    output.table("", ("core", "artifact", ">instructions", ">to the first", "same every time"), rows)
    output.say("instructions of one inference on an emulated core: exact and repeatable, and no time")


def _say_ops(record: OpRecord, top: int) -> None:
    """Where operations ran, and those that take the most: the report has more of them, the JSON all."""
    if not top:
        return
    where = f"{record.label} on {record.device}, {record.runtime}"
    if record.reason:
        output.say(f"{where}: no operations: {record.reason}")
        return
    placed = ", ".join(f"{count} on {place} ({share:.0%})" for place, (count, share) in record.placement().items())
    largest = ", ".join(f"{_named(op)} {share:.0%}" for op, share in record.top(top))
    output.say(f"{where}: {len(record.ops)} operations, {placed}; the largest: {largest}")


def _named(op: OpTime) -> str:
    """Kind and name; some runtimes' names begin with the kind."""
    return op.name if op.name.startswith(op.kind) else f"{op.kind} {op.name}"


def _say_sustained(long: Sustained) -> None:
    """The begin and the end of a long run."""
    first, last = long.points[0], long.points[-1]
    if long.emulated:
        change = "emulated, so its milliseconds are no device's"
    else:
        change = f"{first.p50_ms:.3f} ms in the first window, {last.p50_ms:.3f} ms in the last"
    slower = "" if long.slowdown is None else f", last fifth {long.slowdown:.2f}× the first"
    heat = "" if first.temperature_c is None else f", {first.temperature_c:.0f} → {last.temperature_c or 0:.0f} °C"
    verdict = ": THROTTLED" if long.throttled else ""
    cut = " (cut short)" if long.partial else ""
    output.say(
        f"{long.label} on {long.device}, {long.runtime}: {last.t_s:.0f} s without a pause{cut}, {change}{slower}{heat}{verdict}"
    )
