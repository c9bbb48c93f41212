"""Which torch module an inner value of a Core ML package belongs to: read off the conversion, and written into the package.

coremltools knows the TorchScript value behind every operation while it converts, and forgets it as it saves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.errors import UserError
from .coreml_trace import module_path

KEY = "com.trimtab.layers"
"""The package's own metadata: {module path: name of the MIL variable that holds what the module returns}, as JSON."""


def scopes_of(traced: Any, depth: int) -> dict[str, str]:
    """{name of a value in a trace: path of the module that computes it}; `depth` wrappers of ours are left out of paths.

    The trace is asked, not coremltools, which forgets the names of module lists. Empty without a trace.
    """
    graph = getattr(traced, "inlined_graph", None)
    if graph is None:
        return {}
    return {value.debugName(): module_path(node, depth) for node in graph.nodes() for value in node.outputs()}


def places_of(model: Any, scopes: Mapping[str, str]) -> dict[str, str]:
    """{name of a MIL operation: path of its torch module} of a freshly converted model."""
    operations = model._mil_program.functions["main"].operations
    return {str(op.name): path for op in operations if (path := _path(op, scopes))}


def _path(op: Any, scopes: Mapping[str, str]) -> str:
    """The path of the module that an operation of a fresh conversion comes from; "" where coremltools doesn't tell."""
    from coremltools.converters.mil.mil.scope import ScopeSource

    names = op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME) if op.op_type != "const" else None
    return scopes.get(str(names[-1]), "") if names else ""  # the last name is the value's in the trace


def layers_of(
    model: Any, module: nn.Module, example: Sequence[Tensor], scopes: Mapping[str, str], *, depth: int
) -> dict[str, str]:
    """{path of a torch module: name of the MIL variable that holds what it returns} of a freshly converted model.

    Modules that run several times are left out, and those whose result has another shape than the variable: there the converter
    has rearranged what it computes. `module` is what was traced, with `depth` wrappers around the user's module.
    """
    last: dict[str, Any] = {}
    for op in model._mil_program.functions["main"].operations:
        parts = _path(op, scopes).split(".")
        for end in range(1, len(parts) + 1):
            last[".".join(parts[:end])] = op.outputs[0] if len(op.outputs) == 1 else None
    inner = module
    for _ in range(depth):
        inner = inner.get_submodule("module")
    shapes = _returned_shapes(module, inner, example)
    return {
        path: str(variable.name)
        for path, variable in last.items()
        if variable is not None and path in shapes and _fits(variable.shape, shapes[path])
    }


def _returned_shapes(module: nn.Module, inner: nn.Module, example: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of what the submodules of `inner` return in one run of `module`: of those that run once and return a tensor."""
    seen: dict[str, list[Any]] = {}

    def watch(path: str) -> Any:
        return lambda _module, _inputs, output: seen.setdefault(path, []).append(
            tuple(output.shape) if isinstance(output, Tensor) else None
        )

    handles = [part.register_forward_hook(watch(path)) for path, part in inner.named_modules(remove_duplicate=True) if path]
    try:
        with torch.no_grad():
            module(*example)
    finally:
        for handle in handles:
            handle.remove()
    return {path: shapes[0] for path, shapes in seen.items() if len(shapes) == 1 and shapes[0] is not None}


def _fits(shape: Sequence[Any], wanted: tuple[int, ...]) -> bool:
    """Whether a MIL shape is `wanted`; free dimensions fit any size, and the batch any other."""
    pairs = list(zip(shape, wanted, strict=False))
    return len(shape) == len(wanted) and all(not isinstance(n, int) or n == w for n, w in pairs[1:])


def noted(spec: Any, layers: Mapping[str, str]) -> None:
    """None; the layers stand in the package's metadata, those whose variable is still there."""
    names = {output.name for operation in _operations(spec) for output in operation.outputs}
    told = {path: name for path, name in layers.items() if name in names}
    if told:
        spec.description.metadata.userDefined[KEY] = json.dumps(told, ensure_ascii=False, sort_keys=True)


def _operations(spec: Any) -> list[Any]:
    return [
        operation
        for function in spec.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
    ]


def read_layers(metadata: Mapping[str, str]) -> dict[str, str]:
    """{module path: MIL variable} as a package's metadata has it. Raises UserError when it is missing or damaged."""
    try:
        told = json.loads(metadata[KEY])
        if not all(isinstance(part, str) for pair in told.items() for part in pair):
            raise ValueError("not a mapping of names")
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            "the package does not say which layer its inner values belong to "
            "(a route, a network converted through torch.export, or a package not written here)",
            hint="export the network again; for a route, its branches one by one",
        ) from error
    return dict(told)
