"""benchmark_model asked as if it were a runner, so that its samples come from the same sittings and rounds as everybody's.

It can't be: every answer is a process of its own, which loads the model anew and tells the mean of some runs. So a sample is the mean
of a block of runs after as many that do not count, and every process starts with cold caches.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..export.manifest import UserError, did_you_mean
from .benchmark_model import BENCHMARK_MODEL, INSIDE, OPTIONS, ToolRun, arguments, failure, parse
from .job import CHECK_SLOT
from .link import ANSWER_S, ending
from .reading import Machine, Reading, Snapshot
from .runtime import RejectedError, RuntimeFacts
from .wire import PROTOCOL

STEP_NS = 500_000.0
"""What is told as the clock's step: it makes a block of 50 ms, below which starting the process would be most of the work."""
Execute = Callable[[Sequence[str], float], tuple[int, str]]
"""Runs a command on the device: its exit code and all that it printed. Raises LinkLostError."""


UNCHECKED = "benchmark_model does not give its outputs, so nobody checked that they are right"
DELEGATES: Mapping[str, tuple[str, str]] = {
    "xnnpack": ("CPU, XNNPACK", "xnnpack"),
    "gpu": ("GPU", "gpu"),
    "nnapi": ("NNAPI", "nnapi"),
    "plain": ("CPU, builtin kernels", ""),
}
"""Option → where it runs, and what the delegate's name holds."""


@dataclass(frozen=True)
class _Loaded:
    """A model to run: its place on the device, and shapes of inputs that have to be set, empty where the file's own are right."""

    graph: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


