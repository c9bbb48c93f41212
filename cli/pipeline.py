"""A run as a list of stages, each finished whole or not at all, reused when nothing it depends on has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .console import output
from .models import files
from .models.errors import UserError

STAGE = "stage.json"
FORMAT = 1


@dataclass
class Run:
    """A run's folder and the stages it went through, in order."""

    folder: Path
    stages: list[dict[str, Any]] = field(default_factory=list)

    def stage(self, name: str, inputs: Any, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The outputs (JSON-able) of stage `name`: from `stage.json` when it finished before with equal `inputs`, else of `work`.

        `work` gets the stage's folder, which survives a kill, so that it can go on where it was. `stage.json` is written
        last: a stage without it did not finish. Outputs that are files are named in the result and must still be there.
        """
        folder = self.folder / name
        key = files.digest_of([FORMAT, name, inputs])
        done = self._finished(folder, key)
        reused = done is not None
        if done is None:
            output.say(f"· {name}")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STAGE).unlink(missing_ok=True)
            started = time.monotonic()
            result = work(folder)
            done = {"key": key, "status": "done", "inputs": inputs, "outputs": result, "seconds": time.monotonic() - started}
            files.write_json(folder / STAGE, done)
        self.stages.append({"name": name, "seconds": done["seconds"], "reused": reused})
        output.say(f"✓ {name}  {done['seconds']:.1f} s{'  (as before)' if reused else ''}")
        return done["outputs"]

    @staticmethod
    def _finished(folder: Path, key: str) -> dict[str, Any] | None:
        if not (folder / STAGE).exists():
            return None
        try:
            stage = files.read_json(folder / STAGE)
        except UserError:
            return None  # a damaged record is no record: the stage runs again
        whole = stage.get("key") == key and stage.get("status") == "done"
        return stage if whole and all((folder / path).exists() for path in stage["outputs"].get("files", ())) else None
