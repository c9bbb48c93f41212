"""An Android phone over adb: a runner is pushed below /data/local/tmp, answers over `adb shell`, and is removed again."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from ..export.manifest import Progress, UserError
from . import adb_phone
from .adb_client import Adb, choose, find_adb, phones_of
from .adb_link import PhoneLink
from .adb_phone import Phone
from .benchmark_model import BENCHMARK_MODEL, OFFER, check_program
from .benchmark_model_link import ToolLink
from .device import DeviceCard, DeviceConfig, Job, JobResult, Offer, devices
from .job import run_job
from .link import Link, LinkLostError, ProcessLink
from .linked import Linked
from .native_build import Bundle, arm64_bundle
from .pack import pack
from .runtime import runtimes
from .timing import plan_of

HOME = "/data/local/tmp"
ABI = "arm64-v8a"
TOOL = "benchmark_model"
RUNNER_FILE = "runner.pyz"
SPARE_BYTES = 32 << 20
"""Room that is left free on the phone for artifacts, whose size nobody knows before they come."""
CLOSE_S = 15.0


class AdbConfig(DeviceConfig):
    """`serial`: empty for the only phone. `cores`: "big", "little", "all", CPUs, or empty for the fastest that hold the threads.

    `folder`: where work folders are made; elsewhere than below /data/local/tmp only with `anywhere`. `benchmark_model`: a program for
    this phone, on this computer. `python`: a Python on the phone that adb may start, for the Python runner in place of the C one.
    """

    serial: str = ""
    cores: str | tuple[int, ...] = ""
    folder: str = f"{HOME}/trimtab"
    anywhere: bool = False
    timeout_s: float = Field(default=60.0, gt=0)
    benchmark_model: str = ""
    python: str = ""

    @field_validator("cores", mode="before")
    @classmethod
    def _cores(cls, value: Any) -> Any:
        if isinstance(value, str):
            if re.fullmatch(r"\d+(,\s*\d+)*", value):
                return tuple(int(part) for part in value.split(","))
            if value not in ("", "big", "little", "all"):
                raise ValueError('"big", "little", "all", or CPUs such as [4, 5, 6, 7]')
            return value
        cpus = tuple(value)
        if not cpus or not all(isinstance(cpu, int) and cpu >= 0 for cpu in cpus):
            raise ValueError("CPUs are numbers from 0 on")
        return cpus

    @model_validator(mode="after")
    def _inside(self) -> AdbConfig:
        clean = os.path.normpath(self.folder)
        if not self.folder.startswith("/") or (not self.anywhere and not clean.startswith(f"{HOME}/")):
            raise ValueError(
                f"{self.folder!r} is not below {HOME}, the one place where adb may run programs; set anywhere = true to insist"
            )
        return self


def _diagnose(config: AdbConfig) -> tuple[Any, ...]:
    from .adb_doctor import diagnose

    return diagnose(config)


@devices.register(
    "adb",
    DeviceCard(
        title="Android phone over adb",
        config=AdbConfig,
        argument="serial",
        note="LiteRT on the CPU by the C runner; GPU and NNAPI by Google's benchmark_model",
        diagnose=_diagnose,
    ),
)
class AdbDevice(Linked):
    """Runs jobs on a phone. `adb` and `phone` are known once it is prepared."""

    adb: Adb
    phone: Phone

    def __init__(self, name: str, config: AdbConfig) -> None:
        super().__init__(name, holds=f"adb:{config.serial}")
        self.config = config
        self.work = f"{config.folder.rstrip('/')}/run-{secrets.token_hex(4)}"
        self.made = False
        self.command: tuple[str, ...] = ()
        self.no_runner = ""
        self.by_tool: Job | None = None

    def prepare(self, say: Callable[[str], None]) -> None:
        """Finds the phone and puts the runner there. Raises UserError for one that is absent, not allowed, too old or too full."""
        self.adb = reached(self.config, self.name)
        self.phone = adb_phone.look(self.adb)
        self.cores = adb_phone.cores_for(self.phone, self.config.cores, threads=1)
        say(f"{self.name}: {self.phone}; one thread runs on {adb_phone.said_cores(self.phone, self.cores)}")
        for doubt in doubts(self.adb, self.phone):
            say(f"{self.name}: {doubt}")
        program = check_program(self.config.benchmark_model, self.phone.abi) if self.config.benchmark_model else None
        bundle = self._bundle(program is not None)
        self.made = True
        check_space(self.adb, self.config.folder, needed=(_bytes_of(bundle.folder) if bundle else 0) + SPARE_BYTES)
        folder = shlex.quote(self.config.folder)
        self.adb.shell(
            f"mkdir -p {shlex.quote(self.work)} && find {folder} -mindepth 1 -maxdepth 1 -name 'run-*' -mtime +1 -exec rm -rf {{}} +"
        )
        if bundle:
            self.adb.push(bundle.folder, f"{self.work}/runner")
            self.command = bundle.argv
        elif self.config.python:
            self._put_python()
        if program:
            self.adb.push(program, f"{self.work}/{TOOL}")
        self.adb.shell(f"chmod -R 755 {shlex.quote(self.work)}")

    def _bundle(self, has_tool: bool) -> Bundle | None:
        """The C runner, None where a Python or benchmark_model alone is used. Raises UserError when neither can be."""
        if self.config.python:
            return None
        try:
            if self.phone.abi != ABI:
                raise UserError(
                    f"{self.name}: {self.phone.title} runs {self.phone.abi or 'an unknown kind of'} programs, the C runner is for {ABI}",
                    hint="name a benchmark_model for it (benchmark_model = …), or measure in its browser: --on browser",
                )
            return arm64_bundle()
        except UserError as error:
            if not has_tool:
                raise
            self.no_runner = f"{error.what}: {error.hint}"
            return None

    def _put_python(self) -> None:
        """The packed runner, for the Python that the user named."""
        python = shlex.quote(self.config.python)
        code, said = self.adb.attempt(f"{python} -c 'print(1)'")
        if code:
            lines = said.strip().splitlines()
            raise UserError(
                f"{self.name}: {self.config.python} can't be started there: {lines[-1] if lines else f'exit code {code}'}",
                hint="adb may not start an app's own Python (Termux's): run sshd in Termux and use an ssh device instead",
            )
        with tempfile.TemporaryDirectory(prefix="trimtab-adb-") as folder:
            self.adb.push(pack(Path(folder) / RUNNER_FILE), f"{self.work}/runner/{RUNNER_FILE}")
        self.command = (self.config.python, RUNNER_FILE)

    def offers(self) -> Mapping[str, Offer]:
        """What the runner has found there, and benchmark_model where one is named."""
        found = dict(super().offers()) if self.command else {}
        if self.no_runner:
            card = runtimes.entry("litert").card
            found["litert"] = Offer(card.title, card.formats, options=card.options, missing=self.no_runner)
        if self.config.benchmark_model:
            found[BENCHMARK_MODEL] = OFFER
        return found

    def put(self, source: Path, place: str) -> str:
        """Where it lies on the phone. Raises UserError (a full phone), LinkLostError."""
        target = f"{self.work}/{place}"
        self.adb.push(source, target)
        return target

    def link(self) -> Link:
        """A runner, started anew; benchmark_model in its place while a job is its. Raises LinkLostError."""
        if self.by_tool:
            return self.tool_link(self.by_tool)
        script = f"cd {shlex.quote(f'{self.work}/runner')} && exec {shlex.join(self.command)}"
        return PhoneLink(ProcessLink(self.adb.argv("shell", script), where=self.name), self.adb, self.phone, self.cores)

    def run(self, job: Job, progress: Progress) -> JobResult:
        """The job's results. Raises UserError, LinkLostError."""
        affinity = job.affinity or adb_phone.cores_for(self.phone, self.config.cores, threads=job.threads)
        job = job.model_copy(update={"affinity": affinity})
        said = [f"{self.name}: {doubt}" for doubt in doubts(self.adb, self.phone)]
        if job.runtime == BENCHMARK_MODEL:
            return self._by_tool(job, progress, said)
        return _with(run_job(job, self, progress), said)

    def _by_tool(self, job: Job, progress: Progress, said: list[str]) -> JobResult:
        if plan_of(job.preset).by_rules:
            raise UserError(
                f"benchmark_model tells means of runs, the preset {job.preset!r} asks for single queries",
                hint="--preset standard",
            )
        if job.sustained_s:
            said.append(f"{BENCHMARK_MODEL}: no sustained run, since every sample is a process of its own that starts cold")
            job = job.model_copy(update={"sustained_s": 0.0})
        self.by_tool = job
        try:
            return _with(run_job(job, self, progress), said)
        finally:
            self.by_tool = None

    def tool_link(self, job: Job) -> Link:
        """The user's benchmark_model, asked as if it were a runner."""
        return ToolLink(
            program=f"{self.work}/{TOOL}",
            version=Path(self.config.benchmark_model),
            execute=lambda argv, timeout_s: self.adb.attempt(shlex.join(argv), timeout_s=timeout_s),
            machine=lambda: adb_phone.machine_of(self.phone, adb_phone.battery_of(self.adb)),
            snapshot=lambda: adb_phone.snapshot_of(self.phone, self.adb, job.affinity),
            cpus=self.phone.cpus,
        )

    def collect(self, place: str, target: Path) -> Path:
        """`target`, fetched from the phone. Raises UserError, LinkLostError."""
        self.adb.pull(place if place.startswith("/") else f"{self.work}/{place}", target)
        return target

    def close(self) -> None:
        """Removes the work folder; of a phone that is gone it stays, until the next profile a day later."""
        if not self.made:
            return
        try:
            folder = shlex.quote(self.config.folder)
            self.adb.attempt(f"rm -rf {shlex.quote(self.work)}; rmdir {folder} 2>/dev/null; true", timeout_s=CLOSE_S)
        except LinkLostError:
            return


