"""What native libraries print past Python, kept from the user's screen and from `--json`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Heard:
    """What was printed, once the block has ended."""

    text: str = ""

    def lines(self) -> list[str]:
        """The lines that say something, each once, in order."""
        return list(dict.fromkeys(line.strip() for line in self.text.splitlines() if line.strip()))


@contextlib.contextmanager
def hushed() -> Iterator[Heard]:
    """What the process writes to its standard output and error, Python's and native code's, while the block runs.

    It holds for the whole process: other threads are hushed too. So keep the block short.
    """
    heard = Heard()
    _flush()
    with tempfile.TemporaryFile("w+", errors="replace", buffering=1) as sink:
        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in kept:
                os.dup2(sink.fileno(), number)
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield heard
        finally:
            _flush()
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)
            sink.seek(0)
            heard.text = sink.read()


def _flush() -> None:
    """What Python and the C library hold back is written now, to where it belongs."""
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError, AttributeError):  # a closed or foreign stream has nothing to flush
            stream.flush()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
