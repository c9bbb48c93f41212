"""Runs `main(job)` of a script: `python -I host.py SCRIPT JOB.json RESULT.json`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
import types
from pathlib import Path

PACKAGE = "trimtab_scripts"


def answer(script: Path, job: Path) -> dict[str, object]:
    """The result of the script, or its refusal or exception as data."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(script.parent)]  # so that scripts can import one another, and nothing else finds them
    sys.modules[PACKAGE] = package
    try:
        module = importlib.import_module(f"{PACKAGE}.{script.stem}")
        return {"result": module.main(json.loads(job.read_text()))}
    except Exception as error:
        if type(error).__name__ == "RefusedError":
            what, hint = error.args
            return {"refused": what, "hint": hint}
        first = next((line for line in str(error).splitlines() if line.strip()), "")[:300]
        return {"failed": f"{type(error).__name__}: {first}", "traceback": traceback.format_exc()}


if __name__ == "__main__":
    script, job, result = (Path(argument) for argument in sys.argv[1:4])
    half = result.with_suffix(".half")
    half.write_text(json.dumps(answer(script, job)))
    os.replace(half, result)
