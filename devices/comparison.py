"""Two profiles of different times, compared: did an artifact become slower on the same device and runtime?

Within one profile artifacts are timed in interleaved rounds, and rounds pair up. Nothing pairs two profiles, so sittings are
compared with sittings: see `shift.unpaired_ratio`. What a whole profile suffered from, a warm room or a busy neighbour, stays in
the ratio: A/A pairs show the noise within a profile, not that between two days.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from ..export.manifest import UserError
from .differences import count_differences, latency_differences
from .intervals import sitting_medians
from .measurement import Measurement, ProfileResult, is_significant
from .records import Frozen, InstructionCount
from .shift import unpaired_ratio

Entry = TypeVar("Entry", Measurement, InstructionCount)
Kind = Literal["latency", "instructions"]


class Change(Frozen):
    """One artifact in both profiles. `ratio` is new / old: above 1 the new one is slower, or takes more instructions.

    `old` and `new` are median latencies in ms, or instructions per inference. `low` and `high` are the ratio's 95 % interval,
    None for too few sittings; `noise_floor` is the larger of the two profiles'. `significant`: of a latency, that the interval
    excludes 1 *and* the ratio lies beyond both noise floors; of a count, that no count of one side is among the other's. `reason`
    says why nothing can be proven. `differences`: conditions that differ, compared all the same because it was forced.
    """

    label: str
    format: str
    precision: str
    device: str
    runtime: str
    kind: Kind
    emulated: bool
    old: float
    new: float
    ratio: float
    low: float | None = None
    high: float | None = None
    noise_floor: float | None = None
    significant: bool
    same_file: bool
    reason: str = ""
    differences: tuple[str, ...] = ()

    def exceeds(self, slowdown: float) -> bool:
        """Whether it is proven slower, and by more than the fraction `slowdown` (0.05: 5 %)."""
        return self.significant and self.ratio > 1 + slowdown


class Missing(Frozen):
    """An artifact that one of the profiles has measured and the other, `missing_in`, has not, with the reason that it gives."""

    label: str
    device: str
    runtime: str
    kind: Kind
    missing_in: Literal["old", "new"]
    reason: str


def compare_profiles(old: ProfileResult, new: ProfileResult, *, force: bool = False) -> tuple[Change, ...]:
    """Every artifact that both profiles have on the same device and runtime: same label, format and precision, in the old order.

    Raises UserError when they have none in common, or when conditions differ, unless `force`. Where each profile has a single
    device and the two have different names, they are compared as if they were one, and the name is a difference.
    """
    across = _across(old, new)
    timed = _pairs(old.measurements, new.measurements, across=across)
    counted = _pairs(old.counts, new.counts, across=across)
    if not timed and not counted:
        raise UserError(
            "the two profiles have no artifact in common on the same device and runtime",
            hint=f"the old one holds {_contents(old)}; the new one {_contents(new)}",
        )
    presets = [] if old.preset == new.preset else [f"preset: {old.preset} → {new.preset}"]
    changes = [
        *(_latency(a, b, old, new, differences=(*latency_differences(a, b), *presets)) for a, b in timed),
        *(_counts(a, b, differences=tuple(count_differences(a, b))) for a, b in counted),
    ]
    if not force:
        _refuse(changes)
    return tuple(changes)


def missing(old: ProfileResult, new: ProfileResult) -> tuple[Missing, ...]:
    """What only one of the two profiles has measured. An artifact whose outputs became wrong is found here."""
    across = _across(old, new)
    return (
        *_missing("latency", (old, old.measurements), (new, new.measurements), across=across),
        *_missing("instructions", (old, old.counts), (new, new.counts), across=across),
    )


def _missing(
    kind: Kind, old: tuple[ProfileResult, Sequence[Entry]], new: tuple[ProfileResult, Sequence[Entry]], *, across: bool
) -> list[Missing]:
    olds, news = _by_key(old[1], across=across), _by_key(new[1], across=across)
    gone = [_gone(entry, kind, "new", new[0]) for key, entry in olds.items() if key not in news]
    return gone + [_gone(entry, kind, "old", old[0]) for key, entry in news.items() if key not in olds]


def _gone(entry: Measurement | InstructionCount, kind: Kind, side: Literal["old", "new"], profile: ProfileResult) -> Missing:
    device = _device(entry)
    reasons = [
        s.reason
        for s in profile.skipped
        if s.label == entry.label and s.runtime in (None, entry.runtime) and s.device in (None, device)
    ]
    reason = "; ".join(reasons) or "that profile does not mention it"
    return Missing(label=entry.label, device=device, runtime=entry.runtime, kind=kind, missing_in=side, reason=reason)


def _device(entry: Measurement | InstructionCount) -> str:
    return entry.conditions.device if isinstance(entry, Measurement) else entry.device


def _devices(profile: ProfileResult) -> set[str]:
    return {m.conditions.device for m in profile.measurements} | {count.device for count in profile.counts}


def _across(old: ProfileResult, new: ProfileResult) -> bool:
    """Whether each profile has one device and they differ: then that is what the user means to compare."""
    before, after = _devices(old), _devices(new)
    return before != after and len(before) == len(after) == 1


def _by_key(entries: Sequence[Entry], *, across: bool) -> dict[Hashable, Entry]:
    return {(e.label, e.format, e.precision, e.runtime, None if across else _device(e)): e for e in entries}


def _pairs(old: Sequence[Entry], new: Sequence[Entry], *, across: bool) -> list[tuple[Entry, Entry]]:
    there = _by_key(new, across=across)
    return [(entry, there[key]) for key, entry in _by_key(old, across=across).items() if key in there]


def _contents(profile: ProfileResult) -> str:
    entries: tuple[Measurement | InstructionCount, ...] = (*profile.measurements, *profile.counts)
    names = dict.fromkeys(f"{e.label} {e.format} {e.precision} on {_device(e)}, {e.runtime}" for e in entries)
    return "; ".join(names) or "no measurement"


def _noise_floor(profile: ProfileResult, measurement: Measurement) -> float | None:
    """How far the profile's A/A pairs on that device and runtime reach; None without a pair that has an interval."""
    here = (measurement.conditions.device, measurement.runtime)
    floors = [pair.noise_floor for pair in profile.aa if (pair.device, pair.runtime) == here]
    return max((floor for floor in floors if floor is not None), default=None)