def reached(config: AdbConfig, name: str) -> Adb:
    """adb for the phone of a config. Raises UserError when it is absent or can't be used, in words."""
    program = find_adb()
    serial = config.serial or os.environ.get("ANDROID_SERIAL", "")
    phone = choose(phones_of(program, timeout_s=config.timeout_s), serial)
    adb = Adb(program, phone.serial, name=name, timeout_s=config.timeout_s)
    if "shell_v2" not in adb.features():
        raise UserError(
            f"{name}: its adb has no shell_v2, so no exit codes and no clean streams",
            hint="Android 7 or newer is needed, and an adb of 2017 or newer",
        )
    return adb


def doubts(adb: Adb, phone: Phone) -> list[str]:
    """What makes figures from this phone doubtful now. Raises LinkLostError."""
    battery, found = adb_phone.battery_of(adb), []
    if phone.emulator:
        found.append("this is an emulator: its milliseconds are no phone's latency")
    if phone.saver:
        found.append("battery saver is on: phones run slower with it, switch it off")
    if battery.level is not None and battery.level < adb_phone.LOW_BATTERY:
        found.append(
            f"the battery is at {battery.level:.0f} %: many phones run slower below {adb_phone.LOW_BATTERY} %, charge it first"
        )
    return found


def check_space(adb: Adb, folder: str, *, needed: int) -> int | None:
    """The bytes that are free there, None when the phone does not tell. Raises UserError when they are fewer than `needed`."""
    place = shlex.quote(folder)
    rows = [line.split() for line in adb.shell(f"mkdir -p {place} && df -k {place} 2>/dev/null; true").splitlines()]
    free = [int(row[3]) * 1024 for row in rows if len(row) >= 6 and row[3].isdigit()]
    if not free:
        return None
    if free[-1] < needed:
        raise UserError(
            f"{adb.name}: {free[-1] / 1e6:.0f} MB are free on the phone, {needed / 1e6:.0f} MB are needed",
            hint="free space in its internal storage",
        )
    return free[-1]


def _with(result: JobResult, said: Sequence[str]) -> JobResult:
    """The result with more to say about it."""
    return result.model_copy(update={"warnings": (*said, *result.warnings)}) if said else result


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
