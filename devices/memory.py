"""How much memory a block of work took at its peak, where the kernel tells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .reading import Reading

_NO_WAY = "only Linux can reset and read a process's peak memory"


def _status_bytes(key: str) -> int | None:
    """VmRSS or VmHWM of this process."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


class Peak:
    """Holds the reading once the block has ended."""

    reading = Reading(reason=_NO_WAY)


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """The rise of resident memory from the block's begin to its peak, in bytes, in `.reading` afterwards.

    Pages that the allocator held already count as nothing, so the first of several equal loads shows the most.
    """
    peak = Peak()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to the present resident size
        start = _status_bytes("VmRSS")
    except OSError:
        start = None
    yield peak
    top = _status_bytes("VmHWM")
    if start is not None and top is not None:
        peak.reading = Reading(value=float(max(0, top - start)), unit="bytes")
