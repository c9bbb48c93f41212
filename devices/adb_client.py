"""adb, the program that reaches phones: where it lies, which phones it sees, and its failures in words."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..export.manifest import UserError
from .link import LinkLostError

READY = "device"
ASK_S = 30.0
SWITCH_ON = (
    "switch on USB debugging (Settings → About phone → tap Build number seven times, then Developer options) and plug it in"
)
STATES: Mapping[str, tuple[str, str]] = {
    "unauthorized": (
        "has not allowed this computer yet",
        'unlock it and accept the dialog "Allow USB debugging?"; when none shows, pull the cable and plug it in again',
    ),
    "authorizing": ("is asking whether to allow this computer", "accept the dialog on the phone and try again"),
    "offline": (
        "does not answer",
        "unlock it, pull the cable and plug it in again; over Wi-Fi: adb disconnect, then adb connect",
    ),
    "connecting": ("is still connecting", "wait some seconds and try again"),
    "recovery": ("is in recovery mode", "start Android"),
    "sideload": ("waits for a sideloaded update", "start Android"),
    "bootloader": ("is in its bootloader", "start Android"),
    "no permissions": (
        "may not be opened by this user",
        "udev rules are missing: sudo apt install android-sdk-platform-tools-common, join the group plugdev, log in anew",
    ),
}
"""What adb calls a phone that can't be used → what that means, and what to do."""
GONE = re.compile(
    r"device '[^']*' not found|no devices/emulators found|device offline|device unauthorized|device still|error: closed"
    r"|protocol fault|[Cc]onnection reset|cannot connect to daemon|failed to read|failed to get feature set|EOF"
)
"""What adb says when a phone went away while it was asked."""
LINE = re.compile(r"^(\S+)\s+(no permissions|\S+)(.*)$")


@dataclass(frozen=True)
class Listed:
    """A phone as `adb devices -l` lists it. `facts`: product, model, device, usb where they are told."""

    serial: str
    state: str
    facts: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        model = self.facts.get("model", "").replace("_", " ")
        words = [part for part in (model, "" if self.state == READY else self.state) if part]
        return f"{self.serial} ({', '.join(words)})" if words else self.serial


def find_adb() -> Path:
    """The program: from the PATH, else from the adbutils wheel, which brings one. Raises UserError when there is none."""
    if found := shutil.which("adb"):
        return Path(found)
    spec = importlib.util.find_spec("adbutils")
    if spec and spec.origin:
        brought = Path(spec.origin).parent / "binaries" / ("adb.exe" if os.name == "nt" else "adb")
        if brought.exists():
            return brought
    raise UserError("adb was not found", hint="apt install adb, brew install android-platform-tools, or pip install adbutils")


def listed(text: str) -> tuple[Listed, ...]:
    """The phones in what `adb devices -l` prints; what it says about starting its server is passed over."""
    found = []
    for line in text.splitlines():
        match = LINE.match(line)
        if line.startswith(("*", "List of devices", "adb:", "adb server")) or not match:
            continue
        serial, state, rest = match.groups()
        facts = dict(re.findall(r"\b(product|model|device|usb):(\S+)", rest))
        found.append(Listed(serial, state, facts))
    return tuple(found)


def choose(phones: Sequence[Listed], serial: str) -> Listed:
    """The phone to use: the one named, else the only one. Raises UserError, for a phone that can't be used too."""
    names = ", ".join(str(phone) for phone in phones)
    if serial:
        wanted = [phone for phone in phones if phone.serial == serial]
        if not wanted:
            connect = f"adb connect {serial}" if re.fullmatch(r"\S+:\d+", serial) else f"{SWITCH_ON}; `adb devices` lists them"
            raise UserError(f"no phone {serial!r} is connected", hint=f"connected: {names}" if names else connect)
        phone = wanted[0]
    elif not phones:
        raise UserError("no phone is connected", hint=SWITCH_ON)
    elif len(phones) > 1:
        raise UserError(f"{len(phones)} phones are connected: {names}", hint=f"name one: --on adb:{phones[0].serial}")
    else:
        phone = phones[0]
    if phone.state != READY:
        what, hint = STATES.get(phone.state, (f"is in the state {phone.state!r}", "start Android and plug it in again"))
        raise UserError(f"phone {phone.serial} {what}", hint=hint)
    return phone


