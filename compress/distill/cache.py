"""A teacher's signals on disk, memory-mapped: computed once, read by row at every step."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...models.files import digest_of, read_json, write_json
from ..runtime import Runtime

if TYPE_CHECKING:
    from ...models.progress import Progress
    from ...models.tasks.task import Task
    from .teacher import Teacher

log = logging.getLogger("trimtab")
FORMAT = 2
ON_DEVICE_BYTES = 1 << 30
"""Tables up to this size are kept on the GPU; a larger one is read from disk row by row."""
SAVE_S = 5.0
"""A pass that is killed goes on from where it was so many seconds before."""


@dataclass(frozen=True)
class SignalTable:
    """One signal by position in the training split. `values` (n, …) holds the rows, `row_of` (N,) where they are."""

    values: Tensor
    row_of: Tensor | None
    device: torch.device

    def __call__(self, index: Tensor) -> Tensor:
        """Values float32 (B, …) on the run's device, of the samples at `index` int64 (B,)."""
        rows = index.to(self.values.device)
        if self.row_of is not None:
            rows = self.row_of[rows]
        return self.values.index_select(0, rows).to(self.device, torch.float32)


def cache_key(
    teacher_hash: str, task: Task, positions: Tensor, *, input_map: list[list[float]], dtype: str, runtime: Runtime
) -> dict[str, Any]:
    """What the signals depend on, JSON-able: data, teacher, normalisations, view, precision, and which samples."""
    return {
        "format": FORMAT,
        "data_id": task.data_id,
        "teacher": teacher_hash,
        "normalisation": digest_of([task.contract.inputs[0].model_dump(mode="json"), input_map]),
        "view": "clean",
        "dtype": dtype,
        "precision": f"{runtime.device.type} {runtime.amp}",
        "positions": digest_of(positions.tolist()),
    }


@dataclass(frozen=True)
class SignalCache:
    """The signals of one teacher over the samples at `positions`, in `folder`; `key` says what they depend on.

    A `shared` folder serves many runs: files of others lie there by right, and are not spoken of.

    The teacher sees the clean view of each training image, even where the student's view is augmented. Every signal is a file of
    its own beside its key; a file is trusted when its key is the one wanted and it is whole.
    """

    folder: Path
    key: Mapping[str, Any]
    teacher: Teacher
    task: Task
    positions: Tensor
    runtime: Runtime
    progress: Progress
    shared: bool = False

    def tables(self, taps: Sequence[str]) -> tuple[dict[str, SignalTable], bool, list[str]]:
        """(the tables by tap, whether all had been made before, why older files were not used)."""
        self.runtime.accelerator.wait_for_everyone()
        missing = [tap for tap in taps if not self._whole(tap)]
        said = [why for tap in missing if (why := self._why(tap))]
        self.runtime.accelerator.wait_for_everyone()  # everybody has looked before the main process writes
        if missing and self.runtime.main:
            for why in said:
                log.warning("%s", why)
            self._compute(missing)
        self.runtime.accelerator.wait_for_everyone()
        return {tap: self._table(tap) for tap in taps}, not missing, said

    def _path(self, tap: str, end: str = ".npy") -> Path:
        word = re.sub(r"[^A-Za-z0-9_]+", "-", tap)
        return self.folder / f"{word}-{digest_of([dict(self.key), tap])[:16]}{end}"

    def _whole(self, tap: str) -> bool:
        """Whether the file is there, finished, and of the shape that its key file tells."""
        if not self._path(tap, ".json").exists():
            return False
        about = read_json(self._path(tap, ".json"))
        try:
            values = np.load(self._path(tap), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return False
        return about["key"] == dict(self.key) and about["done"] == len(self.positions) and list(values.shape) == about["shape"]

    def _why(self, tap: str) -> str:
        """Why an older file of this signal is of no use; "" when there is none."""
        if self._path(tap, ".json").exists():
            about = read_json(self._path(tap, ".json"))
            if about["done"] < len(self.positions):
                return ""  # a pass that was killed: it goes on
            return f"the teacher's cached {tap} are damaged and are made again"
        for path in () if self.shared else sorted(self.folder.glob("*.json")):
            about = read_json(path)
            if about.get("tap") == tap:
                changed = [name for name in self.key if about["key"].get(name) != self.key[name]]
                return f"the teacher's cached {tap} are stale ({', '.join(changed)} changed) and are made again"
        return ""

    def _compute(self, taps: Sequence[str]) -> None:
        """One pass over the samples; a killed one goes on where all its files were whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        start = min(self._done(tap) for tap in taps)
        files: dict[str, np.ndarray] = {}
        samples, saved = self.task.samples("train"), time.monotonic()
        live = self.teacher.tapped(taps)
        try:
            with self.progress.meter("teacher's signals", len(self.positions), "images", done=start) as meter:
                for first in range(start, len(self.positions), 256):
                    rows = self.positions[first : first + 256].tolist()
                    raw = samples.__getitems__(rows).to(self.runtime.device)
                    for tap, value in live(self.runtime.layout(self.task.inputs(raw)), self.runtime).items():
                        if tap not in files:
                            files[tap] = self._open(tap, tuple(value.shape[1:]), start)
                        files[tap][first : first + len(rows)] = value.cpu().numpy()
                    if time.monotonic() - saved >= SAVE_S:
                        self._mark(files, first + len(rows))
                        saved = time.monotonic()
                    meter.advance(len(rows))
            self._mark(files, len(self.positions))
        finally:
            live.remove()

    def _done(self, tap: str) -> int:
        """Rows that a killed pass left."""
        if not self._path(tap, ".json").exists() or not self._path(tap).exists():
            return 0
        done = read_json(self._path(tap, ".json"))["done"]
        return done if done < len(self.positions) else 0

    def _open(self, tap: str, shape: tuple[int, ...], start: int) -> np.ndarray:
        path = self._path(tap)
        if start:
            return np.lib.format.open_memmap(path, mode="r+")
        self._path(tap, ".json").unlink(missing_ok=True)  # nothing to trust while the file is being made
        shape = (len(self.positions), *shape)
        return np.lib.format.open_memmap(path, mode="w+", dtype=self.key["dtype"], shape=shape)

    def _mark(self, files: Mapping[str, Any], done: int) -> None:
        """The rows so far on disk, then the word that they are."""
        for tap, values in files.items():
            values.flush()
            about = {"tap": tap, "key": dict(self.key), "shape": list(values.shape), "done": done}
            write_json(self._path(tap, ".json"), about)

    def _table(self, tap: str) -> SignalTable:
        values = torch.from_numpy(np.load(self._path(tap), mmap_mode="c", allow_pickle=False))
        samples, row_of = len(self.task.samples("train")), None
        if len(self.positions) < samples:
            row_of = torch.full((samples,), -1, dtype=torch.int64)
            row_of[self.positions] = torch.arange(len(self.positions))
        if self.runtime.device.type != "cpu" and values.nbytes <= ON_DEVICE_BYTES:
            values = values.to(self.runtime.device)
            row_of = None if row_of is None else row_of.to(self.runtime.device)
        return SignalTable(values, row_of, self.runtime.device)
