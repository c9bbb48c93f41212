"""A script run by another Python: a JSON job in, a JSON result out, and words for every way it can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ..tool import stop

HOST = Path(__file__).parent / "scripts" / "host.py"
_SHOWN = 6
"""How many of a script's last lines an error shows."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead another Python to our packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {key: value for key, value in os.environ.items() if key not in ours}


def run_script(python: Path, script: Path, job: Mapping[str, Any], *, seconds: float, label: str) -> dict[str, Any]:
    """What `main(job)` of `script` returns, run by `python` in isolated mode; job and result are plain JSON.

    Raises UserError: the script's own refusal, an exception in it, a crash, a wrong exit, or no end after `seconds`.
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-route-") as folder:
        order, answer, log = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        order.write_text(json.dumps(dict(job)))
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [str(python), "-I", "-B", str(HOST), str(script), str(order), str(answer)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                cwd=folder,
            )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            stop(process)
            raise UserError(
                f"{label}: not finished after {seconds:g} s, and stopped",
                hint=f"give it more time with --timeout. {_said(log)}",
                exit_code=1,
            ) from None
        except BaseException:
            stop(process)
            raise
        if code or not answer.exists():
            raise UserError(f"{label}: {_death(code)}", hint=_said(log), exit_code=1)
        return _result(json.loads(answer.read_text()), label)


def _result(answer: dict[str, Any], label: str) -> dict[str, Any]:
    """The script's result. Raises UserError for a refusal or an exception."""
    if "refused" in answer:
        raise UserError(f"{label}: {answer['refused']}", hint=answer["hint"])
    if "failed" in answer:
        raise UserError(f"{label}: {answer['failed']}", hint=f"it ended with\n{_indented(answer['traceback'])}", exit_code=1)
    return dict(answer["result"])


def _death(code: int) -> str:
    if code < 0:
        why = " (the system stops processes so when memory runs out)" if -code == signal.SIGKILL else ""
        return f"its process crashed with {signal.Signals(-code).name}{why}"
    return f"its process ended without a result (exit code {code})"


def _said(log: Path) -> str:
    text = _indented(log.read_text(errors="replace"))
    return f"it said last:\n{text}" if text else "it said nothing"


def _indented(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()][-_SHOWN:]
    return "\n".join(f"    {line[:200]}" for line in lines)
