"""An emulated Arm core: it executes the same instructions as a real one, and they are counted. Its time means nothing and is not told.

QEMU's user mode runs the C runner for 64-bit Arm with a plugin that counts (see native/). No root file system is needed: a folder
with the cross compiler's libraries and a /proc/cpuinfo of the core stands in for one. One thread, a fixed seed, a fixed
environment and names of fixed length make the count of an inference exact.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import field_validator

from ..export.manifest import Progress, UserError, did_you_mean
from .device import DeviceCard, DeviceConfig, Item, Job, JobResult, Offer, devices
from .golden import UNCHECKED, Verdict
from .job import checked, left_out, load_request, open_request
from .link import Link, LinkLostError, ProcessLink
from .linked import Linked
from .measurement import SkipKind, Skipped
from .native_build import ARM_LIBRARIES, Counting, counting, set_up
from .qemu_emulator import CORES, EMULATOR, find_emulator, in_words
from .records import InstructionCount, OpRecord, OpTime
from .runtime import RejectedError
from .staging import Staged, read_staged

WARM, COUNTED = 3, 5
"""Inferences before those that are counted, and those."""
RUNTIME = "litert"
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=1000"}
"""All that the program sees. With glibc's usual 7 free blocks a size at hand, what an allocation costs goes round in cycles of inferences."""


class QemuConfig(DeviceConfig):
    """`core`: the Arm core that is emulated."""

    core: str = "cortex-a76"

    @field_validator("core")
    @classmethod
    def _known(cls, given: str) -> str:
        core = given.lower() if given.lower().startswith("cortex-") else f"cortex-{given.lower()}"
        if core not in CORES:
            raise ValueError(f"no such core is emulated here ({did_you_mean(core, CORES)})")
        return core


def _diagnose(config: QemuConfig) -> tuple[Any, ...]:
    from .qemu_doctor import diagnose

    return diagnose(config)


