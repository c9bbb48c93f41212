"""What can be measured here, what is missing, and the command that mends it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from ..export.manifest import UserError
from . import conditions
from .device import devices
from .known import check_config, known_devices, resolve
from .reading import Reading
from .runtime import runtimes

State = Literal["ok", "missing", "broken", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `mend` is the command or the step that would put it right, empty when nothing can or need be done."""

    subject: str
    state: State
    detail: str
    mend: str = ""


def doctor() -> tuple[Finding, ...]:
    """Findings on every device kind, every runtime, and on how trustworthy timings on this machine can be."""
    return (*_devices(), *_runtimes(), *_machine(), *_own())


def examine(spec: str) -> tuple[Finding, ...]:
    """Findings on one device, step by step, as far as it can be reached. Raises UserError for a name that is none."""
    kind, fields = resolve(spec)
    entry = devices.entry(kind)
    config = check_config(kind, fields)
    found = [Finding(spec, "missing", f"a device of kind {kind!r} needs {gone}") for gone in entry.card.missing()]
    if found:
        return tuple(found)
    if entry.card.diagnose:
        return entry.card.diagnose(config)
    device = entry.value(spec, config)
    said: list[str] = []
    try:
        device.prepare(said.append)
        offers = device.offers()
    except UserError as error:
        return (*(Finding(spec, "note", line) for line in said), Finding(spec, "broken", error.what, error.hint))
    finally:
        device.close()
    found.append(Finding(spec, "ok", f"{entry.card.title}: reached"))
    for name, offer in offers.items():
        state: State = "missing" if offer.missing else "ok"
        found.append(Finding(f"{spec}: {name}", state, offer.missing or f"{offer.title} {offer.version}".strip()))
    return tuple(found)


def _own() -> list[Finding]:
    """The devices of devices.toml, by name: looking at each is `examine`'s."""
    return [
        Finding(name, "note", f"a device of kind {table['kind']!r}", f"trimtab devices doctor {name}")
        for name, table in known_devices().items()
    ]


def _devices() -> list[Finding]:
    found = []
    for entry in devices:
        gone = entry.card.missing()
        mend = f"pip install 'trimtab[{entry.card.extra}]'" if gone and entry.card.extra else ""
        detail = "needs " + ", ".join(gone) if gone else ", ".join(part for part in (entry.card.title, entry.card.note) if part)
        found.append(Finding(f"device {entry.name}", "missing" if gone else "ok", detail, mend))
    return found


def _runtimes() -> list[Finding]:
    found = []
    for entry in runtimes:
        subject = f"runtime {entry.name}"
        if gone := entry.card.missing():
            found.append(Finding(subject, "missing", "needs " + ", ".join(gone), entry.card.install))
            continue
        try:
            version = entry.value.version()
        except Exception as error:  # a damaged wheel can fail with anything, and the doctor must go on
            found.append(
                Finding(subject, "broken", f"{type(error).__name__}: {error}", f"{entry.card.install} --force-reinstall")
            )
        else:
            found.append(Finding(subject, "ok", f"{entry.card.title} {version}, runs {', '.join(entry.card.formats)}"))
    return found


def _machine() -> list[Finding]:
    """Clock resolution, load, governor, quota and emulation."""
    step_ns = time.get_clock_info("perf_counter").resolution * 1e9
    found = [Finding("clock", "ok" if step_ns <= 1000 else "note", f"resolution {step_ns:.0f} ns")]
    cores = conditions.usable_cores()
    load = conditions.load_average().value
    if isinstance(load, float):
        busy = load > cores / 2
        mend = "close what else runs" if busy else ""
        found.append(Finding("load", "note" if busy else "ok", f"load average {load:.2f} on {cores} usable cores", mend))
    governor = conditions.governor()
    slow = governor.value not in (None, "performance")
    mend = "sudo cpupower frequency-set -g performance" if slow else ""
    found.append(Finding("governor", "note" if slow or governor.value is None else "ok", _say(governor), mend))
    quota = conditions.cpu_quota()
    if isinstance(quota.value, float):
        found.append(
            Finding("cpu quota", "note", f"the container may use {quota.value:g} cores", "lift the container's CPU limit")
        )
    found.append(Finding("temperature", *_readable(conditions.temperature_c())))
    if conditions.virtualised().value == "yes":
        found.append(
            Finding("virtual machine", "note", "neighbours on the same host can disturb timings: look at the A/A pair")
        )
    if conditions.emulated():
        found.append(Finding("emulation", "note", "instructions are emulated here: the milliseconds are no device's latency"))
    return found


def _readable(reading: Reading) -> tuple[Literal["ok", "note"], str]:
    return ("note" if reading.value is None else "ok"), _say(reading)


def _say(reading: Reading) -> str:
    return reading.reason if reading.value is None else f"{reading.value} {reading.unit}".strip()
