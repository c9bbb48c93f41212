"""What stands between this machine and a phone, step by step: each one is looked at when those before it are well."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..export.manifest import UserError
from . import adb_phone
from .adb import ABI, HOME, AdbConfig, check_space, doubts, reached
from .adb_client import Adb, find_adb, phones_of
from .adb_phone import Phone
from .benchmark_model import check_program
from .native_build import arm64_bundle

if TYPE_CHECKING:
    from .doctor import Finding


def diagnose(config: AdbConfig) -> tuple[Finding, ...]:
    """Findings on adb, the phone, its storage and what it is to run. The last one is the trouble, when there is any."""
    found = []
    try:
        found += list(_steps(config))
    except UserError as error:
        found.append(_finding("phone", "missing", error.what, error.hint))
    return tuple(found)


def _steps(config: AdbConfig) -> Iterator[Finding]:
    """One finding after the other. Raises UserError at what is broken."""
    program = find_adb()
    yield _finding("adb", "ok", str(program))
    seen = phones_of(program, timeout_s=config.timeout_s)
    if len(seen) > 1:
        yield _finding("phones", "note", ", ".join(map(str, seen)))
    adb = reached(config, "phone")
    phone = adb_phone.look(adb)
    yield _finding("phone", "ok", f"{adb.serial}: {phone}")
    yield from _cores(phone, config)
    for doubt in doubts(adb, phone):
        yield _finding("state", "note", doubt)
    yield _heat(adb, phone)
    yield _folder(adb, config)
    yield from _programs(adb, phone, config)


def _cores(phone: Phone, config: AdbConfig) -> Iterator[Finding]:
    if phone.clusters:
        yield _finding(
            "cores",
            "ok",
            f"one thread runs on {adb_phone.said_cores(phone, adb_phone.cores_for(phone, config.cores, threads=1))}",
        )
    else:
        yield _finding(
            "cores", "note", "the phone does not tell its clusters, so runs are not pinned", "name CPUs: cores = [4, 5, 6, 7]"
        )


def _heat(adb: Adb, phone: Phone) -> Finding:
    reading = adb_phone.snapshot_of(phone, adb, None).temperature_c
    if reading.value is None:
        return _finding("temperature", "note", reading.reason)
    return _finding("temperature", "ok", f"{reading.value} {reading.unit}")


def _folder(adb: Adb, config: AdbConfig) -> Finding:
    """Whether a program can be put there and started."""
    free = check_space(adb, config.folder, needed=0)
    folder, place = shlex.quote(config.folder), shlex.quote(f"{config.folder}/run-doctor")
    trial = f"mkdir -p {place} && echo 'exit 7' > {place}/try && chmod 755 {place}/try && {place}/try"
    code, said = adb.attempt(f"{trial}; code=$?; rm -rf {place}; rmdir {folder} 2>/dev/null; exit $code")
    if code != 7:
        lines = said.strip().splitlines()
        return _finding(
            "work folder",
            "broken",
            f"no program can be started in {config.folder}: {lines[-1] if lines else code}",
            f'folder = "{HOME}/trimtab"',
        )
    room = f", {free / 1e6:.0f} MB free" if free is not None else ""
    return _finding("work folder", "ok", f"{config.folder}{room}")


def _programs(adb: Adb, phone: Phone, config: AdbConfig) -> Iterator[Finding]:
    """What is to run there."""
    if config.benchmark_model:
        yield _finding("benchmark_model", "ok", str(check_program(config.benchmark_model, phone.abi)))
    if config.python:
        code, said = adb.attempt(f"{shlex.quote(config.python)} --version")
        state = "broken" if code else "ok"
        yield _finding("python", state, said.strip() or config.python, "adb may not start an app's Python" if code else "")
    elif phone.abi == ABI:
        bundle = arm64_bundle()
        yield _finding("runner", "ok", str(bundle.folder))
    else:
        hint = "measure in its browser: --on browser"
        yield _finding("runner", "note" if config.benchmark_model else "broken", f"there is none for {phone.abi}", hint)


def _finding(subject: str, state: str, detail: str, mend: str = "") -> Finding:
    from .doctor import Finding

    return Finding(subject, state, detail, mend)  # type: ignore[arg-type]
