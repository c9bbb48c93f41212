"""Clean-ups of a finished program that change no number: fused activations, merged reshapes, dead operators."""

from __future__ import annotations

import numpy as np

from .ir import FREE, Op, Program, Tensor

_FUSED = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_TAKES_ACTIVATION = frozenset(
    ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV", "MAX_POOL_2D", "AVERAGE_POOL_2D"]
)
_MOVES = frozenset({"RESHAPE", "TRANSPOSE", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "STRIDED_SLICE", "SQUEEZE", "EXPAND_DIMS"})
"""Operators whose output holds nothing but entries of their first input."""


def polish(program: Program) -> None:
    """Apply every clean-up to the program and its branches, in place."""
    for op in program.ops:
        for block in op.blocks:
            polish(block)
        _drop_unread(op)
    _fuse_activations(program)
    _merge_reshapes(program)
    drop_dead(program)


def _single(program: Program, readers: dict[Tensor, list[Op]], tensor: Tensor) -> bool:
    """Whether exactly one operator reads a tensor and it is no output."""
    return len(readers.get(tensor, ())) == 1 and tensor not in program.outputs.values()


def _fuse_activations(program: Program) -> None:
    """RELU, RELU6 and RELU_N1_TO_1 into the float operator before, also past operators that only move data."""
    readers, writers = program.readers(), program.writers()
    kept = []
    for op in program.ops:
        source = op.inputs[0] if op.kind in _FUSED else None
        target = _takes(program, readers, writers, source) if source is not None else None
        if source is None or target is None:
            kept.append(op)
            continue
        target.options["fusedActivationFunction"] = _FUSED[op.kind]
        target.origins |= op.origins
        before = writers[source]
        _forget(program, writers, source, target)
        before.outputs = [op.outputs[0]]
        writers[op.outputs[0]] = before
    program.ops = kept


def _forget(program: Program, writers: dict[Tensor, Op], tensor: Tensor, target: Op) -> None:
    """What lies between `target` and `tensor`, these included, holds the activated values now: no ONNX value of before."""
    between = {tensor}
    while (op := writers[tensor]) is not target and op.inputs[0] is not None:
        tensor = op.inputs[0]
        between.add(tensor)
    program.values = {name: held for name, held in program.values.items() if held not in between}


def _takes(program: Program, readers: dict[Tensor, list[Op]], writers: dict[Tensor, Op], tensor: Tensor) -> Op | None:
    """The operator that can apply an activation to `tensor` itself, when nothing else sees what lies between."""
    while tensor.dtype == np.float32 and _single(program, readers, tensor):
        op = writers.get(tensor)
        if op is None:
            return None
        if op.kind in _TAKES_ACTIVATION:
            return None if op.options.get("fusedActivationFunction") else op
        if op.kind not in _MOVES or op.inputs[0] is None:
            return None
        tensor = op.inputs[0]
    return None


def _merge_reshapes(program: Program) -> None:
    """RESHAPE of a RESHAPE: the second alone, when its target is constant; SQUEEZE and EXPAND_DIMS before it vanish likewise."""
    writers = program.writers()
    for op in program.ops:
        if op.kind != "RESHAPE" or "newShape" not in op.options:
            continue
        while (source := op.inputs[0]) is not None and (before := writers.get(source)) is not None:
            if before.kind not in ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"):
                break
            op.inputs[0] = before.inputs[0]
    _drop_idle_reshapes(program)


def _drop_idle_reshapes(program: Program) -> None:
    """A RESHAPE to the shape that its input has already; an output takes over its input's place."""
    for op in list(program.ops):
        source, result = op.inputs[0] if op.inputs else None, op.outputs[0]
        if op.kind != "RESHAPE" or source is None or source.shape != result.shape or source.shape.count(FREE) > 1:
            continue
        fixed = source.data is not None or source in (*program.inputs.values(), *program.outputs.values())
        if result in program.outputs.values() and fixed:
            continue
        old, new = (source, result) if result in program.outputs.values() else (result, source)
        program.ops.remove(op)
        program.values = {name: new if held is old else held for name, held in program.values.items()}
        for other in program.ops:
            other.inputs = [new if t is old else t for t in other.inputs]
            other.outputs = [new if t is old else t for t in other.outputs]


def _drop_unread(op: Op) -> None:
    """Take away what an IF passes to its branches and neither reads."""
    doors = [tuple(block.inputs.items()) for block in op.blocks]
    read = [{t for inner in block.ops for t in inner.inputs} | set(block.outputs.values()) for block in op.blocks]
    for number in reversed(range(len(doors[0]) if doors else 0)):
        if not any(door[number][1] in known for door, known in zip(doors, read, strict=True)):
            del op.inputs[1 + number]
            for block, door in zip(op.blocks, doors, strict=True):
                del block.inputs[door[number][0]]


def drop_dead(program: Program) -> None:
    """Remove the operators that no output depends on."""
    wanted = set(program.outputs.values())
    kept = []
    for op in reversed(program.ops):
        if any(tensor in wanted for tensor in op.outputs):
            wanted.update(t for t in op.inputs if t is not None)
            kept.append(op)
    program.ops = kept[::-1]
