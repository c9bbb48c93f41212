"""Integer inputs and outputs of an int8 file: what its contract says of them, and uint8 in place of int8."""

from __future__ import annotations

from typing import Any, Literal

from ...models.contract import Contract, TensorSpec
from ...models.errors import UnchangedError

_SHIFT = 128
"""uint8 holds the same numbers as int8 when 128 is added to its entries and to its zero point."""


def with_integer_doors(data: bytes, contract: Contract, dtype: Literal["int8", "uint8"]) -> tuple[bytes, Contract]:
    """The file with its float doors, int8 already, in `dtype`, and the contract with their dtypes, scales and zero points.

    Raises UserError when a door of the contract is float in the file all the same.
    """
    from .writer import packed, unpacked

    model = unpacked(data)
    (graph,) = model.subgraphs
    (signature,) = model.signatureDefs
    sides = {}
    for side, specs, maps in (("inputs", contract.inputs, signature.inputs), ("outputs", contract.outputs, signature.outputs)):
        indices = {_text(entry.name): entry for entry in maps}
        made = []
        for spec in specs:
            if spec.dtype != "float32":
                made.append(spec)
                continue
            entry = indices[spec.name]
            tensor = graph.tensors[entry.tensorIndex]
            if dtype == "uint8":
                inner = entry.tensorIndex
                entry.tensorIndex = _bridged(model, graph, inner, inward=side == "inputs")
                doors = graph.inputs if side == "inputs" else graph.outputs
                doors[list(doors).index(inner)] = entry.tensorIndex
            made.append(_described(spec, tensor, dtype))
        sides[side] = tuple(made)
    return (packed(model) if dtype == "uint8" else data), contract.model_copy(update=sides)


def _described(spec: TensorSpec, tensor: Any, dtype: Literal["int8", "uint8"]) -> TensorSpec:
    from .writer import schema

    scales = tensor.quantization.scale if tensor.quantization is not None else None
    if tensor.type != schema.TensorType.INT8 or scales is None or len(scales) != 1:
        raise UnchangedError(
            f"TFLite int8 with {dtype} inputs and outputs was asked, and {spec.name!r} stays in float",
            hint="export with io = float32",
        )
    zero = int(tensor.quantization.zeroPoint[0]) + (_SHIFT if dtype == "uint8" else 0)
    return spec.model_copy(update={"dtype": dtype, "scale": float(scales[0]), "zero_point": zero})


def _bridged(model: Any, graph: Any, inner: int, *, inward: bool) -> int:
    """The index of a new uint8 tensor, which a QUANTIZE turns into the int8 tensor `inner`, or makes of it."""
    from .writer import schema

    if graph.tensors[inner].type != schema.TensorType.INT8:
        return inner
    held = graph.tensors[inner]
    door, index = schema.TensorT(), len(graph.tensors)
    door.name, held.name = held.name, _text(held.name) + "_quantized"
    door.shape, door.shapeSignature, door.hasRank = held.shape, held.shapeSignature, held.hasRank
    door.type, door.buffer = schema.TensorType.UINT8, 0
    door.quantization = schema.QuantizationParametersT()
    door.quantization.scale = list(held.quantization.scale)
    door.quantization.zeroPoint = [int(held.quantization.zeroPoint[0]) + _SHIFT]
    graph.tensors.append(door)
    bridge = schema.OperatorT()
    bridge.opcodeIndex = _quantize_code(model)
    bridge.inputs, bridge.outputs = ([index], [inner]) if inward else ([inner], [index])
    bridge.builtinOptionsType, bridge.builtinOptions = schema.BuiltinOptions.QuantizeOptions, schema.QuantizeOptionsT()
    graph.operators.insert(0 if inward else len(graph.operators), bridge)
    return index


def _quantize_code(model: Any) -> int:
    """The index of the operator code of QUANTIZE, added when there is none."""
    from .writer import schema

    wanted = schema.BuiltinOperator.QUANTIZE
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == wanted:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = wanted
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
