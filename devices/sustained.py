"""A long run without a pause: what a phone still gives once it is warm."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..export.manifest import Progress
from .greeting import numbers, snapshot_of
from .link import Link, LinkLostError
from .reading import Snapshot
from .records import Sustained, SustainedPoint

WINDOWS = 150
"""A long run has at least this many windows."""
LONGEST_S = 4.0
ANSWER_NS = 0.5e9
"""How much one request asks for."""


def run_long(
    link: Link,
    load: Mapping[str, Any],
    *,
    seconds: float,
    cycle: int,
    told: Mapping[str, Any],
    progress: Progress,
) -> Sustained:
    """The latency of what `load` loads over `seconds` seconds, in windows, each with the device's temperature and clock.

    `cycle` inferences make one call. A KeyboardInterrupt or a lost device keeps the windows that were finished; without any it is
    raised again.
    """
    points: list[SustainedPoint] = []
    partial, calls = False, 1
    window_s = min(LONGEST_S, seconds / WINDOWS)
    begin = heard = time.monotonic()
    with progress.meter(f"sustained {told['label']} on {told['device']}", total=seconds, unit="s") as meter:
        try:
            link.ask({"do": "drop"})
            link.ask({**load, "slot": 0, "gaps": []})
            while time.monotonic() - begin < seconds:
                start, samples = time.monotonic(), list[float]()
                while time.monotonic() - start < window_s or not samples:
                    answer = link.ask({"do": "time", "order": [0] * calls, "blocks": [1] * calls, "warm": [0] * calls})
                    samples += numbers(answer, calls)
                    share = min(ANSWER_NS, window_s * 1e9 / 4)
                    calls = max(1, min(10_000, int(share / max(1.0, samples[-1]))))
                points.append(_point(time.monotonic() - begin, [value / cycle for value in samples], snapshot_of(link)))
                meter.advance(time.monotonic() - heard)
                heard = time.monotonic()
        except (KeyboardInterrupt, LinkLostError):
            if not points:
                raise
            partial = True
    return Sustained(**told, asked_s=seconds, points=tuple(points), partial=partial)


def _point(at_s: float, samples: list[float], now: Snapshot) -> SustainedPoint:
    heat, clock = now.temperature_c.value, now.clock_mhz.value
    return SustainedPoint(
        t_s=at_s,
        p50_ms=float(np.median(samples)) / 1e6,
        calls=len(samples),
        temperature_c=heat if isinstance(heat, float) else None,
        clock_mhz=clock if isinstance(clock, float) else None,
    )