class Adb:
    """One phone, by its serial number. `name` names it in messages."""

    def __init__(self, program: Path, serial: str, *, name: str, timeout_s: float = ASK_S) -> None:
        self.program, self.serial, self.name, self.timeout_s = program, serial, name, timeout_s

    def argv(self, *words: str) -> list[str]:
        """The command line of an adb command for this phone."""
        return [str(self.program), "-s", self.serial, *words]

    def state(self) -> str | None:
        """What adb calls this phone now, None when it is not there. Raises LinkLostError."""
        found = [phone.state for phone in phones_of(self.program, timeout_s=self.timeout_s) if phone.serial == self.serial]
        return found[0] if found else None

    def features(self) -> frozenset[str]:
        """What both sides of adb can do. Raises UserError."""
        return frozenset(self._checked("features").split())

    def shell(self, script: str, *, timeout_s: float | None = None) -> str:
        """What a script for the phone's shell prints. Raises UserError when it fails, LinkLostError when the phone is gone."""
        return self._checked("shell", script, timeout_s=timeout_s)

    def attempt(self, script: str, *, timeout_s: float | None = None) -> tuple[int, str]:
        """The exit code of a script on the phone, and all that it printed. Raises LinkLostError when the phone is gone."""
        done = run_adb(self.argv("shell", script), timeout_s=timeout_s or self.timeout_s, where=self.name)
        if done.returncode and GONE.search(done.stderr):
            raise self.lost(done.stderr)
        return done.returncode, done.stdout + done.stderr

    def push(self, source: Path, target: str) -> None:
        """Carries a file or a folder there, as `target`. Raises UserError, LinkLostError."""
        self._checked("push", str(source), target)

    def pull(self, source: str, target: Path) -> None:
        """Fetches a file or a folder, as `target`. Raises UserError, LinkLostError."""
        self._checked("pull", source, str(target))

    def _checked(self, *words: str, timeout_s: float | None = None) -> str:
        done = run_adb(self.argv(*words), timeout_s=timeout_s or self.timeout_s, where=self.name)
        if done.returncode:
            raise self._failed(words, done)
        return done.stdout

    def _failed(self, words: Sequence[str], done: subprocess.CompletedProcess[str]) -> UserError:
        said = done.stderr + done.stdout
        if "No space left on device" in said:
            return UserError(
                f"{self.name}: the phone is full", hint="free space in its internal storage, or measure fewer artifacts"
            )
        if GONE.search(said):
            return self.lost(said)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return UserError(
            f"{self.name}: adb {words[0]} failed (exit code {done.returncode}): {lines[-1] if lines else 'it said nothing'}",
            hint="trimtab devices doctor",
            exit_code=1,
        )

    def lost(self, said: str = "") -> LinkLostError:
        """Why this phone no longer answers, in words."""
        try:
            state = self.state()
        except LinkLostError as error:
            return error
        if state is None:
            what = "is no longer connected (unplugged, switched off, or USB debugging was switched off)"
        elif state == READY:
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            what = f"went away for a moment: {lines[-1] if lines else 'adb did not say why'}"
        else:
            what = STATES.get(state, (f"is in the state {state!r}", ""))[0]
        return LinkLostError(
            f"{self.name}: the phone {what}", hint="what was measured before is kept; plug it in and try again", exit_code=1
        )


def phones_of(program: Path, *, timeout_s: float = ASK_S) -> tuple[Listed, ...]:
    """The phones that adb sees. Raises LinkLostError when adb itself does not work."""
    done = run_adb([str(program), "devices", "-l"], timeout_s=timeout_s, where="adb")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LinkLostError(
            f"adb does not work: {said[-1] if said else 'it said nothing'}", hint="adb kill-server, and try again"
        )
    return listed(done.stdout)


def run_adb(argv: Sequence[str], *, timeout_s: float, where: str) -> subprocess.CompletedProcess[str]:
    """What an adb command gave. Raises LinkLostError when it takes longer than `timeout_s`, or can't be started."""
    try:
        return subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LinkLostError(
            f"{where}: adb gave no answer within {timeout_s:.0f} s", hint="is the phone asleep? unlock it, or adb kill-server"
        ) from None
    except OSError as error:
        raise LinkLostError(f"{argv[0]} could not be started: {error.strerror}", hint="trimtab devices doctor") from None
