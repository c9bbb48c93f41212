"""Imports as if a package were not installed: some look for packages that they only slow down or report through."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """A block in which importing `package` fails, as if it were not installed. One that is loaded already stays with its users."""
    loaded = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]  # Python's own way to bar an import
    try:
        yield
    finally:
        del sys.modules[package]
        if loaded is not None:
            sys.modules[package] = loaded
