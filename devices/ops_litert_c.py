"""LiteRT's C library with its profiler on: the part of LiteRT that its Python classes don't reach."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from ctypes import byref, c_bool, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .runtime import Port

LIBRARIES = ("libLiteRt.so", "libLiteRt.dylib", "libLiteRt.dll")
TESTED = ("2.3.0",)
"""Versions of ai-edge-litert whose structures are known to lie as below. Another layout would end the process."""

_CPU = 1
_WRITE = 1
_BUILTIN = 2  # kernel_mode: the runtime's own optimised kernels, without a delegate


class CallError(Exception):
    """A function of the library that failed, with its status."""


class _Layout(ctypes.Structure):
    _fields_ = [("rank", c_uint32), ("dims", c_int32 * 8), ("strides", c_uint32 * 8)]


class _TensorType(ctypes.Structure):
    _fields_ = [("element", c_int32), ("layout", _Layout), ("spare", c_int32 * 16)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("tag", c_char_p),
        ("kind", c_int),
        ("start_us", c_uint64),
        ("spent_us", c_uint64),
        ("memory", c_int64 * 6),
        ("index", c_uint64),
        ("subgraph", c_uint64),
        ("source", c_int),
    ]


@dataclass(frozen=True)
class Event:
    """One event of the profiler. `kind` 1: the runtime itself, 2: an operation of the graph, 8: one inside a delegate."""

    tag: str
    kind: int
    start_us: int
    spent_us: int
    index: int
    subgraph: int


def library_file() -> Path | None:
    """The C library inside the installed package, or None."""
    spec = importlib.util.find_spec("ai_edge_litert")
    home = Path(spec.origin).parent if spec and spec.origin else Path()
    return next((home / name for name in LIBRARIES if spec and (home / name).is_file()), None)


class WatchedModel:
    """A model compiled for the CPU with its profiler ready, and buffers filled for one inference. Raises CallError."""

    def __init__(
        self,
        library: Path,
        path: Path,
        *,
        ports: Sequence[Port],
        inputs: Mapping[str, np.ndarray],
        threads: int,
        delegate: bool,
    ) -> None:
        self._c = ctypes.CDLL(str(library))
        self._environment, self._model = c_void_p(), c_void_p()
        self._do("LiteRtCreateEnvironment", 0, None, byref(self._environment))
        self._do("LiteRtCreateModelFromFile", self._environment, str(path).encode(), byref(self._model))
        self._compiled = self._compile(f"num_threads = {threads}" + ("" if delegate else f"\nkernel_mode = {_BUILTIN}"))
        self.signature, order, outputs = self._signature([port.name for port in ports])
        arrays = [np.ascontiguousarray(inputs[ports[place].name]) for place in order]
        for place, array in enumerate(arrays):
            dims = (c_int * array.ndim)(*array.shape)
            where = (c_size_t(self.signature), c_size_t(place))
            self._do("LiteRtCompiledModelResizeInputTensorNonStrict", self._compiled, *where, dims, c_size_t(array.ndim))
        layouts = (_Layout * outputs)()
        self._do(
            "LiteRtGetCompiledModelOutputTensorLayouts",
            self._compiled,
            c_size_t(self.signature),
            c_size_t(outputs),
            layouts,
            c_bool(True),
        )
        self._inputs = self._buffers("Input", [array.shape for array in arrays])
        self._outputs = self._buffers("Output", [tuple(lay.dims[: lay.rank & 0x7F]) for lay in layouts])
        for buffer, array in zip(self._inputs, arrays, strict=True):
            self._fill(c_void_p(buffer), array)
        self._profiler = c_void_p()
        self._do("LiteRtCompiledModelGetProfiler", self._compiled, byref(self._profiler))

    def call(self) -> None:
        """One inference. Raises CallError."""
        counts = c_size_t(len(self._inputs)), c_size_t(len(self._outputs))
        self._do(
            "LiteRtRunCompiledModel",
            self._compiled,
            c_size_t(self.signature),
            counts[0],
            self._inputs,
            counts[1],
            self._outputs,
        )

    def watched(self) -> list[Event]:
        """One inference's events, in the order that they began in. Raises CallError."""
        self._do("LiteRtStartProfiler", self._profiler)
        self.call()
        self._do("LiteRtStopProfiler", self._profiler)
        count = c_int()
        self._do("LiteRtGetNumProfilerEvents", self._profiler, byref(count))
        held = (_Event * max(1, count.value))()
        self._do("LiteRtGetProfilerEvents", self._profiler, count, held)
        found = [
            Event((e.tag or b"").decode(), e.kind, e.start_us, e.spent_us, e.index, e.subgraph) for e in held[: count.value]
        ]
        self._do("LiteRtResetProfiler", self._profiler)
        return found

    def close(self) -> None:
        """Everything given back, in the order in which one needs the other."""
        for buffer in (*self._inputs, *self._outputs):
            self._c.LiteRtDestroyTensorBuffer(c_void_p(buffer))
        self._c.LiteRtDestroyCompiledModel(self._compiled)
        self._c.LiteRtDestroyOptions(self._options)
        self._c.LiteRtDestroyModel(self._model)
        self._c.LiteRtDestroyEnvironment(self._environment)

    def _do(self, name: str, *arguments: Any) -> None:
        function = getattr(self._c, name, None)
        if function is None:
            raise CallError(f"{name} is not in the library")
        if status := function(*arguments):
            raise CallError(f"{name} gave status {status}")

    def _compile(self, settings: str) -> c_void_p:
        self._options, compiled = c_void_p(), c_void_p()
        options = self._options
        self._do("LiteRtCreateOptions", byref(options))
        self._do("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        keep = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)  # the texts are Python's to free
        self._kept: list[Any] = [keep]
        for about, text in ((b"runtime_options_string", "enable_profiling = true"), (b"xnnpack", settings)):
            held, told = ctypes.create_string_buffer(text.encode()), c_void_p()
            self._kept.append(held)
            self._do("LiteRtCreateOpaqueOptions", about, held, keep, byref(told))
            self._do("LiteRtAddOpaqueOptions", options, told)
        self._do("LiteRtCreateCompiledModel", self._environment, self._model, options, byref(compiled))
        return compiled

    def _signature(self, names: list[str]) -> tuple[int, list[int], int]:
        """The first signature with all of these inputs: its number, which name each of its inputs is, and how many outputs it has."""
        signatures = c_size_t()
        self._do("LiteRtGetNumModelSignatures", self._model, byref(signatures))
        for number in range(signatures.value):
            signature, count, outputs = c_void_p(), c_size_t(), c_size_t()
            self._do("LiteRtGetModelSignature", self._model, c_size_t(number), byref(signature))
            self._do("LiteRtGetNumSignatureInputs", signature, byref(count))
            self._do("LiteRtGetNumSignatureOutputs", signature, byref(outputs))
            told = [self._names(signature, place) for place in range(count.value)]
            order = [next((i for i, name in enumerate(names) if name in both), -1) for both in told]
            if sorted(order) == list(range(len(names))):
                return number, order, outputs.value
        raise CallError(f"no signature takes {', '.join(names)}")

    def _names(self, signature: c_void_p, place: int) -> set[str]:
        """What an input is called: by its signature, and by its tensor."""
        first, second, tensor = c_char_p(), c_char_p(), c_void_p()
        self._do("LiteRtGetSignatureInputName", signature, c_size_t(place), byref(first))
        self._do("LiteRtGetSignatureInputTensorByIndex", signature, c_size_t(place), byref(tensor))
        self._do("LiteRtGetTensorName", tensor, byref(second))
        return {name.value.decode() for name in (first, second) if name.value}

    def _buffers(self, side: str, shapes: Sequence[tuple[int, ...]]) -> Any:
        """Buffers for the inputs or outputs, of these shapes."""
        signature, made = c_void_p(), []
        self._do("LiteRtGetModelSignature", self._model, c_size_t(self.signature), byref(signature))
        for place, shape in enumerate(shapes):
            tensor, kind, needs, buffer = c_void_p(), _TensorType(), c_void_p(), c_void_p()
            self._do(f"LiteRtGetSignature{side}TensorByIndex", signature, c_size_t(place), byref(tensor))
            self._do("LiteRtGetRankedTensorType", tensor, byref(kind))
            for axis, size in enumerate(shape):
                kind.layout.dims[axis] = size
            where = (c_size_t(self.signature), c_size_t(place))
            self._do(f"LiteRtGetCompiledModel{side}BufferRequirements", self._compiled, *where, byref(needs))
            self._do("LiteRtCreateManagedTensorBufferFromRequirements", self._environment, byref(kind), needs, byref(buffer))
            made.append(buffer.value)
        return (c_void_p * len(made))(*made)

    def _fill(self, buffer: c_void_p, array: np.ndarray) -> None:
        size, address = c_size_t(), c_void_p()
        self._do("LiteRtGetTensorBufferPackedSize", buffer, byref(size))
        if size.value != array.nbytes:
            raise CallError(f"an input takes {size.value} bytes, there are {array.nbytes}")
        self._do("LiteRtLockTensorBuffer", buffer, byref(address), c_int(_WRITE))
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self._do("LiteRtUnlockTensorBuffer", buffer)
