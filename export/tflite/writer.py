"""The flatbuffer of a program or several: deduplicated aligned buffers, operator codes with the lowest versions, signatures.

Every program is a subgraph, followed by those of its branches. All of them share the buffers: a constant that several hold is
stored once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...models.errors import UserError
from .ir import FREE, Op, Program, Tensor

SCHEMA_VERSION = 3
IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
LIMIT = 2**31 - 2**20

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "uint8": schema.TensorType.UINT8,
    "uint16": schema.TensorType.UINT16,
    "int8": schema.TensorType.INT8,
    "bool": schema.TensorType.BOOL,
}

_OPTIONS = {
    "CONV_2D": "Conv2D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "TRANSPOSE_CONV": "TransposeConv",
    "FULLY_CONNECTED": "FullyConnected",
    "BATCH_MATMUL": "BatchMatMul",
    "AVERAGE_POOL_2D": "Pool2D",
    "MAX_POOL_2D": "Pool2D",
    "MEAN": "Reducer",
    "SUM": "Reducer",
    "REDUCE_MAX": "Reducer",
    "REDUCE_MIN": "Reducer",
    "REDUCE_PROD": "Reducer",
    "REDUCE_ANY": "Reducer",
    "REDUCE_ALL": "Reducer",
    "MAXIMUM": "MaximumMinimum",
    "MINIMUM": "MaximumMinimum",
    "PADV2": "PadV2",
    "TOPK_V2": "TopKV2",
}
"""Where an operator's options table is not simply its name in camel case."""


_CAST = {"float16": 5, "int8": 3}
"""The lowest CAST version per dtype on either side."""


