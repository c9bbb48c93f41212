"""The masked graph of a gated network rewritten so that channels which are off are not computed.

The masked graph holds, for every gated convolution, Conv → Mul(mask), the mask being Greater(logits, 0). The rewriter walks it in
order and keeps each value full, (1, C, …), or compact: the channels alone that one gate has switched on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from .gather_choice import Layer, choose, narrow
from .gather_ops import Emitter, Picked, gather_bias, gather_weight, pick, scatter

POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
KEEPS_ZERO = POOLS | {"Relu", "LeakyRelu", "Tanh", "HardSwish", "Erf", "Abs", "Neg", "Elu", "Selu"}
"""Operators that work on each channel for itself and turn a channel of zeros into zeros."""
MOVES_ZERO = frozenset({"Sigmoid", "HardSigmoid", "Softplus", "Exp"})
"""Operators on single values that don't."""
WITH_SCALARS = frozenset({"Mul", "Div", "Add", "Sub", "Clip"})
REDUCES = frozenset({"ReduceMax", "ReduceMean"})
PASSES = frozenset({"Unsqueeze", "Reshape", "Cast", "Identity"})


@dataclass
class Value:
    """What is known of one value. `compact` and `full` name its forms where they were written.

    `zero_outside`: it is zero in the channels that the gate (named by its logits) switches off.
    """

    gate: str = ""
    zero_outside: bool = False
    compact: str = ""
    full: str = ""


@dataclass(frozen=True)
class GatedConv:
    """A convolution whose output a gate multiplies at once: Conv → Mul(mask)."""

    conv: NodeProto
    mul: NodeProto
    logits: str


@dataclass(frozen=True)
class Rewritten:
    """The new model, and by their Conv node's name the gated convolutions that are gathered and, with the reason, those that aren't."""

    model: onnx.ModelProto
    gathered: tuple[str, ...]
    masked: dict[str, str]


def rewrite(model: onnx.ModelProto, keep: Callable[[str], float]) -> Rewritten:
    """The same function, its gated convolutions gathered where that pays.

    `model` has batch 1 and fixed sizes everywhere. `keep` gives the share of a convolution's channels that are usually on, by its
    node's name; 0 gathers wherever it can be done.
    """
    trial = _Rewriter(model, None)
    trial.run()
    shares = {gated.logits: keep(gated.conv.name) for gated in trial.gated.values()}
    return _Rewriter(model, choose(trial.layers, shares), shares).run()


