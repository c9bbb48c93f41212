"""Where an artifact's time goes, operation by operation, as each runtime's own profiler tells it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .runtime import Ports

Profiler = Callable[..., "OpProfile"]


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
    """The profile over `runs` inferences, from a session of its own: looking costs time. Raises RejectedError."""
    if runtime not in _MODULES:
        return OpProfile(reason=f"{runtime} has no profiler of single operations here")
    profiler: Profiler = importlib.import_module(_MODULES[runtime]).profile_ops
    return profiler(path, ports, inputs=inputs, threads=threads, options=options, runs=runs)
