"""An evaluator for saved Core ML packages that needs no Apple device: it walks the MIL program and computes each operation.

It checks what the artifact *means* by the MIL specification. It is not Apple's runtime: in a float16 program every tensor is
rounded to float16 after each operation, while sums inside an operation run in float32; the Neural Engine, the GPU and the CPU
each accumulate in their own way. Weights kept compressed (`constexpr_*`: integers with scales, look-up tables, bit masks) are
decoded with coremltools' own decoders. A choice (`cond`) runs the block that was chosen, and that one alone. An image is fed as
the pixels 0…255 that it holds, in float32 (1, C, H, W). A classifier's label is a string, its probabilities are in class order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.errors import UserError
from . import coreml_ops_elementwise, coreml_ops_resize, coreml_ops_shape  # noqa: F401  (importing files their kernels)
from .coreml_ops import KERNELS, Args, Kernel, Value
from .coreml_quiet import quiet

Env = dict[str, Value]
"""Values by MIL variable name: torch tensors (float16 ones held as float32 on the float16 grid), strings, lists of tensors."""


@dataclass(frozen=True)
class Bounds:
    """What the package says one input may be: its shape, with (lowest, highest) for a flexible dimension (highest −1: open),
    or, where shapes are enumerated, one of these alone."""

    sizes: tuple[tuple[int, int], ...]
    enumerated: frozenset[tuple[int, ...]] = frozenset()

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """None, when `shape` fits. Raises UserError when Core ML would refuse it."""
        if self.enumerated:
            if shape not in self.enumerated:
                raise UserError(
                    f"Core ML input {name!r} has shape {shape}, the package takes {', '.join(map(str, sorted(self.enumerated)))}",
                    hint="feed one of these shapes, or export again with this one among the sizes",
                )
            return
        fits = len(shape) == len(self.sizes) and all(
            low <= n and (high < 0 or n <= high) for n, (low, high) in zip(shape, self.sizes, strict=True)
        )
        if not fits:
            allowed = ", ".join(str(low) if low == high else f"{low}…{high if high >= 0 else ''}" for low, high in self.sizes)
            raise UserError(
                f"Core ML input {name!r} has shape {shape}, the package takes ({allowed})",
                hint="feed a shape in range, or export again with a contract that leaves the dimension free",
            )


@dataclass(frozen=True)
class Step:
    """One operation of the program, ready to run: its kernel, where its inputs are, and what its outputs are."""

    kind: str
    kernel: Kernel
    inputs: tuple[tuple[str, str | tuple[str, ...]], ...]
    outputs: tuple[tuple[str, str], ...]
    done_with: tuple[str, ...]

    def reads(self) -> set[str]:
        """The names of the values that it takes."""
        return {name for _, source in self.inputs for name in ((source,) if isinstance(source, str) else source)}


@dataclass(frozen=True)
class Program:
    """A saved package in memory: constants, steps in order, and the names and types of inputs and outputs.

    `images` names the inputs that are images, `classes` the labels that a classifier's output chooses from; `metadata` is what
    the package's author wrote into it.
    """

    inputs: Mapping[str, Bounds]
    dtypes: Mapping[str, str]
    outputs: tuple[str, ...]
    constants: Env
    steps: tuple[Step, ...]
    images: frozenset[str] = frozenset()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def load_program(path: Path) -> Program:
    """The program in the saved `.mlpackage` at `path`. Raises UserError when it is no ML program or has an unknown operation."""
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            model = ct.models.MLModel(str(path), skip_model_load=True)
            spec = model.get_spec()
            mil = load(spec, spec.specificationVersion, model.weights_dir or "")
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"{path} cannot be read as a Core ML program: {error}",
                hint="give an .mlpackage with an mlprogram; export again",
            ) from None
        function = mil.functions[mil.default_function_name]
        _tell_apart(function)
        constants = _constants(function.operations)
        steps = _steps(function.operations, constants, function.opset_version)
    return Program(
        inputs={feature.name: _bounds(feature) for feature in spec.description.input},
        dtypes={name: _dtype(var) for name, var in function.inputs.items()},
        outputs=tuple(var.name for var in function.outputs),
        constants=constants,
        steps=steps,
        images=frozenset(f.name for f in spec.description.input if f.type.WhichOneof("Type") == "imageType"),
        classes={str(op.outputs[0].name): _labels(op) for op in function.operations if op.op_type == "classify"},
        metadata=dict(spec.description.metadata.userDefined),
    )


def evaluate(
    program: Program, inputs: Mapping[str, np.ndarray], *, keep: Collection[str] = frozenset()
) -> dict[str, np.ndarray]:
    """The outputs by name for input arrays by name, at any shape that the package allows; and the inner values in `keep`.

    Raises UserError for missing or unknown inputs, a shape out of the package's bounds, and operations that cannot be computed.
    """
    if set(inputs) != set(program.inputs):
        raise UserError(
            f"Core ML inputs {sorted(inputs)} are not the package's {sorted(program.inputs)}", hint="feed exactly those"
        )
    env: Env = dict(program.constants)
    for name, array in inputs.items():
        program.inputs[name].check(name, array.shape)
        env[name] = _typed(torch.from_numpy(np.array(array)), program.dtypes[name])
    with torch.inference_mode():
        _run_all(program.steps, env, (*program.outputs, *keep))
    found = {name: _output(env[name]) for name in dict.fromkeys((*program.outputs, *keep))}
    return found | {name: np.array(labels[int(found[name])]) for name, labels in program.classes.items()}


def _run(step: Step, env: Env) -> None:
    """Compute one step and put its outputs into `env`."""
    values: dict[str, Value] = {}
    for parameter, source in step.inputs:
        values[parameter] = env[source] if isinstance(source, str) else [_tensor(env[name]) for name in source]
    result = step.kernel(Args(values))
    results: Sequence[Tensor] = result if isinstance(result, tuple) else (result,)
    for (name, dtype), value in zip(step.outputs, results, strict=False):
        env[name] = _typed(value, dtype)


def _run_all(steps: Iterable[Step], env: Env, keep: Iterable[str]) -> None:
    """Compute the steps in order; values that nothing needs after a step are dropped, but for those to `keep`."""
    kept = set(keep)
    for step in steps:
        _run(step, env)
        for name in step.done_with:
            if name not in kept:
                env.pop(name, None)


def _tensor(value: Value) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(
            f"a MIL operation joins {type(value).__name__}, not tensors", hint="the package is damaged; export again"
        )
    return value


_TORCH_TYPES = {"fp32": torch.float32, "bool": torch.bool, "int32": torch.int32}


def _typed(value: Tensor, dtype: str) -> Tensor:
    """`value` in the declared type; float16 is rounded to its grid and held as float32, narrow integers are held as int32."""
    if dtype == "fp16":
        return value.half().float()
    return value.to(_TORCH_TYPES.get(dtype, torch.int32))


def _output(value: Value) -> np.ndarray:
    return np.array(_tensor(value).numpy())


def _tell_apart(function: Any) -> None:
    """None; constants get names of their own: those that coremltools leaves behind as it loads a choice reuse taken ones."""
    operations: list[Any] = []
    blocks = [function]
    while blocks:
        block = blocks.pop()
        operations += block.operations
        blocks += [inner for op in block.operations for inner in op.blocks]
    taken: dict[str, Any] = dict(function.inputs)
    taken |= {var.name: var for op in operations if op.op_type != "const" for var in op.outputs}
    for op in operations:
        sources = [var for source in op.inputs.values() for var in (source if isinstance(source, (list, tuple)) else (source,))]
        for var in (*op.outputs, *sources):
            if var is None or var.op is None or var.op.op_type != "const":
                continue
            name, number = var.name, 1
            while taken.setdefault(name, var) is not var:
                name, number = f"{var.name}#{number}", number + 1
            if name != var.name:
                var.set_name(name)


def _dtype(var: Any) -> str:
    """A MIL variable's element type in words: fp16, fp32, int32, bool, str …"""
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(var.dtype))


