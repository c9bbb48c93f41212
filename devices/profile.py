"""A profile: artifacts measured on devices, each on every runtime that runs its format, compared to the first of each."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..export.manifest import MANIFEST, Artifact, LogProgress, Progress, UserError, did_you_mean, load_artifact
from .device import Device, Item, Job, JobResult, Offer
from .held import held
from .known import open_device
from .linked import Linked
from .measurement import ProfileResult, SkipKind, Skipped
from .records import Evaluated
from .remote import Run, remote_runner
from .runtime import completed, why_none
from .runtime import runtimes as registered
from .staging import stage
from .timing import plan_of

Say = Callable[[str], None]
Score = Callable[[Artifact, Run], dict[str, float]]
"""Takes an artifact and what runs it to the task's metrics."""


@dataclass(frozen=True)
class Evaluation:
    """The task's metrics to be taken on the device: `samples` of `data`, by `score`."""

    data: str
    samples: int
    score: Score


TOO_LATE = "stopped before this runtime's turn"


@dataclass(frozen=True)
class _Loaded:
    folder: Path
    artifact: Artifact
    label: str


@dataclass(frozen=True)
class Wishes:
    """How to measure. `cool_down_s`: how long to wait at most for a device to be as cool as at the begin, None: 60 where it tells.

    `settings` override devices.toml for all devices of a kind ({"browser": {"lan": True}}).
    """

    devices: tuple[str, ...]
    runtimes: tuple[str, ...] | None = None
    threads: int = 1
    dims: Mapping[str, int] = field(default_factory=dict)
    budget_s: float | None = None
    seed: int = 0
    affinity: tuple[int, ...] | None = None
    preset: str = "standard"
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    force: bool = False
    ops: int = 0
    sustained_s: float = 0.0
    cool_down_s: float | None = None
    evaluation: Evaluation | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        """Whether one device was asked for: what it can't do is an error then, and not an entry."""
        return len(self.devices) == 1


def profile(
    folders: Sequence[Path],
    *,
    on: str | Sequence[str] = "local",
    runtimes: Sequence[str] | None = None,
    dims: Mapping[str, int] | None = None,
    options: Mapping[str, Mapping[str, str]] | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    **wishes: Any,
) -> ProfileResult:
    """Measurements of every artifact on every device and fitting runtime (`runtimes=None`: all that are there), and comparisons.

    The other arguments are those of `Wishes`. `budget_s` is for timing, with the reloading between sittings, shared evenly by
    devices and their runtimes; None: the preset's for each. The first artifact of a runtime is its baseline. `dims` sets symbolic
    dimensions (a batch "N" is 1 unless set); `options` maps a runtime to its settings. Outputs are checked against golden.npz
    first, and an artifact that fails is reported and not timed, unless `force`.
    A KeyboardInterrupt ends it with what was measured, marked partial; so does a device that is lost. Of several devices one that
    can't be reached is an entry in `skipped`. Raises UserError for every mistake in what was asked.
    """
    names = (on,) if isinstance(on, str) else tuple(dict.fromkeys(on))
    asked = Wishes(
        devices=names,
        runtimes=None if runtimes is None else tuple(dict.fromkeys(runtimes)),
        dims=dims or {},
        options=options or {},
        **wishes,
    )
    opened = [open_device(name, asked.settings) for name in names]
    plan = plan_of(asked.preset, budget_s=asked.budget_s, seed=asked.seed)
    loaded = _load(folders, force=asked.force)
    if asked.runtimes == ():
        raise UserError(
            "an empty list of runtimes was given",
            hint="leave it out to use all that fit, or name " + ", ".join(registered.names()),
        )
    wanted = _dims(loaded, asked.dims)
    found, say = _Found(), say or logging.getLogger("trimtab").info
    for device in opened:
        if found.stopped:
            found.leave_out(loaded, "interrupted", TOO_LATE, device=device.name)
            continue
        try:
            with held(device.holds, say=say):
                _on_device(
                    device,
                    loaded,
                    wanted,
                    asked,
                    found,
                    budget_s=plan.budget_s / (len(opened) if asked.budget_s is not None else 1),
                    progress=progress or LogProgress(),
                    say=say,
                )
        except UserError as error:
            if asked.alone:
                raise
            found.leave_out(loaded, "device", _said(error), device=device.name)
    if asked.runtimes:
        _check_somewhere(asked, found)
    return _result(found, asked=asked, budget_s=plan.budget_s if asked.budget_s is not None else found.budget_s)


