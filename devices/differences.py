"""What keeps two measurements from being compared: conditions that differ, outputs that are wrong, emulation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .measurement import Conditions, Measurement
from .reading import Reading
from .records import InstructionCount

Fact = tuple[str, object, object]


def latency_differences(a: Measurement, b: Measurement) -> list[str]:
    """Every condition in which two measurements of latency differ, as "name: old → new"; what forbids a comparison comes first.

    Clock, temperature and load are not among them: they change while measuring, and the profile's own noise shows them.
    """
    told = [f"outputs are wrong in the {name} profile" for name, m in (("old", a), ("new", b)) if m.outputs_ok is False]
    if a.conditions.emulated and b.conditions.emulated:
        told.append("emulated: these times are no device's latency")
    return [*told, *_unequal(_facts(a, b)), *_hints(a.conditions.hints, b.conditions.hints)]


def count_differences(a: InstructionCount, b: InstructionCount) -> list[str]:
    """Every condition in which two instruction counts differ, as "name: old → new"."""
    told = [f"outputs are wrong in the {name} profile" for name, count in (("old", a), ("new", b)) if count.outputs_ok is False]
    facts: list[Fact] = [
        ("device", a.device, b.device),
        ("core", a.core, b.core),
        ("emulator", a.emulator, b.emulator),
        ("runtime version", a.runtime_version, b.runtime_version),
        ("dims", a.dims, b.dims),
    ]
    return [*told, *_unequal(facts)]


def _facts(a: Measurement, b: Measurement) -> list[Fact]:
    c, d = a.conditions, b.conditions
    return [
        ("device", c.device, d.device),
        ("CPU", c.cpu_model, d.cpu_model),
        ("machine", c.machine, d.machine),
        ("cores online", c.cores_online, d.cores_online),
        ("CPU quota", c.cpu_quota, d.cpu_quota),
        ("virtualised", c.virtualised, d.virtualised),
        ("emulated", c.emulated, d.emulated),
        ("runtime version", c.runtime_version, d.runtime_version),
        ("provider", c.provider, d.provider),
        ("threads", c.threads, d.threads),
        ("affinity", c.affinity, d.affinity),
        ("governor", _governor(c), _governor(d)),
        ("power source", c.power_source, d.power_source),
        ("timed region", c.timed_region, d.timed_region),
        ("dims", a.dims, b.dims),
    ]


def _governor(c: Conditions) -> object:
    before, after = c.before.governor.value, c.after.governor.value
    return before if before == after else f"{before}, then {after}"


def _hints(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    return _unequal((f"setting {name}", a.get(name), b.get(name)) for name in sorted({*a, *b}))


def _unequal(facts: Iterable[Fact]) -> list[str]:
    return [f"{name}: {_text(old)} → {_text(new)}" for name, old, new in facts if _value(old) != _value(new)]


def _value(value: object) -> object:
    """What counts: of a reading its value, whatever the reason for having none."""
    return value.value if isinstance(value, Reading) else value


def _text(value: object) -> str:
    plain = _value(value)
    if plain is None:
        return "not known"
    if isinstance(plain, bool):
        return "yes" if plain else "no"
    if isinstance(plain, Mapping):
        return ", ".join(f"{name} = {size}" for name, size in plain.items()) or "none"
    if isinstance(plain, tuple):
        return "CPU " + ", ".join(map(str, plain))
    return str(plain)