def _labels(op: Any) -> tuple[str, ...]:
    """The class names of a `classify` operation."""
    return tuple(str(name) for name in op.inputs["classes"].val)


def _image_bounds(image: Any) -> Bounds:
    """The shapes (1, C, H, W) that an image's description allows."""
    channels = 1 if "GRAYSCALE" in image.ColorSpace.Name(image.colorSpace) else 3
    front = ((1, 1), (channels, channels))
    if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
        sides = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        return Bounds((*front, *((int(side.lowerBound), int(side.upperBound)) for side in sides)))
    if image.WhichOneof("SizeFlexibility") == "enumeratedSizes":
        return Bounds((), frozenset((1, channels, int(size.height), int(size.width)) for size in image.enumeratedSizes.sizes))
    return Bounds((*front, *((int(n), int(n)) for n in (image.height, image.width))))


def _bounds(feature: Any) -> Bounds:
    """The shapes that an input's description allows."""
    if feature.type.WhichOneof("Type") == "imageType":
        return _image_bounds(feature.type.imageType)
    array = feature.type.multiArrayType
    if array.WhichOneof("ShapeFlexibility") == "shapeRange":
        ranges = array.shapeRange.sizeRanges
        return Bounds(tuple((int(r.lowerBound), int(r.upperBound)) for r in ranges))
    if array.WhichOneof("ShapeFlexibility") == "enumeratedShapes":
        return Bounds((), frozenset(tuple(int(n) for n in shape.shape) for shape in array.enumeratedShapes.shapes))
    return Bounds(tuple((int(n), int(n)) for n in array.shape))


