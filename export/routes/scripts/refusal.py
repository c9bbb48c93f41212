"""The one exception for what a converter can't do, and the user can mend."""

from __future__ import annotations


class RefusedError(Exception):
    """What can't be done, and what to do instead."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what, hint)
