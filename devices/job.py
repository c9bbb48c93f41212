"""One job: artifacts run by one runtime, checked against their golden outputs, then timed in the same rounds."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..export.manifest import SAMPLES, Artifact, Progress, UserError, load_artifact
from .conditions import conditions, pinned, snapshot, usable_cores
from .device import Item, Job, JobResult
from .golden import Verdict, verify
from .measurement import AAPair, Measurement, Reading, Skipped, Snapshot, compare
from .memory import peak_memory
from .runtime import RejectedError, Runtime, RuntimeFacts, Session, require, runtimes
from .timing import Call, Maker, Outcome, Plan, Timed, collector_off, measure, plan_of

REPEATS = 7
"""Calls on each input by itself."""


@dataclass(frozen=True)
class Ready:
    """An artifact that may be timed. What `make` makes runs `cycle` inferences, the first of them on `inputs`; `alone` times each."""

    item: Item
    artifact: Artifact
    inputs: dict[str, np.ndarray]
    cycle: int
    make: Maker
    alone: Callable[[], tuple[float, ...]]
    verdict: Verdict
    load_ms: float
    first_ms: float
    peak: Reading
    facts: RuntimeFacts


def run_job(job: Job, *, device: str, progress: Progress) -> JobResult:
    """The job's results on this machine. A KeyboardInterrupt keeps what was finished and marks it.

    Raises UserError for settings this machine can't meet, a runtime that is missing, or, when `job.strict`, an artifact
    that the runtime rejects.
    """
    plan = plan_of(job.preset, budget_s=job.budget_s, seed=job.seed)
    runtime = require(job.runtime)
    options = runtimes.entry(job.runtime).card.complete(job.options)
    with pinned(job.affinity):
        check_threads(job.threads)
        runtime.version()  # imports the package, so that no load time contains it
        ready: list[Ready] = []
        skipped: list[Skipped] = []
        try:
            for item in job.items:
                try:
                    ready.append(_make_ready(item, job, runtime=runtime, options=options))
                except WrongOutputsError as wrong:
                    skipped.append(wrong.entry)
                except RejectedError as error:
                    if job.strict:
                        raise
                    skipped.append(Skipped(label=item.label, runtime=job.runtime, kind="rejected", reason=str(error)))
        except KeyboardInterrupt:
            return JobResult(skipped=(*skipped, *_interrupted(job, done=skipped)), interrupted=True)
        if not ready:
            return JobResult(skipped=tuple(skipped))
        return _timed(job, ready, plan=plan, device=device, progress=progress, skipped=skipped)


def check_threads(threads: int) -> None:
    """None, when this many threads have a core each. Raises UserError."""
    cores = usable_cores()
    if not 1 <= threads <= cores:
        raise UserError(
            f"threads={threads} is outside 1…{cores}, the cores that may be used here",
            hint="more threads than cores wait for each other and the figures mean nothing",
        )


class WrongOutputsError(Exception):
    """An artifact whose outputs are not what they were when it was exported."""

    def __init__(self, entry: Skipped) -> None:
        self.entry = entry


def _make_ready(item: Item, job: Job, *, runtime: Runtime, options: dict[str, str]) -> Ready:
    """The artifact loaded, run once and checked, beside a maker of fresh bound calls. Raises RejectedError, UserError, WrongOutputsError."""
    folder = Path(item.place)
    artifact = load_artifact(folder)
    cycle = cycle_of(folder, artifact, dims=item.dims, seed=job.seed)
    inputs = cycle[0]
    shapes = {name: array.shape for name, array in inputs.items()}

    def load() -> Session:
        path = artifact.path(folder)
        return runtime.load(path, artifact.contract, shapes=shapes, threads=job.threads, options=options)

    with collector_off(), peak_memory() as peak:
        start = time.perf_counter_ns()
        session = load()
        loaded = time.perf_counter_ns()
        session.run(inputs)
        first = time.perf_counter_ns()
    facts = session.describe()
    verdict = verify(session, artifact, folder, reduced_precision=facts.reduced_precision)
    if verdict.ok is False and not job.force:
        raise WrongOutputsError(
            Skipped(
                label=item.label,
                runtime=job.runtime,
                kind="wrong outputs",
                reason=verdict.reason,
                max_abs_error=verdict.max_abs_error,
                sqnr_db=verdict.sqnr_db,
            )
        )
    return Ready(
        item=item,
        artifact=artifact,
        inputs=inputs,
        cycle=len(cycle),
        make=lambda: _bound(load(), cycle),
        alone=lambda: _alone(load(), cycle) if len(cycle) > 1 else (),
        verdict=verdict,
        load_ms=(loaded - start) / 1e6,
        first_ms=(first - loaded) / 1e6,
        peak=peak.reading,
        facts=facts,
    )


def cycle_of(folder: Path, artifact: Artifact, *, dims: Mapping[str, int], seed: int) -> list[dict[str, np.ndarray]]:
    """The inputs to time an artifact on, in turn: the real ones that it brings (samples.npz), else one that is random.

    Inputs with a default have it. What a network that adapts to its input costs is the mean over many, not any single one's time.
    Raises UserError when the file of samples is damaged.
    """
    contract, path = artifact.contract, folder / SAMPLES
    usual = contract.random_inputs(dims, seed=seed) | contract.defaults()
    if not path.exists():
        return [usual]
    spec = contract.inputs[0]
    try:
        with np.load(path, allow_pickle=False) as stored:
            samples = stored["inputs"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}", hint="export again") from None
    if not len(samples) or samples.shape[1:] != spec.concrete(dims)[1:] or samples.dtype != spec.dtype:
        raise UserError(
            f"{path} holds {samples.dtype} {samples.shape}, input {spec.name!r} is {spec.dtype} {spec.concrete(dims)}",
            hint="export again",
        )
    return [{**usual, spec.name: np.ascontiguousarray(samples[k : k + 1])} for k in range(len(samples))]


def _bound(session: Session, cycle: list[dict[str, np.ndarray]]) -> Call:
    """A call that runs copies of the inputs, in turn."""
    copies = [{name: array.copy() for name, array in inputs.items()} for inputs in cycle]
    return session.bind(copies[0]) if len(copies) == 1 else session.cycle(copies)


def _alone(session: Session, cycle: Sequence[dict[str, np.ndarray]]) -> tuple[float, ...]:
    """Nanoseconds of every input by itself, the median of `REPEATS` calls after two that don't count."""
    found = []
    with collector_off():
        for inputs in cycle:
            call = session.cycle([inputs])
            call()
            call()
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter_ns()
                call()
                times.append(time.perf_counter_ns() - start)
            found.append(float(np.median(times)))
    return tuple(found)


