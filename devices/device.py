"""What every device looks like: a capability record, and the way of a job there and back."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from ..export.manifest import Progress, Registry
from .measurement import AAPair, Comparison, Measurement, Skipped


class Item(BaseModel):
    """An artifact that was put on the device: its place there, and the unique label it goes by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: str
    label: str
    dims: dict[str, int] = {}


class Job(BaseModel):
    """Artifacts to be timed against each other on one runtime. Plain data, so that it can travel to another machine.

    `strict`: the runtime was asked for by name, so an artifact it rejects is an error and not a skipped entry.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str
    items: tuple[Item, ...] = Field(min_length=1)
    threads: int = 1
    budget_s: float = 30.0
    preset: str = "standard"
    seed: int = 0
    affinity: tuple[int, ...] | None = None
    options: dict[str, str] = {}
    force: bool = False
    strict: bool = False


class JobResult(BaseModel):
    """What a job brought back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measurements: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    aa: tuple[AAPair, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    interrupted: bool = False


class Device(Protocol):
    """A place where jobs run. Called in this order: prepare, put for every artifact, run for every job, close (always)."""

    name: str

    def prepare(self) -> None:
        """Reaches the device and makes a work folder there. Raises UserError when it can't."""

    def put(self, folder: Path) -> str:
        """The place on the device of the artifact folder, carried there."""

    def run(self, job: Job, progress: Progress) -> JobResult:
        """The job's results, collected. A KeyboardInterrupt gives what was finished, marked as interrupted. Raises UserError."""

    def close(self) -> None:
        """Leaves nothing behind."""


@dataclass(frozen=True)
class DeviceCard:
    """What a kind of device needs, readable without touching it. `tools` are programs looked for on the PATH."""

    title: str
    packages: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    extra: str = ""
    note: str = ""

    def missing(self) -> tuple[str, ...]:
        """The packages and programs that are not there."""
        gone = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return (*gone, *(tool for tool in self.tools if shutil.which(tool) is None))


devices: Registry[Callable[[], Device], DeviceCard] = Registry("device", modules=("trimtab.devices.local",))