@dataclass
class _Found:
    """What came back so far. `unusable`: runtimes asked for, with why a device could not use them."""

    results: list[JobResult] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    stopped: bool = False
    partial: bool = False
    budget_s: float = 0.0
    used: set[str] = field(default_factory=set)
    unusable: dict[str, UserError] = field(default_factory=dict)

    def leave_out(
        self, entries: Sequence[_Loaded], kind: SkipKind, reason: str, *, device: str, runtime: str | None = None
    ) -> None:
        """An entry for each artifact that was not measured there."""
        self.skipped += [
            Skipped(label=entry.label, runtime=runtime, device=device, kind=kind, reason=reason) for entry in entries
        ]


def _on_device(
    device: Device,
    loaded: Sequence[_Loaded],
    wanted: Mapping[str, dict[str, int] | None],
    asked: Wishes,
    found: _Found,
    *,
    budget_s: float,
    progress: Progress,
    say: Say,
) -> None:
    """All jobs of one device, their results added to `found`. Raises UserError."""
    try:
        device.prepare(say)
        offers = device.offers()
        chosen = _check_runtimes(asked, offers, found, device=device.name)
        groups = _groups(loaded, chosen, wanted, found, offers=offers, device=device.name)
        share = budget_s / len(groups) if asked.budget_s is not None and groups else budget_s
        found.budget_s += share * max(1, len(groups))
        with tempfile.TemporaryDirectory(prefix="trimtab-job-") as work:
            items = _put(device, loaded, wanted, groups, asked, Path(work))
            _run_all(device, groups, items, asked, found, share_s=share, progress=progress)
    finally:
        device.close()


def _run_all(
    device: Device,
    groups: Mapping[str, list[_Loaded]],
    items: Mapping[str, Item],
    asked: Wishes,
    found: _Found,
    *,
    share_s: float,
    progress: Progress,
) -> None:
    """A job for every runtime, its results added to `found`; once one was cut short, entries for what was not reached."""
    cool_c: float | None = None
    late: tuple[SkipKind, str] | None = None
    for index, (name, members) in enumerate(groups.items()):
        if late:
            found.leave_out(members, *late, device=device.name, runtime=name)
            continue
        job = Job(
            runtime=name,
            items=tuple(items[entry.label] for entry in members),
            threads=asked.threads,
            budget_s=share_s,
            preset=asked.preset,
            seed=asked.seed,
            affinity=asked.affinity,
            options=dict(asked.options.get(name, {})),
            force=asked.force,
            strict=asked.runtimes is not None and asked.alone,
            ops=asked.ops,
            sustained_s=asked.sustained_s,
            cool_down_s=asked.cool_down_s,
            cool_to_c=cool_c,
            first=index == 0,
        )
        result = device.run(job, progress)
        found.results.append(result)
        if asked.evaluation and not result.interrupted:
            found.results.append(_evaluated(device, job, result, members, asked.evaluation, progress))
        if result.lost:
            late = "lost", "the device was lost before this runtime's turn"
        elif result.interrupted:
            late, found.stopped = ("interrupted", TOO_LATE), True
        found.partial |= result.interrupted
        if cool_c is None and result.measurements:
            began = result.measurements[0].conditions.before.temperature_c.value
            cool_c = began if isinstance(began, float) else None


