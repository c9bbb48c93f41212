"""The C runner, built on the user's machine: for this machine, for 64-bit Arm, and for counting instructions under emulation.

What is made lies in the cache folder under native/: LiteRT's library for Arm by its version, everything compiled by that version
and a digest of the sources. Nothing is downloaded but by `set_up`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..export.manifest import UserError, new_folder
from .native_wheel import LIBRARY, fetch_library, host_library, litert_version

SOURCES = Path(__file__).parent / "native"
PARTS = (
    "runner.c",
    "verbs.c",
    "samples.c",
    "slots.c",
    "profile.c",
    "litert.c",
    "litert_api.c",
    "machine.c",
    "tensor.c",
    "json.c",
)
RUNNER, PLUGIN = "runner", "libicount.so"
GCC, ARM_GCC = "gcc", "aarch64-linux-gnu-gcc"
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
LOADER = "ld-linux-aarch64.so.1"
NEEDED = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "libstdc++.so.6", "libgcc_s.so.1")
"""What the runner and libLiteRt.so need besides the loader. The last two are GCC's, the others glibc's."""
ARM_PACKAGES = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "libstdc++6-arm64-cross", "libgcc-s1-arm64-cross")
HOST_PACKAGES = ("gcc", "libc6-dev")
HINT = "trimtab devices setup arm64"
BUILD_S = 120.0
WARNINGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Bundle:
    """A folder with everything that runs somewhere else, all files flat in it, and the command for it, to be given inside it."""

    folder: Path
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Counting:
    """What counts instructions: a runner for 64-bit Arm that tells them instead of time, LiteRT for it, QEMU's plugin."""

    runner: Path
    library: Path
    plugin: Path
    version: str


def arm64_bundle() -> Bundle:
    """The runner for 64-bit Arm Linux and Android; it brings its own C library. Raises UserError when it is not set up."""
    library = _arm_library()

    def make(folder: Path) -> None:
        compile_runner(folder / RUNNER, compiler=ARM_GCC)
        for name in (LOADER, *NEEDED):
            shutil.copy(_cross(name), folder / name)
        shutil.copy(library, folder / LIBRARY)

    folder = _made("arm64", make, needs=missing_for_arm)
    return Bundle(folder, (f"./{LOADER}", "--library-path", ".", f"./{RUNNER}", f"./{LIBRARY}"))


def host_bundle() -> Bundle:
    """The runner for this machine, with the LiteRT that is installed here. Raises UserError."""
    library = host_library()

    def make(folder: Path) -> None:
        compile_runner(folder / RUNNER, compiler=GCC)

    return Bundle(_made("host", make, needs=missing_for_host), (f"./{RUNNER}", str(library)))


def counting() -> Counting:
    """What counts instructions of 64-bit Arm programs. Raises UserError when it is not set up."""
    library = _arm_library()

    def make(folder: Path) -> None:
        compile_runner(folder / RUNNER, compiler=ARM_GCC, more=("-DCOUNT_INSTRUCTIONS", "-rdynamic"))
        _compile(GCC, [SOURCES / "icount.c"], folder / PLUGIN, more=("-shared", "-fPIC"))

    folder = _made("count", make, needs=lambda: (*missing_for_arm(), *missing_for_host()))
    return Counting(folder / RUNNER, library, folder / PLUGIN, litert_version())


def set_up(say: Callable[[str], None]) -> None:
    """None, when what 64-bit Arm devices need is downloaded and built. Raises UserError naming what must be installed first."""
    _refuse(missing_for_arm())
    folder = _library_path().parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            fetch_library(folder, say)
    say("building the runner for 64-bit Arm")
    say(f"for phones and boards: {arm64_bundle().folder}")
    if missing := missing_for_host():
        say(f"counting instructions would need {', '.join(missing)} too; {install_hint(missing)}")
    else:
        say(f"for emulated cores: {counting().runner.parent}")


def missing_for_arm() -> tuple[str, ...]:
    """The Debian packages that building for 64-bit Arm lacks here."""
    found = dict.fromkeys(ARM_PACKAGES, True)
    found["gcc-aarch64-linux-gnu"] = shutil.which(ARM_GCC) is not None
    found["libc6-dev-arm64-cross"] = (ARM_LIBRARIES / "libc.so").exists() and (ARM_LIBRARIES / LOADER).exists()
    found["libstdc++6-arm64-cross"] = (ARM_LIBRARIES / "libstdc++.so.6").exists()
    found["libgcc-s1-arm64-cross"] = (ARM_LIBRARIES / "libgcc_s.so.1").exists()
    return tuple(name for name, there in found.items() if not there)


def missing_for_host() -> tuple[str, ...]:
    """The Debian packages that building for this machine lacks here."""
    return () if shutil.which(GCC) else HOST_PACKAGES


def compile_runner(target: Path, *, compiler: str, more: Sequence[str] = ()) -> Path:
    """`target`, the runner compiled for the installed LiteRT's version. Raises UserError with the compiler's words."""
    version = f'-DLITERT_VERSION="{litert_version()}"'
    return _compile(compiler, [SOURCES / name for name in PARTS], target, more=(version, *more), link=("-ldl", "-lm"))


def _compile(
    compiler: str, sources: Sequence[Path], target: Path, *, more: Sequence[str] = (), link: Sequence[str] = ()
) -> Path:
    command = [compiler, *WARNINGS, *more, "-o", str(target), *map(str, sources), *link]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=BUILD_S, check=False)
    except FileNotFoundError:
        raise UserError(f"there is no {compiler} on the PATH", hint=install_hint((*HOST_PACKAGES, *ARM_PACKAGES))) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{compiler} did not finish within {BUILD_S:.0f} s", hint="try again when the machine is idle", exit_code=1
        ) from None
    if done.returncode:
        said = "\n".join(f"    {line[:200]}" for line in done.stderr.splitlines()[-10:])
        raise UserError(
            f"{compiler} could not build {target.name} (exit code {done.returncode})",
            hint=f"it ended with\n{said}",
            exit_code=1,
        )
    return target


def _made(kind: str, make: Callable[[Path], None], *, needs: Callable[[], tuple[str, ...]]) -> Path:
    """The cached folder of this kind, version and state of the sources, made by one process at a time. Raises UserError."""
    folder = home() / f"{kind}-{litert_version()}-{_digest()}"
    if folder.is_dir():
        return folder
    _refuse(needs())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with new_folder(folder) as fresh:
                make(fresh)
    return folder


def _digest() -> str:
    """Of the sources and of how they are compiled."""
    digest = hashlib.sha256(repr((WARNINGS, PARTS)).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def home() -> Path:
    """Where built things lie: native/ in trimtab's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / "native"


def _library_path() -> Path:
    return home() / f"litert-{litert_version()}-aarch64" / LIBRARY


def _arm_library() -> Path:
    path = _library_path()
    if not path.is_file():
        raise UserError(f"64-bit Arm devices are not set up for LiteRT {litert_version()}", hint=HINT)
    return path


def _cross(name: str) -> Path:
    path = ARM_LIBRARIES / name
    if not path.exists():
        raise UserError(f"{path} is missing", hint=install_hint(ARM_PACKAGES))
    return path


def _refuse(missing: Sequence[str]) -> None:
    if missing:
        raise UserError(f"building for 64-bit Arm needs {', '.join(missing)}, not installed", hint=install_hint(missing))


def install_hint(packages: Sequence[str]) -> str:
    """The command that installs Debian packages."""
    return "on Debian and Ubuntu: sudo apt-get install " + " ".join(packages)
