"""A finished `.tflite` file, taken apart into its operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

BRIDGES = ("QUANTIZE", "DEQUANTIZE")
"""Operators that only change how numbers are held."""
FLOATS = ("float32", "float16")
_JUDGING = frozenset({"ARG_MAX", "ARG_MIN", "EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL"})
"""Operators that read numbers and write positions or truth values."""


@dataclass(frozen=True)
class Step:
    """One operator: its kind, version, fused activation (0 = none), and the tensors it reads and writes, by number.

    `subgraph` is 0 in the main graph; branches are others.
    """

    subgraph: int
    kind: str
    version: int
    activation: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Anatomy:
    """All operators in order of execution, and of every (subgraph, tensor) its dtype, and whether it is known beforehand."""

    steps: tuple[Step, ...]
    dtypes: dict[tuple[int, int], str]
    fixed: frozenset[tuple[int, int]]
    doors: frozenset[tuple[int, int]]

    def dtype(self, step: Step) -> str:
        """The dtype that an operator computes in: its output's; of one that compares numbers, its first input's."""
        ends = step.inputs if step.kind in _JUDGING else step.outputs
        return self.dtypes[step.subgraph, ends[0]]

    def idle(self, step: Step) -> bool:
        """Whether it only unpacks a stored weight, which runtimes do once."""
        return all((step.subgraph, t) in self.fixed for t in step.outputs)

    def computed(self, step: Step, index: int) -> bool:
        """Whether an input is there and is computed while the network runs."""
        return index < len(step.inputs) and step.inputs[index] >= 0 and (step.subgraph, step.inputs[index]) not in self.fixed


def anatomy(data: bytes) -> Anatomy:
    """The operators of a file and its tensors' types."""
    from .writer import schema, unpacked

    model = unpacked(data)
    kinds = _numbered(schema.BuiltinOperator)
    types = {number: name.lower() for number, name in _numbered(schema.TensorType).items()}
    steps, dtypes = [], {}
    fixed: set[tuple[int, int]] = set()
    doors: set[tuple[int, int]] = set()
    for number, graph in enumerate(model.subgraphs):
        for index, tensor in enumerate(graph.tensors):
            dtypes[number, index] = types[tensor.type]
            if model.buffers[tensor.buffer].data is not None:
                fixed.add((number, index))
        doors.update((number, int(index)) for index in (*graph.inputs, *graph.outputs))
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            step = Step(
                number,
                kinds[max(code.builtinCode, code.deprecatedBuiltinCode)],
                int(code.version),
                int(getattr(op.builtinOptions, "fusedActivationFunction", 0)),
                _numbers(op.inputs),
                _numbers(op.outputs),
            )
            steps.append(step)
            if step.kind == "DEQUANTIZE" and (number, step.inputs[0]) in fixed:
                fixed.add((number, step.outputs[0]))
    return Anatomy(tuple(steps), dtypes, frozenset(fixed), frozenset(doors))


def histogram(data: bytes) -> dict[str, int]:
    """How many operators of each kind, branches included, the most frequent first."""
    return dict(Counter(step.kind for step in anatomy(data).steps).most_common())


def _numbered(enumeration: Any) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


def _numbers(indices: np.ndarray | list[int] | None) -> tuple[int, ...]:
    return () if indices is None else tuple(int(index) for index in indices)