def to_bytes(program: Program, *, description: str, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
    """The `.tflite` file of a program, under the signature "serving_default"; `shapes` as in `signed`."""
    return signed({SIGNATURE: program}, description=description, shapes={SIGNATURE: shapes})


def signed(
    programs: Mapping[str, Program], *, description: str, shapes: Mapping[str, Sequence[tuple[int, ...]]] | None = None
) -> bytes:
    """The `.tflite` file of several programs by signature; the first is what runs when none is named.

    Tensors with free dimensions carry −1 in their shape signature, and beside it the concrete shape in `shapes` (by signature, in
    the order of `program.tensors()`), else 1. Raises UserError above 2 GB, which a flatbuffer cannot address.
    """
    book = _Book()
    book.model.version = SCHEMA_VERSION
    book.model.description = description
    book.model.metadata = []
    every = [inner for program in programs.values() for inner in program.programs()]
    book.numbers = {program: number for number, program in enumerate(every)}
    known = {programs[key]: given for key, given in (shapes or {}).items()}
    tables = {program: _Table(program, book, known.get(program, ())) for program in every}
    size = sum(len(buffer.data) for buffer in book.model.buffers[1:])
    if size >= LIMIT:
        raise UserError(
            f"the network's constants take {size / 1e9:.2f} GB and a TFLite file holds 2 GB",
            hint="compress it first, or use ONNX",
        )
    book.model.subgraphs = [table.graph for table in tables.values()]
    book.model.signatureDefs = [_signature(key, program, tables[program].indices, book) for key, program in programs.items()]
    return packed(book.model)


def packed(model: Any) -> bytes:
    """The file of a model as the schema's objects have it. What was appended to a file that it was read from is lost."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(_pack(builder, model), IDENTIFIER)
    return bytes(builder.Output())


def unpacked(data: bytes) -> Any:
    """A file as the schema's objects have it, constants that lie behind the flatbuffer (as quantisers put them) taken into it."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def _empty() -> Any:
    model = schema.ModelT()
    model.buffers, model.operatorCodes = [schema.BufferT()], []
    return model


@dataclass
class _Book:
    """What all subgraphs of a file share: buffers by hash, operator codes by kind and version, and each program's number."""

    model: Any = field(default_factory=_empty)
    buffers: dict[bytes, int] = field(default_factory=dict)
    codes: dict[tuple[str, int], int] = field(default_factory=dict)
    numbers: dict[Program, int] = field(default_factory=dict)


class _Table:
    """One program as a subgraph, and its tensors' indices."""

    def __init__(self, program: Program, book: _Book, shapes: Sequence[tuple[int, ...]]) -> None:
        self.graph = schema.SubGraphT()
        self.graph.name = "main" if not book.numbers[program] else f"part_{book.numbers[program]}"
        self.graph.tensors = []
        self.indices: dict[Tensor, int] = {}
        for number, tensor in enumerate(program.tensors()):
            self.indices[tensor] = number
            shape = shapes[number] if number < len(shapes) else ()
            self.graph.tensors.append(_tensor(tensor, _buffer(tensor, book), shape))
        self.graph.inputs = [self.indices[t] for t in program.inputs.values()]
        self.graph.outputs = [self.indices[t] for t in program.outputs.values()]
        self.graph.operators = [_operator(op, self.indices, book) for op in program.ops]


def _pack(builder: Any, model: Any) -> Any:
    """The root table's offset, with every weight blob on a 16-byte boundary (what XNNPACK's loads and the schema ask for)."""
    pack_vector = schema.BufferT.Pack

    def pack(self: Any, target: Any) -> Any:
        if self.data is None:
            return pack_vector(self, target)
        blob = np.ascontiguousarray(self.data, dtype=np.uint8).tobytes()
        target.StartVector(1, len(blob), 16)
        target.head = target.head - len(blob)
        target.Bytes[target.head : target.head + len(blob)] = blob
        data = target.EndVector()
        schema.BufferStart(target)
        schema.BufferAddData(target, data)
        return schema.BufferEnd(target)

    for buffer in model.buffers:
        buffer.Pack = pack.__get__(buffer)
    return model.Pack(builder)


def _buffer(tensor: Tensor, book: _Book) -> int:
    """The index of the buffer that holds a constant's bytes; equal bytes share one buffer, and 0 is the empty buffer."""
    if tensor.data is None:
        return 0
    blob = np.ascontiguousarray(tensor.data).tobytes()
    key = hashlib.sha256(blob).digest()
    if key not in book.buffers:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(blob, dtype=np.uint8)
        book.buffers[key] = len(book.model.buffers)
        book.model.buffers.append(buffer)
    return book.buffers[key]


def _tensor(tensor: Tensor, buffer: int, shape: tuple[int, ...]) -> Any:
    made = schema.TensorT()
    made.name = tensor.name
    made.type = _TYPES[str(np.dtype(tensor.dtype))]
    fits = len(shape) == tensor.rank
    made.shape = [d if d != FREE else shape[i] if fits else 1 for i, d in enumerate(tensor.shape)]
    made.shapeSignature = list(tensor.shape) if FREE in tensor.shape else None
    made.buffer = buffer
    made.hasRank = True
    return made


def _operator(op: Op, indices: dict[Tensor, int], book: _Book) -> Any:
    key = (op.kind, lowest_version(op))
    if key not in book.codes:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, op.kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = key[1]
        book.codes[key] = len(book.model.operatorCodes)
        book.model.operatorCodes.append(code)
    made = schema.OperatorT()
    made.opcodeIndex = book.codes[key]
    made.inputs = [-1 if t is None else indices[t] for t in op.inputs]
    made.outputs = [indices[t] for t in op.outputs]
    name = _OPTIONS.get(op.kind, "".join(part.capitalize() for part in op.kind.split("_"))) + "Options"
    if hasattr(schema, name + "T"):
        table = getattr(schema, name + "T")()
        branches = [book.numbers[block] for block in op.blocks]
        options = op.options | dict(zip(("thenSubgraphIndex", "elseSubgraphIndex"), branches, strict=False))
        for key_of, value in options.items():
            if not hasattr(table, key_of):
                raise AttributeError(f"{name} has no field {key_of}")
            setattr(table, key_of, value)
        made.builtinOptions = table
        made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
    return made


def _signature(key: str, program: Program, indices: dict[Tensor, int], book: _Book) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = key
    signature.subgraphIndex = book.numbers[program]
    for side, tensors in (("inputs", program.inputs), ("outputs", program.outputs)):
        maps = []
        for name, tensor in tensors.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, indices[tensor]
            maps.append(entry)
        setattr(signature, side, maps)
    return signature


def lowest_version(op: Op) -> int:
    """The lowest operator version that has the features this (float, int32 or bool) operator uses, by LiteRT's op_version.cc."""
    tensors = [t for t in op.inputs if t is not None]
    rank = max((t.rank for t in tensors), default=0)
    dtype = str(tensors[0].dtype) if tensors else "float32"
    spread = rank > 4 and len({t.shape for t in tensors}) > 1
    found = {
        "CONV_2D": lambda: 6 if tensors[1].shape[3] != tensors[0].shape[3] else 1,
        "DEPTHWISE_CONV_2D": lambda: 2 if (op.options["dilationHFactor"], op.options["dilationWFactor"]) != (1, 1) else 1,
        "TRANSPOSE_CONV": lambda: 3 if len(op.inputs) == 4 else 1,
        "FULLY_CONNECTED": lambda: 6 if len(tensors) == 2 else 5 if op.options.get("keepNumDims") else 1,
        "GATHER": lambda: 5 if op.options.get("batchDims") else 3 if dtype == "bool" else 1,
        "TRANSPOSE": lambda: 6 if rank > 5 else 4 if rank > 4 else 3 if dtype == "bool" else 1,
        "SPLIT": lambda: 3 if str(tensors[1].dtype) == "int32" else 1,
        "SIGN": lambda: 2 if dtype == "int32" else 1,
        "SLICE": lambda: 5 if rank > 4 else 1,
        "STRIDED_SLICE": lambda: 4 if tensors[0].rank > 4 else 3 if dtype == "bool" else 1,
        "FLOOR_DIV": lambda: 2 if dtype == "float32" else 1,
        "ABS": lambda: 5 if dtype == "int32" else 1,
        "RESIZE_BILINEAR": lambda: 3 if op.options.get("halfPixelCenters") else 1,
        "RESIZE_NEAREST_NEIGHBOR": lambda: 3 if op.options.get("halfPixelCenters") or op.options.get("alignCorners") else 1,
        "MAXIMUM": lambda: 3 if spread else 1,
        "MINIMUM": lambda: 3 if spread else 1,
        "SUB": lambda: 3 if spread else 1,
        "DIV": lambda: 2 if spread else 1,
        "PAD": lambda: 4 if tensors[0].rank > 4 else 1,
        "PADV2": lambda: 4 if tensors[0].rank > 4 else 1,
        "FILL": lambda: 2 if str(tensors[-1].dtype) == "bool" else 1,
        "BROADCAST_TO": lambda: 2,
        "CAST": lambda: max(_CAST.get(str(t.dtype), 1) for t in (*tensors, *op.outputs)),
    }.get(op.kind)
    return found() if found else 1
