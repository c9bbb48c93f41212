"""A torch module cut into pieces along the graph that `torch.export` sees, at one input size."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError
from ..exporter import Tensors
from ..parity import Probe
from ..tracing import TensorsOnly
from .pieces import Piece, Place, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterable

PROBES = 4
"""Pieces are judged on so many inputs."""
_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+)')


class TorchPieces:
    """The pieces of `module` at the size of the first of `probes`; probes of other sizes are left out.

    `feeds` are calibration inputs of the whole network. Raises UserError where torch.export can't follow the module.
    """

    def __init__(
        self, module: nn.Module, contract: Contract, probes: Sequence[Probe], *, feeds: Sequence[Tensors] = ()
    ) -> None:
        self.contract = contract
        self._probes = [probe for probe in probes if probe.dims == probes[0].dims][:PROBES]
        self._feeds = list(feeds)
        self._program = _exported(module.eval(), self._arguments(probes[0].inputs))
        doors = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        self._doors = doors[: len(contract.inputs)]
        self._varying = _varying(self._program.graph, self._doors)
        self._nodes = [node for node in self._program.graph.nodes if node.op == "call_function" and node in self._varying]
        self._results = _results(self._program.graph)
        self._cuts = [0, *(k for k in range(1, len(self._nodes)) if self._can_cut(k)), len(self._nodes)]

    @property
    def last(self) -> int:
        """The number of the last cut."""
        return len(self._cuts) - 1

    def prefix(self, cut: int) -> Piece:
        """Everything before `cut`."""
        specs = [self._fixed(spec) for spec in self.contract.inputs]
        return self._piece(self._nodes[: self._cuts[cut]], self._doors, specs, end=self._cuts[cut])

    def between(self, start: int, end: int) -> Piece:
        """The nodes between two cuts, fed with what the network computes before them."""
        nodes = self._nodes[self._cuts[start] : self._cuts[end]]
        chosen = set(nodes)
        read = dict.fromkeys(
            arg for node in nodes for arg in node.all_input_nodes if arg in self._varying and arg not in chosen
        )
        values = self._captured(list(read), self._probes[0].inputs)
        specs = [spec_of(f"x{i}", [values[node].shape], values[node].dtype) for i, node in enumerate(read)]
        return self._piece(nodes, list(read), specs, end=self._cuts[end])

    def _piece(self, nodes: Sequence[fx.Node], doors: Sequence[fx.Node], specs: Sequence[TensorSpec], *, end: int) -> Piece:
        outputs = self._frontier(end, since=nodes)
        names = (
            [spec.name for spec in self.contract.outputs] if end == len(self._nodes) else [f"y{i}" for i in range(len(outputs))]
        )
        module = self._cut_out(doors, outputs, [spec.name for spec in specs])
        probes = []
        for probe in self._probes:
            values = self._captured(doors, probe.inputs)
            inputs = {spec.name: values[node] for spec, node in zip(specs, doors, strict=True)}
            with torch.inference_mode():
                made = module(*(torch.from_numpy(array) for array in inputs.values()))
            results = [made] if isinstance(made, Tensor) else list(made)
            probes.append(Probe({}, inputs, {n: r.contiguous().numpy() for n, r in zip(names, results, strict=True)}))
        feeds = []
        for feed in self._feeds:
            values = self._captured(doors, feed)
            feeds.append({spec.name: values[node] for spec, node in zip(specs, doors, strict=True)})
        shown = [spec_of(name, [probes[0].outputs[name].shape], probes[0].outputs[name].dtype) for name in names]
        contract = Contract(inputs=tuple(specs), outputs=tuple(shown))
        needed = _ancestors(nodes, set(doors)) - self._varying | set(nodes)  # constants that they read among them
        calls = [n for n in self._program.graph.nodes if n in needed and n.op == "call_function"]
        places = tuple(_place(node) for node in calls if node.target is not operator.getitem)
        return Piece(contract, tuple(probes), places, module=module, feeds=tuple(feeds))

    def _cut_out(self, doors: Sequence[fx.Node], outputs: Sequence[fx.Node], names: Sequence[str]) -> fx.GraphModule:
        """A module of what lies between `doors` and `outputs`, with the weights that it needs."""
        graph = fx.Graph()
        copies = {door: graph.placeholder(name) for door, name in zip(doors, names, strict=True)}
        needed = _ancestors(outputs, set(doors))
        for node in self._program.graph.nodes:
            if node in needed and node not in copies and node.op != "placeholder":
                copies[node] = graph.node_copy(node, lambda n: copies[n])
        made = [copies[node] for node in outputs]
        graph.output(made[0] if len(made) == 1 else tuple(made))
        return fx.GraphModule(self._program, graph).eval()

    def _captured(self, wanted: Sequence[fx.Node], inputs: Tensors) -> dict[fx.Node, np.ndarray]:
        """What the network computes at some nodes."""
        arguments = self._arguments(inputs)
        found = {door: value for door, value in zip(self._doors, arguments, strict=True) if door in wanted}
        if any(node not in found for node in wanted):
            keeper = _Keeper(self._program, set(wanted))
            with torch.inference_mode():
                keeper.run(*arguments)
            found |= keeper.kept
        return {node: np.ascontiguousarray(found[node].numpy()) for node in wanted}

    def _arguments(self, inputs: Tensors) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in self.contract.inputs)

    def _fixed(self, spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"shape": self._probes[0].inputs[spec.name].shape})

    def _frontier(self, end: int, *, since: Sequence[fx.Node] = ()) -> list[fx.Node]:
        """The values that pass the cut before node `end`; only those made by `since`, where it is given."""
        if end == len(self._nodes):
            return list(self._results)
        before = set(self._nodes[:end])
        after = set(self._nodes[end:])
        made = set(since) or before
        results = set(self._results)
        return [
            n for n in self._nodes[:end] if n in made and n in self._varying and (n in results or after.intersection(n.users))
        ]

    def _can_cut(self, end: int) -> bool:
        passing = self._frontier(end)
        return bool(passing) and all(isinstance(v := n.meta.get("val"), Tensor) and v.is_floating_point() for n in passing)


class _Keeper(fx.Interpreter):
    """Runs a graph and keeps copies of some of its values."""

    def __init__(self, program: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(program)
        self.wanted, self.kept = wanted, dict[fx.Node, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        value = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = value.clone()
        return value


def _exported(module: nn.Module, arguments: tuple[Tensor, ...]) -> fx.GraphModule:
    """The module as a graph of aten operations without side effects."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(TensorsOnly(module), arguments).module()
        except Exception as error:  # torch.export refuses with every kind of exception
            first = (str(error).splitlines() or [""])[0][:300]
            raise UserError(
                f"the network can't be cut into pieces: torch.export: {type(error).__name__}: {first}",
                hint="explain the ONNX export instead, or look at the converter's own message",
            ) from error
    for node in list(program.graph.nodes):
        if node.op == "call_module":  # checks of the input's shape
            program.graph.erase_node(node)
        elif node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            _functional(node)
    return program


