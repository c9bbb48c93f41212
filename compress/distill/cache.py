"""The teacher's logits on disk: computed once, read by row at every step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...models.files import digest_of, read_json, write_json
from ..runtime import Runtime
from .teacher import Teacher

if TYPE_CHECKING:
    from ...models.progress import Progress
    from ...models.tasks.task import Task

log = logging.getLogger("trimtab")
VALUES, KEY = "teacher_logits.npy", "teacher_logits.json"
FORMAT = 1
ON_DEVICE_BYTES = 1 << 30
"""Tables up to this size are kept on the GPU; a larger one is read from disk row by row."""


@dataclass(frozen=True)
class LogitTable:
    """Teacher logits by position in the training split. `values` (n, K) holds the rows, `row_of` (N,) where they are."""

    values: Tensor
    row_of: Tensor | None
    device: torch.device

    def __call__(self, index: Tensor) -> Tensor:
        """Logits float32 (B, K) on the run's device, of the samples at `index` int64 (B,)."""
        rows = index.to(self.values.device)
        if self.row_of is not None:
            rows = self.row_of[rows]
        return self.values.index_select(0, rows).to(self.device, torch.float32)


def cache_key(
    teacher_hash: str, task: Task, positions: Tensor, *, input_map: list[list[float]], dtype: str, runtime: Runtime
) -> dict[str, Any]:
    """What the logits depend on, JSON-able: data, teacher, normalisations, view, precision, and which samples."""
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


def cached_logits(
    folder: Path,
    key: Mapping[str, Any],
    *,
    teacher: Teacher,
    task: Task,
    positions: Tensor,
    runtime: Runtime,
    progress: Progress,
) -> tuple[LogitTable, bool, str]:
    """(the table, whether it had been made before, why an older file was not used).

    The teacher sees the clean view of each training image, even where the student's view is augmented. One pass makes the
    file; it is moved into place when whole, and its key is written last, so that a killed pass leaves nothing to trust.
    """
    why = _why_not(folder, key)
    runtime.accelerator.wait_for_everyone()  # everybody has looked before the main process writes
    if why is not None and runtime.main:
        if why:
            log.warning("%s", why)
        _compute(folder, key, teacher=teacher, task=task, positions=positions, runtime=runtime, progress=progress)
    runtime.accelerator.wait_for_everyone()
    values = torch.from_numpy(np.load(folder / VALUES, mmap_mode="c", allow_pickle=False))
    samples = len(task.samples("train"))
    row_of = None
    if len(positions) < samples:
        row_of = torch.full((samples,), -1, dtype=torch.int64)
        row_of[positions] = torch.arange(len(positions))
    if runtime.device.type != "cpu" and values.nbytes <= ON_DEVICE_BYTES:
        values = values.to(runtime.device)
        row_of = None if row_of is None else row_of.to(runtime.device)
    return LogitTable(values, row_of, runtime.device), why is None, why or ""


def _why_not(folder: Path, key: Mapping[str, Any]) -> str | None:
    """None when the file on disk is the one wanted; "" when there is none; else what is wrong with it."""
    if not (folder / KEY).exists():
        return ""
    theirs = read_json(folder / KEY)["key"]
    changed = [name for name in key if theirs.get(name) != key[name]]
    if changed:
        return f"the teacher's cached logits are stale ({', '.join(changed)} changed) and are made again"
    try:
        values = np.load(folder / VALUES, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        return f"the teacher's cached logits cannot be read ({error}) and are made again"
    del values
    return None


def _compute(
    folder: Path,
    key: Mapping[str, Any],
    *,
    teacher: Teacher,
    task: Task,
    positions: Tensor,
    runtime: Runtime,
    progress: Progress,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEY).unlink(missing_ok=True)
    part = folder / f".{VALUES}.part"
    samples, values = task.samples("train"), None
    dtype: Literal["float16", "float32"] = key["dtype"]
    try:
        with progress.meter("teacher logits", len(positions), "images") as meter:
            for start in range(0, len(positions), 256):
                rows = positions[start : start + 256].tolist()
                raw = samples.__getitems__(rows).to(runtime.device)
                logits = teacher.logits(runtime.layout(task.inputs(raw)), runtime).cpu().numpy()
                if values is None:
                    values = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=(len(positions), logits.shape[1]))
                values[start : start + len(rows)] = logits
                meter.advance(len(rows))
        if values is not None:
            values.flush()
        part.replace(folder / VALUES)
    finally:
        part.unlink(missing_ok=True)
    write_json(folder / KEY, {"key": dict(key)})
