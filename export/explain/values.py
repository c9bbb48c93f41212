"""What the float reference computes inside: ONNX values and torch modules' outputs, joined into layers in execution order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models.contract import Contract
from ..exporter import Tensors
from ..onnx_taps import InnerValues, reads, varying
from ..parity import sqnr_db
from .scopes import module_path
from .severed import Severed

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from ..source import Source

SAME_DB = 80.0
"""Two computations of one float32 value agree better than this: folding a norm into its convolution costs some 1e-6."""

Call = tuple[str, int]
"""A torch module's path, and which of its calls."""


@dataclass(frozen=True)
class Layer:
    """One float value of the network.

    `name` is the ONNX value, `node` and `op` what makes it. `module` is the torch module whose output it is, "" when it is none's;
    `scope` is the module that the node belongs to (a convolution, where `module` is the norm folded into it). `verified` says that
    the torch module's output was seen to equal the value. `inputs` are the ONNX values of the layers that it reads.
    """

    name: str
    node: str
    op: str
    module: str = ""
    call: int = 0
    scope: str = ""
    verified: bool = False
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observed:
    """One run: the graph's values by name, and the torch modules' outputs by call (empty for a user's own ONNX file).

    `between` are the values that no module makes, computed by the graph's nodes from the modules' outputs: where the trace is wrong
    somewhere, these are right all the same.
    """

    values: Mapping[str, np.ndarray]
    modules: Mapping[Call, np.ndarray]
    between: Mapping[str, np.ndarray] = field(default_factory=dict)

    def of(self, layer: Layer) -> np.ndarray:
        """The layer's value: torch's own where a module makes it, the graph's otherwise."""
        made = self.modules.get((layer.module, layer.call)) if layer.module else self.between.get(layer.name)
        return self.values[layer.name] if made is None else made


class Reference:
    """The float network with its inside laid open. `example` are inputs that modules and values are matched on."""

    def __init__(self, source: Source, example: Tensors) -> None:
        self.contract = source.contract
        self._module = source.module
        self._inner = InnerValues(source.traced(), what="the network's graph")
        self._between: Severed | None = None
        first = self.observe(example)
        self.layers = matched(source.traced(), source.module, first)
        known = {layer.name: first.of(layer) for layer in self.layers if layer.module}
        if known:
            self._between = Severed(source.traced(), known, local=False)

    def observe(self, inputs: Tensors) -> Observed:
        """Every inner value for these inputs (in the module's layout)."""
        modules = module_outputs(self._module, self.contract, inputs) if self._module is not None else {}
        values = self._inner(inputs)
        if self._between is None:
            return Observed(values, modules)
        known = {layer.name: made for layer in self.layers if (made := modules.get((layer.module, layer.call))) is not None}
        return Observed(values, modules, self._between(inputs, known))


def module_outputs(module: nn.Module, contract: Contract, inputs: Tensors) -> dict[Call, np.ndarray]:
    """The output of every call of every submodule that returns one float tensor, in the order the calls end."""
    import torch

    found: dict[Call, np.ndarray] = {}
    counts: dict[str, int] = {}

    def hook(path: str) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            call = counts[path] = counts.get(path, -1) + 1
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                found[path, call] = output.detach().cpu().numpy().copy()  # the next layer may work in place

        return keep

    handles = [m.register_forward_hook(hook(path)) for path, m in module.named_modules() if path]
    try:
        with torch.inference_mode():
            module(*(torch.from_numpy(inputs[spec.name]) for spec in contract.inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found


def matched(graph: onnx.ModelProto, module: nn.Module | None, seen: Observed) -> tuple[Layer, ...]:
    """The graph's float values as layers, each with the torch module whose output it is."""
    paths = {path: m for path, m in module.named_modules() if path} if module is not None else {}
    layers = [_scoped(layer, paths) for layer in bare_layers(graph, seen.values)]
    if module is None:
        return tuple(layers)
    last = {(layer.scope, layer.call): layer.name for layer in layers if layer.scope}
    leaves = [call for call in seen.modules if not list(paths[call[0]].children())]
    chains = _chains(leaves, {(layer.scope, layer.call) for layer in layers})
    free = dict.fromkeys(seen.modules)
    found = []
    for layer in layers:
        call = (layer.scope, layer.call)
        candidates = chains.get(call, [call]) if layer.scope and last[call] == layer.name else []
        if not layer.node.startswith("/"):
            candidates = list(free)  # a graph that was not traced by scopes: by content alone
        made = _joined(layer, candidates, seen, by_name=call in chains)
        if made.module:
            free.pop((made.module, made.call), None)
        found.append(made)
    return tuple(found)


def bare_layers(graph: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> list[Layer]:
    """The float values among `values` as layers, without modules."""
    order = varying(graph)
    floats = {name for name in order if name in values and values[name].dtype.kind == "f"}
    doors = {value.name for value in graph.graph.input}
    makers = {name: node for node in graph.graph.node for name in node.output}

    def sources(name: str, deep: int = 0) -> Iterable[str]:
        for read in reads(makers[name]):
            if read in floats or read in doors:
                yield read
            elif read in makers and deep < 8:
                yield from sources(read, deep + 1)

    return [
        Layer(name, makers[name].name or name, makers[name].op_type, inputs=tuple(dict.fromkeys(sources(name))))
        for name in order
        if name in floats
    ]


def _scoped(layer: Layer, paths: Mapping[str, nn.Module]) -> Layer:
    scope, call = module_path(layer.node, paths)
    return replace(layer, scope=scope, call=call)


def _chains(leaves: list[Call], present: set[Call]) -> dict[Call, list[Call]]:
    """For every leaf call with a node of its own: itself and the calls after it that left no node (folded norms, dropout)."""
    chains: dict[Call, list[Call]] = {}
    head: Call | None = None
    for call in leaves:
        if call in present:
            head = call
            chains[head] = [call]
        elif head is not None:
            chains[head].append(call)
    return chains


def _joined(layer: Layer, candidates: list[Call], seen: Observed, *, by_name: bool) -> Layer:
    """The layer with the candidate whose output it equals; when it equals none, `by_name` alone with the last of its shape."""
    value = seen.values[layer.name]
    alike = [call for call in candidates if call in seen.modules and seen.modules[call].shape == value.shape]
    for path, call in alike:
        if sqnr_db(seen.modules[path, call], value) >= SAME_DB:
            return replace(layer, module=path, call=call, verified=True)
    if alike and by_name:
        path, call = alike[-1]
        return replace(layer, module=path, call=call)
    return layer
