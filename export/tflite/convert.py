"""The walk over an ONNX graph that calls one rule per node and keeps track of where every value lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .graph import Graph, Node
from .ir import FREE, Program, Tensor
from .layout import NHWC, Perm, Scramble, Value, identity
from .refusal import RefusalError
from .registry import UnsupportedError, rules

INT = np.dtype("int32")
FLOAT = np.dtype("float32")
BOOL = np.dtype("bool")


_SHOWN = 30
"""How many operators an error lists: a quantised graph would fill the screen."""


def held_as(dtype: np.dtype) -> np.dtype:
    """The dtype inside a TFLite program: floats are float32 and integers int32, since few kernels take anything else."""
    dtype = np.dtype(dtype)
    if dtype == BOOL or str(dtype) in ("uint8", "int8", "uint16"):
        return dtype
    return INT if dtype.kind in "iu" else FLOAT


class Converter:
    """What a rule works with: the graph it reads, the program it writes, and the layout of every value.

    Every method that returns a tensor emits what it takes to have it; nothing is emitted twice for one value.
    """

    def __init__(self, graph: Graph, *, integer: bool = False) -> None:
        """`integer`: the program will be quantised, so that operators are chosen whose integer kernels are fast."""
        self.graph = graph
        self.integer = integer
        self.program = Program()
        self.values: dict[str, Value] = {}
        self.producers = graph.producers()
        self.consumers = graph.consumers()
        self._names: set[str] = set()
        self._cache: dict[Any, Tensor] = {}
        self._stack: list[str] = []
        self._lazy: dict[int, Node] = {}
        self._done: set[int] = set()
        self.stem = ""

    # --- the walk

    def run(self) -> None:
        """Convert every node. Raises UserError with all operators that TFLite cannot hold."""
        if failures := self.walk():
            raise refusal(failures)

    def walk(self) -> list[str]:
        """Convert every node; what could not be converted, one line each."""
        failures: list[str] = []
        broken: set[str] = set()
        for node in self.graph.nodes:
            if all(name in self.graph.varying for name in node.outputs if name):
                self._lazy[id(node)] = node
                continue
            if node.op in rules and any(name in broken for name in node.inputs):
                broken.update(node.outputs)
                continue
            try:
                self._convert(node)
            except UnsupportedError as error:
                failures += [f"{node.label}: {reason}" for reason in error.args]
                broken.update(node.outputs)
        return failures

    def _convert(self, node: Node) -> None:
        if node.op not in rules:
            raise UnsupportedError("no conversion rule")
        outer, self.stem = self.stem, node.outputs[0]
        self._done.add(id(node))
        start = len(self.program.ops)
        try:
            rules[node.op](self, node)
        finally:
            self.stem = outer
        for op in self.program.ops[start:]:
            op.origins = op.origins or frozenset([node.outputs[0]])

    # --- what is known before the program runs

    def const(self, name: str) -> np.ndarray | None:
        """The array of a constant value, or None."""
        return self.graph.constants.get(name)

    def probe(self, name: str) -> np.ndarray:
        """The logical shape, one row per probe: (P, rank). Raises UnsupportedError when it could not be inferred."""
        if name not in self.graph.shapes:
            if name in self.graph.constants:
                shape = self.graph.constants[name].shape
                rows = max(1, max((len(s) for s in self.graph.symbols.values()), default=1))
                return np.tile(np.array(shape, dtype=np.int64).reshape(1, -1), (rows, 1))
            raise UnsupportedError(f"the shape of {name!r} is unknown before run time")
        return self.graph.shapes[name]

    def rank(self, name: str) -> int:
        """The logical rank of a value."""
        return self.probe(name).shape[1]

    def dims(self, name: str) -> tuple[int, ...]:
        """The logical shape with `FREE` for what is known at run time only."""
        return signature(self.probe(name))

    def dim(self, name: str, axis: int, what: str) -> int:
        """A static dimension. Raises UnsupportedError, saying `what` needs it, when it is free."""
        size = self.dims(name)[axis]
        if size == FREE:
            raise UnsupportedError(f"{what} needs a fixed size of axis {axis} of {name!r}")
        return size

    def dtype(self, name: str) -> np.dtype:
        """The dtype a value has inside the program."""
        known = self.graph.constants[name].dtype if name in self.graph.constants else self.graph.dtypes[name]
        return held_as(known)

    def ints(self, node: Node, attr: str, index: int | None = None) -> list[int] | None:
        """Integers from an attribute (older opsets) or a constant input (newer ones); None when given in neither."""
        if attr in node.attrs:
            value = node.attrs[attr]
            return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
        name = node.input(index) if index is not None else ""
        if not name:
            return None
        known = self.const(name)
        if known is None:
            raise UnsupportedError(f"its {attr} are computed at run time")
        return [int(v) for v in np.atleast_1d(known)]

    # --- tensors

    def fresh(self, shape: Sequence[int], dtype: np.dtype, *, suffix: str = "", data: np.ndarray | None = None) -> Tensor:
        """A new tensor named after the ONNX value in work."""
        base = (self.stem or "value") + suffix
        name, number = base, 1
        while name in self._names:
            name, number = f"{base}_{number}", number + 1
        self._names.add(name)
        return Tensor(name, tuple(int(d) for d in shape), np.dtype(dtype), data)

    def constant(self, array: Any, dtype: np.dtype | None = None) -> Tensor:
        """A constant tensor, in the program's dtypes. Raises UnsupportedError for integers beyond 32 bits."""
        array = np.asarray(array)
        kind = held_as(array.dtype) if dtype is None else np.dtype(dtype)
        if kind == INT and array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
            raise UnsupportedError("an integer constant is beyond 32 bits")
        data = np.array(array, dtype=kind, order="C")
        key = ("const", data.dtype.str, data.shape, data.tobytes()) if data.size <= 64 else None
        if key in self._cache:
            return self._cache[key]
        tensor = self.fresh(data.shape, kind, suffix="/const", data=data)
        if key is not None:
            self._cache[key] = tensor
        return tensor

    def emit(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        dtype: np.dtype | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The output of a new operator; its dtype is the first input's unless given."""
        if dtype is None:
            dtype = next(t.dtype for t in inputs if t is not None)
        out = self.fresh(shape, dtype)
        self.program.emit(kind, inputs, [out], options)
        return out

    def put(self, name: str, tensor: Tensor, perm: Perm | None = None, scramble: Mapping[int, Scramble] | None = None) -> None:
        """Record where an ONNX value lies. Raises AssertionError when the tensor's shape is not the value's."""
        perm = identity(tensor.rank) if perm is None else perm
        if name in self.graph.shapes:
            expected = tuple(self.dims(name)[axis] for axis in perm)
            if expected != tensor.shape:
                raise AssertionError(f"{name}: stored {tensor.shape}, expected {expected} ({perm})")
        self.values[name] = Value(tensor, perm, scramble or {})

    # --- values in a layout

    def raw(self, name: str) -> Value:
        """A value as it lies, scrambled axes and all."""
        if name not in self.values:
            if name in self.graph.constants:
                array = self.graph.constants[name]
                self.values[name] = Value(self.constant(array), identity(array.ndim))
            elif (node := self.producers.get(name)) is not None and id(node) in self._lazy and id(node) not in self._done:
                self._convert(node)
            else:
                raise UnsupportedError(f"its input {name!r} is not a tensor of this graph")
        return self.values[name]

    def plain(self, name: str) -> Value:
        """A value in any axis order, entries unscrambled."""
        value = self.raw(name)
        return value if not value.scramble else self.unscrambled(name)

    def unscrambled(self, name: str, keep: Sequence[int] = ()) -> Value:
        """A value whose axes outside `keep` are in logical order."""
        from .moves import unscramble

        value = self.raw(name)
        axes = [axis for axis in value.scramble if axis not in keep]
        if not axes:
            return value
        key = ("plain", name, tuple(axes))
        if key not in self._cache:
            self._cache[key] = unscramble(self, value, axes)
        kept = {axis: s for axis, s in value.scramble.items() if axis in keep}
        return Value(self._cache[key], value.perm, kept)

    def dense(self, name: str, perm: Perm | None = None) -> Tensor:
        """The tensor of a value in this axis order (default: ONNX's own), unscrambled."""
        from .moves import permute

        perm = identity(self.rank(name)) if perm is None else perm
        array = self.const(name)
        if array is not None:
            return self.constant(np.transpose(array, perm))
        value = self.plain(name)
        if value.perm == perm:
            return value.tensor
        key = ("dense", name, perm)
        if key not in self._cache:
            self._cache[key] = permute(self, value, perm)
        return self._cache[key]

    def images(self, name: str, keep: bool = False) -> Value:
        """A rank-4 value in NHWC; `keep` leaves a scrambled channel axis as it is. Raises UnsupportedError for another rank."""
        from .moves import permute

        if self.rank(name) != 4:
            raise UnsupportedError(f"it reads {name!r} of rank {self.rank(name)} as images (rank 4)")
        if not keep or self.const(name) is not None:
            return Value(self.dense(name, NHWC), NHWC)
        value = self.unscrambled(name, keep=[1])
        if value.perm == NHWC:
            return value
        key = ("images", name)
        if key not in self._cache:
            self._cache[key] = permute(self, value, NHWC)
        return Value(self._cache[key], NHWC, value.scramble)

    def cached(self, key: Any, make: Any) -> Tensor:
        """The tensor filed under `key`, made by `make()` the first time."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def signature(probe: np.ndarray) -> tuple[int, ...]:
    """A shape with `FREE` wherever the probes' rows (P, rank) differ."""
    return tuple(int(column[0]) if np.all(column == column[0]) else FREE for column in probe.T)


def refusal(failures: Sequence[str]) -> RefusalError:
    """The one error for everything in a network that TFLite cannot hold."""
    lines = "".join(f"\n  - {line}" for line in failures[:_SHOWN])
    lines += f"\n  - and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    count = "1 operator" if len(failures) == 1 else f"{len(failures)} operators"
    return RefusalError(
        f"TFLite cannot hold {count} of this network:{lines}",
        hint="replace them in the module, file a rule with trimtab.export.tflite.registry.rule, or export --to onnx "
        "(or openvino, coreml), which hold more operators",
    )
