"""The wire to a runner: one JSON object a line, asked and answered in turn, over the standard streams of a process.

The runner may be a child of this process, or at the far end of ssh, adb or an emulator: all of them carry its streams. Its answers
begin with `MARK`, so that what shells, log-in messages and native libraries print beside them does no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..export.manifest import UserError
from .runtime import RejectedError
from .wire import MARK

LARGEST = 64 << 20
"""Bytes that one answer may have."""
START_S, ANSWER_S = 60.0, 600.0


class LinkLostError(UserError):
    """The runner is gone, or no longer answers. What was measured before is kept."""


class Link(Protocol):
    """A runner that answers."""

    def ask(self, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer. Raises LinkLostError, RejectedError for an artifact that the runtime won't take, UserError for what can't be done."""

    def close(self) -> None:
        """Ends the runner."""


def opened(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without its error, which is raised: RejectedError, UserError."""
    error = answer.get("error")
    if error is None:
        return answer
    what, hint = str(error.get("what", "the runner failed")), str(error.get("hint", ""))
    if error.get("kind") == "rejected":
        raise RejectedError.told(what, hint)
    raise UserError(what, hint=hint, exit_code=2 if error.get("kind") == "user" else 1)


class ProcessLink:
    """A runner behind the standard streams of the process that `argv` starts. `where` names it in messages."""

    def __init__(self, argv: Sequence[str], *, where: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        self.where = where
        self.heard = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the link) for its standard error: a pipe could fill up
        try:
            self.process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.heard,
                cwd=cwd,
                env=env,
                start_new_session=True,  # Ctrl-C is this process's to handle: the runner is asked to end
            )
        except OSError as error:
            raise LinkLostError(
                f"{where}: {argv[0]} could not be started: {error.strerror}", hint="trimtab devices doctor"
            ) from None
        assert self.process.stdin is not None  # noqa: S101 (it was asked for)
        assert self.process.stdout is not None  # noqa: S101
        self.answers, self.requests = self.process.stdout, self.process.stdin
        os.set_blocking(self.answers.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.answers, selectors.EVENT_READ)
        self.buffer = b""
        self.ended: LinkLostError | None = None

    def ask(self, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer. Raises LinkLostError, RejectedError, UserError."""
        if self.ended:
            raise self.ended
        with contextlib.suppress(BrokenPipeError):  # it may have said why before it ended
            self.requests.write(json.dumps(request).encode() + b"\n")
            self.requests.flush()
        return opened(self._answer(timeout_s, what=str(request.get("do"))))

    def _answer(self, timeout_s: float, *, what: str) -> dict[str, Any]:
        until = time.monotonic() + timeout_s
        while True:
            line, found, rest = self.buffer.partition(b"\n")
            if found:
                self.buffer = rest
                if line.startswith(MARK):
                    return self._parsed(line[len(MARK) :])
                continue
            left = until - time.monotonic()
            if left <= 0 or not self.selector.select(left):
                raise self._given_up(
                    f"{self.where} gave no answer to {what!r} within {timeout_s:.0f} s",
                    hint="is it asleep, or off the network?",
                )
            piece = self.answers.read(1 << 16)
            if not piece:
                raise self._lost()
            self.buffer += piece
            if len(self.buffer) > LARGEST:
                raise self._given_up(
                    f"{self.where} sent more than {LARGEST >> 20} MiB in one line", hint="this is no runner of ours"
                )

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._given_up(
                f"{self.where} answered with what is no JSON object: {line[:80]!r}", hint="this is no runner of ours"
            )
        return answer

    def _given_up(self, what: str, *, hint: str) -> LinkLostError:
        """The error that ends the link; the runner is stopped."""
        self.ended = LinkLostError(what, hint=hint, exit_code=1)
        self.close(grace_s=0)
        return self.ended

    def _lost(self) -> LinkLostError:
        """The end of the runner, in words."""
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.ended = LinkLostError(
            f"{self.where}: {ending(code, self.said())}", hint="what was measured before is kept; try again", exit_code=1
        )
        return self.ended

    def said(self) -> list[str]:
        """The last lines of its standard error."""
        self.heard.seek(0, os.SEEK_END)
        self.heard.seek(max(0, self.heard.tell() - 4096))
        lines = self.heard.read().decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()][-5:]

    def close(self, *, grace_s: float = 5.0) -> None:
        """Ends the runner: by closing its input, or by force after `grace_s`."""
        with contextlib.suppress(BrokenPipeError):
            self.requests.close()
        try:
            self.process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        self.answers.close()
        self.heard.close()


def ending(code: int, said: Sequence[str]) -> str:
    """How a runner ended, from its exit code (negative or above 128: a signal) and its last words."""
    number = -code if code < 0 else code - 128 if code > 128 and code != 255 else 0
    words = f": {' · '.join(said)}" if said else ""
    if number == signal.SIGKILL:
        return f"the runner was killed, as the kernel does when memory runs out{words}"
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"the runner crashed ({name}){words}"
    return f"the runner ended (exit code {code}){words}"
