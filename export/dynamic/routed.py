"""The deployment mode "routed": a RoutedNet as one ONNX graph that decides by nested `If`, for one sample at a time.

What branches have in common is computed once: a shared prefix, whatever a larger branch of a cascade finds already computed by a
smaller one, and features that the router reads. Weights that are slices of others are stored once (`share`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError
from ...models.routed import RoutedNet, features_at, plain_branch
from ..onnx import to_graph
from ..source import Source
from .scopes import Part, Scope, shared_by_all
from .share import share, slices_of

THRESHOLDS, BRANCH = "thresholds", "branch"
MEANING = {
    "cascade": "branch k answers when the largest softmax probability of its own answer reaches thresholds[k], else branch k+1 is "
    "asked; the last one always answers",
    "router": "the first branch answers whose score by the router reaches its threshold, else the last one",
    "cluster": "the branch of the cluster that the router names answers; there are no thresholds",
}
FREEDOM = "higher thresholds send more samples to larger branches: 0 takes the smallest always, above 1 the largest"


@dataclass(frozen=True)
class Routed:
    """The graph of a routed network, its contract (batch 1), what a reader of the file should know, and warnings."""

    model: onnx.ModelProto
    contract: Contract
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()


def routed_contract(net: RoutedNet, contract: Contract, *, with_branch: bool = False) -> Contract:
    """`contract` at batch 1, with the input "thresholds" (K−1,) whose defaults are the network's own (none for clusters).

    `with_branch` adds the output "branch" (1,) int64. Raises UserError where the network has several inputs or outputs, sizes
    besides the batch are free, the batch is fixed at another number, or a cascade has no class scores to be confident of.
    """
    if len(contract.inputs) != 1 or len(contract.outputs) != 1:
        raise UserError(
            f"the network has {len(contract.inputs)} inputs and {len(contract.outputs)} outputs; a route takes one of each",
            hint="export its branches one by one",
        )
    image, answer = contract.inputs[0], contract.outputs[0]
    if free := [symbol for symbol in contract.symbols if symbol != image.shape[0]]:
        raise UserError(
            f"a routed network decides at one size, and the contract leaves {', '.join(free)} free",
            hint="fix the image's size in the contract",
        )
    if isinstance(image.shape[0], int) and image.shape[0] != 1:
        raise UserError(
            f"a routed network takes one sample at a time, and the batch of {image.name!r} is fixed at {image.shape[0]}",
            hint="make the network with a free batch",
        )
    if net.spec.rule == "cascade" and len(answer.shape) != 2:
        raise UserError(
            f"a cascade goes by class scores (N, classes), and {answer.name!r} has {len(answer.shape)} dimensions",
            hint="use a router",
        )
    inputs, outputs = [_single(image)], [_single(answer)]
    if len(net.thresholds):
        limits = tuple(float(v) for v in net.thresholds)
        inputs.append(TensorSpec(name=THRESHOLDS, shape=(len(limits),), value_range=(0.0, 1.0), default=limits))
    if with_branch:
        outputs.append(TensorSpec(name=BRANCH, shape=(1,), dtype="int64"))
    return Contract(inputs=tuple(inputs), outputs=tuple(outputs), classes=contract.classes)


def _single(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"shape": (1, *spec.shape[1:])})


def routed_graph(net: RoutedNet, contract: Contract, *, with_branch: bool = False) -> tuple[onnx.ModelProto, Contract]:
    """The ONNX graph of a routed network and its contract, `contract` being the plain network's. Raises UserError."""
    routed = assembled(net, contract, with_branch=with_branch)
    return routed.model, routed.contract


