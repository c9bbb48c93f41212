"""Files that are either whole or absent: temp file + rename, confined names, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


def write_bytes(path: Path, data: bytes) -> Path:
    """`path`, written through a temp file in its folder and a rename, so that a killed run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temp, 0o644)
        os.replace(temp, path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise
    return path


def write_text(path: Path, text: str) -> Path:
    """`path`, written whole as UTF-8."""
    return write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> Path:
    """`path`, written whole as indented JSON."""
    return write_text(path, json.dumps(data, indent=1, sort_keys=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The parsed JSON file. Raises UserError when it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", hint="check the path; `ls` its folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}", hint="the file is damaged or of another kind; make it again"
        ) from None


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temp folder beside `path` that takes its place when the block ends well, and vanishes when it doesn't.

    Raises UserError when `path` exists and is not empty, unless `force`.
    """
    refuse_overwrite(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temp.chmod(0o755)
    try:
        yield temp
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    if path.exists():
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
        os.replace(path, old / path.name)
        os.replace(temp, path)
        shutil.rmtree(old)
    else:
        os.replace(temp, path)


def refuse_overwrite(path: Path, *, force: bool) -> None:
    """None, when `path` may be written. Raises UserError when something is there already and `force` is off."""
    taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if taken and not force:
        raise UserError(f"{path} exists and is not empty", hint="give another -o, or --force to replace it")


def refuse_overwrite_unless(path: Path, *, force: bool, allow: tuple[str, ...]) -> None:
    """As `refuse_overwrite`, but entries named in `allow` (a killed run's own work) do not count as taken."""
    if path.is_dir() and all(entry.name in allow for entry in path.iterdir()):
        return
    refuse_overwrite(path, force=force)


def confined(folder: Path, name: str) -> Path:
    """`folder / name`, resolved. Raises UserError when it would lie outside `folder` (manifests are untrusted input)."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(
            f"{name!r} in {folder} points outside its folder", hint="the manifest was tampered with or damaged; do not use it"
        )
    return path


def sha256(path: Path) -> str:
    """The hex digest of a file, or of a folder's files in sorted order with their relative names."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """The bytes of a file, or of all files below a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def deflated_bytes(path: Path) -> int:
    """What the contents of a file, or of all files below a folder, come to in a zip, apk or ipa: zlib at its level 9."""
    total = 0
    for file in (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        deflate = zlib.compressobj(9)
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                total += len(deflate.compress(block))
        total += len(deflate.flush())
    return total


def digest_of(data: Any) -> str:
    """The hex digest of JSON-able data: equal data, equal digest."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
