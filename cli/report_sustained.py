"""Long runs in the report: latency and temperature over minutes, and whether the device became slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from .devices.records import Sustained
from .plots_devices import Reading, endurance
from .report_text import fixed, percent, seconds, significant


@dataclass(frozen=True)
class SustainedView:
    """One run: its plot (None under emulation), the verdict in words, and whether the device slowed down (None: not known)."""

    title: str
    plot: Markup | None
    verdict: str
    throttled: bool | None
    note: str


def sustained_views(runs: Sequence[Sustained]) -> list[SustainedView]:
    """A view of every run."""
    return [_view(run, i) for i, run in enumerate(runs)]


def _view(run: Sustained, index: int) -> SustainedView:
    title = f"{run.label} on {run.device}, {run.runtime}"
    lasted = run.points[-1].t_s
    note = f"Ran {seconds(lasted)} of {seconds(run.asked_s)}"
    note += ", ended early." if run.partial else "."
    if run.emulated:
        return SustainedView(title, None, "emulated: neither its time nor its warmth is a device's", None, note)
    fifth = max(1, len(run.points) // 5)
    first = float(np.median([p.p50_ms for p in run.points[:fifth]]))
    last = float(np.median([p.p50_ms for p in run.points[-fifth:]]))
    second, values = _second(run)
    drawn = [Reading(p.t_s / 60, p.p50_ms, value) for p, value in zip(run.points, values, strict=True)]
    known = [value for value in values if value is not None]
    since = drawn[-fifth - 1].minutes if run.throttled and len(drawn) > fifth else None
    verdict = _verdict(run)
    warmth = f" {second}: {fixed(known[0], 0)} to {fixed(known[-1], 0)}." if second and known else ""
    alt = f"Latency over {seconds(lasted)}: {title}. {significant(first)} ms at first, {significant(last)} ms at last.{warmth} {verdict}."
    plot = endurance(drawn, name=f"sustained-{index}", second=second, throttled_from=since, first_ms=first, alt=alt)
    told = "" if second else " The device tells neither its temperature nor its clock."
    return SustainedView(title, plot, verdict, run.throttled, note + told)


def _verdict(run: Sustained) -> str:
    slower = run.slowdown
    if slower is None or run.throttled is None:
        return f"too short to tell: {len(run.points)} windows, where ten are needed"
    change = f"the last fifth of the run takes {fixed(slower, 3)}× the time of the first"
    if run.throttled:
        return f"throttled: {change}"
    by = percent(abs(slower - 1), 1)
    return f"not throttled: {change}" if slower >= 1 else f"not throttled: the last fifth is {by} faster than the first"


def _second(run: Sustained) -> tuple[str | None, list[float | None]]:
    """What the lower panel shows: temperature, or the clock where that is all that is known."""
    warm = [p.temperature_c for p in run.points]
    if sum(value is not None for value in warm) > 1:
        return "temperature (°C)", warm
    clock = [p.clock_mhz for p in run.points]
    if sum(value is not None for value in clock) > 1:
        return "clock (MHz)", clock
    return None, [None] * len(run.points)