def assembled(net: RoutedNet, contract: Contract, *, with_branch: bool = False, sharing: bool = True, seed: int = 0) -> Routed:
    """The graph of a routed network with all that is known of it; without `sharing` every branch keeps weights of its own.

    Raises UserError as `routed_contract` and `to_graph` do.
    """
    net = net.eval()
    whole = routed_contract(net, contract, with_branch=with_branch)
    single = contract.model_copy(update={"inputs": (_single(contract.inputs[0]),), "outputs": (_single(contract.outputs[0]),)})
    example = tuple(torch.from_numpy(v) for v in single.random_inputs({}, seed=seed).values())
    parts = [Part(to_graph(plain_branch(net, k), single, example), f"branch{k}") for k in range(len(net.branches))]
    tree = _Tree(net, parts, _router(net, single, example), whole)
    model = tree.model()
    if sharing:
        model = share(model, slices_of(net, model))
    onnx.checker.check_model(model)
    facts = {
        "mode": "routed",
        "rule": net.spec.rule,
        "meaning": MEANING[net.spec.rule] + (f"; {FREEDOM}" if len(net.thresholds) else ""),
        "thresholds": [float(v) for v in net.thresholds],
        "branches": [
            {"macs": sum(part.macs.values()), "macs_in_all": tree.spent[k], "size_bytes": part.model.ByteSize()}
            for k, part in enumerate(parts)
        ],
    }
    fixed = [s for s in contract.symbols if s == contract.inputs[0].shape[0]]
    warnings = tuple(f"a routed network takes one sample at a time: the batch {symbol} is fixed at 1" for symbol in fixed)
    return Routed(model, whole, facts, warnings)


class _Scores(nn.Module):
    """image → the router's scores."""

    def __init__(self, largest: nn.Module, router: nn.Module, at: str) -> None:
        super().__init__()
        self.largest, self.router, self.at = largest, router, at

    def forward(self, image: Tensor) -> Tensor:
        return self.router(features_at(self.largest, self.at, image) if self.at else image)


def _router(net: RoutedNet, single: Contract, example: tuple[Tensor, ...]) -> Part | None:
    """The router as a graph from the image to its scores, None for a cascade."""
    if net.router is None or net.spec.router is None:
        return None
    module = _Scores(plain_branch(net, len(net.branches) - 1), net.router, net.spec.router.at).eval()
    with torch.no_grad():
        shape = tuple(module(*example).shape)
    scores = single.model_copy(update={"outputs": (TensorSpec(name="scores", shape=shape),)})
    return Part(to_graph(module, scores, example), "router")


