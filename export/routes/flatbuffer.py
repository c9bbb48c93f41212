"""What trimtab does to a `.tflite` file of another converter: the contract's names in its signature, and a look at its operators."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError

SIGNATURE = "serving_default"
_DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 9: "int8"}
_SHOWN = 8


@dataclass(frozen=True)
class Named:
    """A file whose one signature, "serving_default", has the contract's names; its own contract; its operators."""

    data: bytes
    contract: Contract
    ops: Mapping[str, int]
    sparse: int = 0
    """How many tensors are stored sparsely."""


def named(data: bytes, contract: Contract, *, inputs: Mapping[str, str], outputs: Mapping[str, str], by: str) -> Named:
    """`data` with its tensors under the contract's names: `inputs` and `outputs` map those in the file's signature to them.

    Integers that stand for real numbers get their dtype and scale into the contract. Raises UserError for operators that LiteRT has
    no kernels for, and for a file whose tensors are not the contract's. `by` names the converter.
    """
    from ai_edge_litert import schema_py_generated as schema

    from ..tflite.writer import packed, unpacked

    model = unpacked(data)
    ops = _operators(model, schema)
    _refuse_foreign(ops, by)
    if len(model.signatureDefs or ()) != 1:
        raise UserError(
            f"{by} wrote {len(model.signatureDefs or ())} signatures, one was expected", hint="use trimtab's own writer"
        )
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]
    signature.signatureKey = SIGNATURE
    sides = {}
    for side, entries, names in (("inputs", signature.inputs, inputs), ("outputs", signature.outputs, outputs)):
        specs = {spec.name: spec for spec in getattr(contract, side)}
        found = {}
        for entry in entries:
            name = _text(entry.name)
            if names.get(name) not in specs:
                raise UserError(
                    f"{by} wrote a tensor {name!r} that the contract does not know", hint="use trimtab's own writer"
                )
            entry.name = names[name]
            found[names[name]] = graph.tensors[entry.tensorIndex]
        if missing := [name for name in specs if name not in found]:
            raise UserError(
                f"{by} left out the {side[:-1]} {missing[0]!r}, which changes no output",
                hint="take it out of the module and the contract, or use trimtab's own writer",
            )
        sides[side] = tuple(_held(spec, found[name]) for name, spec in specs.items())
    sparse = sum(tensor.sparsity is not None for each in model.subgraphs for tensor in each.tensors)
    return Named(packed(model), contract.model_copy(update=sides), ops, sparse)


def freed(data: bytes, batch: int) -> bytes:
    """A file that was traced at this batch, for any batch: computed tensors that start with it, or with a multiple, are free there
    (stored as if it were 1), and so are the shapes that RESHAPE aims at. Other operators may hold it still: run the file to know.
    """
    from ..tflite.writer import packed, schema, unpacked

    model = unpacked(data)
    for graph in model.subgraphs:
        aims = set()
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            kind = max(code.builtinCode, code.deprecatedBuiltinCode)
            if kind != schema.BuiltinOperator.RESHAPE or len(op.inputs) < 2:
                continue
            aims.add(int(op.inputs[1]))
            op.builtinOptions, op.builtinOptionsType = None, schema.BuiltinOptions.NONE  # the same shape once more
        for index, tensor in enumerate(graph.tensors):
            held = model.buffers[tensor.buffer].data
            if held is None:
                _free_first(tensor, batch)
            elif index in aims:
                shape = np.frombuffer(np.asarray(held, dtype=np.uint8).tobytes(), dtype=np.int32).copy()
                if len(shape) and shape[0] > 0 and shape[0] % batch == 0:
                    shape[0] = -1
                    buffer = schema.BufferT()
                    buffer.data = np.frombuffer(shape.tobytes(), dtype=np.uint8)
                    tensor.buffer = len(model.buffers)
                    model.buffers.append(buffer)
    return packed(model)


def _free_first(tensor: Any, batch: int) -> None:
    """Make a computed tensor's first dimension free where it is a multiple of the batch."""
    shape = [] if tensor.shape is None else [int(d) for d in tensor.shape]
    if shape and shape[0] > 0 and shape[0] % batch == 0:
        tensor.shapeSignature = [-1, *shape[1:]]
        tensor.shape = [shape[0] // batch, *shape[1:]]


def evaluator() -> str:
    """What judges the files of every route: LiteRT as it is installed beside trimtab."""
    return f"LiteRT {importlib.metadata.version('ai-edge-litert')} interpreter, XNNPACK, 1 thread"


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _operators(model: Any, schema: Any) -> dict[str, int]:
    """How often each operator is in the file, by its builtin or custom name, the most frequent first."""
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = []
    for code in model.operatorCodes:
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        codes.append(_text(code.customCode) if name == "CUSTOM" else name)
    return dict(Counter(codes[op.opcodeIndex] for graph in model.subgraphs for op in graph.operators).most_common())


def _refuse_foreign(ops: Mapping[str, int], by: str) -> None:
    """None, when all are plain TFLite operators. Raises UserError for StableHLO's, TensorFlow's and custom ones."""
    foreign = [name for name in ops if name != name.upper() or name.startswith("STABLEHLO_")]
    if foreign:
        shown = ", ".join(foreign[:_SHOWN])
        raise UserError(
            f"{by} wrote operators that plain LiteRT cannot run: {shown}",
            hint="use trimtab's own writer, or replace them in the module",
        )


def _held(spec: TensorSpec, tensor: Any) -> TensorSpec:
    """The contract's tensor as the file holds it."""
    dtype = _DTYPES.get(tensor.type, "")
    if dtype == spec.dtype:
        return spec
    grid = tensor.quantization
    if dtype in ("int8", "uint8") and grid is not None and grid.scale is not None:
        return spec.model_copy(update={"dtype": dtype, "scale": float(grid.scale[0]), "zero_point": int(grid.zeroPoint[0])})
    if {dtype, spec.dtype} == {"int32", "int64"}:  # LiteRT's kernels take 32 bits
        return spec.model_copy(update={"dtype": dtype})
    raise UserError(
        f"the file holds {spec.name!r} as type {dtype or tensor.type}, the contract says {spec.dtype}",
        hint="use trimtab's own writer",
    )