def _functional(node: fx.Node) -> None:
    """None; an operation that works in place ("relu_") becomes the one that does not, and later readers read its result."""
    name, overload = str(node.target).removeprefix("aten.").rsplit(".", 1)
    plain = getattr(getattr(torch.ops.aten, name.rstrip("_"), None), overload, None)
    if plain is None or not name.endswith("_") or not node.args or not isinstance(node.args[0], fx.Node):
        return
    node.target = plain
    position = {each: i for i, each in enumerate(node.graph.nodes)}
    node.args[0].replace_all_uses_with(node, delete_user_cb=lambda user: position[user] > position[node])


def _varying(graph: fx.Graph, doors: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(doors)
    for node in graph.nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _results(graph: fx.Graph) -> list[fx.Node]:
    (output,) = (node for node in graph.nodes if node.op == "output")
    return [arg for arg in output.args[0] if isinstance(arg, fx.Node)] if isinstance(output.args[0], tuple | list) else []


def _ancestors(nodes: Iterable[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    found, waiting = set[fx.Node](), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            if node not in stop:
                waiting.extend(node.all_input_nodes)
    return found


def _place(node: fx.Node) -> Place:
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    path = path.removeprefix("module").removeprefix(".")
    return Place(node.name, str(node.target).removesuffix(".default"), path, _line(node.meta.get("stack_trace") or ""))


def _line(trace: str) -> str:
    """The innermost line outside torch of a stack trace: "net.py:41"."""
    torch_root, ours = str(Path(torch.__file__).parent), str(Path(__file__).parent)
    own = [m for m in _FRAME.finditer(trace) if not m["file"].startswith((torch_root, ours))]
    return f"{Path(own[-1]['file']).name}:{own[-1]['line']}" if own else ""
