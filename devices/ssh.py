"""A Linux board, or a Mac, over the user's own `ssh`: artifacts and the runner are put there, and a Python there runs it."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from ..export.manifest import UserError
from .device import DeviceCard, DeviceConfig, Offer, devices
from .greeting import Hello
from .link import ANSWER_S, Link
from .linked import Linked
from .pack import pack
from .ssh_shell import Shell, SshLink, quoted

RUNNER = "runner.pyz"
WHEELS: Mapping[str, str] = {
    "litert": "ai-edge-litert",
    "mnn": "MNN",
    "executorch": "torch executorch",
    "coreml": "coremltools",
}
"""Runtime → what to install there, where that is not the runtime's own name."""
COMMON = "onnxruntime ai-edge-litert"
WIDE = ("aarch64", "arm64", "x86_64")
"""What the runtimes have wheels for."""


class SshConfig(DeviceConfig):
    """`host`: user@host, or an alias of ~/.ssh/config. `python`: the Python there that has the runtimes. `cores`: the CPUs to run on.

    `folder`: where the work folder is made there (its temporary folder unless named). `config`: another file than ~/.ssh/config.
    `timeout_s`: how long to wait for a connection. `emulated`: its processor is one that another imitates, whatever it says of itself.
    """

    host: str = Field(min_length=1)
    python: str = Field(default="python3", min_length=1)
    cores: tuple[int, ...] | None = None
    folder: str | None = None
    config: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    identity: str | None = None
    timeout_s: float = Field(default=15.0, ge=1, le=600)
    emulated: bool = False

    @field_validator("host")
    @classmethod
    def _no_option(cls, host: str) -> str:
        if host.startswith("-") or re.search(r"[\s\x00-\x1f]", host):
            raise ValueError("it is no name of a machine: user@host, or an alias of ~/.ssh/config")
        return host

    @field_validator("folder", "python")
    @classmethod
    def _plain(cls, path: str | None) -> str | None:
        if path is not None and (path.startswith("-") or re.search(r'["\\\x00-\x1f]', path)):
            raise ValueError("quotes, backslashes and a leading - are not allowed in it")
        return path


def _diagnose(config: SshConfig) -> tuple[Any, ...]:
    from .ssh_doctor import diagnose

    return diagnose(config)


@devices.register(
    "ssh",
    DeviceCard(
        title="a Linux board or a Mac over ssh",
        config=SshConfig,
        argument="host",
        tools=("ssh",),
        diagnose=_diagnose,
        note="your keys and ~/.ssh/config; it needs Python 3.10 with a runtime's wheel",
    ),
)
class SshDevice(Linked):
    """Runs jobs in a Python at the far end of ssh."""

    def __init__(self, name: str, config: SshConfig) -> None:
        super().__init__(name, cores=config.cores, holds=f"ssh:{config.host}")
        self.config, self.folder = config, ""
        self.shell = Shell(
            config.host,
            python=config.python,
            config=config.config,
            port=config.port,
            identity=config.identity,
            timeout_s=config.timeout_s,
        )
        self.keeper: SshLink | None = None

    def prepare(self, say: Callable[[str], None]) -> None:
        """Connects, makes a work folder and puts the runner there. Raises UserError when that can't be, or no runtime is there."""
        self.reach()
        hello = self.hello()
        there = {name: offer.version for name, offer in self.offers().items() if not offer.missing}
        if not there:
            raise UserError(
                f"{self.name} has no runtime: {self.config.python} there finds none", hint=install(self.config, hello)
            )
        cpu = hello.machine.cpu_model.value or hello.machine.machine
        say(f"{self.name}: {cpu}, {hello.runner}, " + ", ".join(f"{name} {version}".strip() for name, version in there.items()))

    def reach(self) -> None:
        """A connection, a work folder that vanishes with it, and the runner in it. Raises UserError, LinkLostError."""
        self.shell.share()
        base = quoted(self.config.folder) if self.config.folder else '"${TMPDIR:-/tmp}"'
        keep = (
            f"umask 077; base={base}; made=; "
            'mkdir -p "$base" && made=$(mktemp -d "$base/trimtab-XXXXXX") && cd "$made" && made=$(pwd -P) && '
            """printf '@trimtab {"folder": "%s"}\\n' "$made" && cat > /dev/null; code=$?; """
            'cd / && [ -n "$made" ] && rm -rf "$made"; exit "$code"'
        )
        self.keeper = self.shell.link(keep, where=self.name, first=True)
        self.folder = self.keeper.ask({"do": "hold"}, timeout_s=2 * self.config.timeout_s)["folder"]
        with tempfile.TemporaryDirectory(prefix="trimtab-ssh-") as here:
            self.shell.send([(pack(Path(here) / RUNNER), RUNNER)], self.folder)

    def offers(self) -> Mapping[str, Offer]:
        """The runtimes there; one that is missing says what to install."""
        return {
            name: replace(offer, missing=f"{offer.missing}: {pip_line(self.config, WHEELS.get(name, name))}")
            if offer.missing
            else offer
            for name, offer in super().offers().items()
        }

    def put(self, source: Path, place: str) -> str:
        """Where it lies there. Raises UserError (a full disk), LinkLostError."""
        self.shell.send([(source, place)], self.folder)
        return f"{self.folder}/{place}"

    def link(self) -> Link:
        """A runner there. The shell waits for it, since ssh does not tell by which signal a command ended, and a shell does."""
        command = f'cd {shlex.quote(self.folder)} && {quoted(self.config.python)} {RUNNER}; exit "$?"'
        link = self.shell.link(command, where=self.name, also=self.keeper.said if self.keeper else None)
        return _Emulated(link) if self.config.emulated else link

    def collect(self, place: str, target: Path) -> Path:
        """`target`, with the bytes of a file there. Raises UserError, LinkLostError."""
        self.shell.fetch(place, target)
        return target

    def close(self) -> None:
        """The work folder goes, and with it the connection."""
        if self.keeper:
            self.keeper.close(grace_s=self.config.timeout_s)
        self.keeper = None
        self.shell.close()


class _Emulated:
    """A link to a runner on a machine that the user says is emulated."""

    def __init__(self, link: Link) -> None:
        self.inner = link

    def ask(self, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The runner's answer, corrected. Raises what the link raises."""
        answer = self.inner.ask(request, timeout_s=timeout_s)
        if request.get("do") == "hello":
            answer["machine"]["emulated"] = True
        return answer

    def close(self) -> None:
        """Ends the runner."""
        self.inner.close()


def pip_line(config: SshConfig, wheels: str) -> str:
    """The command that installs wheels for the Python there."""
    return f"ssh {config.host} {config.python} -m pip install {wheels}"


def install(config: SshConfig, hello: Hello) -> str:
    """What to install on a machine that has no runtime yet."""
    machine = hello.machine.machine
    if machine not in WIDE:
        return f"there are no wheels for {machine}: a 64-bit system has them (Raspberry Pi OS 64-bit, Debian arm64, …)"
    extra = "; for Core ML: coremltools" if hello.machine.os.startswith("Darwin") else ""
    return f"{pip_line(config, COMMON)} (in a virtual environment where the system's Python is protected){extra}"
