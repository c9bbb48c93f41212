"""The runner: what executes artifacts where they are to be measured, answering one JSON object a line.

It needs Python 3.10, numpy (which every runtime brings) and the runtimes themselves, nothing else: `pack.py` makes one file of it
that runs on a board. It decides nothing. Orders, block sizes, when to stop and what is good enough are the asking side's.
The requests and answers are described in docs/devices.md.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..export.light import UserError
from . import conditions
from .memory import peak_memory
from .runtime import RejectedError, RuntimeFacts, Session, require, runtimes
from .wire import MARK, PROTOCOL


@dataclass(frozen=True)
class _Port:
    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class _Ports:
    inputs: tuple[_Port, ...]
    outputs: tuple[_Port, ...]


@dataclass
class _Loaded:
    """A session, what it is timed on, and the memory that keeps it away from where the last one lay."""

    session: Session
    ports: _Ports
    feeds: list[dict[str, np.ndarray]]
    call: Callable[[], object]
    gaps: list[bytearray]


@dataclass
class Runner:
    """One runtime at a time, with artifacts in numbered slots."""

    runtime: str = ""
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    slots: dict[int, _Loaded] = field(default_factory=dict)

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request. Raises UserError, RejectedError and whatever a damaged request gives."""
        verb = str(request.get("do"))
        if verb not in _VERBS:
            raise UserError(
                f"this runner does not know {verb!r}", hint="it is older than the trimtab that asks; put it there anew"
            )
        return _VERBS[verb](self, request)

    def hello(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What this machine is, and which runtimes are here."""
        there = {}
        for entry in runtimes:
            if not entry.card.at_home:
                continue
            gone = entry.card.missing()
            there[entry.name] = {"missing": list(gone), "version": None if gone else _installed(entry.card.packages)}
        allowed = conditions.allowed_cpus()
        return {
            "protocol": PROTOCOL,
            "runner": f"Python {platform.python_version()}",
            "machine": asdict(conditions.machine()),
            "snapshot": asdict(conditions.snapshot()),
            "usable_cpus": list(allowed) if allowed else None,
            "usable_cores": conditions.usable_cores(),
            "clock_step_ns": time.get_clock_info("perf_counter").resolution * 1e9,
            "runtimes": there,
        }

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A runtime chosen; from now on this process is pinned."""
        self.slots.clear()
        conditions.pin(request.get("affinity"))
        threads, cores = int(request["threads"]), conditions.usable_cores()
        if not 1 <= threads <= cores:
            raise UserError(
                f"threads={threads} is outside 1…{cores}, the cores that may be used here",
                hint="more threads than cores wait for each other and the figures mean nothing",
            )
        runtime = require(request["runtime"])
        self.runtime, self.threads = request["runtime"], threads
        self.options = runtimes.entry(self.runtime).card.complete(request.get("options", {}))
        try:
            version = runtime.version()  # imports the package, so that no load time contains it
        except (ImportError, OSError) as error:
            raise RejectedError.told(
                f"{self.runtime} is installed but can't be loaded: {error}",
                "its wheel may be for another architecture, C library or Python: install it anew where it is to run",
            ) from None
        allowed = conditions.allowed_cpus()
        gc.collect()
        gc.disable()  # its pauses land in nobody's sample; `load` collects
        gc.freeze()
        return {"version": version, "affinity": list(allowed) if allowed else None}

    def load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """An artifact in a slot, loaded, run once and bound to what it will be timed on."""
        slot, path = int(request["slot"]), Path(request["file"])
        self.slots.pop(slot, None)
        gc.collect()
        gaps = [bytearray(int(size)) for size in request.get("gaps", ())]
        ports = _Ports(_ports(request["inputs"]), _ports(request["outputs"]))
        feeds = [_arrays(ports.inputs, feed) for feed in request["feeds"]]
        shapes = {name: array.shape for name, array in feeds[0].items()}
        runtime = require(self.runtime)
        with peak_memory() as peak:
            start = time.perf_counter_ns()
            session = runtime.load(path, ports, shapes=shapes, threads=self.threads, options=self.options)
            loaded = time.perf_counter_ns()
            session.run(feeds[0])
            first = time.perf_counter_ns()
        call = session.bind(feeds[0]) if len(feeds) == 1 else session.cycle(feeds)
        self.slots[slot] = _Loaded(session, ports, feeds, call, gaps)
        facts: RuntimeFacts = session.describe()
        return {
            "load_ns": loaded - start,
            "first_ns": first - loaded,
            "peak_bytes": asdict(peak.reading),
            "facts": {**asdict(facts), "hints": dict(facts.hints)},
        }

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """How far a slot's outputs on its first feed are from what is expected, as sums of squares."""
        loaded = self._slot(request)
        outputs = loaded.session.run(loaded.feeds[0])
        found = []
        for expected in request["expect"]:
            got, scale = outputs[expected["name"]], expected.get("scale")
            want = np.fromfile(expected["file"], expected["dtype"])
            row: dict[str, Any] = {"name": expected["name"], "shape": list(got.shape)}
            if list(got.shape) == list(expected["shape"]):
                want, got = (_real(held, scale, expected.get("zero_point")) for held in (want.reshape(got.shape), got))
                error = got - want
                row["finite"] = bool(np.isfinite(error).all())
                if row["finite"]:
                    row["max_abs_error"] = float(np.abs(error).max(initial=0.0))
                    row["noise"], row["signal"] = float(np.sum(error**2)), float(np.sum(want**2))
            found.append(row)
        return {"outputs": found}

    def time(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Nanoseconds a call of each slot in `order`: a block of calls, timed whole, after `warm` calls that are not timed."""
        clock, times = time.perf_counter_ns, []
        for slot, block, warm in zip(request["order"], request["blocks"], request["warm"], strict=True):
            call = self.slots[slot].call
            for _ in range(warm):
                call()  # refills caches and branch predictors that the model before it took over
            start = clock()
            for _ in range(block):
                call()
            times.append((clock() - start) / block)
        return {"ns": times}

    def each(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Nanoseconds of every feed of a slot by itself: the median of `repeats` calls after two that don't count."""
        loaded, found = self._slot(request), []
        for feed in loaded.feeds:
            call = loaded.session.cycle([feed])
            call()
            call()
            times = []
            for _ in range(int(request["repeats"])):
                start = time.perf_counter_ns()
                call()
                times.append(time.perf_counter_ns() - start)
            found.append(float(np.median(times)))
        return {"ns": found}

    def ops(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Where the time of a slot goes, operation by operation, from a session of its own that is loaded to be looked into."""
        from .ops import profile_ops

        loaded = self._slot(request)
        path, runs = Path(request["file"]), int(request["runs"])
        profiled = profile_ops(
            self.runtime,
            path,
            loaded.ports,
            inputs=loaded.feeds[0],
            threads=self.threads,
            options=self.options,
            runs=runs,
        )
        return asdict(profiled)

    def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs on any number of samples, read from files, written to files: as many at a time as the slot is loaded for."""
        loaded = self._slot(request)
        inputs = _arrays(loaded.ports.inputs, request["feed"])
        parts: dict[str, list[np.ndarray]] = {name: [] for name in request["out"]}
        batches = {name: len(array) for name, array in loaded.feeds[0].items()}
        parted = [name for name, array in inputs.items() if len(array) != batches[name]]
        for name in parted:
            if len(inputs[name]) % batches[name]:
                raise UserError(
                    f"{len(inputs[name])} rows of {name!r} are no whole batches of {batches[name]}", hint="fill the last one"
                )
        count = len(inputs[parted[0]]) // batches[parted[0]] if parted else 1
        for k in range(count):
            part = {
                name: array[k * batches[name] : (k + 1) * batches[name]] if name in parted else array
                for name, array in inputs.items()
            }
            outputs = loaded.session.run(part)
            for name, found in parts.items():
                found.append(np.array(outputs[name]))
        written = {}
        for name, file in request["out"].items():
            array = np.concatenate(parts[name])
            array.tofile(file)
            written[name] = {"shape": list(array.shape), "dtype": str(array.dtype)}
        return {"outputs": written}

    def snapshot(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Clock, temperature, governor and load now."""
        return {"snapshot": asdict(conditions.snapshot())}

    def drop(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Every slot emptied."""
        self.slots.clear()
        gc.collect()
        return {}

    def _slot(self, request: Mapping[str, Any]) -> _Loaded:
        slot = int(request["slot"])
        if slot not in self.slots:
            raise UserError(f"slot {slot} is empty", hint="load an artifact into it first")
        return self.slots[slot]


_VERBS: Mapping[str, Callable[[Runner, Mapping[str, Any]], dict[str, Any]]] = {
    name: getattr(Runner, name) for name in ("hello", "open", "load", "check", "time", "each", "ops", "run", "snapshot", "drop")
}


_owners = functools.cache(metadata.packages_distributions)
"""Which distributions bring a package: a look through all that is installed."""


def _installed(packages: tuple[str, ...]) -> str:
    """The version of a runtime's first package, without importing it."""
    owners = _owners().get(packages[0], [packages[0]])
    try:
        return metadata.version(owners[0])
    except metadata.PackageNotFoundError:
        return "unknown"


def _ports(told: list[dict[str, Any]]) -> tuple[_Port, ...]:
    return tuple(_Port(port["name"], tuple(port["shape"]), port["dtype"]) for port in told)


def _arrays(ports: tuple[_Port, ...], feed: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Input arrays by name from files of raw little-endian values."""
    found = {}
    for port in ports:
        told = feed[port.name]
        found[port.name] = np.fromfile(told["file"], port.dtype).reshape(told["shape"])
    return found


def _real(held: np.ndarray, scale: float | None, zero_point: int | None) -> np.ndarray:
    """The numbers that entries stand for, as float64: scale · (q − zero_point), or as they are."""
    numbers = held.astype(np.float64)
    return numbers if scale is None else (numbers - float(zero_point or 0)) * scale


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the requests end. A failure is an answer too."""
    runner = Runner()
    for line in iter(requests.readline, b""):
        try:
            answer = runner.answer(json.loads(line))
        except RejectedError as error:
            answer = {"error": {"kind": "rejected", "what": error.what, "hint": error.hint}}
        except UserError as error:
            answer = {"error": {"kind": "user", "what": error.what, "hint": error.hint}}
        except Exception as error:  # whatever a native library throws, the other side must hear of it
            answer = {"error": {"kind": "internal", "what": f"{type(error).__name__}: {error}", "hint": ""}}
        answers.write(MARK + json.dumps(answer).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Serves the process's standard streams. What anything else prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
