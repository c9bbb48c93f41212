"""One job on a device with a runner: artifacts loaded, checked against their golden outputs, then timed in the same rounds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..export.manifest import Progress, UserError
from .cooling import USUAL_S, cool_down
from .device import Item, Job, JobResult, LinkedDevice
from .golden import UNCHECKED, Verdict, verdict
from .greeting import greeted, numbers, reading, snapshot_of
from .link import Link, LinkLostError
from .measurement import AAPair, Conditions, Measurement, Reading, SkipKind, Skipped, compare
from .reading import Snapshot
from .records import OpRecord, Sustained
from .runtime import RejectedError, RuntimeFacts
from .staging import Staged, at, read_staged
from .sustained import run_long
from .timing import Outcome, Plan, Timed, measure_on, plan_of

REPEATS = 7
"""Calls on each input by itself."""
CHECK_SLOT = 1_000_000
UNTIMED = "stopped before its first whole round"
WARMED_C = 10.0
"""A rise of temperature while measuring that the reader should know of."""
COARSE = 100
"""A block lasts at least this many steps of the device's clock."""


@dataclass(frozen=True)
class Ready:
    """An artifact that may be timed: where its files lie on the device, and what loading it there showed."""

    item: Item
    staged: Staged
    verdict: Verdict
    load_ms: float
    first_ms: float
    peak: Reading
    facts: RuntimeFacts

    @property
    def cycle(self) -> int:
        """How many inferences one timed call makes."""
        return len(self.staged.feeds)


class LinkStand:
    """The slots of a runner, as the timing loop sees them."""

    batch_s = 0.5

    def __init__(self, link: Link, loads: Sequence[Mapping[str, Any]]) -> None:
        self.link, self.loads = link, loads

    def load(self, slots: Sequence[int], gaps: Sequence[Sequence[int]]) -> None:
        """Everything anew."""
        self.link.ask({"do": "drop"})
        for slot, sizes in zip(slots, gaps, strict=True):
            self.link.ask({**self.loads[slot], "slot": slot, "gaps": list(sizes)})

    def time(self, slots: Sequence[int], blocks: Sequence[int], *, warm: Sequence[int]) -> list[float]:
        """Nanoseconds a call."""
        answer = self.link.ask({"do": "time", "order": list(slots), "blocks": list(blocks), "warm": list(warm)})
        return numbers(answer, len(slots))

    def clock(self) -> int:
        """This machine's clock: the budget counts what the user waits for."""
        return time.perf_counter_ns()


def run_job(job: Job, device: LinkedDevice, progress: Progress) -> JobResult:
    """The job's results. What was finished is kept when it ends early.

    Raises UserError for settings that the device can't meet, a runtime that is missing, or, when `job.strict`, an artifact
    that the runtime rejects; LinkLostError when the device is lost before anything was.
    """
    plan = plan_of(job.preset, budget_s=job.budget_s, seed=job.seed)
    link = device.link()
    try:
        return _Work(job, device, link, progress, plan).done()
    finally:
        link.close()


