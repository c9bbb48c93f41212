"""What is installed here, after the modules that matter were imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from typing import Any


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Python's version, and those of every installed distribution. Raises ImportError when a module of `job` can't be imported.

    `job`: `modules`, and `prepare`, the script whose `prepare()` goes before them ("": none).
    """
    if job["prepare"]:
        importlib.import_module(f".{job['prepare']}", __package__).prepare()
    for name in job["modules"]:
        importlib.import_module(name)
    versions = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    return {"python": platform.python_version(), "versions": dict(sorted(versions.items(), key=lambda item: item[0].lower()))}
