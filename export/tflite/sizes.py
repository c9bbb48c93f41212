"""The concrete shapes stored beside the free ones: those that LiteRT itself finds at a plain default size."""

from __future__ import annotations

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from .ir import FREE, Program
from .writer import to_bytes

_EDGES = (64, 224, 512)
"""Sizes for free image dimensions, tried in turn; a free batch is 1."""


def with_sizes(program: Program, *, description: str) -> bytes:
    """The `.tflite` file of a program, every tensor's stored shape consistent with the others'.

    Tools that never resize (viewers, quantisers, benchmarks) then see one valid size. Raises UserError for a file above 2 GB.
    """
    return to_bytes(program, description=description, shapes=default_shapes(program))


def default_shapes(program: Program) -> list[tuple[int, ...]]:
    """The shape of every tensor, in the order of `program.tensors()`, at the first default size that the network takes.

    Empty when nothing is free, or it takes none of them (free dimensions are then stored as 1).
    """
    if not any(FREE in tensor.shape for tensor in program.tensors()):
        return []
    data = to_bytes(program, description="")
    return next((shapes for edge in _EDGES if (shapes := _allocated(data, program, edge)) is not None), [])


def _allocated(data: bytes, program: Program, edge: int) -> list[tuple[int, ...]] | None:
    """The shape of every tensor when free dimensions are `edge` (1 for the first axis); None when LiteRT refuses that size."""
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=plain)
    indices = [entry["index"] for entry in interpreter.get_input_details()]
    try:
        for index, tensor in zip(indices, program.inputs.values(), strict=True):
            shape = [d if d != FREE else edge if axis else 1 for axis, d in enumerate(tensor.shape)]
            interpreter.resize_tensor_input(index, shape)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError):
        return None
    found = {entry["index"]: tuple(int(d) for d in entry["shape"]) for entry in interpreter.get_tensor_details()}
    return [found.get(number, ()) for number, _ in enumerate(program.tensors())]
