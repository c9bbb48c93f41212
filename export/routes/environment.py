"""Virtual environments for converters whose packages can't or needn't live beside trimtab's, in the user's cache folder.

`ready.json` is written last: an environment without it was never finished, and is made again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...models import files
from ...models.errors import UserError, did_you_mean
from .catalogue import ENVIRONMENTS, Environment, cache
from .process import clean_environment, run_script

READY = "ready.json"
SETUP = "trimtab export --setup"
_SHOWN = 12
"""How many of pip's last lines an error shows."""
_VERIFY_S = 300.0
_GB = 10**9


def environment(name: str) -> Environment:
    """The environment of this name. Raises UserError, naming the nearest, when there is none."""
    if name not in ENVIRONMENTS:
        raise UserError(f"there is no environment {name!r}", hint=did_you_mean(name, ENVIRONMENTS))
    return ENVIRONMENTS[name]


def find(name: str) -> Path:
    """The folder of a finished environment. Raises UserError, saying how it is made, when it is not there."""
    wanted = environment(name)
    if not _finished(wanted):
        raise UserError(
            f"the environment {name} is not set up on this machine ({wanted.place} is not there or not whole)",
            hint=f"{SETUP} {name} (about {wanted.size_gb:g} GB; {wanted.purpose})",
        )
    return wanted.place


def versions(name: str) -> dict[str, str]:
    """The installed packages of a finished environment and their versions. Raises UserError as `find` does."""
    return dict(files.read_json(find(name) / READY)["versions"])


def python_of(place: Path) -> Path:
    """The Python program of a virtual environment."""
    return place / "Scripts" / "python.exe" if os.name == "nt" else place / "bin" / "python"


def run(name: str, script: str, job: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """What `main(job)` of a script in `scripts/` returns, run in the environment.

    Raises UserError when the environment is not set up, and as `process.run_script` does.
    """
    place = find(name)
    path = Path(__file__).parent / "scripts" / f"{script}.py"
    return run_script(python_of(place), path, job, seconds=seconds, label=name)


def setup(name: str, *, log: Callable[[str], None] | None = None, force: bool = False, wait: bool = False) -> Path:
    """The folder of the environment, made now unless it is there; with `force` it is made anew. `log` gets pip's lines.

    Raises UserError when no fitting Python is found, the disk is too full, another process is making it (unless told to `wait` for
    that), pip fails (with the last of what it said), or what was installed can't be imported.
    """
    wanted = environment(name)
    if _finished(wanted) and not force:
        return wanted.place
    interpreter = interpreter_for(wanted)
    place = wanted.place
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(wanted, wait=wait):
        if _finished(wanted) and not force:
            return place  # another process made it meanwhile
        (place / READY).unlink(missing_ok=True)  # from here on it is not finished, whatever happens
        shutil.rmtree(place, ignore_errors=True)
        _refuse_full_disk(wanted)
        say = log or (lambda _: None)
        _call([str(interpreter), "-I", "-m", "venv", str(place)], say, f"a virtual environment can't be made at {place}")
        python = python_of(place)
        pip = [str(python), "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        _call([*pip, *wanted.requirements], say, f"pip can't install {wanted.name}")
        job = {"modules": list(wanted.modules), "prepare": wanted.prepared_by}
        found = run_script(python, _VERSIONS, job, seconds=_VERIFY_S, label=f"{name}, just installed")
        files.write_json(place / READY, {"requirements": wanted.requirements, **found})
    return place


_VERSIONS = Path(__file__).parent / "scripts" / "installed.py"


def interpreter_for(wanted: Environment) -> Path:
    """A Python that the environment's packages exist for: this one, or one on the PATH. Raises UserError when there is none."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if mine in wanted.pythons:
        return Path(sys.executable)
    for version in reversed(wanted.pythons):
        path = shutil.which(f"python{version}")
        if path and _works(path):
            return Path(path)
    able = " or ".join(wanted.pythons)
    raise UserError(
        f"the packages of {wanted.name} exist for Python {able}; this is Python {mine}, and the PATH has no such one",
        hint=f"install Python {wanted.pythons[-1]}, so that `python{wanted.pythons[-1]}` starts it, and give the command again",
    )


def _works(path: str) -> bool:
    """Whether a Python starts and can make virtual environments (version managers put programs on the PATH that do not)."""
    try:
        done = subprocess.run(
            [path, "-I", "-c", "import ensurepip, venv"], check=False, capture_output=True, timeout=30, env=clean_environment()
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _finished(wanted: Environment) -> bool:
    return (wanted.place / READY).is_file() and python_of(wanted.place).exists()


@contextmanager
def _alone(wanted: Environment, *, wait: bool) -> Iterator[None]:
    """Only one process makes an environment. Raises UserError when another one is at it, unless it may `wait`."""
    from filelock import FileLock, Timeout

    lock = FileLock(wanted.place.with_name(f"{wanted.place.name}.lock"), timeout=-1 if wait else 0)
    try:
        with lock:
            yield
    except Timeout:
        raise UserError(
            f"another process is setting up {wanted.name} now", hint="wait until it is done; then it is there for all"
        ) from None


def _refuse_full_disk(wanted: Environment) -> None:
    free = shutil.disk_usage(cache()).free
    if free < 2 * wanted.size_gb * _GB:
        raise UserError(
            f"{cache()} has {free / _GB:.1f} GB free; {wanted.name} takes about {wanted.size_gb:g} GB, and as much again while it is made",
            hint="free some space, or set XDG_CACHE_HOME to a folder on another disk",
        )


def _call(command: list[str], log: Callable[[str], None], failure: str) -> None:
    """None, when the command ends well; its lines go to `log`. Raises UserError with its last ones when it does not."""
    last: deque[str] = deque(maxlen=_SHOWN)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=clean_environment(),
    ) as process:
        assert process.stdout is not None  # noqa: S101 - opened as a pipe
        try:
            for line in process.stdout:
                last.append(line.rstrip())
                log(line.rstrip())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = "\n".join(f"    {line[:200]}" for line in last)
        raise UserError(f"{failure} (exit code {process.returncode})", hint=f"it ended with\n{said}", exit_code=1)