def _evaluated(
    device: Device, job: Job, result: JobResult, members: Sequence[_Loaded], evaluation: Evaluation, progress: Progress
) -> JobResult:
    """The task's metrics of every artifact that was measured, through the same runtime on the device."""
    if not isinstance(device, Linked):
        return JobResult(
            warnings=(f"{job.runtime} on {device.name}: its outputs can't be had, so nothing was evaluated there",)
        )
    found, said = [], []
    known = {measured.label for measured in result.measurements} | {count.label for count in result.counts}
    emulated = any(m.conditions.emulated for m in result.measurements) or bool(result.counts)
    for item, entry in zip(job.items, members, strict=True):
        if item.label not in known:
            continue
        begin = time.monotonic()
        with progress.meter(f"evaluating {item.label} on {device.name}", total=1, unit="artifact") as meter:
            try:
                with remote_runner(device, job, item) as run:
                    metrics = evaluation.score(entry.artifact, run)
            except (UserError, KeyboardInterrupt) as error:
                said.append(f"{item.label} on {job.runtime}, {device.name}: not evaluated: {error or 'stopped'}")
                continue
            meter.advance(1)
        found.append(
            Evaluated(
                label=item.label,
                device=device.name,
                runtime=job.runtime,
                emulated=emulated,
                data=evaluation.data,
                samples=evaluation.samples,
                metrics=metrics,
                seconds=time.monotonic() - begin,
            )
        )
    return JobResult(evaluated=tuple(found), warnings=tuple(said))


def _put(
    device: Device,
    loaded: Sequence[_Loaded],
    wanted: Mapping[str, dict[str, int] | None],
    groups: Mapping[str, list[_Loaded]],
    asked: Wishes,
    work: Path,
) -> dict[str, Item]:
    """Every artifact that some runtime will run, staged and carried to the device, by label."""
    needed = {entry.label for members in groups.values() for entry in members}
    items = {}
    for index, entry in enumerate(entry for entry in loaded if entry.label in needed):
        dims, folder = wanted[entry.label] or {}, work / f"a{index}"
        stage(entry.folder, entry.artifact, folder, dims=dims, seed=asked.seed)
        items[entry.label] = Item(folder=str(folder), place=device.put(folder, folder.name), label=entry.label, dims=dims)
    return items


def _result(found: _Found, *, asked: Wishes, budget_s: float) -> ProfileResult:
    results = found.results
    kinds = ("measurements", "comparisons", "aa", "ops", "sustained", "evaluated", "counts", "warnings")
    joined: dict[str, Any] = {kind: [entry for result in results for entry in getattr(result, kind)] for kind in kinds}
    return ProfileResult(
        trimtab=__version__,
        devices=asked.devices,
        preset=asked.preset,
        seed=asked.seed,
        budget_s=budget_s,
        skipped=(*found.skipped, *(entry for result in results for entry in result.skipped)),
        partial=found.partial or found.stopped,
        **joined,
    )


def _said(error: UserError) -> str:
    return f"{error.what} ({error.hint})" if error.hint else error.what


def _load(folders: Sequence[Path], *, force: bool) -> list[_Loaded]:
    """Every artifact with a label of its own: its name, with precision and format where the name alone is not unique."""
    if not folders:
        raise UserError("no artifact was given", hint="name one or more folders that `trimtab export` wrote")
    homes = [folder.parent if folder.name == MANIFEST else folder for folder in folders]
    artifacts = [load_artifact(folder) for folder in homes]
    for home, artifact in zip(homes, artifacts, strict=True):
        if not artifact.parity.ok and not force:
            parity = artifact.parity
            why = parity.reason or f"{parity.sqnr_db:.1f} dB where {parity.gate_db:.1f} dB are asked"
            raise UserError(
                f"{home} failed its parity check: {why}",
                hint="its speed means nothing while its outputs are wrong; export again, or measure it anyway with --force",
                exit_code=1,
            )
    names = [artifact.name for artifact in artifacts]
    if len(set(names)) < len(names):
        names = [f"{artifact.name} {artifact.format} {artifact.precision}" for artifact in artifacts]
    often, seen = Counter(names), Counter[str]()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(f"{name} #{seen[name]}" if often[name] > 1 else name)
    return [_Loaded(*entry) for entry in zip(homes, artifacts, labels, strict=True)]


