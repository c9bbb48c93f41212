"""The one exception for failures that the user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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

    def __str__(self) -> str:
        return f"{self.what}\n  → {self.hint}" if self.hint else self.what


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known words, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(names) if names else "none is registered"
