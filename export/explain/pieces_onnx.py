"""An ONNX graph cut into pieces, its free sizes kept; what is expected of them is torch's own value wherever a module makes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...models.contract import Contract
from ..exporter import Tensors
from ..onnx_taps import in_order, reads, varying
from ..parity import Probe
from .pieces import Piece, Place, spec_of
from .scopes import locate
from .values import Reference

if TYPE_CHECKING:
    import onnx

    from ..source import Source


PROBES = 4
"""Pieces are judged on so many inputs of each size."""


class OnnxPieces:
    """The pieces of a Source's graph, judged on `probes`. `feeds` are calibration inputs of the whole network."""

    def __init__(self, source: Source, probes: Sequence[Probe], *, feeds: Sequence[Tensors] = ()) -> None:
        self._source, self._feeds = source, list(feeds)
        sizes = dict.fromkeys(tuple(probe.dims.items()) for probe in probes)
        self._probes = [p for size in sizes for p in [p for p in probes if tuple(p.dims.items()) == size][:PROBES]]
        self._reference = Reference(source, probes[0].inputs)
        self._layers = {layer.name: layer for layer in self._reference.layers}
        changing = set(varying(source.traced()))
        ordered = in_order(source.traced())
        self._constant = [node for node in ordered if not changing.intersection(node.output)]
        self._nodes = [node for node in ordered if changing.intersection(node.output)]
        self._changing = changing | {spec.name for spec in source.contract.inputs}
        self._results = [spec.name for spec in source.contract.outputs]
        self._cuts = [0, *(k for k in range(1, len(self._nodes)) if self._can_cut(k)), len(self._nodes)]

    @property
    def last(self) -> int:
        """The number of the last cut."""
        return len(self._cuts) - 1

    def prefix(self, cut: int) -> Piece:
        """Everything before `cut`."""
        inputs = [spec.name for spec in self._source.contract.inputs]
        return self._piece(self._nodes[: self._cuts[cut]], inputs, end=self._cuts[cut])

    def between(self, start: int, end: int) -> Piece:
        """The nodes between two cuts, fed with what the network computes before them."""
        nodes = self._nodes[self._cuts[start] : self._cuts[end]]
        made = {name for node in nodes for name in node.output}
        inputs = [name for node in nodes for name in reads(node) if name in self._changing and name not in made]
        return self._piece(nodes, list(dict.fromkeys(inputs)), end=self._cuts[end])

    def _piece(self, nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], *, end: int) -> Piece:
        outputs = self._frontier(end, nodes)
        probes = []
        for probe in self._probes:
            values = self._values(probe.inputs, [*inputs, *outputs]) | {
                name: value for name, value in probe.outputs.items() if name in outputs
            }
            probes.append(Probe(probe.dims, {n: values[n] for n in inputs}, {n: values[n] for n in outputs}, probe.branch))
        feeds = tuple(self._values(feed, inputs) for feed in self._feeds)
        own = {spec.name: spec for spec in (*self._source.contract.inputs, *self._source.contract.outputs)}

        def spec(name: str, arrays: list[np.ndarray]) -> object:
            return own.get(name) or spec_of(name, [array.shape for array in arrays], arrays[0].dtype)

        contract = Contract.model_validate(
            {
                "inputs": [spec(name, [p.inputs[name] for p in probes]) for name in inputs],
                "outputs": [spec(name, [p.outputs[name] for p in probes]) for name in outputs],
            }
        )
        return Piece(contract, tuple(probes), tuple(map(self._place, nodes)), graph=self._cut_out(nodes, contract), feeds=feeds)

    def _cut_out(self, nodes: Iterable[onnx.NodeProto], contract: Contract) -> onnx.ModelProto:
        import onnx

        made = onnx.ModelProto()
        made.CopyFrom(self._source.traced())
        graph = made.graph
        for part in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
            del part[:]
        kept = _with_constants(list(nodes), self._constant)
        graph.node.extend(kept)
        read = {name for node in kept for name in reads(node)}
        graph.initializer.extend(weight for weight in self._source.traced().graph.initializer if weight.name in read)
        for specs, part in ((contract.inputs, graph.input), (contract.outputs, graph.output)):
            for spec in specs:
                kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
                part.append(onnx.helper.make_tensor_value_info(spec.name, kind, spec.shape))
        return made

    def _values(self, inputs: Tensors, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """What the network has under these names; its own inputs are names too."""
        if all(name in inputs for name in wanted):
            return {name: inputs[name] for name in wanted}
        seen = self._reference.observe(inputs)
        return {name: inputs[name] if name in inputs else seen.of(self._layers[name]) for name in wanted}

    def _frontier(self, end: int, made_by: Sequence[onnx.NodeProto]) -> list[str]:
        """The values made by these nodes that pass the cut before node `end`."""
        if end == len(self._nodes):
            return list(self._results)
        later = {name for node in self._nodes[end:] for name in reads(node)}.union(self._results)
        return [name for node in made_by for name in node.output if name in later]

    def _can_cut(self, end: int) -> bool:
        passing = self._frontier(end, self._nodes[:end])
        return bool(passing) and all(name in self._layers for name in passing)

    def _place(self, node: onnx.NodeProto) -> Place:
        layer = self._layers.get(node.output[0])
        return Place(node.name or node.output[0], node.op_type, (layer.scope or layer.module) if layer else "")

    def line(self, place: Place) -> str:
        """The user's line of a place ("net.py:41"), "" where it can't be told."""
        found = locate(self._source, place.node)
        return found.rsplit("(", 1)[1].rstrip(")") if found.endswith(")") else ""


def _with_constants(nodes: list[onnx.NodeProto], constant: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """`nodes` after the constant nodes that they read, straight or through others."""
    makers: Mapping[str, onnx.NodeProto] = {name: node for node in constant for name in node.output}
    needed: dict[int, onnx.NodeProto] = {}
    waiting = [name for node in nodes for name in reads(node)]
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is not None and id(maker) not in needed:
            needed[id(maker)] = maker
            waiting.extend(reads(maker))
    return [*(node for node in constant if id(node) in needed), *nodes]