class _Work:
    """One job while it runs."""

    def __init__(self, job: Job, device: LinkedDevice, link: Link, progress: Progress, plan: Plan) -> None:
        self.job, self.device, self.link, self.progress = job, device, link, progress
        self.hello = greeted(link)
        self.opened: dict[str, Any] = {}
        step = COARSE * self.hello.clock_step_ns
        self.plan = plan if plan.by_rules or step <= plan.block_ns else replace(plan, block_ns=int(step))
        self.skipped: list[Skipped] = []
        self.ready: list[Ready] = []
        self.lost = False

    def done(self) -> JobResult:
        """Everything that the job asks for."""
        try:
            self.opened = self.link.ask(open_request(self.job, self.device.cores))
            self._cool()
            for item in self.job.items:
                self._make_ready(item)
        except KeyboardInterrupt:
            return self._ended("interrupted", UNTIMED)
        except LinkLostError as error:
            return self._ended("lost", str(error))
        except RejectedError as error:  # the runtime is there, and is not fit to run
            if self.job.strict:
                raise
            return self._ended("missing package", str(error))
        return self._timed() if self.ready else JobResult(skipped=tuple(self.skipped))

    def _ended(self, kind: SkipKind, reason: str) -> JobResult:
        """An end before anything was timed: an entry for every artifact that has none yet."""
        known = {entry.label for entry in self.skipped}
        for item in self.job.items:
            if item.label not in known:
                self._skip(item, kind, reason)
        return JobResult(skipped=tuple(self.skipped), interrupted=kind in ("lost", "interrupted"), lost=kind == "lost")

    def _make_ready(self, item: Item) -> None:
        """The artifact loaded, run once and checked, or an entry that says why it is left out. Raises what `run_job` does."""
        staged = read_staged(Path(item.folder))
        try:
            loaded = self.link.ask({**load_request(staged, item.place), "slot": 0, "gaps": []})
            facts = RuntimeFacts(**loaded["facts"])
            found = checked(self.link, staged, item.place, reduced=facts.reduced_precision)
            self.link.ask({"do": "drop"})
        except RejectedError as error:
            if self.job.strict:
                raise
            self._skip(item, "rejected", str(error))
            return
        if found.ok is False and not self.job.force:
            self._skip(item, "wrong outputs", found.reason, found)
            return
        self.ready.append(
            Ready(
                item=item,
                staged=staged,
                verdict=found,
                load_ms=loaded["load_ns"] / 1e6,
                first_ms=loaded["first_ns"] / 1e6,
                peak=reading(loaded["peak_bytes"]),
                facts=facts,
            )
        )

    def _skip(self, item: Item, kind: SkipKind, reason: str, found: Verdict | None = None) -> None:
        self.skipped.append(left_out(item, kind, reason, runtime=self.job.runtime, device=self.device.name, found=found))

    def _timed(self) -> JobResult:
        """Everything that is ready, timed in the same rounds and compared to the first; then looked into, and run long."""
        job, ready = self.job, self.ready
        before = self._snapshot()
        alone: list[tuple[float, ...]] = [()] * len(ready)
        ops: list[OpRecord] = []
        sustained: list[Sustained] = []
        said: list[str] = []
        after = before
        loads = [load_request(entry.staged, entry.item.place) for entry in ready]
        stand = LinkStand(self.link, [*loads, loads[0]])
        with self.progress.meter(f"timing {job.runtime} on {self.device.name}", total=self.plan.budget_s, unit="s") as meter:
            outcome = measure_on(
                stand, [entry.item.label for entry in ready], plan=self.plan, tick=meter.advance, lost=LinkLostError
            )
        if outcome.rounds == 0:
            return (
                self._ended("lost", outcome.reason)
                if outcome.stopped_because == "lost"
                else self._ended("interrupted", UNTIMED)
            )
        if outcome.stopped_because != "lost":
            with self._losing(said):
                after = self._snapshot()
            if not outcome.partial:
                with self._losing(said):
                    alone = [self._alone(slot, entry) for slot, entry in enumerate(ready)]
                with self._losing(said):
                    ops = [self._ops(slot, entry) for slot, entry in enumerate(ready)] if job.ops else []
                if job.sustained_s:
                    sustained = [self._sustained(entry) for entry in ready]
        measurements = [
            self._measurement(entry, outcome.timed[entry.item.label], outcome, before=before, after=after, alone=own)
            for entry, own in zip(ready, alone, strict=True)
        ]
        pair = AAPair(
            runtime=job.runtime,
            device=self.device.name,
            artifact=ready[0].item.label,
            baseline_ns=measurements[0].samples_ns,
            twin_ns=_each(outcome.twin.samples_ns, ready[0].cycle),
            sittings=outcome.sittings,
        )
        return JobResult(
            measurements=tuple(measurements),
            comparisons=tuple(compare(measurements[0], other, noise_floor=pair.noise_floor) for other in measurements[1:]),
            aa=(pair,),
            ops=tuple(ops),
            sustained=tuple(sustained),
            skipped=tuple(self.skipped),
            warnings=(*self._warnings(outcome, before, after), *said),
            interrupted=outcome.partial or bool(said),
            lost=outcome.stopped_because == "lost" or self.lost,
        )

    def _cool(self) -> None:
        """Waits until the device is as cool as when its first job began, or the time for that is over."""
        job = self.job
        with self.progress.meter(f"letting {self.device.name} cool down", total=job.cool_down_s or USUAL_S, unit="s") as meter:
            cool_down(
                lambda: self._snapshot().temperature_c.value,
                to_c=job.cool_to_c,
                limit_s=job.cool_down_s,
                first=job.first,
                tick=meter.advance,
            )

    @contextmanager
    def _losing(self, said: list[str]) -> Iterator[None]:
        """Inside the block a lost device costs what the block would have found, and is noted."""
        try:
            yield
        except (LinkLostError, KeyboardInterrupt) as error:
            self.lost |= isinstance(error, LinkLostError)
            said.append(f"{self.job.runtime} on {self.device.name}: {error or 'stopped'}")

    def _snapshot(self) -> Snapshot:
        return snapshot_of(self.link)

    def _alone(self, slot: int, entry: Ready) -> tuple[float, ...]:
        """Nanoseconds of every input by itself, where there are several."""
        if entry.cycle == 1:
            return ()
        return tuple(numbers(self.link.ask({"do": "each", "slot": slot, "repeats": REPEATS}), entry.cycle))

    def _where(self, entry: Ready) -> dict[str, Any]:
        """What every record of an artifact here begins with."""
        return {
            "label": entry.item.label,
            "device": self.device.name,
            "runtime": self.job.runtime,
            "emulated": self.hello.machine.emulated,
        }

    def _ops(self, slot: int, entry: Ready) -> OpRecord:
        """The operations of one artifact; what the runtime won't tell is said."""
        file = f"{entry.item.place}/{entry.staged.file}"
        common = self._where(entry)
        try:
            told = self.link.ask({"do": "ops", "slot": slot, "file": file, "runs": self.job.ops})
        except LinkLostError:
            raise
        except UserError as error:
            return OpRecord(**common, reason=str(error))
        return OpRecord.model_validate({**common, **told})

    def _sustained(self, entry: Ready) -> Sustained:
        """One artifact without a pause for as long as was asked."""
        return run_long(
            self.link,
            load_request(entry.staged, entry.item.place),
            seconds=self.job.sustained_s,
            cycle=entry.cycle,
            told=self._where(entry),
            progress=self.progress,
        )

    def _measurement(
        self, entry: Ready, timed: Timed, outcome: Outcome, *, before: Snapshot, after: Snapshot, alone: tuple[float, ...]
    ) -> Measurement:
        artifact, found = entry.staged.artifact, entry.verdict
        return Measurement(
            label=entry.item.label,
            artifact=artifact.name,
            sha256=artifact.sha256,
            format=artifact.format,
            precision=artifact.precision,
            size_bytes=artifact.size_bytes,
            runtime=entry.facts.runtime,
            dims=entry.item.dims,
            shapes=entry.staged.shapes,
            samples_ns=_each(timed.samples_ns, entry.cycle),
            sittings=outcome.sittings,
            block=timed.block * entry.cycle,
            warmups=timed.warmups * entry.cycle,
            steady_sittings=timed.steady_sittings,
            load_ms=entry.load_ms,
            first_inference_ms=entry.first_ms,
            peak_memory_bytes=entry.peak,
            stopped_because=outcome.stopped_because,
            partial=outcome.partial,
            outputs_ok=found.ok,
            max_abs_error=found.max_abs_error,
            sqnr_db=found.sqnr_db,
            conditions=self._conditions(entry, before=before, after=after),
            inputs_ns=alone,
        )

    def _conditions(self, entry: Ready, *, before: Snapshot, after: Snapshot) -> Conditions:
        facts, machine = entry.facts, self.hello.machine
        affinity = self.opened.get("affinity")
        region = facts.timed_region
        if entry.cycle > 1:
            region = f"{region}; {entry.cycle} real inputs in turn, a sample is their mean"
        return Conditions(
            device=self.device.name,
            **vars(machine),
            affinity=tuple(affinity) if affinity else None,
            affinity_reason="" if affinity else f"{machine.os.partition(' ')[0]} has no CPU affinity",
            runtime=facts.runtime,
            runtime_version=facts.version,
            threads=facts.threads,
            provider=facts.provider,
            hints=dict(facts.hints),
            timed_region=region,
            before=before,
            after=after,
        )

    def _warnings(self, outcome: Outcome, before: Snapshot, after: Snapshot) -> list[str]:
        """What a reader of the figures should know."""
        job, where = self.job, self.job.runtime if self.device.name == "local" else f"{self.job.runtime} on {self.device.name}"
        said = [f"{entry.item.label} on {job.runtime}: {entry.verdict.reason}" for entry in self.ready if entry.verdict.reason]
        said += [
            f"{label} on {job.runtime}: the warm-up became steady in {timed.steady_sittings} of {len(outcome.sittings)} sittings only"
            for label, timed in outcome.timed.items()
            if timed.steady_sittings < len(outcome.sittings) / 2
        ]
        load, cores = before.load_average.value, self.hello.usable_cores
        if isinstance(load, float) and load > cores / 2:
            said.append(f"{where}: other work was running (load average {load:.1f} on {cores} cores)")
        if before.governor.value != after.governor.value:
            said.append(f"{where}: the governor changed from {before.governor.value} to {after.governor.value}")
        cool, hot = before.temperature_c.value, after.temperature_c.value
        if isinstance(cool, float) and isinstance(hot, float) and hot - cool > WARMED_C:
            said.append(f"{where}: it warmed up from {cool:.0f} to {hot:.0f} °C while measuring")
        if outcome.stopped_because == "budget":
            said.append(
                f"{where}: the budget of {job.budget_s:g} s ended before every figure was as precise as {job.preset!r} asks"
            )
        if outcome.stopped_because == "lost":
            said.append(f"{where}: {outcome.reason}; {len(outcome.sittings)} sittings were finished")
        return said


