"""QEMU's user mode for 64-bit Arm programs: which cores it stands in for, and whether the one installed here can count."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from ..export.manifest import UserError
from .link import LinkLostError
from .native_build import install_hint

EMULATOR = "qemu-aarch64"
PACKAGE = "qemu-user"
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
LATER = f"{FEATURES} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Core:
    """What /proc/cpuinfo says of a core: libraries choose their kernels by it, so it must be the emulated core's."""

    part: str
    variant: int
    revision: int
    features: str

    def cpuinfo(self, name: str) -> str:
        """The file."""
        lines = ["processor\t: 0", "BogoMIPS\t: 48.00", f"Features\t: {self.features}", "CPU implementer\t: 0x41"]
        lines += ["CPU architecture: 8", f"CPU variant\t: 0x{self.variant:x}", f"CPU part\t: {self.part}"]
        return "\n".join([*lines, f"CPU revision\t: {self.revision}", "", f"Hardware\t: QEMU {name}", ""])


CORES: Mapping[str, Core] = {
    "cortex-a53": Core(part="0xd03", variant=0, revision=4, features=FEATURES),
    "cortex-a72": Core(part="0xd08", variant=0, revision=3, features=FEATURES),
    "cortex-a76": Core(part="0xd0b", variant=4, revision=1, features=LATER),
}


def find_emulator() -> tuple[str, str]:
    """QEMU for 64-bit Arm programs: its path, and what it calls itself. Raises UserError when there is none that takes plugins."""
    path = shutil.which(EMULATOR)
    if path is None:
        static = shutil.which(f"{EMULATOR}-static")
        raise UserError(
            f"{static} can't load plugins, and there is no {EMULATOR}" if static else f"there is no {EMULATOR} on the PATH",
            hint=install_hint((PACKAGE,)),
        )
    said = {flag: _said([path, flag]) for flag in ("-version", "-h")}
    version = said["-version"].partition("\n")[0].partition(" version ")[2] or "unknown"
    if "-plugin " not in said["-h"]:
        raise UserError(
            f"{path} (version {version}) was built without plugins, so it can't count instructions",
            hint=f"Debian 12's package {PACKAGE} (QEMU 7.2) has them; static builds and Debian's QEMU 10 do not",
        )
    return path, f"QEMU {version.split()[0]} user mode"


def _said(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{argv[0]} does not start: {error}", hint=install_hint((PACKAGE,)), exit_code=1) from None


def in_words(error: LinkLostError, core: str) -> str:
    """Why the emulated program ended."""
    said = str(error)
    if "SIGILL" in said or "Illegal instruction" in said:
        return f"the program met an instruction that the emulated {core} does not have: {said}"
    if "SIGSEGV" in said or "Segmentation fault" in said:
        return f"the program crashed on the emulated {core}: {said}"
    return said
