"""What goes wrong on the way to a machine over ssh, in words: the programs' own messages, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .link import ending

SSH_FAILED = 255
"""What ssh itself ends with when it could not connect, or lost the connection; other codes are the remote command's."""
NEVER_STARTED = (126, 127)
"""What a shell ends with that can't start a program, or can't find it. Of a runner that did start, any words may be in what it said."""


@dataclass(frozen=True)
class Trouble:
    """`pattern` is looked for in what was said; `sign` is how that looks to a reader. {host} and {python} are filled in."""

    sign: str
    pattern: str
    what: str
    hint: str


CONNECTION: tuple[Trouble, ...] = (
    Trouble(
        "Could not resolve hostname",
        r"Could not resolve hostname",
        "no machine is known by the name of {host}",
        "check the spelling; for a board on your network try NAME.local or its address, or give it an alias in ~/.ssh/config",
    ),
    Trouble(
        "Connection refused",
        r"Connection refused",
        "{host} is there, but no ssh server answers on that port",
        "start one there (Debian, Raspberry Pi OS: sudo systemctl enable --now ssh; macOS: turn on Remote Login), or check the port",
    ),
    Trouble(
        "Connection timed out",
        r"timed out|No route to host|Network is unreachable|Host is down",
        "{host} can't be reached",
        "is it switched on, and on the same network? A slow one may need a larger timeout_s",
    ),
    Trouble(
        "Host key … has changed",
        r"has changed and you have requested strict checking|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{host} shows another host key than the one it had before",
        "if you installed it anew: ssh-keygen -R HOSTNAME, then log in once by hand; if not, somebody may be between you and it",
    ),
    Trouble(
        "Host key verification failed",
        r"Host key verification failed|host key is known for",
        "{host} has a host key that this machine has not seen yet",
        "log in once by hand and compare the fingerprint: ssh {host}",
    ),
    Trouble(
        "UNPROTECTED PRIVATE KEY FILE, Bad owner or permissions",
        r"UNPROTECTED PRIVATE KEY|bad permissions|Bad owner or permissions",
        "ssh refuses a file of yours that others can read or write",
        "chmod 600 on the key or the ssh config that the message names",
    ),
    Trouble(
        "Permission denied (publickey)",
        r"Permission denied \(|Too many authentication failures|No more authentication methods",
        "{host} does not let you in without a password",
        "put your key there once: ssh-copy-id {host} (a key with a passphrase must be in the agent: ssh-add)",
    ),
    Trouble(
        "Bad configuration option",
        r"Bad configuration option|terminating, \d+ bad configuration|Can't open user config file",
        "ssh can't read its configuration",
        "mend the line that the message names, or check the device's `config`",
    ),
    Trouble(
        "not responding",
        r"not responding|Broken pipe|client_loop: send disconnect",
        "{host} stopped answering",
        "did it lose power or the network? What was measured before is kept; try again",
    ),
    Trouble(
        "Connection closed, Connection reset",
        r"kex_exchange_identification|Connection (closed|reset)|closed by remote host|mux_client|Control socket",
        "{host} ended the connection",
        "its ssh server ended, or allows no more sessions: see its log (journalctl -u ssh), then try again",
    ),
)
"""For ssh's own exit code."""

THERE: tuple[Trouble, ...] = (
    Trouble(
        "No space left on device",
        r"No space left on device|Wrote only|[Dd]isk quota exceeded|[Dd]isk full",
        "the disk of {host} is full",
        "free some space there (df -h), or name a folder on another disk: folder",
    ),
    Trouble(
        "Read-only file system, cannot create",
        r"Read-only file system|[Cc]annot create|failed to create|[Mm]kdir|mktemp|mkdtemp",
        "no work folder can be made on {host}",
        "name one that you may write to: folder",
    ),
    Trouble(
        "not found (exit code 127)",
        r"not found|No such file or directory",
        "a program that trimtab needs is not on {host}",
        "install it there, or name the Python by its path: python = {python!r} is not found by a shell that nobody logged in to",
    ),
    Trouble(
        "Exec format error",
        r"Exec format error|cannot execute binary",
        "{python} on {host} is a program for another kind of CPU",
        "name a Python of its own: python",
    ),
    Trouble(
        "Permission denied",
        r"Permission denied",
        "{host} does not allow it",
        "is {python} a program, and may you write to the folder?",
    ),
)
"""For what the commands there say."""


@dataclass(frozen=True)
class Ended:
    """How a command over ssh ended, which may be the runner. `said`: the last lines of its standard error."""

    code: int
    said: Sequence[str]
    runner: bool = False

    def words(self, *, host: str, python: str) -> tuple[str, str]:
        """What went wrong, and what to do."""
        told = " · ".join(line for line in self.said if not line.startswith("@"))
        if self.runner and self.code not in (SSH_FAILED, *NEVER_STARTED):
            return ending(self.code, [told] if told else []), "what was measured before is kept; try again"
        for trouble in CONNECTION if self.code == SSH_FAILED else THERE:
            if re.search(trouble.pattern, told):
                return f"{trouble.what.format(host=host, python=python)}: {told}", trouble.hint.format(host=host, python=python)
        if self.code == SSH_FAILED:
            return (
                f"the connection to {host} was lost: {told or 'without a word'}",
                "is it switched on, and on the network? Try again",
            )
        return f"a command on {host} failed (exit code {self.code}): {told or 'it says nothing'}", "try it again"


def table() -> str:
    """All of it as a Markdown table, for the documentation."""
    rows = ["| ssh says | what trimtab says | what to do |", "|---|---|---|"]
    filled = {"host": "HOST", "python": "python3"}
    for trouble in (*CONNECTION, *THERE):
        cells = (trouble.sign, trouble.what.format(**filled), trouble.hint.format(**filled))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)
