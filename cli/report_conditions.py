"""Conditions of measurements in words: what several have in common is said once, what differs is said with whom it concerns."""

from __future__ import annotations

from collections.abc import Sequence

from .devices.measurement import Conditions
from .devices.reading import Reading
from .report_text import plain

Facts = list[tuple[str, str]]

_CHANGING = (("Governor", "governor"), ("Clock", "clock_mhz"), ("Temperature", "temperature_c"), ("Load", "load_average"))


def shared_conditions(entries: Sequence[tuple[str, Conditions]]) -> Facts:
    """(name, text) of the conditions of several measurements (label, conditions), in the order that they were taken in.

    What changes while measuring is given from before the first to after the last.
    """
    told = [(label, dict(_lasting(c))) for label, c in entries]
    facts = []
    for name in told[0][1]:
        texts: dict[str, list[str]] = {}
        for label, values in told:
            texts.setdefault(values[name], []).append(label)
        facts.append((name, _joined(texts)))
    first, last = entries[0][1], entries[-1][1]
    for name, key in _CHANGING:
        before, after = reading(getattr(first.before, key)), reading(getattr(last.after, key))
        facts.append((name, before if before == after else f"{before} before, {after} after"))
    return facts


def _joined(texts: dict[str, list[str]]) -> str:
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{text} ({', '.join(dict.fromkeys(labels))})" for text, labels in texts.items())


def _lasting(c: Conditions) -> Facts:
    """The conditions of one measurement that don't change; what the machine would not tell is said with its reason."""
    affinity = ", ".join(map(str, c.affinity)) if c.affinity is not None else f"not known ({c.affinity_reason or 'not asked'})"
    return [
        ("Device", c.device),
        ("CPU", reading(c.cpu_model)),
        ("Machine", f"{c.machine}, {c.cores_online} cores online"),
        ("CPU quota", reading(c.cpu_quota)),
        ("Affinity", affinity),
        ("Virtualised", reading(c.virtualised)),
        ("Emulated", "yes: these are no device's milliseconds" if c.emulated else "no"),
        ("Power source", reading(c.power_source)),
        ("System", f"{c.os}, Python {c.python}"),
        ("Runtime", f"{c.runtime} {c.runtime_version}, {c.provider}, {c.threads} thread{'s' if c.threads != 1 else ''}"),
        ("In force", plain(c.hints)),
        ("Timed region", c.timed_region),
    ]


def reading(told: Reading) -> str:
    """A reading with its unit, or the reason for having none."""
    if told.value is None:
        return f"not known ({told.reason})"
    return f"{plain(told.value)} {told.unit}".strip()
