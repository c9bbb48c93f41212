"""Single operations of LiteRT, from the profiler of its C library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..export.light import noise
from .ops import WARM, Op, OpProfile, cost, plain_ns
from .ops_litert_c import TESTED, CallError, Event, WatchedModel, library_file
from .runtime import Ports
from .runtimes_litert import LiteRt

DELEGATE, KERNEL = "XNNPACK", "LiteRT kernel"
_RUNTIME, _GRAPH, _INSIDE = 1, 2, 8
"""Kinds of events: the runtime's own, operations of the graph, operations inside a delegate."""
_HOSTS = ("IF", "WHILE", "CALL_ONCE")
"""Operations whose time contains that of the subgraph that they run."""


def profile_ops(
    path: Path, ports: Ports, *, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str], runs: int
) -> OpProfile:
    """Means over whole microseconds, the delegate's operations apart from the graph's. Raises RejectedError."""
    version, library = LiteRt.version(), library_file()
    if version not in TESTED:
        return OpProfile(
            reason=f"LiteRT's profiler is reached through structures in memory that are known for ai-edge-litert {', '.join(TESTED)}, "
            f"this is {version}; another layout would crash the runner"
        )
    if library is None:
        return OpProfile(reason=f"ai-edge-litert {version} has no C library here, which alone has a profiler")
    delegate = options["delegate"] == "xnnpack"
    shapes = {name: array.shape for name, array in inputs.items()}
    with noise.hushed():
        session = LiteRt.load(path, ports, shapes=shapes, threads=threads, options=options)
        call = session.bind(inputs)
    plain = plain_ns(call, runs)
    try:
        with noise.hushed() as heard:
            watched = WatchedModel(library, path, ports=ports.inputs, inputs=inputs, threads=threads, delegate=delegate)
            for _ in range(WARM):
                watched.watched()
            each = [watched.watched() for _ in range(runs)]
            watched.close()
    except CallError as error:
        said = next((line.removeprefix("ERROR: ") for line in heard.lines() if line.startswith("ERROR: ")), "")
        return OpProfile(reason=f"LiteRT's C library will not profile this: {error}" + (f" ({said})" if said else ""))
    ops = operations(each)
    if not ops:
        return OpProfile(reason="LiteRT's profiler saw no operation")
    if not delegate and any(op.where == DELEGATE for op in ops):
        return OpProfile(reason="LiteRT's C library used XNNPACK although the option delegate is none")
    whole = [sum(e.spent_us for e in run if (e.kind, e.tag, e.subgraph) == (_RUNTIME, "Invoke", 0)) * 1e3 for run in each]
    return OpProfile(
        ops,
        runs,
        f"LiteRT's profiler, means of whole microseconds over {runs} inferences: less than 1 µs reads as 0; "
        f"{cost(float(np.median(whole)), plain)}",
    )


def operations(each: Sequence[Sequence[Event]]) -> tuple[Op, ...]:
    """The operations of these inferences in running order, each with its mean ns.

    What runs in a branch or in a loop's body stands for itself and is taken off the operation that holds it. A delegate counts its
    operations anew in every partition, so one of the same number and type that comes again is another one.
    """
    totals = dict[tuple[str, str, str], float]()
    for events in each:
        seen, hosts = Counter[tuple[str, str, str]](), list[tuple[int, tuple[str, str, str]]]()
        for event in events:
            if event.kind in (_RUNTIME, _GRAPH):  # a delegate's events have no start
                while hosts and hosts[-1][0] <= event.start_us:
                    hosts.pop()
            if event.kind == _RUNTIME and event.tag == "Invoke" and event.subgraph and hosts:
                totals[hosts[-1][1]] -= event.spent_us
            if event.kind not in (_GRAPH, _INSIDE):
                continue
            where = KERNEL if event.kind == _GRAPH else DELEGATE
            name = f"op {event.index}" + (f" of subgraph {event.subgraph}" if event.subgraph else "")
            seen[name, event.tag, where] += 1
            again = seen[name, event.tag, where]
            key = (name if again == 1 else f"{name} #{again}", event.tag, where)
            totals[key] = totals.get(key, 0.0) + event.spent_us
            if event.tag in _HOSTS and event.kind == _GRAPH:
                hosts.append((event.start_us + event.spent_us, key))
    return tuple(Op(name, kind, max(0.0, total) * 1e3 / len(each), where) for (name, kind, where), total in totals.items())
