"""The one exception for failures that the user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A failure the user can mend: what was wrong and with which value, then what to do instead.

    `exit_code` is what the command line leaves with: 2, since the mistake is in what was asked; a verdict about the
    user's artifact (a failed parity gate, say) uses 1.
    """

    def __init__(self, what: str, *, hint: str = "", exit_code: int = 2) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.exit_code = exit_code

    def reworded(self, what: str) -> UserError:
        """The same error, its first part said otherwise."""
        return _again(type(self), what, self.hint, self.exit_code)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels between processes: its kind and its words (a plain exception would forget the latter)."""
        return _again, (type(self), self.what, self.hint, self.exit_code)

    def __str__(self) -> str:
        return f"{self.what}\n  → {self.hint}" if self.hint else self.what


class UnchangedError(UserError):
    """What was asked for changes nothing of this network: int8 of one that has nothing to quantise, sparse of one without zeros."""


def _again(kind: type[UserError], what: str, hint: str, exit_code: int) -> UserError:
    error = kind.__new__(kind)
    UserError.__init__(error, what, hint=hint, exit_code=exit_code)
    return error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known words, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(names) if names else "none is registered"
