"""The wire to a page: requests and answers lie on a desk from which the page fetches and to which it posts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..link import ANSWER_S, LinkLostError, opened
from .answers import wrong_in
from .desk import Desk
from .shelf import Shelf


class PageLink:
    """A runner in a page. `backend` is what the job asks for: whether the machine counts as emulated hangs on it.

    `titles`: place → what the artifact there is called, for the page to show.
    """

    def __init__(self, desk: Desk, shelf: Shelf, *, backend: str, titles: Mapping[str, str]) -> None:
        self.desk, self.shelf, self.backend, self.titles = desk, shelf, backend, titles

    def ask(self, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer. Raises LinkLostError, also for what is no answer; RejectedError, UserError."""
        if request.get("do") == "hello":
            request = {**request, "backend": self.backend}
        if request.get("do") == "load":
            place = str(request["file"]).rpartition("/")[0]
            request = {**request, "title": self.titles.get(place, "")}
        if request.get("do") == "run":
            self.shelf.expect(request["out"].values())
        answer = self.desk.ask(request, timeout_s=timeout_s)
        if wrong := wrong_in(request, answer):
            raise LinkLostError(
                f"{self.desk.where} answered {request.get('do')!r} with what is no answer to it: {wrong}",
                hint="reload the page: it may be one of another version of trimtab",
                exit_code=1,
            )
        return opened(answer)

    def close(self) -> None:
        """Nothing: the next runner is the page after a reload."""
