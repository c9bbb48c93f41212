"""Converters in processes of their own: one that crashes, hangs or eats the memory is an error in words, and the others go on.

A worker takes orders (pickled by the parent, for this one process) as lines on its standard input, one job file each, and leaves a
result file beside it. What converters print goes to a log, whose end is shown when they die.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.errors import UserError
from .making import Order, Product, make

_POLL_S = 0.02
_LOOK_S = 0.25
"""How often the memory of a worker is looked at."""
_USER_CODE = "_trimtab_user_"
_GIB = 2**30
_PICKLING = threading.Lock()
"""What travels by value is registered for the whole process, and several threads hand out orders."""


@dataclass(frozen=True)
class Limits:
    """What one conversion may take: wall-clock seconds, and GiB of memory with its child processes (0: 80 % of the machine's,
    shared by the workers that run at once); and how many formats are converted at once."""

    seconds: float = 900.0
    memory_gib: float = 0.0
    jobs: int = 2

    def memory_bytes(self) -> int:
        """The cap in bytes."""
        import psutil

        return int(self.memory_gib * _GIB) if self.memory_gib else int(0.8 * psutil.virtual_memory().total / max(1, self.jobs))


class Worker:
    """A process that makes artifacts one after the other; started at the first order, and again after it had to be killed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="trimtab-worker-")
        self._count = 0
        self._closed = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._stop()
        self._folder.cleanup()

    def make(self, order: Order) -> Product:
        """What `making.make` returns, made in the worker.

        Raises UserError: the converter's own, or one that says how the process ended (exit code 1).
        """
        return self.call(make, order, label=order.label)

    def call(self, function: Callable[..., Any], *args: Any, label: str) -> Any:
        """What `function(*args)` returns there. Raises UserError, as `make` does."""
        if self._closed:
            raise UserError(f"{label}: stopped before it was done", hint="give the same command again", exit_code=1)
        self._count += 1
        job = Path(self._folder.name) / f"{self._count}.job"
        job.write_bytes(_pickled((function, args), label))
        process = self._started()
        assert process.stdin is not None  # noqa: S101 - opened as a pipe
        process.stdin.write(f"{job}\n")
        process.stdin.flush()
        result = self._awaited(process, job.with_suffix(".result"), label)
        if "error" in result:
            raise result["error"]
        if "traceback" in result:
            raise UserError(
                f"{label}: the converter failed: {result['failure']}",
                hint=f"run again with --no-isolation --debug for the traceback; it ended with\n{_tail(result['traceback'], 4)}",
                exit_code=1,
            )
        return result["product"]

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            log = (Path(self._folder.name) / "log").open("w")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trimtab.export.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env={
                    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.limits.jobs)),
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(_search_path()),
                },
                start_new_session=True,  # Ctrl-C is the parent's to handle, and children of converters die with their group
            )
            log.close()
        return self._process

    def _awaited(self, process: subprocess.Popen[str], result: Path, label: str) -> dict[str, Any]:
        start, looked = time.monotonic(), 0.0
        cap = self.limits.memory_bytes()
        while not result.exists():
            now = time.monotonic()
            if process.poll() is not None and not result.exists():
                raise UserError(f"{label}: {self._death(process.returncode)}", hint=self._log_hint(), exit_code=1)
            if now - start > self.limits.seconds:
                self._stop()
                raise UserError(
                    f"{label}: not finished after {self.limits.seconds:g} s, and stopped",
                    hint=f"give it more time with --timeout. {self._log_hint()}",
                    exit_code=1,
                )
            if now - looked > _LOOK_S:
                looked, used = now, _resident(process.pid)
                if used > cap:
                    self._stop()
                    raise UserError(
                        f"{label}: it took {used / _GIB:.1f} GiB of memory, more than its {cap / _GIB:.1f}, and was stopped",
                        hint="give it more with --memory, convert one format at a time with --jobs 1, or export a smaller input size",
                        exit_code=1,
                    )
            time.sleep(_POLL_S)
        import pickle

        return dict(pickle.loads(result.read_bytes()))  # noqa: S301 - written by our own worker in our own private folder

    def _death(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            why = " (the system stops processes so when memory runs out)" if -code == signal.SIGKILL else ""
            return f"the converter crashed with {name}{why}"
        return f"the converter ended its process (exit code {code})"

    def _log_hint(self) -> str:
        with contextlib.suppress(OSError):
            if text := _tail((Path(self._folder.name) / "log").read_text(errors="replace"), 4):
                return f"it said last:\n{text}"
        return "it said nothing; the same format may work at another precision"

    def _stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


def _tail(text: str, lines: int) -> str:
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line[:200]}" for line in kept)


def _resident(pid: int) -> int:
    """Bytes of memory that a process and its children hold."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total


def _user_modules() -> Iterator[Any]:
    return (module for name, module in list(sys.modules.items()) if name.startswith(_USER_CODE))


def _search_path() -> list[str]:
    """Where the worker finds what pickles name: our own path, and the folders of the user's network files, last."""
    beside = [str(module.__dict__.get("__trimtab_beside__", "")) for module in _user_modules()]
    return [entry for entry in dict.fromkeys((*sys.path, *beside)) if entry]


def _pickled(job: object, label: str) -> bytes:
    """The job as bytes; code of the user's own file travels by value, since no other process can import it by name."""
    import cloudpickle

    with _PICKLING, contextlib.ExitStack() as stack:
        for module in _user_modules():
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        try:
            return bytes(cloudpickle.dumps(job))
        except Exception as error:
            raise UserError(
                f"{label}: the network can't be handed to another process: {type(error).__name__}: {error}",
                hint="give the module no locks, open files or generators; or convert in this process with --no-isolation",
            ) from error


def _answer(job: Path) -> dict[str, Any]:
    """The result of one job file, errors as data."""
    import cloudpickle

    try:
        function, args = cloudpickle.loads(job.read_bytes())
        return {"product": function(*args)}
    except UserError as error:
        return {"error": error}
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:300]
        return {"failure": f"{type(error).__name__}: {first}", "traceback": traceback.format_exc()}


def serve() -> None:
    """None, after the last job: the parent closed the pipe, or is gone."""
    import cloudpickle

    for line in sys.stdin:
        job = Path(line.rstrip("\n"))
        result = _answer(job)
        half = job.with_suffix(".half")
        half.write_bytes(cloudpickle.dumps(result))
        os.replace(half, job.with_suffix(".result"))


if __name__ == "__main__":
    serve()