class _Tree:
    """Branches joined by nested `If`. `spent` says what a sample costs in MACs that branch k answers, decision included."""

    def __init__(self, net: RoutedNet, parts: Sequence[Part], router: Part | None, contract: Contract) -> None:
        self.rule, self.parts, self.router, self.contract = net.spec.rule, parts, router, contract
        self.spent: dict[int, int] = {}
        self.outer = Scope()
        self.outer.names |= {spec.name for spec in (*contract.inputs, *contract.outputs)}
        image = contract.inputs[0].name
        self.outer.known[parts[0].keys[image]] = image

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        if self.router is not None:
            self.outer.add(self.router)
            if self.rule == "cluster":
                self.outer.emit("ArgMax", [self._scores], "router/cluster", axis=1, keepdims=0)
        self._level(self.outer, 0, [spec.name for spec in self.contract.outputs])
        inputs, outputs = self.contract.inputs, self.contract.outputs
        graph = self.outer.graph("routed", [_value(s, s.name) for s in outputs], [_value(s, s.name) for s in inputs])
        first = self.parts[0].model
        return helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)

    @property
    def _scores(self) -> str:
        """The name of the router's scores."""
        name = self.router and self.outer.find(self.router.keys["scores"])
        if not name:
            raise RuntimeError("the router is not in the graph")
        return name

    def _level(self, scope: Scope, number: int, names: Sequence[str] = ()) -> list[str]:
        """The names of the outputs in `scope` of branch `number` and those after it; `names`: what they are to be called."""
        part = self.parts[number]
        if number + 1 == len(self.parts):
            scope.add(part)
            return self._answers(scope, number)
        answering = self.rule == "cascade"
        scope.add(part, (lambda key: True) if answering else shared_by_all(self.parts[number:]))
        enough = self._enough(scope, number)
        taken, rest = Scope(scope), Scope(scope)
        taken.add(part)
        sides = {"then_branch": (taken, self._answers(taken, number)), "else_branch": (rest, self._level(rest, number + 1))}
        outputs = list(names) or [scope.fresh(f"from{number}/{spec.name}") for spec in self.contract.outputs]
        built = {
            side: inner.graph(f"{side}{number}", map(_value, self.contract.outputs, found))
            for side, (inner, found) in sides.items()
        }
        scope.nodes.append(helper.make_node("If", [enough], outputs, name=f"choice{number}", **built))
        return outputs

    def _answers(self, scope: Scope, number: int) -> list[str]:
        """The names in `scope` of a branch's own outputs, passed on where a scope around has computed them."""
        part = self.parts[number]
        key = part.keys[part.graph.output[0].name]
        name = scope.known.get(key) or scope.emit("Identity", [str(scope.find(key))], f"answer{number}")
        self.spent[number] = scope.macs_in_all
        if len(self.contract.outputs) == 1:
            return [name]
        return [name, scope.emit("Identity", [scope.number([number], "number")], f"taken{number}")]

    def _enough(self, scope: Scope, number: int) -> str:
        """The name of the truth value (1,) whether branch `number` answers."""
        label = f"choice{number}"
        if self.rule == "cluster":
            return scope.emit("Equal", ["router/cluster", scope.number([number], "cluster")], f"{label}/enough")
        position = scope.number(number, "position")
        if self.rule == "cascade":
            part = self.parts[number]
            logits = str(scope.find(part.keys[part.graph.output[0].name]))
            likely = scope.emit("Softmax", [logits], f"{label}/likely", axis=1)
            score = scope.emit("ReduceMax", [likely, scope.number([1], "axes")], f"{label}/score", keepdims=0)
        else:
            score = scope.emit("Gather", [self._scores, position], f"{label}/score", axis=1)
        limit = scope.emit("Gather", [THRESHOLDS, position], f"{label}/limit", axis=0)
        return scope.emit("GreaterOrEqual", [score, limit], f"{label}/enough")


def _value(spec: TensorSpec, name: str) -> onnx.ValueInfoProto:
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    return helper.make_tensor_value_info(name, types[spec.dtype], spec.shape)


def forcing(count: int) -> tuple[dict[str, np.ndarray], ...]:
    """Values of the input "thresholds" (K−1,) that make the first branch answer whatever comes, the second, …, the last.

    Scores lie in 0…1: all reach 0, none 1.01. Empty for clusters, which have no thresholds (`count` 0).
    """
    rows = [[1.01] * number + [0.0] * (count - number) for number in range(count + 1)] if count else []
    return tuple({THRESHOLDS: np.array(row, dtype=np.float32)} for row in rows)


def routed_source(
    net: RoutedNet,
    contract: Contract,
    *,
    label: str,
    origin: dict[str, str] | None = None,
    seed: int = 0,
    with_branch: bool = False,
) -> Source:
    """A routed network as a Source: control flow at batch 1, with RoutedNet itself as the reference. Raises UserError."""
    net = net.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
    routed = assembled(net, contract, with_branch=with_branch, seed=seed)
    names = [spec.name for spec in routed.contract.inputs]

    def answer(inputs: Mapping[str, np.ndarray]) -> Tensor:
        with torch.inference_mode():
            return net(*(torch.from_numpy(inputs[name]) for name in names))

    def reference(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = [answer(inputs).numpy(), *([net.taken.numpy()] if with_branch else [])]
        return {spec.name: array for spec, array in zip(routed.contract.outputs, outputs, strict=True)}

    def branch(inputs: Mapping[str, np.ndarray]) -> int:
        answer(inputs)
        return int(net.taken[0])

    return Source(
        label=label,
        contract=routed.contract,
        reference=reference,
        graph=routed.model,
        module=net,
        origin=origin or {},
        dynamic=routed.facts,
        branch=branch,
        settings=forcing(len(net.thresholds)),
        warnings=routed.warnings,
    )