def open_request(job: Job, cores: tuple[int, ...] | None) -> dict[str, Any]:
    """The request that chooses the job's runtime; `cores` are the device's own CPUs, for a job that names none."""
    affinity = job.affinity or cores
    return {
        "do": "open",
        "runtime": job.runtime,
        "threads": job.threads,
        "options": job.options,
        "affinity": list(affinity) if affinity is not None else None,
    }


def load_request(staged: Staged, place: str) -> dict[str, Any]:
    """The request that loads a staged artifact which lies at `place`, less the slot and the gaps."""
    feeds = [at(place, feed) for feed in staged.feeds]
    return {"do": "load", "file": f"{place}/{staged.file}", "feeds": feeds, "inputs": staged.inputs, "outputs": staged.outputs}


def checked(link: Link, staged: Staged, place: str, *, reduced: bool) -> Verdict:
    """The verdict on an artifact that lies at `place`: its golden inputs run there, what came out judged here.

    `reduced`: the runtime computes in half precision. Raises what `Link.ask` does.
    """
    if staged.golden is None:
        return UNCHECKED
    link.ask({**load_request(staged, place), "slot": CHECK_SLOT, "gaps": [], "feeds": [at(place, staged.golden)]})
    expected = [{**row, "file": f"{place}/{row['file']}"} for row in staged.expected]
    answer = link.ask({"do": "check", "slot": CHECK_SLOT, "expect": expected})
    if answer["outputs"] is None:  # a runner that does not give its outputs says so
        return Verdict(None, reason=str(answer.get("reason")))
    shapes = {row["name"]: list(row["shape"]) for row in staged.expected}
    return verdict(answer["outputs"], staged.artifact, shapes=shapes, reduced=reduced)


def left_out(item: Item, kind: SkipKind, reason: str, *, runtime: str, device: str, found: Verdict | None = None) -> Skipped:
    """The entry of an artifact that was not measured; `found`: the verdict on its outputs, where that is why."""
    error, sqnr = (found.max_abs_error, found.sqnr_db) if found else (None, None)
    return Skipped(
        label=item.label, runtime=runtime, device=device, kind=kind, reason=reason, max_abs_error=error, sqnr_db=sqnr
    )


def _each(samples_ns: Sequence[float], cycle: int) -> tuple[float, ...]:
    """Nanoseconds per inference from nanoseconds per cycle."""
    return tuple(sample / cycle for sample in samples_ns)