def _timed(
    job: Job,
    ready: list[Ready],
    *,
    plan: Plan,
    device: str,
    progress: Progress,
    skipped: list[Skipped],
) -> JobResult:
    """Everything that is ready, timed in the same rounds and compared to the first."""
    before = snapshot()
    with progress.meter(f"timing on {job.runtime}", total=plan.budget_s, unit="s") as meter:
        outcome = measure({entry.item.label: entry.make for entry in ready}, plan=plan, tick=meter.advance)
    after = snapshot()
    if outcome.rounds == 0:
        return JobResult(skipped=(*skipped, *_interrupted(job, done=skipped)), interrupted=True)
    measurements = [
        _measurement(entry, outcome.timed[entry.item.label], outcome, device=device, before=before, after=after)
        for entry in ready
    ]
    pair = AAPair(
        runtime=job.runtime,
        artifact=ready[0].item.label,
        baseline_ns=measurements[0].samples_ns,
        twin_ns=_each(outcome.twin.samples_ns, ready[0].cycle),
        sittings=outcome.sittings,
    )
    return JobResult(
        measurements=tuple(measurements),
        comparisons=tuple(compare(measurements[0], other, noise_floor=pair.noise_floor) for other in measurements[1:]),
        aa=(pair,),
        skipped=tuple(skipped),
        warnings=tuple(_warnings(job, ready, outcome, before)),
        interrupted=outcome.partial,
    )


def _each(samples_ns: Sequence[float], cycle: int) -> tuple[float, ...]:
    """Nanoseconds per inference from nanoseconds per cycle."""
    return tuple(sample / cycle for sample in samples_ns)


def _measurement(
    entry: Ready, timed: Timed, outcome: Outcome, *, device: str, before: Snapshot, after: Snapshot
) -> Measurement:
    artifact, verdict = entry.artifact, entry.verdict
    return Measurement(
        label=entry.item.label,
        artifact=artifact.name,
        sha256=artifact.sha256,
        format=artifact.format,
        precision=artifact.precision,
        size_bytes=artifact.size_bytes,
        runtime=entry.facts.runtime,
        dims=entry.item.dims,
        shapes={name: array.shape for name, array in entry.inputs.items()},
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
        outputs_ok=verdict.ok,
        max_abs_error=verdict.max_abs_error,
        sqnr_db=verdict.sqnr_db,
        conditions=conditions(device, _told(entry), before=before, after=after),
        inputs_ns=() if outcome.partial else entry.alone(),
    )


def _told(entry: Ready) -> RuntimeFacts:
    """The session's facts; where inputs take turns, they say so."""
    if entry.cycle == 1:
        return entry.facts
    region = f"{entry.facts.timed_region}; {entry.cycle} real inputs in turn, a sample is their mean"
    return replace(entry.facts, timed_region=region)


def _interrupted(job: Job, *, done: list[Skipped]) -> list[Skipped]:
    """An entry for every artifact that was not reached."""
    known = {entry.label for entry in done}
    return [
        Skipped(label=item.label, runtime=job.runtime, kind="interrupted", reason="stopped before its first whole round")
        for item in job.items
        if item.label not in known
    ]


def _warnings(job: Job, ready: list[Ready], outcome: Outcome, before: Snapshot) -> list[str]:
    """What a reader of the figures should know."""
    said = [f"{entry.item.label} on {job.runtime}: {entry.verdict.reason}" for entry in ready if entry.verdict.reason]
    said += [
        f"{label} on {job.runtime}: the warm-up became steady in {timed.steady_sittings} of {len(outcome.sittings)} sittings only"
        for label, timed in outcome.timed.items()
        if timed.steady_sittings < len(outcome.sittings) / 2
    ]
    load = before.load_average.value
    if isinstance(load, float) and load > usable_cores() / 2:
        said.append(f"{job.runtime}: other work was running (load average {load:.1f} on {usable_cores()} cores)")
    if outcome.stopped_because == "budget":
        said.append(
            f"{job.runtime}: the budget of {job.budget_s:g} s ended before every figure was as precise as {job.preset!r} asks"
        )
    return said
