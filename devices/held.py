"""One profile at a time on a device: two would measure each other."""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..export.manifest import UserError

WAIT_S = 600.0


def _folder() -> Path:
    """Where locks lie: they belong to this machine and this user, and vanish with a restart."""
    root = os.environ.get("TRIMTAB_LOCKS") or Path(tempfile.gettempdir()) / f"trimtab-locks-{getpass.getuser()}"
    return Path(root)


@contextmanager
def held(device: str, *, say: Callable[[str], None], wait_s: float = WAIT_S) -> Iterator[None]:
    """Inside the block no other profile of this user runs on the device. Waits for one that does. Raises UserError after `wait_s`.

    "" holds nothing.
    """
    if not device:
        yield
        return
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(folder / f"{hashlib.sha256(device.encode()).hexdigest()[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another profile is running on {device}: waiting for it, up to {wait_s:.0f} s")
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            raise UserError(
                f"another profile has been running on {device} for {wait_s:.0f} s",
                hint="two at once would measure each other: wait for it to end, or stop it",
                exit_code=1,
            ) from None
    try:
        yield
    finally:
        lock.release()
