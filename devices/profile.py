"""A profile: artifacts measured on a device, each on every runtime that runs its format, compared to the first of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..export.manifest import MANIFEST, Artifact, LogProgress, Progress, UserError, did_you_mean, load_artifact
from .device import Device, Item, Job, JobResult, devices
from .measurement import ProfileResult, Skipped
from .runtime import fitting, require, runtimes, why_none
from .timing import plan_of


@dataclass(frozen=True)
class _Loaded:
    folder: Path
    artifact: Artifact
    label: str


def profile(
    folders: Sequence[Path],
    *,
    on: str = "local",
    runtimes: Sequence[str] | None = None,
    threads: int = 1,
    dims: Mapping[str, int] | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    affinity: tuple[int, ...] | None = None,
    preset: str = "standard",
    options: Mapping[str, Mapping[str, str]] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ProfileResult:
    """Measurements of every artifact on every fitting runtime (`runtimes=None`: all that are installed), and comparisons.

    `budget_s` is for timing, with the reloading between sittings, shared evenly by the runtimes; None: the preset's for each.
    The first artifact of a runtime is its baseline. `dims` sets symbolic dimensions (a batch "N" is 1 unless set); `options`
    maps a runtime to its settings. Outputs are checked against golden.npz first, and an artifact that fails is reported and
    not timed, unless `force`.
    A KeyboardInterrupt ends it with what was measured, marked partial. Raises UserError for every mistake in what was asked.
    """
    device = devices.get(on)()
    plan = plan_of(preset, budget_s=budget_s, seed=seed)
    loaded = _load(folders, force=force)
    chosen = _check_runtimes(runtimes, options or {})
    wanted = _dims(loaded, dims or {})
    skipped: list[Skipped] = []
    groups = _groups(loaded, chosen, wanted, skipped)
    share = plan.budget_s / len(groups) if budget_s is not None and groups else plan.budget_s
    results: list[JobResult] = []
    stopped = False
    device.prepare()
    try:
        places = {entry.label: device.put(entry.folder) for entry in loaded}
        for name, members in groups.items():
            if stopped:
                skipped += [_late(entry.label, name) for entry in members]
                continue
            job = Job(
                runtime=name,
                items=tuple(Item(place=places[e.label], label=e.label, dims=wanted[e.label] or {}) for e in members),
                threads=threads,
                budget_s=share,
                preset=preset,
                seed=seed,
                affinity=affinity,
                options=dict((options or {}).get(name, {})),
                force=force,
                strict=chosen is not None,
            )
            results.append(device.run(job, progress or LogProgress()))
            stopped = results[-1].interrupted
    finally:
        device.close()
    return _result(
        results, skipped, device=device, preset=preset, seed=seed, budget_s=share * max(1, len(groups)), partial=stopped
    )


def _result(
    results: list[JobResult], skipped: list[Skipped], *, device: Device, preset: str, seed: int, budget_s: float, partial: bool
) -> ProfileResult:
    return ProfileResult(
        trimtab=__version__,
        device=device.name,
        preset=preset,
        seed=seed,
        budget_s=budget_s,
        measurements=tuple(entry for result in results for entry in result.measurements),
        comparisons=tuple(entry for result in results for entry in result.comparisons),
        aa=tuple(entry for result in results for entry in result.aa),
        skipped=(*skipped, *(entry for result in results for entry in result.skipped)),
        warnings=tuple(entry for result in results for entry in result.warnings),
        partial=partial,
    )


def _late(label: str, runtime: str) -> Skipped:
    return Skipped(label=label, runtime=runtime, kind="interrupted", reason="stopped before this runtime's turn")


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


def _check_runtimes(asked: Sequence[str] | None, options: Mapping[str, Mapping[str, str]]) -> list[str] | None:
    """The runtimes asked for, each once and installed, with their options checked. Raises UserError."""
    for name, settings in options.items():
        runtimes.entry(name).card.complete(settings)
    if asked is None:
        return None
    if not asked:
        raise UserError(
            "an empty list of runtimes was given",
            hint="leave it out to use all that fit, or name " + ", ".join(runtimes.names()),
        )
    for name in asked:
        require(name)
    return list(dict.fromkeys(asked))


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
            example = " ".join(f"{symbol}=224" for symbol in unset)
            raise UserError(f"{entry.label} has free dimensions {', '.join(unset)}", hint=f"set them, e.g. {example}")
        fixed = [symbol for symbol, size in dims.items() if symbol not in symbols and not (symbol == "N" and size == 1)]
        found[entry.label] = None if fixed else {symbol: dims.get(symbol, 1) for symbol in symbols}
    return found


def _groups(
    loaded: list[_Loaded], chosen: list[str] | None, dims: Mapping[str, dict[str, int] | None], skipped: list[Skipped]
) -> dict[str, list[_Loaded]]:
    """Runtime → its artifacts, in the order given; what can't be measured goes to `skipped` with its reason."""
    groups: dict[str, list[_Loaded]] = {}
    for entry in loaded:
        format_name = entry.artifact.format
        able = fitting(format_name)
        names = able if chosen is None else [name for name in chosen if name in able]
        if not able:
            skipped.append(Skipped(label=entry.label, runtime=None, kind="no runtime", reason=why_none(format_name)))
        elif not names:
            reason = f"{', '.join(chosen or [])} does not run {format_name!r} files; {', '.join(able)} would"
            skipped.append(Skipped(label=entry.label, runtime=None, kind="no runtime", reason=reason))
        elif dims[entry.label] is None:
            reason = f"its shapes are fixed ({_shapes(entry.artifact)}), so the dimensions asked for can't be set"
            skipped.append(Skipped(label=entry.label, runtime=None, kind="dims", reason=reason))
        else:
            for name in names:
                card = runtimes.entry(name).card
                if gone := card.missing():
                    reason = f"{card.title} needs {', '.join(gone)}, not installed: {card.install}"
                    skipped.append(Skipped(label=entry.label, runtime=name, kind="missing package", reason=reason))
                else:
                    groups.setdefault(name, []).append(entry)
    return groups


def _shapes(artifact: Artifact) -> str:
    return ", ".join(f"{spec.name} {'×'.join(map(str, spec.shape))}" for spec in artifact.contract.inputs)
