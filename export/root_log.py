"""The root logger, which some converters change for the whole process, given back as it was."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def root_log(level: int | None = None) -> Iterator[None]:
    """A context with the root logger at `level` (None: as it is); its level, filters and handlers are restored behind it."""
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    if level is not None:
        root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(before[0])
        root.filters, root.handlers = before[1], before[2]
