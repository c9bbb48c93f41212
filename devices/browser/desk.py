"""Where the asking side and the page meet: one request at a time, one page at a time, and what is known of the page's life."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..link import LinkLostError

SILENCE_S = 20.0
"""A page that tells nothing for so long is gone: it beats every 3 s, also while it works."""
HIDDEN_S = 60.0
"""How long a page may be in the background while an answer is awaited."""
_LOOK_S = 0.5
KEPT = "what was measured before is kept; open the page again and measure anew"


@dataclass
class _Page:
    runner: str
    seen: float
    fresh: bool = True
    hidden_since: float | None = None
    leaving: bool = False


class Desk:
    """Thread-safe. `where` names the device in messages; `say` hears of a page that goes to the background."""

    def __init__(self, where: str, *, silence_s: float = SILENCE_S, hidden_s: float = HIDDEN_S) -> None:
        self.where, self.silence_s, self.hidden_s = where, silence_s, hidden_s
        self.say: Callable[[str], None] = lambda _: None
        self._changed = threading.Condition()
        self._page: _Page | None = None
        self._why = "no page is open"
        self._number = 0
        self._request: dict[str, Any] | None = None
        self._answer: dict[str, Any] | None = None
        self._end = ""

    # the page's side, called by the server's threads

    def join(self) -> dict[str, str]:
        """`{"runner": id}` for a page that may work now, else `{"reason": words}`."""
        with self._changed:
            self._note_silence()
            if self._end:
                return {"reason": f"trimtab has ended: {self._end}"}
            if self._page is not None:
                return {
                    "reason": "another tab or device runs this job already. One at a time: two would measure each other. "
                    "Close the other one and reload this page to use this one."
                }
            self._page = _Page(secrets.token_urlsafe(9), time.monotonic())
            self._changed.notify_all()
            return {"runner": self._page.runner}

    def note(self, runner: str, state: str) -> bool:
        """Whether that page is the one that works; its state ("beat", "hidden", "visible", "closing") is noted then."""
        with self._changed:
            page = self._mine(runner)
            if page is None:
                return False
            if state == "hidden":
                page.hidden_since = page.hidden_since or time.monotonic()
            elif state == "visible":
                page.hidden_since = None
            elif state == "closing":
                self._page, self._why = None, "the page was closed or reloaded"
            self._changed.notify_all()
            return True

    def next(self, runner: str, last: tuple[int, dict[str, Any]] | None, *, wait_s: float) -> dict[str, Any]:
        """What the page has to do now, `{}` when there was nothing for `wait_s`. `last`: a request's number and its answer."""
        until = time.monotonic() + wait_s
        with self._changed:
            if last is not None and self._mine(runner) and last[0] == self._number and self._waits():
                self._answer = last[1]
                self._changed.notify_all()
            while True:
                page = self._mine(runner)
                if page is None:
                    return {"end": f"this page no longer takes part: {self._why}"}
                if self._end:
                    self._page, self._why = None, self._end
                    self._changed.notify_all()
                    return {"end": self._end}
                if page.leaving:
                    self._page, self._why = None, "the page did not come back after a reload"
                    return {"reload": True}
                if self._waits():
                    return {"id": self._number, "request": self._request}
                left = until - time.monotonic()
                if left <= 0:
                    return {}
                self._changed.wait(left)

    # the asking side

    def wait_for_page(self, wait_s: float) -> bool:
        """Whether a page has joined within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._page is not None, wait_s)

    def ask(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The page's answer. Raises LinkLostError when it is gone, stays in the background or takes too long."""
        until = time.monotonic() + timeout_s
        with self._changed:
            self._number += 1
            self._request, self._answer = request, None
            if self._page is not None and request.get("do") != "hello":
                self._page.fresh = False
            self._changed.notify_all()
            warned = False
            try:
                while self._answer is None:
                    self._refuse_lost(until, what=str(request.get("do")), timeout_s=timeout_s)
                    hidden = self._page is not None and self._page.hidden_since is not None
                    if hidden and not warned:
                        self.say(
                            f"{self.where}: the page is in the background; bring it back to the front (timing waits {self.hidden_s:.0f} s)"
                        )
                    warned = hidden
                    self._changed.wait(min(_LOOK_S, max(0.0, until - time.monotonic())))
                return self._answer
            finally:
                self._request = None

    def restart(self, wait_s: float) -> None:
        """None, when a page that has run nothing yet is there: the one that was there is reloaded. Raises LinkLostError."""
        with self._changed:
            self._note_silence()
            if self._page is None:
                raise LinkLostError(f"{self.where}: {self._why}", hint=KEPT, exit_code=1)
            if self._page.fresh:
                return
            self._page.leaving = True
            old = self._page
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._page is not None and self._page is not old, wait_s):
                raise LinkLostError(
                    f"{self.where}: the page did not come back within {wait_s:.0f} s after it was reloaded",
                    hint=KEPT,
                    exit_code=1,
                )

    def end(self, words: str, *, wait_s: float = 3.0) -> None:
        """Tells the page that it is over, and waits until it knows, or `wait_s`."""
        with self._changed:
            self._end = words
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._page is None, wait_s)

    # with the lock held

    def _mine(self, runner: str) -> _Page | None:
        page = self._page
        if page is None or not secrets.compare_digest(page.runner.encode(), runner.encode()):
            return None
        page.seen = time.monotonic()
        return page

    def _waits(self) -> bool:
        return self._request is not None and self._answer is None

    def _note_silence(self) -> None:
        if self._page is not None and time.monotonic() - self._page.seen > self.silence_s:
            self._page = None
            self._why = (
                f"the page has told nothing for {self.silence_s:.0f} s: "
                "its tab was closed, the device sleeps, or it is off the network"
            )

    def _refuse_lost(self, until: float, *, what: str, timeout_s: float) -> None:
        """None, when there is still hope for an answer. Raises LinkLostError."""
        self._note_silence()
        if self._page is None:
            raise LinkLostError(f"{self.where}: {self._why}", hint=KEPT, exit_code=1)
        since = self._page.hidden_since
        if since is not None and time.monotonic() - since > self.hidden_s:
            raise LinkLostError(
                f"{self.where}: the page was in the background for {self.hidden_s:.0f} s, where browsers slow it down or stop it",
                hint=f"keep the page in front and the screen on; {KEPT}",
                exit_code=1,
            )
        if time.monotonic() > until:
            raise LinkLostError(f"{self.where} gave no answer to {what!r} within {timeout_s:.0f} s", hint=KEPT, exit_code=1)
