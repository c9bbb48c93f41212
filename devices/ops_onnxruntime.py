"""Single operations of ONNX Runtime, from the trace that it writes."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .ops import WARM, Op, OpProfile, cost, plain_ns, typical_ns
from .runtime import Ports, RejectedError
from .runtimes_onnxruntime import NAME, OnnxRuntime

_SUFFIX = "_kernel_time"
_HOSTS = ("If", "Loop", "Scan")
"""Operations whose time contains that of the operations in their subgraphs, which are in the trace too."""
_TOKEN = re.compile(r"_token_\d+$")
"""What the optimiser appends to names of its own making, another number every time."""
_TOP = "model_run"
"""The event of a whole inference."""


def profile_ops(
    path: Path, ports: Ports, *, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str], runs: int
) -> OpProfile:
    """Means over whole microseconds, of the fused graph that runs. Raises RejectedError."""
    import onnxruntime as ort

    shapes = {name: array.shape for name, array in inputs.items()}
    session = OnnxRuntime.load(path, ports, shapes=shapes, threads=threads, options=options)
    plain = plain_ns(session.bind(inputs), runs)
    settings = session.session.get_session_options()  # those in force, so that the same kernels run
    with tempfile.TemporaryDirectory(prefix="trimtab-ops-") as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "trace")
        try:
            session.session = ort.InferenceSession(str(path), settings, providers=session.session.get_providers())
            call = session.bind(inputs)
        except RejectedError:
            raise
        except Exception as error:  # its own classes, which share no base but this
            raise RejectedError(NAME, path, error) from error
        watched = typical_ns(call, runs)
        events = json.loads(Path(session.session.end_profiling()).read_text(encoding="utf-8"))
    ops = operations(events, runs)
    if not ops:
        return OpProfile(reason="ONNX Runtime's trace holds no operation")
    calls = sum(event["name"] == _TOP for event in events)
    if calls < runs + WARM:  # the trace stops after a million events, without a word
        return OpProfile(reason=f"ONNX Runtime's trace is full after {calls} inferences: ask for fewer runs")
    return OpProfile(
        ops, runs, f"ONNX Runtime's trace, means of whole microseconds over {runs} inferences; {cost(watched, plain)}"
    )


def operations(events: list[dict[str, Any]], runs: int) -> tuple[Op, ...]:
    """The operations of the last `runs` inferences of a trace in running order, each with its mean ns in an inference.

    What ran in a branch or in a loop's body stands for itself and is taken off the operation that holds it.
    """
    tops = sorted(event["ts"] for event in events if event["cat"] == "Session" and event["name"] == _TOP)[-runs:]
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith(_SUFFIX) and tops and e["ts"] >= tops[0]]
    # of two that begin within the same microsecond the longer one is the outer one
    nodes.sort(key=lambda event: (event["ts"], -event["dur"]))
    totals, places = dict[tuple[str, str], float](), dict[tuple[str, str], str]()
    hosts: list[tuple[float, tuple[str, str]]] = []
    for event in nodes:
        kind = event["args"].get("op_name", "")
        key = (event["name"].removesuffix(_SUFFIX), kind)
        while hosts and hosts[-1][0] <= event["ts"]:
            hosts.pop()
        if hosts:
            totals[hosts[-1][1]] -= event["dur"]
        totals[key] = totals.get(key, 0.0) + event["dur"]
        places[key] = event["args"].get("provider", "")
        if kind in _HOSTS:
            hosts.append((event["ts"] + event["dur"], key))
    ops, seen = [], Counter[str]()
    for (name, kind), total in totals.items():
        plain = _TOKEN.sub("", name)
        seen[plain] += 1
        shown = plain if seen[plain] == 1 else f"{plain} #{seen[plain]}"
        ops.append(Op(shown, kind, max(0.0, total) * 1e3 / runs, places[name, kind].removesuffix("ExecutionProvider")))
    return tuple(ops)