def _constants(operations: Iterable[Any]) -> Env:
    """The values of all `const` and `constexpr_*` operations by name."""
    arrays: dict[str, Any] = {}
    for op in operations:
        if op.op_type == "const":
            arrays[op.outputs[0].name] = op.outputs[0].val
        elif op.op_type.startswith("constexpr_"):
            values = _decoded(op, arrays)
            for var, value in zip(op.outputs, values if isinstance(values, tuple) else (values,), strict=True):
                arrays[var.name] = value
    return {name: _constant(value) for name, value in arrays.items()}


def _decoded(op: Any, arrays: Mapping[str, Any]) -> Any:
    """The array(s) that a `constexpr_*` operation stands for. Its inputs may be the outputs of others (sparse look-up tables)."""
    if not hasattr(op, "decompress"):
        return op.materialized_val_inference()
    given = {name: arrays[var.name] for name, var in op.inputs.items() if var is not None}
    code = type(op).decompress.__code__
    return op.decompress(*(given.get(name) for name in code.co_varnames[: code.co_argcount]))


def _constant(value: Any) -> Value:
    """A constant as the kernels take it; lists of strings (class names) are no kernel's business."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "U":
        return None
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, dtype=np.float32))
    return torch.from_numpy(np.array(array, dtype=np.bool_ if array.dtype == np.bool_ else np.int32))


def _steps(operations: Iterable[Any], constants: Env, opset: Any) -> tuple[Step, ...]:
    """The operations that compute something, in order, each with the variables that nothing needs after it."""
    steps: list[Step] = []
    for op in operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr_"):
            continue
        if op.op_type in _SPECIAL:
            steps.append(_SPECIAL[op.op_type](op, opset))
            continue
        inputs: list[tuple[str, str | tuple[str, ...]]] = []
        for parameter, source in op.inputs.items():
            if isinstance(source, (list, tuple)):
                inputs.append((parameter, tuple(_name(var, constants) for var in source)))
            elif source is not None:
                inputs.append((parameter, _name(source, constants)))
        outputs = tuple((var.name, _dtype(var)) for var in op.outputs)
        steps.append(Step(op.op_type, _kernel(op, opset), tuple(inputs), outputs, ()))
    return _with_last_uses(steps, constants)


@dataclass(frozen=True)
class _Side:
    """One block of a `cond`: its own constants and steps, the names it returns, and those it reads of the program around it."""

    constants: Env
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    outer: tuple[str, ...]


def _side(block: Any, opset: Any) -> _Side:
    constants = _constants(block.operations)
    steps = _steps(block.operations, constants, opset)
    outputs = tuple(str(var.name) for var in block.outputs)
    made = set(constants) | {name for step in steps for name, _ in step.outputs}
    read = [name for step in steps for name in step.reads()] + list(outputs)
    return _Side(constants, steps, outputs, tuple(dict.fromkeys(name for name in read if name not in made)))


def _choice(op: Any, opset: Any) -> Step:
    """A `cond` as one step, which reads what either block reads."""
    sides = [_side(block, opset) for block in op.blocks]

    def compute(args: Args) -> tuple[Tensor, ...]:
        side = sides[0] if args.flag("pred", False) else sides[1]
        env: Env = {**{name: args.values[name] for name in side.outer}, **side.constants}
        _run_all(side.steps, env, side.outputs)
        return tuple(_tensor(env[name]) for name in side.outputs)

    outer = dict.fromkeys(name for side in sides for name in side.outer)
    inputs = (("pred", str(op.inputs["pred"].name)), *((name, name) for name in outer))
    return Step("cond", compute, inputs, tuple((var.name, _dtype(var)) for var in op.outputs), ())


def _classified(op: Any, _opset: Any) -> Step:
    """A `classify` as one step: the number of the likeliest class, and the probabilities in class order."""

    def compute(args: Args) -> tuple[Tensor, ...]:
        shares = args.tensor("probabilities").reshape(-1)
        return shares.argmax(), shares

    label, shares = op.outputs
    inputs = (("probabilities", str(op.inputs["probabilities"].name)),)
    return Step("classify", compute, inputs, ((str(label.name), "int32"), (str(shares.name), "fp32")), ())


_SPECIAL: Mapping[str, Callable[[Any, Any], Step]] = {"cond": _choice, "classify": _classified}
"""Operations that are more than a kernel: they run blocks of their own, or give what is no tensor."""


def _name(var: Any, constants: Env) -> str:
    """The variable's name; a default value that coremltools filled in becomes a constant."""
    if var.op is not None and var.op.op_type == "const" and var.name not in constants:
        constants[var.name] = _constant(var.val)
    return str(var.name)