def _check_runtimes(asked: Wishes, offers: Mapping[str, Offer], found: _Found, *, device: str) -> list[str] | None:
    """The runtimes asked for that the device has, None for all. Raises UserError for an option or, of the only device, a runtime it lacks."""
    for name, settings in asked.options.items():
        if name in offers:
            completed(offers[name].title, offers[name].options, settings)
    if asked.runtimes is None:
        return None
    usable = []
    for name in asked.runtimes:
        error = None
        if name not in offers:
            here = "" if asked.alone and device == "local" else f" on {device}"
            if name in registered.names() and not registered.entry(name).card.at_home:
                error = UserError(
                    f"{name}{here or ' here'}: {' '.join(registered.entry(name).card.missing())} is needed",
                    hint=did_you_mean("", offers),
                )
            else:
                error = UserError(f"unknown runtime {name!r}{here}", hint=did_you_mean(name, offers))
        elif offers[name].missing:
            what, _, install = offers[name].missing.rpartition(": ")
            error = UserError(what or offers[name].missing, hint=install)
        if error and asked.alone:
            raise error
        if error:
            found.unusable[name] = error
        else:
            found.used.add(name)
            usable.append(name)
    return usable


def _check_somewhere(asked: Wishes, found: _Found) -> None:
    """None, when every runtime asked for was there on some device. Raises UserError."""
    for name in asked.runtimes or ():
        if name not in found.used and name in found.unusable:
            raise found.unusable[name]


def _dims(loaded: list[_Loaded], dims: Mapping[str, int]) -> dict[str, dict[str, int] | None]:
    """Per label the dimensions to use, or None for an artifact that is fixed where `dims` asks for something. Raises UserError."""
    known = {symbol for entry in loaded for symbol in entry.artifact.contract.symbols}
    for symbol, size in dims.items():
        if symbol not in known:
            hint = did_you_mean(symbol, known) if known else "every artifact here has fixed shapes; leave the dimensions out"
            raise UserError(f"no artifact has a symbolic dimension {symbol!r}", hint=hint)
        if size < 1:
            raise UserError(f"dimension {symbol}={size} must be at least 1", hint="give a positive size")
    found: dict[str, dict[str, int] | None] = {}
    for entry in loaded:
        symbols = entry.artifact.contract.symbols
        unset = [symbol for symbol in symbols if symbol not in dims and symbol != "N"]
        if unset:
            example = " ".join(f"--dim {symbol}=224" for symbol in unset)
            raise UserError(f"{entry.label} has free dimensions {', '.join(unset)}", hint=f"set them, such as {example}")
        fixed = [symbol for symbol, size in dims.items() if symbol not in symbols and not (symbol == "N" and size == 1)]
        found[entry.label] = None if fixed else {symbol: dims.get(symbol, 1) for symbol in symbols}
    return found


def _groups(
    loaded: Sequence[_Loaded],
    chosen: list[str] | None,
    dims: Mapping[str, dict[str, int] | None],
    found: _Found,
    *,
    offers: Mapping[str, Offer],
    device: str,
) -> dict[str, list[_Loaded]]:
    """Runtime → its artifacts, in the order given; what can't be measured is left out with its reason."""
    groups: dict[str, list[_Loaded]] = {}

    def skip(entry: _Loaded, kind: SkipKind, reason: str, runtime: str | None = None) -> None:
        found.leave_out([entry], kind, reason, device=device, runtime=runtime)

    for entry in loaded:
        format_name = entry.artifact.format
        able = [name for name, offer in offers.items() if format_name in offer.formats]
        names = able if chosen is None else [name for name in chosen if name in able]
        if not able:
            skip(entry, "no runtime", why_none(format_name) if device == "local" else _none_there(format_name, offers, device))
        elif not names:
            skip(entry, "no runtime", f"{', '.join(chosen or [])} does not run {format_name!r} files; {', '.join(able)} would")
        elif dims[entry.label] is None:
            reason = f"its shapes are fixed ({_shapes(entry.artifact)}), so the dimensions asked for can't be set"
            skip(entry, "dims", reason)
        else:
            for name in names:
                if offers[name].missing:
                    skip(entry, "missing package", offers[name].missing, name)
                else:
                    groups.setdefault(name, []).append(entry)
    return groups


def _none_there(format_name: str, offers: Mapping[str, Offer], device: str) -> str:
    formats = sorted({name for offer in offers.values() for name in offer.formats})
    return f"nothing on {device} runs {format_name!r} files; it runs " + (", ".join(formats) or "none")


def _shapes(artifact: Artifact) -> str:
    return ", ".join(f"{spec.name} {'×'.join(map(str, spec.shape))}" for spec in artifact.contract.inputs)
