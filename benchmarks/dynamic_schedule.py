"""How long everything dynamic is trained: sizes for two CPU cores, or with `--full` the paper's for a GPU, into a folder of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Training images (None: all 54 000), passes over them, the device, the folder of the results, passes of the dense networks."""

    images: int | None
    epochs: float
    device: str
    folder: str
    dense_epochs: float


CPU = Schedule(images=4000, epochs=3.0, device="cpu", folder="dynamic", dense_epochs=4.0)
FULL = Schedule(images=None, epochs=200.0, device="auto", folder="dynamic-full", dense_epochs=200.0)
SCHEDULE = FULL if "--full" in sys.argv else CPU
