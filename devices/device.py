"""What every device looks like: a capability record, and the way of a job there and back."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from ..export.manifest import Progress, Registry
from .link import Link
from .measurement import AAPair, Comparison, Measurement, Skipped
from .records import Evaluated, InstructionCount, OpRecord, Sustained


class Item(BaseModel):
    """An artifact that was put on the device: its folder here, its place there, and the unique label it goes by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    place: str
    label: str
    dims: dict[str, int] = {}


class Job(BaseModel):
    """Artifacts to be timed against each other on one runtime.

    `strict`: the runtime was asked for by name, so an artifact it rejects is an error and not a skipped entry. `ops`: inferences
    to profile operation by operation, 0 for none. `sustained_s`: seconds of every artifact without a pause. `cool_down_s`:
    how long to wait at most before it until the device is at `cool_to_c` again (None: 60 s where it tells its temperature); never before the
    `first` job of a device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
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
    ops: int = 0
    sustained_s: float = 0.0
    cool_down_s: float | None = None
    cool_to_c: float | None = None
    first: bool = True


class JobResult(BaseModel):
    """What a job brought back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measurements: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    aa: tuple[AAPair, ...] = ()
    ops: tuple[OpRecord, ...] = ()
    sustained: tuple[Sustained, ...] = ()
    evaluated: tuple[Evaluated, ...] = ()
    counts: tuple[InstructionCount, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    interrupted: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Offer:
    """A runtime that a device could use: `missing` says in words why it can't just now, empty when it can."""

    title: str
    formats: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    version: str = ""
    missing: str = ""


class Device(Protocol):
    """A place where jobs run. Called in this order: prepare, offers, put for every artifact, run for every job, collect, close (always)."""

    name: str
    holds: str
    """What no two profiles may use at once: two names of one phone hold the same. Empty when they don't disturb each other."""

    def prepare(self, say: Callable[[str], None]) -> None:
        """Reaches the device and makes a work folder there; `say` tells the user what to do. Raises UserError when it can't."""

    def offers(self) -> Mapping[str, Offer]:
        """The runtimes by name."""

    def put(self, source: Path, place: str) -> str:
        """Where on the device the file or folder now lies, carried there as `place`. Raises UserError (a full disk, a lost device)."""

    def run(self, job: Job, progress: Progress) -> JobResult:
        """The job's results. A KeyboardInterrupt or a lost device gives what was finished, marked. Raises UserError."""

    def collect(self, place: str, target: Path) -> Path:
        """`target`, fetched from the device. Raises UserError."""

    def close(self) -> None:
        """Leaves nothing behind."""


class LinkedDevice(Device, Protocol):
    """A device with a runner that answers (see `link.py`). `cores`: the CPUs to run on when a job names none."""

    cores: tuple[int, ...] | None

    def link(self) -> Link:
        """A runner, started anew. Raises UserError, LinkLostError."""


class DeviceConfig(BaseModel):
    """What devices.toml says of a device of one kind; every kind adds its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class DeviceCard:
    """What a kind of device needs, readable without touching it. `tools` are programs looked for on the PATH.

    `argument` is the field that what follows a colon sets: "core" makes `qemu:cortex-a76` short for core = "cortex-a76".
    `diagnose` takes a config to the doctor's findings, step by step; `set_up` fetches or builds what the kind needs on this machine,
    as `trimtab devices setup` NAME with `set_up_name`.
    """

    title: str
    config: type[DeviceConfig] = DeviceConfig
    argument: str = ""
    packages: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    extra: str = ""
    note: str = ""
    diagnose: Callable[[Any], tuple[Any, ...]] | None = None
    set_up: Callable[[Callable[[str], None]], None] | None = None
    set_up_name: str = ""

    def missing(self) -> tuple[str, ...]:
        """The packages and programs that are not there."""
        gone = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return (*gone, *(tool for tool in self.tools if shutil.which(tool) is None))


Maker = Callable[[str, Any], Device]
"""Makes a device from its name and its config."""

devices: Registry[Maker, DeviceCard] = Registry(
    "device",
    modules=(
        "trimtab.devices.local",
        "trimtab.devices.adb",
        "trimtab.devices.browser.device",
        "trimtab.devices.ssh",
        "trimtab.devices.qemu",
    ),
)