class ToolLink:
    """Answers requests by running the program at `program` on the device. `version` is the same file here."""

    def __init__(
        self,
        *,
        program: str,
        version: Path,
        execute: Execute,
        machine: Callable[[], Machine],
        snapshot: Callable[[], Snapshot],
        cpus: Sequence[int],
    ) -> None:
        self.program, self.version, self.execute = program, version, execute
        self.machine, self.snapshot, self.cpus = machine, snapshot, tuple(cpus)
        self.threads, self.options = 1, dict[str, str]()
        self.affinity: tuple[int, ...] | None = None
        self.slots: dict[int, _Loaded] = {}
        self.tried: dict[_Loaded, ToolRun] = {}

    def ask(self, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer. Raises LinkLostError, RejectedError, UserError."""
        verbs: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "hello": self._hello,
            "open": self._open,
            "load": self._load,
            "check": self._check,
            "time": self._time,
            "ops": self._ops,
            "snapshot": lambda request: {"snapshot": asdict(self.snapshot())},
            "drop": self._drop,
        }
        self.until = time.monotonic() + timeout_s
        verb = request.get("do", "")
        if verb not in verbs:
            raise UserError(f"{BENCHMARK_MODEL} can't do {verb!r}: it gives no outputs", hint="use --runtime litert for that")
        return verbs[verb](request)

    def close(self) -> None:
        """Nothing runs between answers."""

    def _hello(self, request: dict[str, Any]) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "runner": BENCHMARK_MODEL,
            "machine": asdict(self.machine()),
            "snapshot": asdict(self.snapshot()),
            "usable_cores": len(self.cpus) or 1,
            "usable_cpus": list(self.cpus) or None,
            "clock_step_ns": STEP_NS,
            "runtimes": {},
        }

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        self.threads, wanted = int(request["threads"]), request.get("affinity")
        self.affinity = tuple(wanted) if wanted else None
        cores = len(self.affinity or self.cpus) or 1
        if not 1 <= self.threads <= cores:
            raise UserError(
                f"threads={self.threads} is outside 1…{cores}, the cores that may be used here", hint='cores = "all" frees more'
            )
        self.options = {name: choices[0] for name, choices in OPTIONS.items()} | dict(request.get("options", {}))
        for name, choice in self.options.items():
            if choice not in OPTIONS.get(name, ()):
                raise UserError(f"{BENCHMARK_MODEL} has no option {name}={choice}", hint=did_you_mean(name, OPTIONS))
        self.slots.clear()
        return {"version": self._digest(), "affinity": list(self.affinity) if self.affinity else None}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        """The model run once, the first time that it is asked for: every later run loads it again anyway."""
        if request["slot"] == CHECK_SLOT:
            return {}  # nothing to check with: see UNCHECKED
        file, feeds = Path(request["file"]).name, request["feeds"]
        if len(feeds) > 1:
            raise RejectedError.told(
                f"{BENCHMARK_MODEL} can't time {file}: it adapts to its input, and one made-up input says nothing",
                "use --runtime litert",
            )
        loaded = _Loaded(request["file"], _shapes_to_set(request["inputs"], feeds[0]))
        if loaded not in self.tried:
            self.tried[loaded] = self._run(loaded, runs=1, warm_runs=1)
        run = self.tried[loaded]
        self._refuse_untaken(run, file)
        self.slots[int(request["slot"])] = loaded
        return {
            "load_ns": run.init_us * 1e3,
            "first_ns": run.first_us * 1e3,
            "peak_bytes": asdict(_memory(run)),
            "facts": asdict(self._facts(run)),
        }

    def _refuse_untaken(self, run: ToolRun, file: str) -> None:
        delegate = self.options["delegate"]
        if delegate in ("gpu", "nnapi") and run.extent == "none":
            raise RejectedError.told(
                f"the {run.asked} delegate takes no operation of {file}: only the CPU would be timed",
                "take another delegate: --set benchmark_model.delegate=xnnpack",
            )

    def _check(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"outputs": None, "reason": UNCHECKED}

    def _time(self, request: dict[str, Any]) -> dict[str, Any]:
        times = []
        for slot, block, warm in zip(request["order"], request["blocks"], request["warm"], strict=True):
            run = self._run(self._slot(slot), runs=block, warm_runs=block if warm else 1)
            times.append(run.runs.avg * 1e3)
        return {"ns": times}

    def _ops(self, request: dict[str, Any]) -> dict[str, Any]:
        run = self._run(self._slot(request["slot"]), runs=int(request["runs"]), warm_runs=1, ops=True)
        where, _ = DELEGATES[self.options["delegate"]]
        ops = [
            {
                "name": op.name,
                "kind": op.kind,
                "ns": op.ms * 1e6,
                "where": where if _delegated(op.kind, op.name) else "CPU, builtin kernels",
            }
            for op in run.ops
        ]
        reason = "" if ops else "this build of benchmark_model printed no table of operations"
        return {
            "ops": ops,
            "runs": run.runs.count,
            "note": "by benchmark_model's own profiler, in whole microseconds",
            "reason": reason,
        }

    def _drop(self, request: dict[str, Any]) -> dict[str, Any]:
        self.slots.clear()
        return {}

    def _slot(self, slot: int) -> _Loaded:
        if slot not in self.slots:
            raise UserError(f"slot {slot} is empty", hint="load an artifact into it first")
        return self.slots[slot]

    def _run(self, loaded: _Loaded, *, runs: int, warm_runs: int, ops: bool = False) -> ToolRun:
        """One process. Raises UserError, RejectedError, LinkLostError."""
        words = arguments(
            loaded.graph,
            threads=self.threads,
            options=self.options,
            runs=runs,
            warm_runs=warm_runs,
            ops=ops,
            shapes=dict(loaded.shapes),
        )
        pinned = ["taskset", f"{sum(1 << cpu for cpu in self.affinity):x}"] if self.affinity else []
        code, text = self.execute([*pinned, self.program, *words], max(1.0, self.until - time.monotonic()))
        if code > 128:
            last = [line.strip() for line in text.splitlines() if line.strip()][-2:]
            raise UserError(
                f"{BENCHMARK_MODEL}: {ending(code, last)}", hint="a smaller model, or another delegate", exit_code=1
            )
        if code:
            raise failure(text, Path(loaded.graph).name)
        return parse(text, file=Path(loaded.graph).name)

    def _facts(self, run: ToolRun) -> RuntimeFacts:
        where, part = DELEGATES[self.options["delegate"]]
        hints = dict(self.options) if self.options["delegate"] == "gpu" else {"delegate": self.options["delegate"]}
        taken = [entry for entry in run.taken if part and part in entry.delegate.lower()]
        placed = ""
        if taken:
            total = taken[0].total
            placed = f"{sum(entry.nodes for entry in taken)}{f' of {total}' if total else ''} operations"
        if run.extent == "partially":
            placed = f"{placed or 'some operations'}, the rest on the CPU"
        backend = f" by {run.backend}" if run.backend and self.options["delegate"] == "gpu" else ""
        return RuntimeFacts(
            runtime=BENCHMARK_MODEL,
            version=self._digest(),
            threads=self.threads,
            provider=f"{where}{backend}{f' ({placed})' if placed else ''}",
            hints=hints,
            timed_region="Invoke of the interpreter on made-up inputs; a sample is the mean of a block in a process of its own",
            reduced_precision=self.options["delegate"] == "gpu" and self.options["gpu_precision"] == "fp16",
        )

    def _digest(self) -> str:
        """The program tells no version: the beginning of its SHA-256."""
        return f"sha256 {hashlib.sha256(self.version.expanduser().read_bytes()).hexdigest()[:12]}"


def _memory(run: ToolRun) -> Reading:
    """What it took, by its own account."""
    if run.peak_bytes is not None:
        return Reading(value=run.peak_bytes, unit="bytes")
    if run.memory_bytes is not None:
        return Reading(value=run.memory_bytes, unit="bytes, approximate")
    return Reading(reason="this benchmark_model does not tell its memory")


def _delegated(kind: str, name: str) -> bool:
    return name.startswith(INSIDE) or (kind.startswith("TfLite") and "Delegate" in kind)


def _shapes_to_set(
    ports: Sequence[Mapping[str, Any]], feed: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The shapes of all inputs when a free dimension is other than 1, which is what it has in the file; empty else."""
    shapes = tuple((port["name"], tuple(int(size) for size in feed[port["name"]]["shape"])) for port in ports)
    other = any(
        isinstance(known, str) and size != 1
        for port, (_, shape) in zip(ports, shapes, strict=True)
        for known, size in zip(port["shape"], shape, strict=True)
    )
    return shapes if other else ()
