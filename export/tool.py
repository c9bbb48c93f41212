"""A converter that is a program of its own: run by an argument list, with an end in time, and its noise kept."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..models.errors import UserError

SECONDS = 600.0
"""Converters of image networks take seconds; one that takes longer than this hangs."""
_SHOWN = 4


@dataclass(frozen=True)
class Said:
    """How a tool ended: its exit code (below 0: the signal that killed it) and all it printed, both streams together."""

    code: int
    text: str

    def tail(self) -> str:
        """Its last lines."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return "; ".join(lines[-_SHOWN:])[:300] or "it said nothing"

    def ending(self) -> str:
        """How it ended, in words."""
        return f"it crashed with {signal.Signals(-self.code).name}" if self.code < 0 else f"its exit code was {self.code}"


def run_tool(
    arguments: Sequence[str],
    *,
    folder: Path,
    title: str,
    seconds: float = SECONDS,
    environment: Mapping[str, str] | None = None,
) -> Said:
    """What the program `arguments` said, run in `folder`. Raises UserError when it has not ended after `seconds`."""
    process = subprocess.Popen(
        list(arguments),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if environment is None else dict(environment),
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except BaseException as ended:
        stop(process)
        if isinstance(ended, subprocess.TimeoutExpired):
            raise UserError(
                f"{title} was not finished after {seconds:g} s, and was stopped", hint="try a smaller input size", exit_code=1
            ) from None
        raise
    return Said(process.returncode, printed.decode(errors="replace"))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children; it has no group of its own, so that it ends with the worker that started it."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.communicate()
