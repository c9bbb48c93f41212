"""The machine that trimtab itself runs on: the runner is a child process, so that a crash of a runtime is one of the runner."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from .device import DeviceCard, DeviceConfig, Offer, devices
from .greeting import RuntimeThere
from .link import Link, ProcessLink
from .linked import Linked, offers_of
from .runtime import runtimes


class LocalConfig(DeviceConfig):
    """`cores`: the CPUs to run on when a profile names none."""

    cores: tuple[int, ...] | None = None


@devices.register(
    "local", DeviceCard(title="this machine", config=LocalConfig, note="on the CPU, each runtime in a process of its own")
)
class LocalDevice(Linked):
    """Runs jobs in child processes."""

    def __init__(self, name: str, config: LocalConfig) -> None:
        super().__init__(name, cores=config.cores)

    def prepare(self, say: Callable[[str], None]) -> None:
        """Nothing: it is here."""

    def offers(self) -> Mapping[str, Offer]:
        """All registered runtimes of this system; what is not installed says how to. Nothing need be started for it."""
        there = {entry.name: RuntimeThere(missing=entry.card.missing()) for entry in runtimes if entry.card.at_home}
        return offers_of(there, here=True)

    def put(self, source: Path, place: str) -> str:
        """The folder itself."""
        return str(source.resolve())

    def link(self) -> Link:
        """A runner in a process of its own."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        return ProcessLink([sys.executable, "-m", "trimtab.devices.runner"], where=self.name, env=environment)

    def collect(self, place: str, target: Path) -> Path:
        """A copy."""
        shutil.copy(place, target)
        return target

    def close(self) -> None:
        """Nothing was left anywhere."""
