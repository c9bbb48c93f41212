"""What goes into a Core ML package: legal names and types, how large free dimensions may be, and tensors to trace with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.contract import Contract, TensorSpec
from ..models.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .coreml_image import Pixels

_BATCH = (1, 64)
_SIDE = (8, 4096)
_TRACED_BATCH = 2  # not 1: a batch of 1 hides code that only works for it
_TRACED_SIDE = 64
_LEGAL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPES: dict[str, type[np.generic]] = {"float32": np.float32, "float16": np.float16, "int32": np.int32}


@dataclass(frozen=True)
class Range:
    """What a free dimension may be in the package, its default there, and the size the module is traced at."""

    low: int
    high: int
    default: int
    traced: int


def narrowed_contract(contract: Contract) -> tuple[Contract, list[str]]:
    """The contract with int64 as int32, and a warning for each. Raises UserError for names and types that Core ML has not."""
    warnings: list[str] = []

    def narrowed(spec: TensorSpec) -> TensorSpec:
        if not _LEGAL.fullmatch(spec.name):
            raise UserError(
                f"tensor name {spec.name!r} is not legal in Core ML (letters, digits and _, not starting with a digit)",
                hint=f"rename it in the contract, say to {re.sub(r'[^A-Za-z0-9_]', '_', '_' * spec.name[0].isdigit() + spec.name)!r}",
            )
        if spec.dtype == "int64":
            warnings.append(f"Core ML has no int64 arrays: {spec.name!r} is int32 in the package")
            return spec.model_copy(update={"dtype": "int32"})
        if spec.dtype not in _TYPES:
            raise UserError(
                f"tensor {spec.name!r} is {spec.dtype}, Core ML arrays are {', '.join(_TYPES)}",
                hint="give the network a float32 input and let the app convert",
            )
        return spec

    inputs, outputs = tuple(map(narrowed, contract.inputs)), tuple(map(narrowed, contract.outputs))
    return contract.model_copy(update={"inputs": inputs, "outputs": outputs}), warnings


def fixed_contract(contract: Contract, dims: Mapping[str, int]) -> Contract:
    """The contract with the symbols in `dims` replaced by their sizes, in inputs and outputs."""

    def fixed(spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"shape": tuple(dims.get(d, d) if isinstance(d, str) else d for d in spec.shape)})

    return contract.model_copy(
        update={"inputs": tuple(map(fixed, contract.inputs)), "outputs": tuple(map(fixed, contract.outputs))}
    )


def free_ranges(contract: Contract, example: tuple[Any, ...]) -> dict[str, Range]:
    """The range of every free dimension: 1…64 along the first axis (the batch), 8…4096 elsewhere, wider when the example is.

    An example's own side becomes the default; the default batch is 1.
    """
    ranges: dict[str, Range] = {}
    shown = example if len(example) == len(contract.inputs) else (None,) * len(contract.inputs)
    for spec, value in zip(contract.inputs, shown, strict=True):
        sizes = tuple(getattr(value, "shape", ()))
        for axis, symbol in enumerate(spec.shape):
            if not isinstance(symbol, str) or symbol in ranges:
                continue
            if axis == 0:
                ranges[symbol] = Range(*_BATCH, default=1, traced=_TRACED_BATCH)
            else:
                side = int(sizes[axis]) if len(sizes) == len(spec.shape) else _TRACED_SIDE
                ranges[symbol] = Range(min(_SIDE[0], side), max(_SIDE[1], side), default=side, traced=side)
    return ranges


def listed_ranges(contract: Contract, listed: Sequence[Mapping[str, int]]) -> dict[str, Range]:
    """The span of every free dimension over the listed sizes; the first size is the default, and is traced."""
    batches = {spec.shape[0] for spec in contract.inputs if spec.shape}
    spans = {}
    for symbol in contract.symbols:
        sizes = [dims[symbol] for dims in listed]
        traced = _TRACED_BATCH if symbol in batches else sizes[0]
        spans[symbol] = Range(min(sizes), max(sizes), default=sizes[0], traced=traced)
    return spans


def traced_example(contract: Contract, ranges: Mapping[str, Range], given: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The tensors to trace with: the given ones where they fit the shapes to trace, else seeded random ones."""
    import torch

    dims = {symbol: bounds.traced for symbol, bounds in ranges.items()}
    arrays = contract.random_inputs(dims, seed=0)
    shapes = [spec.concrete(dims) for spec in contract.inputs]
    if len(given) == len(shapes) and all(tuple(t.shape) == shape for t, shape in zip(given, shapes, strict=True)):
        return tuple(torch.as_tensor(tensor) for tensor in given)
    return tuple(torch.from_numpy(arrays[spec.name]) for spec in contract.inputs)


def features(
    contract: Contract,
    ranges: Mapping[str, Range],
    *,
    listed: Sequence[Mapping[str, int]] = (),
    pixels: Mapping[str, Pixels] | None = None,
) -> tuple[list[Any], list[Any]]:
    """coremltools' descriptions of the contract's inputs and outputs; one symbol is one range, shared between inputs.

    `listed` sizes are enumerated instead; inputs in `pixels` are images.
    """
    import coremltools as ct

    dims = {s: ct.RangeDim(lower_bound=r.low, upper_bound=r.high, default=r.default) for s, r in ranges.items()}

    def shape(spec: TensorSpec) -> Any:
        if listed and spec.symbols:
            shapes = [spec.concrete(one) for one in listed]
            return ct.EnumeratedShapes(shapes=shapes, default=shapes[0])
        return ct.Shape(tuple(dims[d] if isinstance(d, str) else d for d in spec.shape))

    inputs: list[Any] = []
    for spec in contract.inputs:
        if pixels and spec.name in pixels:
            inputs.append(pixels[spec.name].feature(spec.name, shape(spec)))
        else:
            inputs.append(ct.TensorType(name=spec.name, shape=shape(spec), dtype=_TYPES[spec.dtype]))
    return inputs, [ct.TensorType(name=spec.name, dtype=_TYPES[spec.dtype]) for spec in contract.outputs]
