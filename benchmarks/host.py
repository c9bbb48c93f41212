"""What a result file says of the machine that made it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from trimtab import __version__
from trimtab.devices import conditions


def host(packages: Sequence[str]) -> dict[str, Any]:
    """CPU, cores, system and the versions of trimtab, Python and `packages`."""
    return {
        "cpu": conditions.cpu_model().value,
        "cores": conditions.usable_cores(),
        "virtualised": conditions.virtualised().value,
        "os": platform.system(),
        "versions": {
            "trimtab": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    }
