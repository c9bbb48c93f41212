"""`trimtab compare`: two profiles of different times, as a table and as a gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import output

if TYPE_CHECKING:
    from .devices.comparison import Change, Missing


def compare(
    old: Annotated[Path, typer.Argument(help="The earlier profile: the JSON file of `trimtab profile -o`.")],
    new: Annotated[Path, typer.Argument(help="The later one.")],
    max_slowdown: Annotated[
        str, typer.Option("--max-slowdown", help="Proven slow-downs up to this are allowed: 5% or 0.05. Default: none is.")
    ] = "0%",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Don't fail when the later profile lacks what the earlier one measured.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Compare although the conditions differ; the differences are told.")
    ] = False,
) -> int:
    """What became faster or slower from one profile to another. Exits with 1 when something is proven slower, or gone."""
    from .devices.comparison import compare_profiles, missing
    from .devices.measurement import ProfileResult

    allowed = fraction(max_slowdown)
    profiles = ProfileResult.read_json(old), ProfileResult.read_json(new)
    changes = compare_profiles(*profiles, force=force)
    gone = missing(*profiles)
    too_slow = [change for change in changes if change.exceeds(allowed)]
    lost = [entry for entry in gone if entry.missing_in == "new"]
    failed = bool(too_slow or (lost and not allow_missing))
    say_changes(changes)
    for path, profile in zip((old, new), profiles, strict=True):
        if any("other work was running" in warning for warning in profile.warnings):
            output.say(
                f"note: other work was running while {path} was measured: what changed may be that, and no A/A pair can tell"
            )
    say_missing(gone)
    for change in too_slow:
        grown = f"{change.ratio - 1:+.1%}" if change.kind == "latency" else f"{change.new - change.old:+,.0f} instructions"
        output.say(f"too slow: {change.label} on {change.device}, {change.runtime}: {grown} (allowed {allowed:.1%})")
    if lost and not allow_missing:
        output.say("the later profile lacks what the earlier one measured; --allow-missing accepts that")
    output.result(
        {
            "changes": [change.model_dump(mode="json") for change in changes],
            "missing": [entry.model_dump(mode="json") for entry in gone],
            "max_slowdown": allowed,
            "failed": failed,
        }
    )
    return 1 if failed else 0


def fraction(text: str) -> float:
    """5% or 0.05 as 0.05. Raises UserError for what is no share, or a negative one."""
    from .models.errors import UserError

    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise UserError(f"--max-slowdown {text!r} is not a share from 0% to 1000%", hint="--max-slowdown 5%, or 0.05")
    return value


def verdict(change: Change) -> str:
    """A change in a word or two: slower, faster, not proven; of counts more, fewer, equal."""
    counted = change.kind == "instructions"
    if change.significant:
        more, less = ("more", "fewer") if counted else ("slower", "faster")
        return more if change.ratio > 1 else less
    return "equal" if counted and change.old == change.new else "not proven"


def say_changes(changes: tuple[Change, ...]) -> None:
    """A table for every device and runtime; times under emulation are left out. Then whatever else must be known."""
    places = dict.fromkeys((change.device, change.runtime, change.kind) for change in changes)
    for place in places:
        here = [change for change in changes if (change.device, change.runtime, change.kind) == place]
        counted = place[2] == "instructions"
        floor = "not known" if here[0].noise_floor is None else f"±{here[0].noise_floor:.1%}"
        unit = "instructions, exact" if counted else f"median ms, noise floor {floor}"
        columns = ("artifact", ">old", ">new", ">new/old", *(() if counted else (">95 % interval",)), "verdict")
        rows = [(change.label, *_cells(change), verdict(change)) for change in here]
        output.table(f"{place[0]}, {place[1]}: {unit}", columns, rows)
    for change in changes:
        if change.reason:
            output.say(f"nothing is proven of {change.label} on {change.device}, {change.runtime}: {change.reason}")
    for text in dict.fromkeys(difference for change in changes for difference in change.differences):
        output.say(f"warning: conditions differ: {text}")


def _cells(change: Change) -> tuple[str, ...]:
    """Old, new, their ratio and, of a latency, its interval."""
    from .report_text import significant, whole

    counted = change.kind == "instructions"
    figure = whole if counted else significant
    old, new = ("emulated" if change.emulated and not counted else figure(v) for v in (change.old, change.new))
    interval = f"{change.low:.3f}–{change.high:.3f}" if change.low is not None and change.high is not None else ""
    return old, new, f"{change.ratio:.3f}", *(() if counted else (interval,))


def say_missing(gone: tuple[Missing, ...]) -> None:
    """What only one of the profiles holds."""
    for entry in gone:
        side = "later" if entry.missing_in == "new" else "earlier"
        output.say(f"not in the {side} profile: {entry.label} on {entry.device}, {entry.runtime}: {entry.reason}")
