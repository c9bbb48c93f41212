"""The runner as one file that Python runs, made of the modules that it needs."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path

DOORS = ("trimtab/__init__.py", "trimtab/models/__init__.py", "trimtab/export/__init__.py", "trimtab/devices/__init__.py")
MODULES: dict[str, tuple[str, ...]] = {
    "trimtab.models": ("errors", "registry"),
    "trimtab.export": ("light", "noise", "ncnn_files", "openvino_core", "barred"),
    "trimtab.devices": ("reading", "conditions", "memory", "runtime", "runner", "ops", "wire"),
}
PREFIXES = ("runtimes_", "ops_")
START = '''"""Starts the runner, after a look at what runs it: older Pythons could not even read it."""
import os, sys
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
if sys.version_info < (3, 10):
    print('@trimtab {"error": {"kind": "user", "what": "the runner needs Python 3.10 or newer, this is %d.%d", "hint": "name '
          'another one: trimtab devices add ... --set python=PATH"}}' % sys.version_info[:2], flush=True)
    sys.exit(3)
try:
    import numpy
except ImportError:
    print('@trimtab {"error": {"kind": "user", "what": "this Python has no numpy, so no runtime either", "hint": "pip install '
          'onnxruntime (or ai-edge-litert, ...) there, or name another Python: trimtab devices add ... --set python=PATH"}}', flush=True)
    sys.exit(3)
from trimtab.devices.runner import main
main()
'''


def pack(path: Path) -> Path:
    """`path`, written as a zip that `python3 path` runs. It holds the runner's own modules and nothing that needs installing."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", START)
        for door in DOORS:
            archive.writestr(door, "")
        for package, names in MODULES.items():
            home = Path(str(importlib.import_module(package).__file__)).parent
            extra = (
                sorted(p.stem for p in home.glob("*.py") if p.stem.startswith(PREFIXES)) if package.endswith("devices") else []
            )
            for name in (*names, *extra):
                source = home / f"{name}.py"
                archive.writestr(f"{package.replace('.', '/')}/{name}.py", source.read_text())
    return path
