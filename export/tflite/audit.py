"""What the file makes runtimes do beside the network's own arithmetic, and which operators delegates leave to slower kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..artifact import Audit, Unplaced
from .anatomy import BRIDGES, FLOATS, Anatomy, Step, anatomy
from .delegates import coreml_reason, nnapi_reason, xnnpack_reason


def audit(data: bytes, *, integer: bool) -> Audit:
    """Layout moves, casts, what computes in float in an `integer` file, and per delegate the operators that it would not take.

    XNNPACK is asked: LiteRT loads the file and shows what it handed over. NNAPI and Core ML, which run on phones alone, are
    looked up in what their delegates are documented to take.
    """
    found = anatomy(data)
    counts = Counter(step.kind for step in found.steps)
    working = [step for step in found.steps if not found.idle(step)]
    delegates = {
        "NNAPI": _unplaced((step, nnapi_reason(found, step)) for step in working),
        "Core ML delegate": _unplaced((step, coreml_reason(found, step)) for step in working),
    }
    if (left := _left_by_xnnpack(data, found)) is not None:
        delegates = {"XNNPACK": _unplaced((step, xnnpack_reason(found, step)) for step in left), **delegates}
    return Audit(
        transposes=counts["TRANSPOSE"],
        casts=counts["CAST"],
        islands=_islands(found) if integer else {},
        delegates=delegates,
    )


def _islands(found: Anatomy) -> dict[str, int]:
    """The float operators of an integer file by kind, with what turns numbers to float and back around them."""
    islands: Counter[str] = Counter()
    for step in found.steps:
        ends = [(step.subgraph, t) for t in (*step.inputs, *step.outputs) if t >= 0]
        if step.kind in BRIDGES:
            inside = not any(end in found.doors for end in ends) and not found.idle(step)
            islands[step.kind] += inside and any(found.dtypes[end] in FLOATS for end in ends)
        else:
            islands[step.kind] += found.dtype(step) in FLOATS
    return {kind: count for kind, count in islands.most_common() if count}


def _unplaced(judged: Iterable[tuple[Step, str]]) -> tuple[Unplaced, ...]:
    """The refused operators, those of one kind and reason together."""
    counts = Counter((step.kind, reason) for step, reason in judged if reason)
    return tuple(Unplaced(op=kind, count=count, reason=reason) for (kind, reason), count in counts.most_common())


def _left_by_xnnpack(data: bytes, found: Anatomy) -> list[Step] | None:
    """The main graph's operators outside what LiteRT hands to XNNPACK at the stored sizes; None when it can't load the file so.

    A delegate's node lists only what goes in and out of it: what it computes is what lies between.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        nodes = interpreter._get_ops_details()
    except (RuntimeError, ValueError):
        return None
    main = [step for step in found.steps if not step.subgraph]
    writers = {tensor: step for step in main for tensor in step.outputs}
    taken: set[Step] = set()
    for node in nodes:
        if node["op_name"] != "DELEGATE":
            continue
        entries = {int(t) for t in node["inputs"]}
        waiting = [int(t) for t in node["outputs"]]
        while waiting:
            step = writers.get(waiting.pop())
            if step is not None and step not in taken:
                taken.add(step)
                waiting += [t for t in step.inputs if t not in entries]
    return [step for step in main if step not in taken and not found.idle(step)]
