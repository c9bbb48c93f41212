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
    say_missing(gone)
    for change in too_slow:
        output.say(
            f"too slow: {change.label} on {change.device}, {change.runtime}: {change.ratio - 1:+.1%} (allowed {allowed:.1%})"
        )
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
    """A change in words: "slower", "faster", "no proven difference", and for counts "more", "fewer", "equal"."""
    counted = change.kind == "instructions"
    if change.significant:
        more, less = ("more", "fewer") if counted else ("slower", "faster")
        return more if change.ratio > 1 else less
    if change.reason:
        return f"nothing proven: {change.reason}"
    return "equal" if counted and change.old == change.new else "no proven difference"


def say_changes(changes: tuple[Change, ...]) -> None:
    """Every change as a row; times under emulation are left out."""
    rows = []
    for change in changes:
        counted = change.kind == "instructions"
        interval = f" [{change.low:.3f}, {change.high:.3f}]" if change.low is not None and change.high is not None else ""
        unit = "" if counted else " ms"
        old, new = (
            f"{v:,.0f}" if counted else "emulated" if change.emulated else f"{v:.3f}{unit}" for v in (change.old, change.new)
        )
        floor = "exact" if counted else f"±{change.noise_floor:.1%}" if change.noise_floor is not None else "not known"
        rows.append(
            (
                change.label,
                f"{change.device}, {change.runtime}",
                old,
                new,
                f"{change.ratio:.3f}{interval}",
                floor,
                verdict(change),
            )
        )
    output.table("", ("artifact", "measured on", ">old", ">new", ">new / old", ">noise", "verdict"), rows)
    for text in dict.fromkeys(difference for change in changes for difference in change.differences):
        output.say(f"warning: conditions differ: {text}")


def say_missing(gone: tuple[Missing, ...]) -> None:
    """What only one of the profiles holds."""
    for entry in gone:
        side = "later" if entry.missing_in == "new" else "earlier"
        output.say(f"not in the {side} profile: {entry.label} on {entry.device}, {entry.runtime}: {entry.reason}")
