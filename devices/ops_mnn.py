"""Single operations of MNN, from its session's callbacks before and after each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import noise
from .ops import WARM, Op, OpProfile, cost, plain_ns, typical_ns
from .runtime import Ports
from .runtimes_mnn import Mnn

_HANDLES = {"float32": "Halide_Type_Float", "int32": "Halide_Type_Int", "uint8": "Halide_Type_Uint8"}


def profile_ops(
    path: Path, ports: Ports, *, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str], runs: int
) -> OpProfile:
    """Mean times between two callbacks, of operations as MNN has decomposed them. Raises RejectedError."""
    shapes = {name: array.shape for name, array in inputs.items()}
    session = Mnn.load(path, ports, shapes=shapes, threads=threads, options=options)
    plain = plain_ns(session.bind(inputs), runs)
    if odd := sorted({spec.dtype for spec in ports.inputs} - _HANDLES.keys()):
        return OpProfile(reason=f"MNN's sessions, which alone are profiled, take no {', '.join(odd)} inputs")
    with noise.hushed() as heard:
        watched = _Watched(path, ports, inputs, {"backend": "CPU", "precision": options["precision"], "numThread": threads})
        works = watched.call()
    if not works:
        said = "; ".join(line for line in heard.lines() if "precision" not in line and "supports" not in line)
        return OpProfile(
            reason="MNN's sessions, which alone are profiled, cannot run this network (networks with branches are run as modules)"
            + (f": {said}" if said else "")
        )
    for _ in range(WARM):
        watched.call()
    watched.times.clear()
    whole = typical_ns(watched.call, runs, warm=0)
    ops = tuple(Op(name, kind, total / runs, "CPU") for (name, kind), total in watched.times.items())
    return OpProfile(
        ops,
        runs,
        f"times between MNN's callbacks before and after an operation, means over {runs} inferences, about 1 µs of each is the "
        f"calling; {cost(whole, plain)}",
    )


class _Watched:
    """A session whose operations call back. `times`: (name, type) → ns in total."""

    def __init__(self, path: Path, ports: Ports, inputs: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        import MNN

        self.interpreter = MNN.Interpreter(str(path))
        self.session = self.interpreter.createSession(dict(settings))
        self.times: dict[tuple[str, str], float] = {}
        self._start = 0
        there = self.interpreter.getSessionInputAll(self.session)
        for spec in ports.inputs:
            self.interpreter.resizeTensor(there[spec.name], tuple(inputs[spec.name].shape))
        self.interpreter.resizeSession(self.session)
        self.filled = []
        for spec in ports.inputs:
            array = np.ascontiguousarray(inputs[spec.name].astype(spec.dtype, copy=False))
            held = MNN.Tensor(array.shape, getattr(MNN, _HANDLES[spec.dtype]), array, MNN.Tensor_DimensionType_Caffe)
            self.filled.append((there[spec.name], held))

    def call(self) -> bool:
        """One inference on inputs copied in anew; True when it ran.

        A session computes in the memory of its inputs too: a second inference on what is left there is one of other numbers, and
        after a few of them of denormal ones, which take a CPU fifty times as long.
        """
        for tensor, held in self.filled:
            tensor.copyFrom(held)
        return bool(self.interpreter.runSessionWithCallBackInfo(self.session, self._before, self._after) == 0)

    def _before(self, tensors: object, info: Any) -> bool:
        del tensors, info
        self._start = time.perf_counter_ns()
        return True

    def _after(self, tensors: object, info: Any) -> bool:
        del tensors
        spent = time.perf_counter_ns() - self._start
        key = (info.getName(), info.getType())
        self.times[key] = self.times.get(key, 0.0) + spent
        return True
