"""What devices with a runner have in common: they are asked what they are, and jobs go over the link."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from ..export.manifest import Progress
from .device import Job, JobResult, Offer
from .greeting import Hello, RuntimeThere, greeted
from .job import run_job
from .link import Link
from .runtime import runtimes


class Linked(ABC):
    """A device with a runner. What it can do is asked once, the first time that somebody wants to know."""

    def __init__(self, name: str, *, cores: tuple[int, ...] | None = None, holds: str | None = None) -> None:
        self.name, self.cores = name, cores
        self.holds = name if holds is None else holds
        self._hello: Hello | None = None

    @abstractmethod
    def prepare(self, say: Callable[[str], None]) -> None:
        """Reaches the device and makes a work folder there; `say` tells the user what to do. Raises UserError when it can't."""

    @abstractmethod
    def put(self, source: Path, place: str) -> str:
        """Where on the device the file or folder now lies. Raises UserError."""

    @abstractmethod
    def link(self) -> Link:
        """A runner, started anew. Raises UserError, LinkLostError."""

    @abstractmethod
    def collect(self, place: str, target: Path) -> Path:
        """`target`, fetched from the device. Raises UserError."""

    @abstractmethod
    def close(self) -> None:
        """Leaves nothing behind."""

    def hello(self) -> Hello:
        """What the runner says of itself and its machine. Raises UserError, LinkLostError."""
        if self._hello is None:
            link = self.link()
            try:
                self._hello = greeted(link)
            finally:
                link.close()
        return self._hello

    def offers(self) -> Mapping[str, Offer]:
        """The runtimes that the runner has found."""
        return offers_of(self.hello().runtimes)

    def run(self, job: Job, progress: Progress) -> JobResult:
        """The job's results. Raises UserError, LinkLostError."""
        return run_job(job, self, progress)


def offers_of(told: Mapping[str, RuntimeThere], *, here: bool = False) -> dict[str, Offer]:
    """Offers from what is told of the registered runtimes: the packages that are missing, else the version.

    `here`: it is this machine, so what is missing comes with the command that installs it.
    """
    found = {}
    for name, facts in told.items():
        if name not in runtimes.names():
            continue
        card = runtimes.entry(name).card
        gone, install = ", ".join(facts.missing), f": {card.install}" if here else ""
        found[name] = Offer(
            title=card.title,
            formats=card.formats,
            options=card.options,
            version=facts.version or "",
            missing=f"{card.title} needs {gone}, not installed{install}" if gone else "",
        )
    return found
