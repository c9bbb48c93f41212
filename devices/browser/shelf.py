"""The files that the server may give out, and those that a page may bring, each by its exact name."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

from ...export.manifest import UserError

LARGEST_OUT = 512 << 20
"""Bytes that all files which a page brings may have together."""


class Shelf:
    """Thread-safe. What a page brings lies in `folder` under numbers, never under names of its choice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._out: dict[str, Path] = {}
        self._open: dict[str, Path] = {}
        self._brought: dict[str, Path] = {}
        self._room, self._puts = LARGEST_OUT, 0

    def put(self, source: Path, place: str) -> str:
        """The name that the file, or every file of the folder behind its own name, is given out under. Raises UserError.

        It is never that of another file: pages keep what they have fetched.
        """
        with self._lock:
            self._puts += 1
            name = f"files/{self._puts}-{place}"
        if source.is_dir():
            found = {
                f"{name}/{path.relative_to(source).as_posix()}": path for path in sorted(source.rglob("*")) if path.is_file()
            }
        elif source.is_file():
            found = {name: source}
        else:
            raise UserError(f"{source} is not there", hint="export the artifact again")
        with self._lock:
            self._out.update({place: path.resolve() for place, path in found.items()})
        return name

    def given(self, name: str) -> Path | None:
        """The file of that exact name, None when there is none."""
        with self._lock:
            return self._out.get(name)

    def expect(self, names: Iterable[str]) -> None:
        """From now on these, and no others, may be brought."""
        with self._lock:
            self._open = {}
            for name in names:
                self._puts += 1
                self._open[name] = self.folder / f"out-{self._puts}.bin"

    def may_bring(self, name: str, size: int) -> Path | None:
        """Where a page's file of that name and size goes, None when it was not asked for or is too large."""
        with self._lock:
            return self._open.get(name) if size <= self._room else None

    def brought(self, name: str, path: Path) -> None:
        """Notes that the file is there."""
        with self._lock:
            self._brought[name] = path
            self._room -= path.stat().st_size

    def collect(self, name: str, target: Path) -> Path:
        """`target`, which is what a page brought, moved there. Raises UserError when it did not."""
        with self._lock:
            path = self._brought.pop(name, None)
            self._room += path.stat().st_size if path else 0
        if path is None:
            raise UserError(f"the page has brought no {name!r}", hint="run the job again", exit_code=1)
        shutil.move(path, target)
        return target
