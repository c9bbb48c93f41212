"""Commands on another machine through the user's own `ssh`, whose configuration, keys, agents and jump hosts stay the user's."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..export.manifest import UserError
from .link import LinkLostError, ProcessLink
from .ssh_troubles import Ended

ALIVE_S, ALIVE_COUNT = 5, 4
"""A machine that answers nothing for 20 s is gone."""
SLOWEST = 100_000
"""Bytes a second that the slowest network carries."""
LONGEST_SOCKET = 80
"""Characters of a socket's path: systems allow 104 or 108, of which ssh needs some for itself."""
USUAL_TEMP = Path("/tmp")  # noqa: S108 (a private folder is made in it)


def quoted(path: str) -> str:
    """A path for a shell there; a leading ~/ is that user's home."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


class Shell:
    """Runs commands on `host`. One connection serves them all: the first that `hold` starts, or the user's own master."""

    def __init__(
        self,
        host: str,
        *,
        python: str,
        config: str | None = None,
        port: int | None = None,
        identity: str | None = None,
        timeout_s: float = 15.0,
    ) -> None:
        self.host, self.python, self.timeout_s = host, python, timeout_s
        self.options = [
            *(["-F", str(Path(config).expanduser())] if config else []),
            *(["-p", str(port)] if port else []),
            *(["-i", str(Path(identity).expanduser()), "-o", "IdentitiesOnly=yes"] if identity else []),
        ]
        for setting in (
            "BatchMode=yes",
            f"ConnectTimeout={max(1, round(timeout_s))}",
            f"ServerAliveInterval={ALIVE_S}",
            f"ServerAliveCountMax={ALIVE_COUNT}",
            "ClearAllForwardings=yes",  # the user's forwards belong to the user's sessions
            "RemoteCommand=none",
            "RequestTTY=no",
        ):
            self.options += ["-o", setting]
        self._shared: list[str] = []
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    def settings(self) -> dict[str, str]:
        """What ssh's configuration says of the host. Raises UserError when ssh is missing or can't read it."""
        try:
            done = subprocess.run(
                ["ssh", *self.options, "-G", "--", self.host],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60,
                check=False,
            )
        except FileNotFoundError:
            raise UserError(
                "the program ssh is not on the PATH", hint="install it (Debian: apt install openssh-client)"
            ) from None
        if done.returncode:
            raise self.error(Ended(255, done.stderr.splitlines()[-5:]))
        pairs = (line.partition(" ") for line in done.stdout.splitlines())
        return {key: value for key, _, value in reversed(list(pairs))}

    def share(self) -> None:
        """From now on one connection is shared, unless the user's configuration has one (an opened master may be the only way in)."""
        if self._sockets or self.settings().get("controlpath", "none") != "none":
            return
        self._sockets = tempfile.TemporaryDirectory(prefix="trimtab-ssh-")
        if len(self._sockets.name) > LONGEST_SOCKET - 2 and USUAL_TEMP.is_dir():
            self._sockets.cleanup()
            self._sockets = tempfile.TemporaryDirectory(prefix="trimtab-ssh-", dir=USUAL_TEMP)
        self._shared = ["-o", f"ControlPath={self._sockets.name}/s", "-o", "ControlPersist=no"]

    def argv(self, command: str, *, first: bool = False) -> list[str]:
        """What runs `command` in a plain shell there, whichever the user's log-in shell is. `first`: the connection is kept for others."""
        shared = [*self._shared, "-o", f"ControlMaster={'yes' if first else 'no'}"] if self._shared else []
        return ["ssh", *self.options, *shared, "--", self.host, f"exec sh -c {shlex.quote(command)}"]

    def link(self, command: str, *, where: str, first: bool = False, also: Callable[[], list[str]] | None = None) -> SshLink:
        """A process there that answers line by line. `also`: more of what was said, should it be lost."""
        return SshLink(self.argv(command, first=first), where=where, shell=self, also=also, runner=not first)

    def run(self, command: str, *, timeout_s: float | None = None) -> str:
        """What the command there prints. Raises UserError, LinkLostError."""
        with tempfile.TemporaryFile() as heard:
            self._piped(
                command, lambda process: heard.write(process.communicate()[0]), timeout_s=timeout_s or 2 * self.timeout_s
            )
            heard.seek(0)
            return heard.read().decode(errors="replace")

    def send(self, files: Sequence[tuple[Path, str]], folder: str) -> None:
        """Files and folders put into `folder` there under new names, as one stream. Raises UserError (a full disk), LinkLostError."""
        parts = [part for path, _ in files for part in (path.rglob("*") if path.is_dir() else [path])]
        size = sum(part.stat().st_size for part in parts if part.is_file())

        def write(process: subprocess.Popen[bytes]) -> None:
            assert process.stdin  # noqa: S101 (it was asked for)
            try:
                with tarfile.open(fileobj=process.stdin, mode="w|", dereference=True, format=tarfile.GNU_FORMAT) as stream:
                    for path, name in files:
                        stream.add(path, name, filter=_anyone)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it ended before it had everything: its exit code and last words tell why

        self._piped(f"cd {shlex.quote(folder)} && tar -xof -", write, timeout_s=4 * self.timeout_s + size / SLOWEST)

    def fetch(self, path: str, target: Path) -> None:
        """`target`, with the bytes of a file there. Raises UserError, LinkLostError."""

        def read(process: subprocess.Popen[bytes]) -> None:
            assert process.stdout  # noqa: S101 (it was asked for)
            with target.open("wb") as file:
                while piece := process.stdout.read(1 << 20):
                    file.write(piece)

        try:
            self._piped(f"cat {shlex.quote(path)}", read, timeout_s=600)
        except UserError:
            target.unlink(missing_ok=True)
            raise

    def _piped(self, command: str, work: Callable[[subprocess.Popen[bytes]], object], *, timeout_s: float) -> None:
        """A command there while `work` feeds or drains it. Raises UserError, LinkLostError unless it ends well and in time."""
        late = False
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                self.argv(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
            )

            def stop() -> None:
                nonlocal late
                late = True
                process.kill()

            timer = threading.Timer(timeout_s, stop)
            timer.start()
            try:
                work(process)
                code = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                timer.cancel()
                for pipe in (process.stdin, process.stdout):
                    with contextlib.suppress(BrokenPipeError, AttributeError):
                        pipe.close()  # type: ignore[union-attr]
            said.seek(0)
            lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
        if late:
            raise LinkLostError(
                f"{self.host} did not finish within {timeout_s:.0f} s",
                hint="is the network slow? A larger timeout_s waits longer",
                exit_code=1,
            )
        if code:
            raise self.error(Ended(code, lines[-5:]))

    def error(self, ended: Ended) -> UserError:
        """LinkLostError when the way there is the trouble, else UserError."""
        what, hint = ended.words(host=self.host, python=self.python)
        return (LinkLostError if ended.code == 255 else UserError)(what, hint=hint, exit_code=1)

    def close(self) -> None:
        """The sockets' folder removed; whoever started the first connection ends it."""
        if self._sockets:
            self._sockets.cleanup()
        self._sockets, self._shared = None, []


class SshLink(ProcessLink):
    """A process at the far end of ssh."""

    def __init__(
        self, argv: Sequence[str], *, where: str, shell: Shell, runner: bool, also: Callable[[], list[str]] | None = None
    ) -> None:
        super().__init__(argv, where=where)
        self.shell, self.runner, self.also = shell, runner, also

    def _lost(self) -> LinkLostError:
        """How it ended: ssh's own code means the connection, others are what ran there."""
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        said = [*(self.also() if self.also and code == 255 else ()), *self.said()]
        what, hint = Ended(code, list(dict.fromkeys(said)), runner=self.runner).words(
            host=self.shell.host, python=self.shell.python
        )
        return LinkLostError(f"{self.where}: {what}", hint=hint, exit_code=1)


def _anyone(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A file that belongs to whoever unpacks it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