def _latency(a: Measurement, b: Measurement, old: ProfileResult, new: ProfileResult, *, differences: tuple[str, ...]) -> Change:
    ratio = unpaired_ratio(sitting_medians(b.samples_ns, b.sittings), sitting_medians(a.samples_ns, a.sittings))
    floors = {"old": _noise_floor(old, a), "new": _noise_floor(new, b)}
    known = [floor for floor in floors.values() if floor is not None]
    floor = max(known) if len(known) == len(floors) else None
    reasons = [f"the {name} profile has no A/A pair with an interval there" for name, f in floors.items() if f is None]
    if ratio.low is None:
        reasons.append(f"{len(a.sittings)} and {len(b.sittings)} sittings are too few for an interval")
    return Change(
        **_identity(a, b),
        kind="latency",
        emulated=a.conditions.emulated or b.conditions.emulated,
        old=a.p50_ms,
        new=b.p50_ms,
        ratio=ratio.value,
        low=ratio.low,
        high=ratio.high,
        noise_floor=floor,
        significant=is_significant(ratio, floor),
        reason="; ".join(reasons),
        differences=differences,
    )


def _counts(a: InstructionCount, b: InstructionCount, *, differences: tuple[str, ...]) -> Change:
    apart = max(a.repeats) < min(b.repeats) or max(b.repeats) < min(a.repeats)
    mixed = not apart and a.instructions != b.instructions
    return Change(
        **_identity(a, b),
        kind="instructions",
        emulated=True,
        old=a.instructions,
        new=b.instructions,
        ratio=b.instructions / max(1, a.instructions),
        significant=apart,
        reason="counts vary from inference to inference, and overlap" if mixed else "",
        differences=differences,
    )


def _identity(a: Measurement | InstructionCount, b: Measurement | InstructionCount) -> dict[str, Any]:
    before, after = _device(a), _device(b)
    return {
        "label": a.label,
        "format": a.format,
        "precision": a.precision,
        "device": before if before == after else f"{before} → {after}",
        "runtime": a.runtime,
        "same_file": a.sha256 == b.sha256,
    }


def _refuse(changes: Iterable[Change]) -> None:
    """None, when no pair's conditions differ. Raises UserError with every difference, and whom it concerns."""
    whom: dict[str, list[str]] = {}
    for change in changes:
        for difference in change.differences:
            whom.setdefault(difference, []).append(f"{change.label} on {change.device}, {change.runtime}")
    if whom:
        told = "".join(f"\n    {difference}  ({'; '.join(dict.fromkeys(names))})" for difference, names in whom.items())
        raise UserError(
            f"the two profiles were taken under unequal conditions:{told}",
            hint="measure again under equal conditions, or compare all the same with --force",
        )
