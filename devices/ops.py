"""Where an artifact's time goes, operation by operation, as each runtime's own profiler tells it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .runtime import Ports, RejectedError

Profiler = Callable[..., "OpProfile"]

WARM = 5
"""Inferences before any that counts: first ones fill caches and choose kernels."""
PLAIN = 20


@dataclass(frozen=True)
class Op:
    """One operation of the running program: its time in ns per inference, and where it ran ("XNNPACK", "CPU", a GPU's name).

    `kind` is the operation's type in the runtime's own words; fused operations are one.
    """

    name: str
    kind: str
    ns: float
    where: str


@dataclass(frozen=True)
class OpProfile:
    """The operations in the order that they ran in. `note` says how the times came about; `reason` why there are none."""

    ops: tuple[Op, ...] = ()
    runs: int = 0
    note: str = ""
    reason: str = ""


_MODULES: Mapping[str, str] = {
    name: f"trimtab.devices.ops_{name}" for name in ("onnxruntime", "openvino", "litert", "executorch", "ncnn", "mnn", "coreml")
}


def profile_ops(
    runtime: str,
    path: Path,
    ports: Ports,
    *,
    inputs: Mapping[str, np.ndarray],
    threads: int,
    options: Mapping[str, str],
    runs: int,
) -> OpProfile:
    """The profile over `runs` inferences, from a session of its own: looking costs time. Raises RejectedError.

    `options` are complete. Whatever else a profiler throws is the profile's `reason`: it is an extra to a measurement that stands.
    """
    if runtime not in _MODULES:
        return OpProfile(reason=f"{runtime} has no profiler of single operations here")
    if runs < 1:
        return OpProfile(reason=f"a profile needs at least 1 inference, {runs} were asked for")
    try:
        profiler: Profiler = importlib.import_module(_MODULES[runtime]).profile_ops
        return profiler(path, ports, inputs=inputs, threads=threads, options=options, runs=runs)
    except RejectedError:
        raise
    except Exception as error:  # native libraries throw what they like
        said = (str(error).strip().splitlines() or ["no words"])[0]
        return OpProfile(reason=f"{runtime}'s profiler failed: {type(error).__name__}: {said}")


def typical_ns(call: Callable[[], object], runs: int, *, warm: int = WARM) -> float:
    """The median time of `call` over `runs` calls, after `warm` that don't count."""
    for _ in range(warm):
        call()
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times))


def plain_ns(call: Callable[[], object], runs: int) -> float:
    """The median time of an inference that nobody watches, over at most PLAIN of them: it is for a ratio in words."""
    return typical_ns(call, min(runs, PLAIN))


def cost(watched_ns: float, plain_ns: float) -> str:
    """What looking cost, in words: how much longer the inference took than one that nobody watched."""
    return f"with the profiler on an inference took {watched_ns / max(plain_ns, 1.0):.2f} times as long"
