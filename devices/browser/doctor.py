"""What the browser device needs, step by step: engine files, ways in for a phone, a certificate."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING

from ...export.manifest import UserError
from . import address, engines

if TYPE_CHECKING:
    from ..doctor import Finding, State
    from .device import BrowserConfig


def diagnose(config: BrowserConfig) -> tuple[Finding, ...]:
    """Findings on the engine files, the local network, USB and https. Nothing is started."""
    from ..doctor import Finding

    pinned = ", ".join(f"{runtime} {version}" for runtime, version in engines.runtime_versions().items())
    found = [
        Finding("browser: engine files", "ok", f"{pinned}, in {engines.engine_folder()}")
        if engines.installed()
        else Finding("browser: engine files", "note", f"{pinned}: phones fetch them from {engines.CDN}", engines.SETUP)
    ]
    host = config.address or address.lan_address()
    if host:
        found.append(Finding("browser: local network", "ok", f"with --lan phones on it reach this machine at {host}"))
    else:
        found.append(
            Finding("browser: local network", "note", "this machine has no address on one", "connect it to the phone's Wi-Fi")
        )
    found += _usb(Finding, config)
    able = importlib.util.find_spec("cryptography") is not None or shutil.which("openssl") is not None
    needs = "threads, WebGPU and a fine clock over the network need it"
    found.append(
        Finding("browser: https", "ok", f"a certificate can be made; {needs}")
        if able
        else Finding(
            "browser: https",
            "missing" if config.https else "note",
            f"no certificate can be made; {needs}",
            "pip install cryptography",
        )
    )
    return tuple(found)


def _usb(finding: type[Finding], config: BrowserConfig) -> list[Finding]:
    """What adb sees."""
    subject = "browser: Android over USB"
    if shutil.which("adb") is None:
        state: State = "missing" if config.adb_serial else "note"
        return [
            finding(subject, state, "adb is not on the PATH", "install Android's platform tools (on Debian: apt install adb)")
        ]
    try:
        seen = address.phones()
    except UserError as error:
        return [finding(subject, "broken", error.what, error.hint)]
    if not seen:
        return [finding(subject, "note", "adb sees no phone", "plug it in and allow USB debugging in its developer options")]
    return [
        finding(subject, "ok", f"{serial} is ready")
        if state == "device"
        else finding(subject, "note", f"{serial} is {state}", "unlock the phone and accept this computer there")
        for serial, state in seen.items()
    ]
