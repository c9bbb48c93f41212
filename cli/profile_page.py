"""A page from profiles alone: one self-contained HTML file made from one or more `trimtab profile -o` files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .devices.measurement import ProfileResult
from .models import files
from .models.errors import UserError
from .report import page
from .report_latency import profile_view

_LISTS = ("measurements", "comparisons", "aa", "ops", "sustained", "evaluated", "counts", "skipped", "warnings")
_LABELS = ("label", "a", "b")


@dataclass(frozen=True)
class Source:
    """One of the files that a page is made from."""

    name: str
    profile: ProfileResult


def read_profiles(paths: Sequence[Path]) -> list[Source]:
    """The profiles in `paths`, each named by its file; by its folder too where names repeat. Raises UserError."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [Source(name, ProfileResult.read_json(path)) for name, path in zip(names, paths, strict=True)]


def write_profile_page(results: Sequence[ProfileResult], out: Path, *, names: Sequence[str] | None = None) -> Path:
    """`out`, holding the page of all `results` (whole or not at all). `names` are their files' names, for what is in several."""
    return files.write_text(out, render_profiles(results, names=names))


def render_profiles(results: Sequence[ProfileResult], *, names: Sequence[str] | None = None) -> str:
    """The HTML page. Equal profiles give equal pages. Raises UserError for none, or for names that repeat."""
    sources = _sources(results, names)
    merged = merge(results, names=names)
    labels = list(dict.fromkeys(m.label for m in merged.measurements))
    presets = ", ".join(dict.fromkeys(source.profile.preset for source in sources))
    seeds = ", ".join(dict.fromkeys(str(source.profile.seed) for source in sources))
    latency = profile_view(
        merged,
        model_of=lambda measurement: measurement.label,
        order=labels,
        host={},
        how=f"preset {presets}, seed {seeds}",
    )
    known = {*labels, *(c.label for c in merged.counts), *(s.label for s in merged.skipped)}
    return page("profile.html.j2", latency=latency, sources=sources, title=_title(len(known), merged.devices))


def merge(results: Sequence[ProfileResult], *, names: Sequence[str] | None = None) -> ProfileResult:
    """All `results` as one, devices in the order of their first mention. Raises UserError for none, or for names that repeat.

    An artifact that two of them measured on the same device and runtime, or whose files differ, stays apart: its label then ends in
    the name of the file that it is from. Preset, seed and budget are the first one's.
    """
    sources = _sources(results, names)
    apart = _apart(sources)
    parts = [_relabelled(source, apart) for source in sources] if len(sources) > 1 else [sources[0].profile]
    told: dict[str, Any] = {name: tuple(entry for part in parts for entry in getattr(part, name)) for name in _LISTS}
    return results[0].model_copy(
        update={
            **told,
            "devices": tuple(dict.fromkeys(device for part in parts for device in part.devices)),
            "partial": any(part.partial for part in parts),
        }
    )


def _sources(results: Sequence[ProfileResult], names: Sequence[str] | None) -> list[Source]:
    if not results:
        raise UserError("no profile was given", hint="name one or more files that `trimtab profile -o` wrote")
    chosen = list(names) if names is not None else [f"profile {i + 1}" for i in range(len(results))]
    if len(set(chosen)) < len(results):
        raise UserError(f"profiles need names of their own, not {', '.join(chosen)}", hint="give every file once")
    return [Source(name, result) for name, result in zip(chosen, results, strict=True)]


def _apart(sources: Sequence[Source]) -> set[str]:
    """The labels that mean different things in different files, or the same thing measured twice at one place."""
    files_of: dict[str, dict[str, set[str]]] = {}
    seen: dict[tuple[str, str, str], set[str]] = {}
    for source in sources:
        profile = source.profile
        entries = [(m.label, m.conditions.device, m.runtime, m.sha256) for m in profile.measurements]
        entries += [(c.label, c.device, c.runtime, c.sha256) for c in profile.counts]
        for label, _, _, digest in entries:
            files_of.setdefault(label, {}).setdefault(digest, set()).add(source.name)
        several: Sequence[Any] = (*profile.ops, *profile.sustained, *profile.evaluated, *profile.skipped)
        places = {(label, device, runtime) for label, device, runtime, _ in entries}
        for place in places | {(e.label, e.device, e.runtime) for e in several if e.device and e.runtime}:
            seen.setdefault(place, set()).add(source.name)
    twice = {label for (label, _, _), where in seen.items() if len(where) > 1}
    return twice | {label for label, digests in files_of.items() if len(digests) > 1}


def _relabelled(source: Source, apart: set[str]) -> ProfileResult:
    """The profile with the file's name after every label in `apart`, and before every warning."""

    def renamed(entry: Any) -> Any:
        if isinstance(entry, str):
            return f"{source.name}: {entry}"
        found = {name: getattr(entry, name) for name in _LABELS if hasattr(entry, name)}
        changes = {name: f"{text} ({source.name})" for name, text in found.items() if text in apart}
        return entry.model_copy(update=changes) if changes else entry

    profile = source.profile
    labels = {m.artifact: m.label for m in profile.measurements}
    pairs = [
        pair.model_copy(update={"artifact": f"{pair.artifact} ({source.name})"})
        if {pair.artifact, labels.get(pair.artifact)} & apart
        else pair
        for pair in profile.aa
    ]
    told = {name: tuple(renamed(entry) for entry in getattr(profile, name)) for name in _LISTS if name != "aa"}
    return profile.model_copy(update={**told, "aa": tuple(pairs)})


def _title(artifacts: int, devices: Sequence[str]) -> str:
    one = devices[0] if len(devices) == 1 else f"{len(devices)} devices"
    return f"{artifacts} artifact{'s' if artifacts != 1 else ''} on {one}"
