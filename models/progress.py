"""How long-running work says where it is, without knowing who listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger("trimtab")


class Meter(Protocol):
    """One running job: `advance` it by units of work; `figures` are shown beside it (loss=0.31 …)."""

    def advance(self, units: float = 1, **figures: float) -> None:
        """Work done since the last call."""


class Progress(Protocol):
    """Opens meters. The command line draws bars; the library's default logs a line every ten seconds."""

    @contextmanager
    def meter(self, label: str, total: float, unit: str, *, done: float = 0) -> Iterator[Meter]:
        """A meter for `total` units of work of which `done` were done before (a resumed job)."""


class _LogMeter:
    def __init__(self, label: str, total: float, unit: str, done: float) -> None:
        self.label, self.total, self.unit, self.done, self.first = label, total, unit, done, done
        self.started = self.said = time.monotonic()

    def advance(self, units: float = 1, **figures: float) -> None:
        self.done += units
        now = time.monotonic()
        if now - self.said < 10:
            return
        self.said = now
        rate = (self.done - self.first) / (now - self.started)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        left = (self.total - self.done) / rate if rate else float("inf")
        log.info(
            "%s  %.0f/%.0f %s  %.1f %s/s  %.0f s left  %s",
            self.label,
            self.done,
            self.total,
            self.unit,
            rate,
            self.unit,
            left,
            shown,
        )


class LogProgress:
    """Progress for scripts and pipes: plain log lines, at most one every ten seconds."""

    @contextmanager
    def meter(self, label: str, total: float, unit: str, *, done: float = 0) -> Iterator[Meter]:
        yield _LogMeter(label, total, unit, done)
