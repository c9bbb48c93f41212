"""The engine files that the page runs artifacts with.

Their versions are pinned in page/package-lock.json. npm fetches them once, or else the phone does, from a CDN.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from ...export.manifest import UserError

PAGE = Path(__file__).parent / "page"
CDN = "https://cdn.jsdelivr.net/npm/"
SETUP = "trimtab devices setup browser"
RUNTIMES = {"onnxruntime-web": "onnxruntime-web", "litert-web": "@litertjs/core"}
"""Runtime → the npm package whose version is its own."""
_LITERT = [f"litert_wasm{kind}_internal{end}" for kind in ("", "_compat", "_threaded") for end in (".js", ".wasm")]
FILES = (
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
    "@litertjs/core/dist/index.js",
    "@litertjs/wasm-utils/dist/index.js",
    *(f"@litertjs/core/wasm/{name}" for name in _LITERT),
)
"""All that a page may ask for, out of 180 MB of packages."""
NPM_S = 600.0


@cache
def versions() -> dict[str, str]:
    """npm package → the version that is pinned."""
    return dict(json.loads((PAGE / "package.json").read_text())["dependencies"])


def runtime_versions() -> dict[str, str]:
    """Runtime → its version."""
    return {runtime: versions()[package] for runtime, package in RUNTIMES.items()}


def engine_folder() -> Path:
    """Where the engine files of these versions lie, there or not: below $XDG_CACHE_HOME/trimtab, or ~/.cache/trimtab."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / "browser"
    return cached / hashlib.sha256("\n".join(((PAGE / "package-lock.json").read_text(), *FILES)).encode()).hexdigest()[:16]


def installed() -> bool:
    """Whether the engine files are there: the folder gets its name when it is whole."""
    return engine_folder().is_dir()


def cdn_url(file: str, *, base: str = CDN) -> str:
    """Where a CDN has one of FILES, in the pinned version."""
    package = next(name for name in versions() if file.startswith(f"{name}/"))
    return f"{base}{package}@{versions()[package]}{file.removeprefix(package)}"


def set_up(say: Callable[[str], None], *, wait: bool = False) -> Path:
    """The folder with the engine files, fetched now by `npm ci` unless it is there.

    Raises UserError when npm is missing or fails, the disk is full, or another process is at it (unless told to `wait` for that).
    """
    folder = engine_folder()
    if installed():
        say(f"the engine files are there: {folder}")
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm is not on the PATH; it fetches the engines that the page runs artifacts with",
            hint="install Node.js (it brings npm), or leave it: the phone then fetches the same versions from cdn.jsdelivr.net",
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock"), timeout=-1 if wait else 0):
            if not installed():
                _fetch(npm, folder, say)
    except Timeout:
        raise UserError("another process is fetching the engine files now", hint="wait until it is done") from None
    except OSError as error:
        raise UserError(
            f"the engine files can't be written to {folder.parent}: {error.strerror or error}",
            hint="they take about 120 MB, and 300 MB while they are fetched; XDG_CACHE_HOME names another folder",
        ) from None
    say(f"the engine files are there: {folder}")
    return folder


def _fetch(npm: str, folder: Path, say: Callable[[str], None]) -> None:
    """Makes the folder: npm's packages in a temporary one, of which the files that pages ask for are kept."""
    said = ", ".join(f"{package} {version}" for package, version in versions().items())
    say(f"npm fetches {said}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="npm-") as temporary:
        work = Path(temporary)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PAGE / name, work / name)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"]
        try:
            done = subprocess.run(
                command,
                cwd=work,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=NPM_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"npm was not done within {NPM_S:.0f} s", hint="is the registry reachable? npm ping", exit_code=1
            ) from None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()][:6]
            raise UserError(f"npm ci failed (exit code {done.returncode})", hint="it said\n" + "\n".join(lines), exit_code=1)
        whole = work / "whole"
        for file in FILES:
            source, target = work / "node_modules" / file, whole / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not source.is_file():
                raise UserError(f"npm's package has no {file}", hint="the pinned versions don't fit this trimtab", exit_code=1)
            source.rename(target)
            _squeeze(target)
        whole.rename(folder)


def _squeeze(path: Path) -> None:
    """A second, compressed file beside a large one: over Wi-Fi that is what the page gets."""
    if path.stat().st_size > 1 << 16:
        with path.open("rb") as plain, gzip.open(path.with_name(f"{path.name}.gz"), "wb", compresslevel=6) as small:
            shutil.copyfileobj(plain, small)
