"""Single operations of ExecuTorch, from the trace that it keeps in memory (ETDump), read by its own Inspector."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import noise
from .ops import WARM, Op, OpProfile, cost, plain_ns, typical_ns
from .runtime import Ports, RejectedError
from .runtimes_executorch import NAME, ExecuTorch, ExecuTorchSession

KERNEL = "ExecuTorch kernel"
"""Where operations run that no delegate took. The library that Python loads has quick kernels for some twenty types of them (linear,
add, softmax, …) and portable ones for the rest, convolutions included; which one ran is not told."""
_BLOCK = "Execute"
_KERNEL = "native_call_"
_CALL = "DELEGATE_CALL"


def profile_ops(
    path: Path, ports: Ports, *, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str], runs: int
) -> OpProfile:
    """Means, of a delegate's operations and of those that were left to ExecuTorch's own kernels. Raises RejectedError."""
    shapes = {name: array.shape for name, array in inputs.items()}
    session = ExecuTorch.load(path, ports, shapes=shapes, threads=threads, options=options)
    plain = plain_ns(session.bind(inputs), runs)
    events, watched = _events(session, inputs, runs)
    ops = operations(events, runs, delegate=_delegate(path, session))
    if not ops:
        return OpProfile(reason="ExecuTorch's trace holds no operation")
    slow = sum(op.where == KERNEL for op in ops)
    left = (
        f"; {slow} of {len(ops)} operations were not delegated, and most such kernels are written for portability"
        if slow
        else ""
    )
    return OpProfile(
        ops,
        runs,
        f"ExecuTorch's trace, means over {runs} inferences, a delegate's operations in whole microseconds{left}; {cost(watched, plain)}",
    )


def operations(events: Sequence[Any], runs: int, *, delegate: str) -> tuple[Op, ...]:
    """The operations among the Inspector's events of a method, each with the mean ns of its last `runs` inferences.

    A kernel stands for its instruction, and a delegate's operations for the call that they are in; a call of a delegate that
    tells nothing of its inside stands for itself.
    """
    told = {event._instruction_id for event in events if event.is_delegated_op}
    ops = []
    for event in events:
        place = event._instruction_id
        if event.is_delegated_op:
            name, kind, where = f"instruction {place}: {event.name}", event.name.rsplit(" #", 1)[0], delegate
        elif event.name.startswith(_KERNEL):
            kind = event.name.removeprefix(_KERNEL)
            name, where = f"instruction {place}", KERNEL
        elif event.name == _CALL and place not in told:
            name, kind, where = f"instruction {place}", "delegate", delegate
        else:
            continue
        ns = float(np.mean(event.perf_data.raw[-runs:])) * 1e6  # the Inspector tells milliseconds
        ops.append(Op(name, kind, max(0.0, ns), where))
    return tuple(ops)


def _events(session: ExecuTorchSession, inputs: Mapping[str, np.ndarray], runs: int) -> tuple[Sequence[Any], float]:
    """The Inspector's events of the method, and how long an inference typically took."""
    from executorch.runtime import Verification

    kind = Verification.InternalConsistency if session.check == "full" else Verification.Minimal
    try:
        with noise.hushed():
            watched = session.library._load_for_executorch(str(session.path), enable_etdump=True, program_verification=kind)
            session._threads()
            tensors = session._tensors(inputs)
            spent = typical_ns(lambda: watched.forward(tensors), runs)
    except (RuntimeError, ValueError) as error:
        raise RejectedError(NAME, session.path, error) from error
    with tempfile.TemporaryDirectory(prefix="trimtab-ops-") as folder, noise.hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no tensors in the trace, which nobody asked for
        from executorch.devtools import Inspector

        file = Path(folder) / "trace.etdump"
        watched.write_etdump_result_to_file(str(file))
        blocks = Inspector(etdump_path=str(file)).event_blocks
    events = [event for block in blocks if block.name == _BLOCK for event in block.events if event.perf_data is not None]
    short = [event.name for event in events if len(event.perf_data.raw) < WARM + runs]
    if short:
        raise ValueError(f"the trace holds only some of {WARM + runs} inferences of {short[0]}")
    return events, spent


def _delegate(path: Path, session: ExecuTorchSession) -> str:
    """The delegate that the program calls, by the name of the backend in the file; several are told as such."""
    data = path.read_bytes()
    names = [name for name in session.runtime.backend_registry.registered_backend_names if name.encode() in data]
    return " or ".join("XNNPACK" if name == "XnnpackBackend" else name for name in names) or "delegate"