def _with_last_uses(steps: Sequence[Step], constants: Env) -> tuple[Step, ...]:
    seen = set(constants)
    out = []
    for step in reversed(steps):
        used = step.reads()
        out.append(Step(step.kind, step.kernel, step.inputs, step.outputs, tuple(sorted(used - seen))))
        seen |= used
    return tuple(reversed(out))


def _kernel(op: Any, opset: Any) -> Kernel:
    """Our kernel for the operation, else coremltools' own inference of its value. Raises UserError for loops."""
    if op.op_type in KERNELS:
        return KERNELS[op.op_type]
    if op.blocks:
        raise UserError(
            f"the MIL operation {op.op_type!r} ({op.name}) holds nested blocks, which the evaluator does not run",
            hint="write the choice as arithmetic (torch.where, a mask) instead of Python control flow, and export again",
        )
    return _inferred(op, opset)


def _inferred(op: Any, opset: Any) -> Kernel:
    """A kernel that rebuilds the operation on constants, so that coremltools infers its value."""
    kind, types = op.op_type, {name: _numpy_type(var) for name, var in op.inputs.items()}

    def compute(args: Args) -> Tensor | tuple[Tensor, ...]:
        from coremltools.converters.mil.mil import Builder, Function

        given = {name: _native(value, types[name]) for name, value in args.values.items()}
        with quiet(), Function({}, opset_version=opset):
            built = getattr(Builder, kind)(**given)
        values = [var.val for var in (built if isinstance(built, (list, tuple)) else (built,))]
        if any(value is None for value in values):
            raise UserError(
                f"the MIL operation {kind!r} has no kernel here, and coremltools cannot compute its value",
                hint="the package may be right, but it cannot be proven on this machine: replace the layer, or check it on a Mac",
            )
        return tuple(_tensor(_constant(value)) for value in values)

    return compute


def _numpy_type(var: Any) -> Any:
    from coremltools.converters.mil.mil import types

    first = var[0] if isinstance(var, (list, tuple)) else var
    return None if first is None or _dtype(first) == "str" else types.nptype_from_builtin(first.dtype)


def _native(value: Value, dtype: Any) -> Any:
    """A value as coremltools' builder takes it."""
    if isinstance(value, list):
        return [_native(item, dtype) for item in value]
    if not isinstance(value, Tensor):
        return value
    array = value.numpy().astype(dtype)
    return array if array.ndim else dtype(array)
