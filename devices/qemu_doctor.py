"""What counting instructions on an emulated core needs, step by step; each step that fails says what would mend it."""

from __future__ import annotations

from ..export.manifest import UserError
from .doctor import Finding
from .native_build import HINT, counting, install_hint, missing_for_arm, missing_for_host
from .qemu import QemuConfig, QemuDevice
from .qemu_emulator import find_emulator


def diagnose(config: QemuConfig) -> tuple[Finding, ...]:
    """Findings on the emulator, the compilers, what is built, and a first start. They end where nothing further can be told."""
    found: list[Finding] = []
    try:
        path, title = find_emulator()
        found.append(Finding("emulator", "ok", f"{title} ({path}), takes plugins"))
    except UserError as error:
        found.append(Finding("emulator", "missing", error.what, error.hint))
    missing = (*missing_for_arm(), *missing_for_host())
    if missing:
        found.append(Finding("compilers", "missing", "needs " + ", ".join(missing), install_hint(missing)))
    else:
        found.append(Finding("compilers", "ok", "for this machine and for 64-bit Arm"))
    try:
        built = counting()
        found.append(Finding("runner", "ok", f"built for LiteRT {built.version}"))
    except UserError as error:
        found.append(Finding("runner", "missing", error.what, error.hint or HINT))
    if any(finding.state != "ok" for finding in found):
        return tuple(found)
    device = QemuDevice(f"qemu:{config.core}", config)
    try:
        device.prepare(lambda line: None)
        found.append(Finding(config.core, "ok", f"the runner answers: {device.hello().runner}"))
    except UserError as error:
        found.append(Finding(config.core, "broken", error.what, error.hint))
    finally:
        device.close()
    return tuple(found)
