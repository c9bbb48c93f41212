"""Addresses: this machine's on the local network, and an Android phone's over USB."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import subprocess

from ...export.manifest import UserError

ADB_S = 15.0


def lan_address() -> str | None:
    """The address that other devices of the local network reach this machine at, None when it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # picks the interface that the route goes through; UDP sends nothing for it
            found = probe.getsockname()[0]
        except OSError:
            return None
    return None if ipaddress.ip_address(found).is_loopback else found


def phones() -> dict[str, str]:
    """Serial → state ("device", "unauthorized", "offline") of what adb sees, empty without adb. Raises UserError when adb fails."""
    if shutil.which("adb") is None:
        return {}
    lines = _adb(["devices"]).splitlines()[1:]
    rows = [line.split("\t") for line in lines if "\t" in line]
    return {serial: state.strip() for serial, state in rows}


def reverse(serial: str, port: int) -> None:
    """From now on the phone reaches the server as 127.0.0.1. Raises UserError."""
    _adb(["-s", serial, "reverse", f"tcp:{port}", f"tcp:{port}"])


def unreverse(serial: str, port: int) -> None:
    """The opposite; a phone that was unplugged has forgotten it already."""
    try:
        _adb(["-s", serial, "reverse", "--remove", f"tcp:{port}"])
    except UserError:
        return


def show_on(serial: str, url: str) -> bool:
    """Whether the phone's browser was told to open the address (which has no character that a shell minds)."""
    try:
        said = _adb(["-s", serial, "shell", "am", "start", "-a", "android.intent.action.VIEW", "-d", url])
    except UserError:
        return False
    return "Error" not in said


def _adb(words: list[str]) -> str:
    """What adb printed. Raises UserError."""
    try:
        done = subprocess.run(
            ["adb", *words],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ADB_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"adb {' '.join(words)} failed: {error}", hint="adb kill-server, then try again", exit_code=1) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(
            f"adb {' '.join(words)} failed: {said[-1] if said else done.returncode}",
            hint="is it still plugged in?",
            exit_code=1,
        )
    return done.stdout
