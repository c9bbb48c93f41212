"""The machine that trimtab itself runs on."""

from __future__ import annotations

from pathlib import Path

from ..export.manifest import Progress
from .device import DeviceCard, Job, JobResult, devices
from .job import run_job


@devices.register("local", DeviceCard(title="this machine", note="in this process, on the CPU"))
class LocalDevice:
    """Runs jobs in this process."""

    name = "local"

    def prepare(self) -> None:
        """Nothing: it is here."""

    def put(self, folder: Path) -> str:
        """The folder itself."""
        return str(folder)

    def run(self, job: Job, progress: Progress) -> JobResult:
        """The job's results. Raises UserError."""
        return run_job(job, device=self.name, progress=progress)

    def close(self) -> None:
        """Nothing was left anywhere."""
