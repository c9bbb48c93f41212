"""Core ML's plan of a program: for every operation the device that it prefers, and its estimate of the cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import noise
from .ops import Op, OpProfile, typical_ns
from .runtime import Ports
from .runtimes_coreml import CoreMl

_PLACES = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}


def profile_ops(
    path: Path, ports: Ports, *, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str], runs: int
) -> OpProfile:
    """The measured latency, shared out by Apple's estimates: Core ML times no single operation. Raises RejectedError."""
    shapes = {name: array.shape for name, array in inputs.items()}
    session = CoreMl.load(path, ports, shapes=shapes, threads=threads, options=options)
    latency = typical_ns(session.bind(inputs), runs)
    with noise.hushed():
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(session.model.get_compiled_model_path(), compute_units=session.unit)
    program = plan.model_structure.program
    if program is None:
        return OpProfile(reason="this Core ML model is no ML program, and only those are profiled")
    planned = list(_planned(plan, program.functions["main"].block))
    total = sum(weight for _, _, weight, _ in planned)
    if total <= 0:
        return OpProfile(reason="Core ML's plan holds no estimate of what an operation costs")
    ops = tuple(Op(name, kind, latency * weight / total, where) for name, kind, weight, where in planned)
    return OpProfile(
        ops,
        runs,
        "not times of operations: the median latency of "
        f"{latency / 1e6:.3f} ms over {runs} inferences, shared out by Apple's estimates (MLComputePlan) of what each operation "
        "costs; where: the device that Core ML prefers for it",
    )


def _planned(plan: Any, block: Any) -> Iterator[tuple[str, str, float, str]]:
    """(name, kind, estimated share of the cost, device) of the operations that Core ML plans, those of branches included.

    Constants are no work: they have neither a device nor a cost.
    """
    for operation in block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        if usage is not None or cost is not None:
            place = type(usage.preferred_compute_device).__name__ if usage is not None else "not told"
            name = operation.outputs[0].name if operation.outputs else operation.operator_name
            yield name, operation.operator_name, float(cost.weight) if cost is not None else 0.0, _PLACES.get(place, place)
        for inner in operation.blocks:
            yield from _planned(plan, inner)
