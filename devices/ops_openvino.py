"""Single operations of OpenVINO, from the counters that its CPU plugin keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import openvino_core
from .ops import WARM, Op, OpProfile, cost, plain_ns, typical_ns
from .runtime import Ports, RejectedError
from .runtimes_openvino import NAME, OpenVino, OpenVinoSession

_EDGES = ("Parameter", "Result", "Constant")
_INNER = ("If", "Loop", "TensorIterator")
"""Operations that hold a body: OpenVINO counts the body as one with them."""


def profile_ops(
    path: Path, ports: Ports, *, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str], runs: int
) -> OpProfile:
    """Means to about a microsecond, of what was executed, in the precision of a plain session. Raises RejectedError."""
    shapes = {name: array.shape for name, array in inputs.items()}
    session = OpenVino.load(path, ports, shapes=shapes, threads=threads, options=options)
    plain = plain_ns(session.bind(inputs), runs)
    try:
        request, kept = _request(session, inputs)
        for _ in range(WARM):
            request.infer()
        before = _counted(request)
        watched = typical_ns(lambda: request.infer(share_outputs=True), runs, warm=0)
        after = _counted(request)
    except Exception as error:
        raise RejectedError(NAME, path, error) from error
    del kept
    # Counters hold the mean since the model was compiled. That of the inferences after the first look is (n·mean_n − m·mean_m) / runs.
    ops = tuple(
        Op(name, kind, max(0.0, ((WARM + runs) * mean - WARM * before[name, kind, where]) / runs), where)
        for (name, kind, where), mean in after.items()
    )
    if not ops:
        return OpProfile(reason="OpenVINO's counters name no executed operation")
    held = sorted({op.kind for op in ops if op.kind in _INNER})
    inside = f"; what runs inside {', '.join(held)} is counted as one" if held else ""
    return OpProfile(
        ops,
        runs,
        f"OpenVINO's counters, means over {runs} inferences, less than 1 µs reads as 0{inside}; {cost(watched, plain)}",
    )


def _request(session: OpenVinoSession, inputs: Mapping[str, np.ndarray]) -> tuple[Any, list[np.ndarray]]:
    """An inference request of the same model and settings with counters on, and the arrays that it reads."""
    model = session.model.clone()
    if model.is_dynamic():
        model.reshape({name: list(array.shape) for name, array in inputs.items()})
    compiled = openvino_core.core().compile_model(model, "CPU", {**session.settings, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    kept = [np.ascontiguousarray(array) for array in inputs.values()]
    for name, array in zip(inputs, kept, strict=True):
        request.set_tensor(name, session.openvino.Tensor(array, shared_memory=True))
    return request, kept


def _counted(request: Any) -> dict[tuple[str, str, str], float]:
    """(name, type, kernel) → mean ns since the model was compiled, of every operation that has a kernel.

    The status says "not run" of operations that were fused into others, and of those too that took less than 1 µs: the kernel
    tells them apart.
    """
    found: dict[tuple[str, str, str], float] = {}
    for info in request.get_profiling_info():
        fused = info.exec_type == "undef" or info.status == info.OPTIMIZED_OUT
        if info.status == info.EXECUTED or not (fused or info.node_type in _EDGES):
            key = (info.node_name, info.node_type, info.exec_type)
            found[key] = found.get(key, 0.0) + info.real_time.total_seconds() * 1e9
    return found