class _Rewriter:
    """One walk. `chosen`: the gates, by their logits, whose convolutions are gathered; None: all that can be."""

    def __init__(self, model: onnx.ModelProto, chosen: set[str] | None, shares: Mapping[str, float] | None = None) -> None:
        self.model = onnx.shape_inference.infer_shapes(model)
        self.graph = self.model.graph
        self.chosen, self.shares = chosen, shares or {}
        self.layers: list[Layer] = []
        self.weights = {w.name: numpy_helper.to_array(w) for w in self.graph.initializer}
        self.shapes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            for v in (*self.graph.value_info, *self.graph.input, *self.graph.output)
        }
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.reads: dict[str, int] = {}
        for node in self.graph.node:
            for name in node.input:
                self.reads[name] = self.reads.get(name, 0) + 1
        self.outputs = [o.name for o in self.graph.output]
        self.emit = Emitter({*self.weights, *self.makers, *self.shapes, *(node.name for node in self.graph.node)})
        self.values: dict[str, Value] = {}
        self.picks: dict[str, Picked] = {}
        self.masked: dict[str, str] = {}
        self.gathered: list[str] = []
        self.gated = self._find()

    def run(self) -> Rewritten:
        """The new model."""
        late = {gated.conv.name for gated in self.gated.values()}
        for node in self.graph.node:
            if node.name in self.gated:
                self._gate(self.gated[node.name])
            elif node.name not in late:
                self._node(node)
        for name in self.outputs:
            self._full(name)
        return Rewritten(self._model(), tuple(self.gathered), self.masked)

    # --- what is there

    def _find(self) -> dict[str, GatedConv]:
        """The gated convolutions that can be gathered, by the name of their Mul."""
        found = {}
        for mul in self.graph.node:
            logits = self._logits_of(mul)
            conv = next((self.makers[i] for i in mul.input if i in self.makers and self.makers[i].op_type == "Conv"), None)
            if not logits or conv is None:
                continue
            if reason := self._refusal(conv, logits):
                self.masked[conv.name] = reason
            else:
                found[mul.name] = GatedConv(conv, mul, logits)
        return found

    def _logits_of(self, mul: NodeProto) -> str:
        """The logits that a Mul's mask is made of, or ""."""
        if mul.op_type != "Mul":
            return ""
        for name in mul.input:
            node = self.makers.get(name)
            if self.shapes.get(name, ())[2:] != (1, 1):
                continue
            while node is not None and node.op_type in PASSES:
                node = self.makers.get(node.input[0])
            if node is not None and node.op_type == "Greater" and not np.any(self.weights.get(node.input[1], 1)):
                return node.input[0]
        return ""

    def _refusal(self, conv: NodeProto, logits: str) -> str:
        """Why a masked convolution can't be gathered, or ""."""
        if self.reads[conv.output[0]] != 1 or conv.output[0] in self.outputs:
            return "its output is read before the mask"
        if not self._free(conv):
            return "it is depthwise or grouped: ONNX fixes the number of groups, so channels can't come and go"
        weight = self.weights[conv.input[1]]
        gemm = self.makers.get(logits)
        if gemm is None or not _is_linear(gemm) or any(n not in self.weights for n in gemm.input[1:]):
            return "its predictor does not end in a linear layer"
        if self.weights[gemm.input[2]].shape != weight.shape[:1]:
            return f"its mask has {self.weights[gemm.input[2]].size} channels and it has {weight.shape[0]}"
        return ""

    # --- the walk

    def _node(self, node: NodeProto) -> None:
        out = node.output[0]
        if node.op_type == "Conv" and self._free(node) and self._reads_compact(self._layer(node, "")):
            self._conv(node, None, out=out)
        elif self._per_channel(node):
            self._spread(node)
        elif not (node.op_type in ("Add", "Sub", "Mul") and self._joined(node)):
            self._copy(node, [self._full(name) for name in node.input])
            if logits := self._logits_of(node):
                self.values[out] = Value(logits, zero_outside=True)

    def _gate(self, gated: GatedConv) -> None:
        """None; a convolution and its mask, gathered where that pays."""
        out = gated.mul.output[0]
        if self.chosen is not None and gated.logits not in self.chosen:
            size = "×".join(str(d) for d in self.shapes[gated.conv.output[0]][2:])
            self.masked[gated.conv.name] = f"on a {size} map copying its weights costs more than leaving channels out saves"
            self._node(gated.conv)
            self._node(gated.mul)
            return
        self.gathered.append(gated.conv.name)
        reads = self._reads_compact(self._layer(gated.conv, gated.logits))
        name = self.emit.name(f"{out}/compact")
        compact = self._conv(gated.conv, self._picked(gated.logits), out=name, compact=reads)
        self.values[out] = Value(gated.logits, zero_outside=True, compact=compact)

    def _copy(self, node: NodeProto, inputs: list[str], *, out: str = "") -> str:
        """The node on other inputs; it writes `out`, or what it wrote before."""
        new = NodeProto()
        new.CopyFrom(node)
        del new.input[:]
        new.input.extend(inputs)
        if out:
            new.name = new.output[0] = out
        self.emit.nodes.append(new)
        return new.output[0]

    def _picked(self, logits: str) -> Picked:
        """The channels that a gate switches on."""
        if logits not in self.picks:
            gemm = self.makers[logits]
            weight, bias = (self.weights[name] for name in gemm.input[1:])
            self.picks[logits] = pick(self.emit, self._full(gemm.input[0]), weight, bias, at=self.emit.name(f"{logits}/pick"))
        return self.picks[logits]

    def _free(self, conv: NodeProto) -> bool:
        """Whether a convolution's channels can come and go: it has no groups, and constant weights."""
        return _attribute(conv, "group", 1) == 1 and all(name in self.weights for name in conv.input[1:])

    def _layer(self, conv: NodeProto, gate: str) -> Layer:
        """A convolution as the choice sees it, noted."""
        value = self.values.get(conv.input[0], Value())
        width, depth, *kernel = self.weights[conv.input[1]].shape
        reads = value.gate if value.compact and value.zero_outside else ""
        pixels = math.prod(self.shapes[conv.output[0]][2:])
        self.layers.append(Layer(gate, reads, pixels, math.prod(kernel), width, depth))
        return self.layers[-1]

    def _reads_compact(self, layer: Layer) -> bool:
        """Whether a convolution takes its input compact."""
        return bool(layer.reads) and (self.chosen is None or narrow(layer, self.shares, self.chosen))

    def _conv(self, conv: NodeProto, outputs: Picked | None, *, out: str, compact: bool = True) -> str:
        """A convolution of the picked output channels (None: all), its input compact or full."""
        value, at = self.values.get(conv.input[0], Value()), self.emit.name(f"{conv.output[0]}/gather")
        inputs = self._picked(value.gate) if compact else None
        found = [value.compact if compact else self._full(conv.input[0])]
        found.append(gather_weight(self.emit, self.weights[conv.input[1]], outputs=outputs, inputs=inputs, at=at))
        if len(conv.input) > 2:
            found.append(gather_bias(self.emit, self.weights[conv.input[2]], outputs, at=at))
        return self._copy(conv, found, out=out)

    def _per_channel(self, node: NodeProto) -> bool:
        """Whether a node works on each channel of its only varying input, a known value, for itself."""
        others = [name for name in node.input[1:] if name]
        if not node.input or node.input[0] not in self.values or len(node.output) != 1:
            return False
        if any(name not in self.weights for name in others):
            return False
        if node.op_type in REDUCES:
            axes = self.weights[others[0]].tolist() if others else []
            return bool(axes) and all(axis in (2, 3, -1, -2) for axis in axes)
        scalars = all(self.weights[name].size == 1 for name in others)
        return scalars and node.op_type in KEEPS_ZERO | MOVES_ZERO | WITH_SCALARS

    def _keeps_zero(self, node: NodeProto) -> bool:
        """Whether such a node turns zeros into zeros."""
        if node.op_type == "Clip":
            low, high = [self.weights[n].item() if n else None for n in (*node.input[1:], "", "")][:2]
            return (low is None or low <= 0) and (high is None or high >= 0)
        return node.op_type in KEEPS_ZERO | REDUCES | {"Mul", "Div"}

    def _spread(self, node: NodeProto) -> None:
        """None; a node that works on each channel for itself, done on the compact form where there is one."""
        value, out, others = self.values[node.input[0]], node.output[0], list(node.input[1:])
        zero = value.zero_outside and self._keeps_zero(node)
        compact = full = ""
        if value.compact:
            compact = self._copy(node, [value.compact, *others], out=self.emit.name(f"{out}/compact"))
        if not (compact and zero):
            full = self._copy(node, [self._full(node.input[0]), *others])
        self.values[out] = Value(value.gate, zero_outside=zero, compact=compact, full=full)

    def _joined(self, node: NodeProto) -> bool:
        """Whether a sum or product of two values was made from compact forms."""
        a, b = node.input
        left, right = self.values.get(a, Value()), self.values.get(b, Value())
        same = self.shapes.get(a) == self.shapes.get(b)
        if left.compact and right.compact and left.gate == right.gate and same:
            zeros = (left.zero_outside, right.zero_outside)
            if any(zeros) if node.op_type == "Mul" else all(zeros):
                compact = self._copy(node, [left.compact, right.compact], out=self.emit.name(f"{node.output[0]}/compact"))
                self.values[node.output[0]] = Value(left.gate, zero_outside=True, compact=compact)
                return True
        for name, value, other in ((a, left, b), (b, right, a)):
            if not value.compact or not value.zero_outside:
                continue
            if node.op_type == "Mul" and self._factor_per_channel(other, name):
                self._scaled(node, value, other)
                return True
            if node.op_type == "Add" and same and not value.full:
                onto = self._full(other)
                scatter(self.emit, value.compact, (), self._picked(value.gate), onto=onto, out=node.output[0])
                return True
        return False

    def _factor_per_channel(self, factor: str, name: str) -> bool:
        """Whether `factor` is (1, C, 1, 1), the channels those of value `name`: squeeze-and-excitation."""
        shape = self.shapes.get(factor, ())
        return len(shape) == 4 and shape[2:] == (1, 1) and shape[1] == self.shapes[name][1]

    def _scaled(self, node: NodeProto, value: Value, factor: str) -> None:
        """None; a compact value times one number per channel."""
        out, channels = node.output[0], self._picked(value.gate).inside
        picked = self.emit.op("Gather", self._full(factor), channels, out=f"{out}/factor", axis=1)
        compact = self.emit.op("Mul", value.compact, picked, out=f"{out}/compact")
        self.values[out] = Value(value.gate, zero_outside=True, compact=compact)

    def _full(self, name: str) -> str:
        """The full form of a value, scattered once."""
        value = self.values.get(name)
        if value is not None and value.compact and not value.full:
            value.full = scatter(self.emit, value.compact, self.shapes[name], self._picked(value.gate), out=name)
        return name

    def _model(self) -> onnx.ModelProto:
        """Inputs and outputs as before, with the nodes and constants that they need."""
        wanted, kept = set(self.outputs), []
        for node in reversed(self.emit.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted.update(node.input)
        constants = [w for w in (*self.graph.initializer, *self.emit.constants) if w.name in wanted]
        graph = helper.make_graph(kept[::-1], self.graph.name, list(self.graph.input), list(self.graph.output), constants)
        return helper.make_model(graph, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _is_linear(node: NodeProto) -> bool:
    """Whether a node is x · Wᵀ + b."""
    if node.op_type != "Gemm" or len(node.input) != 3:
        return False
    wanted = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    return all(_attribute(node, name, 0 if name == "transB" else value) == value for name, value in wanted.items())
