"""Ctrl-C and SIGTERM, held back until a step is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """A context in which the first SIGINT or SIGTERM only sets `caught`; a second one acts at once.

    An exception in the middle of an optimiser step would leave half-updated weights that no checkpoint may hold. Outside the
    main thread (where Python delivers no signals) the context does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hold) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def deliver(self) -> None:
        """The held signal, now: KeyboardInterrupt for SIGINT, the process's own handling for SIGTERM."""
        self._restore()
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught is not None:
            signal.raise_signal(self.caught)
            raise SystemExit(128 + self.caught)  # somebody's handler returned: the run ends all the same
