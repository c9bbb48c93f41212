"""Loggers that converters change for the whole process, given back as they were."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def kept_log(name: str = "", *, level: int | None = None) -> Iterator[None]:
    """A context with the logger `name` ("": the root) at `level` (None: as it is); its level, filters and handlers are restored behind it."""
    logger = logging.getLogger(name)
    before = logger.level, logger.filters[:], logger.handlers[:]
    if level is not None:
        logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.filters, logger.handlers = before[1], before[2]
