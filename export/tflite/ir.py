"""A TFLite program as plain Python objects, before it becomes a flatbuffer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FREE = -1
"""A dimension that is free at run time, in a tensor's signature."""


@dataclass(eq=False)
class Tensor:
    """One tensor: its signature (`FREE` marks a dimension known at run time only), dtype, and the data of a constant."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    data: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


@dataclass(eq=False)
class Op:
    """One operator: its builtin name ("CONV_2D"), tensors (None = an absent optional input) and options by field name.

    An IF holds its branches in `blocks` (then, else); each takes the tensors after the condition as its inputs, in order.
    `origins` names the ONNX nodes that it computes, all or in part.
    """

    kind: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    blocks: tuple[Program, ...] = ()
    origins: frozenset[str] = frozenset()


@dataclass(eq=False)
class Program:
    """The operators in execution order and the tensors that come in and go out, by signature name.

    `values` says which tensor holds which ONNX value, entry for entry though maybe in another axis order.
    """

    ops: list[Op] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def emit(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: Mapping[str, Any] | None = None,
    ) -> Op:
        """The new last operator."""
        op = Op(kind, list(inputs), list(outputs), dict(options or {}))
        self.ops.append(op)
        return op

    def readers(self) -> dict[Tensor, list[Op]]:
        """For every tensor, the operators that read it (once per reading slot)."""
        found: dict[Tensor, list[Op]] = {}
        for op in self.ops:
            for tensor in op.inputs:
                if tensor is not None:
                    found.setdefault(tensor, []).append(op)
        return found

    def writers(self) -> dict[Tensor, Op]:
        """For every computed tensor, the operator that writes it."""
        return {tensor: op for op in self.ops for tensor in op.outputs}

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once: inputs, then those of the operators in order, then outputs."""
        seen: set[Tensor] = set()
        groups: list[list[Tensor | None]] = [
            list(self.inputs.values()),
            *([*op.inputs, *op.outputs] for op in self.ops),
            list(self.outputs.values()),
        ]
        for tensor in (t for group in groups for t in group):
            if tensor is not None and tensor not in seen:
                seen.add(tensor)
                yield tensor

    def programs(self) -> Iterator[Program]:
        """This program and those inside its operators, each before its own."""
        yield self
        for op in self.ops:
            for block in op.blocks:
                yield from block.programs()

    def histogram(self) -> dict[str, int]:
        """How many operators of each kind, by name, those of branches included."""
        return dict(sorted(Counter(op.kind for program in self.programs() for op in program.ops).items()))