@devices.register(
    "qemu",
    DeviceCard(
        title="an emulated Arm core",
        config=QemuConfig,
        argument="core",
        packages=("ai_edge_litert",),
        tools=(EMULATOR,),
        diagnose=_diagnose,
        set_up=set_up,
        set_up_name="arm64",
        note="exact instruction counts of LiteRT artifacts (" + ", ".join(CORES) + "), never times",
    ),
)
class QemuDevice(Linked):
    """Counts instructions in processes of their own, one per artifact."""

    def __init__(self, name: str, config: QemuConfig) -> None:
        super().__init__(name, holds="")
        self.core = config.core
        self._work: tempfile.TemporaryDirectory[str] | None = None
        self._built: Counting | None = None
        self._emulator: tuple[str, str] = ("", "")

    def prepare(self, say: Callable[[str], None]) -> None:
        """A folder with what the emulated program sees. Raises UserError naming what is missing and how to get it."""
        self._emulator = find_emulator()
        self._built = counting()
        self._work = tempfile.TemporaryDirectory(prefix="trimtab-qemu-")
        prefix = Path(self._work.name) / "prefix"
        (prefix / "proc").mkdir(parents=True)
        (prefix / "proc/cpuinfo").write_text(CORES[self.core].cpuinfo(self.core))
        (prefix / "lib").symlink_to(ARM_LIBRARIES)
        self._place("hello")

    def _place(self, name: str) -> Path:
        """A folder in which the runner is started: the names that it sees are the same in all of them."""
        assert self._work is not None  # noqa: S101 (prepare comes first)
        assert self._built is not None  # noqa: S101
        place = Path(self._work.name) / name
        place.mkdir(exist_ok=True)
        for link, target in (("runner", self._built.runner), ("libLiteRt.so", self._built.library)):
            if not (place / link).is_symlink():
                (place / link).symlink_to(target)
        return place

    def offers(self) -> Mapping[str, Offer]:
        """LiteRT on TFLite files."""
        return {name: offer for name, offer in super().offers().items() if name == RUNTIME}

    def put(self, source: Path, place: str) -> str:
        """The absolute place of the folder, linked to beside a runner of its own."""
        target = self._place(place) / "artifact"
        target.unlink(missing_ok=True)
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
        return str(target)

    def link(self) -> Link:
        """A runner on the emulated core. Raises UserError, LinkLostError."""
        return self._runner(self._place("hello"))

    def _runner(self, place: Path) -> Link:
        assert self._work is not None  # noqa: S101
        assert self._built is not None  # noqa: S101
        argv = [self._emulator[0], "-seed", "1", "-cpu", self.core, "-L", f"{self._work.name}/prefix"]
        argv += ["-plugin", str(self._built.plugin), "./runner", "./libLiteRt.so"]
        return ProcessLink(argv, where=self.name, cwd=place, env=dict(ENVIRONMENT))

    def run(self, job: Job, progress: Progress) -> JobResult:
        """Counts of every artifact whose outputs are right. Raises UserError for a job that asks for more than one thread."""
        if job.threads != 1:
            raise UserError(f"threads={job.threads}: instructions are counted exactly in one thread only", hint="--threads 1")
        counts, ops, skipped, said = list[InstructionCount](), list[OpRecord](), list[Skipped](), list[str]()
        if job.sustained_s:
            said.append(f"{self.name} is emulated: a sustained run says nothing there and was left out")
        interrupted = False
        with progress.meter(f"counting instructions on {self.name}", total=len(job.items), unit="artifact") as meter:
            for item in job.items:
                try:
                    found = self._item(item, job, said)
                except RejectedError as error:
                    if job.strict:
                        raise
                    found = self._skipped(item, "rejected", str(error))
                except LinkLostError as error:
                    found = self._skipped(item, "rejected", in_words(error, self.core))
                except KeyboardInterrupt:
                    interrupted = True
                    found = self._skipped(item, "interrupted", "stopped before it was counted")
                if isinstance(found, Skipped):
                    skipped.append(found)
                else:
                    counts.append(found[0])
                    ops += [found[1]] if found[1] else []
                meter.advance()
                if interrupted:
                    break
        left = job.items[len(counts) + len(skipped) :]
        skipped += [self._skipped(item, "interrupted", "stopped before it was counted") for item in left]
        return JobResult(
            counts=tuple(counts), ops=tuple(ops), skipped=tuple(skipped), warnings=tuple(said), interrupted=interrupted
        )

    def _item(self, item: Item, job: Job, said: list[str]) -> Skipped | tuple[InstructionCount, OpRecord | None]:
        """One artifact: its outputs checked in one process, its instructions counted in another."""
        staged, place = read_staged(Path(item.folder)), Path(item.place).parent
        found = self._checked(staged, place, job)
        if found.ok is False and not job.force:
            return self._skipped(item, "wrong outputs", found.reason, found)
        if found.reason:
            said.append(f"{item.label} on {self.name}: {found.reason}")
        link = self._opened(place, job)
        try:
            link.ask({**load_request(staged, "artifact"), "slot": 0, "gaps": []})
            calls = WARM + COUNTED
            told = link.ask({"do": "time", "order": [0] * calls, "blocks": [1] * calls, "warm": [0] * calls})["ns"]
            repeats = tuple(round(value / len(staged.feeds)) for value in told[WARM:])
            ops = self._ops(link, item, staged) if job.ops else None
        finally:
            link.close()
        return self._count(item, staged, found, repeats), ops

    def _opened(self, place: Path, job: Job) -> Link:
        link = self._runner(place)
        try:
            link.ask({**open_request(job, None), "affinity": None})
        except BaseException:
            link.close()
            raise
        return link

    def _checked(self, staged: Staged, place: Path, job: Job) -> Verdict:
        """The verdict on the golden inputs, run on the emulated core in a process of their own."""
        if staged.golden is None:
            return UNCHECKED
        link = self._opened(place, job)
        try:
            return checked(link, staged, "artifact", reduced=False)
        finally:
            link.close()

    def _count(self, item: Item, staged: Staged, found: Verdict, repeats: tuple[int, ...]) -> InstructionCount:
        assert self._built  # noqa: S101
        artifact = staged.artifact
        return InstructionCount(
            label=item.label,
            artifact=artifact.name,
            sha256=artifact.sha256,
            format=artifact.format,
            precision=artifact.precision,
            device=self.name,
            core=self.core,
            runtime=RUNTIME,
            runtime_version=self._built.version,
            emulator=self._emulator[1],
            dims=item.dims,
            repeats=repeats,
            outputs_ok=found.ok,
            max_abs_error=found.max_abs_error,
            sqnr_db=found.sqnr_db,
        )

    def _ops(self, link: Link, item: Item, staged: Staged) -> OpRecord:
        """Instructions operation by operation: LiteRT's own profiler, whose clock is the count."""
        told = link.ask({"do": "ops", "slot": 0, "file": f"artifact/{staged.file}", "runs": 1})
        return OpRecord(
            label=item.label,
            device=self.name,
            runtime=RUNTIME,
            emulated=True,
            unit="instructions",
            runs=told["runs"],
            note="LiteRT's profiler with the number of instructions for its clock"
            + (f"; the first of {len(staged.feeds)} inputs" if len(staged.feeds) > 1 else ""),
            reason=told["reason"],
            ops=tuple(OpTime(**op) for op in told["ops"]),
        )

    def _skipped(self, item: Item, kind: SkipKind, reason: str, found: Verdict | None = None) -> Skipped:
        return left_out(item, kind, reason, runtime=RUNTIME, device=self.name, found=found)

    def collect(self, place: str, target: Path) -> Path:
        """A copy: the emulated program sees this machine's files."""
        shutil.copy(place, target)
        return target

    def close(self) -> None:
        """Removes the work folder."""
        if self._work:
            self._work.cleanup()
