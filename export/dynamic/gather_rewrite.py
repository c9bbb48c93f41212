"""The masked graph of a gated network rewritten so that channels which are off are not computed.

The masked graph holds, for every gated convolution, Conv → Mul(mask), the mask being Greater(logits, 0). The rewriter walks it in
order and keeps for each value one or both of two forms: full (1, C, …), and compact, with the picked channels of one gate alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from .gather_ops import Emitter, Picked, gather_bias, gather_weight, pick, scatter

KEEPS_ZERO = frozenset(
    "Relu LeakyRelu Tanh HardSwish Erf Abs Neg Elu Selu MaxPool AveragePool GlobalAveragePool GlobalMaxPool".split()
)
"""Operators that work on each channel for itself and turn a channel of zeros into zeros."""
MOVES_ZERO = frozenset("Sigmoid HardSigmoid Softplus Exp".split())
"""Operators on single values that don't."""
REDUCES = frozenset(("ReduceMax", "ReduceMean"))
PASSES = frozenset(("Unsqueeze", "Reshape", "Cast", "Identity"))


@dataclass
class Value:
    """One value of the old graph. `gate`: its logits' name, where the value has a compact form or is zero where that gate is off."""

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


@dataclass
class Rewritten:
    """The new model; the gated convolutions that are gathered; those left masked, with the reason; both by their Conv node's name."""

    model: onnx.ModelProto
    gathered: tuple[str, ...]
    masked: dict[str, str] = field(default_factory=dict)


def rewrite(model: onnx.ModelProto) -> Rewritten:
    """The same function of one sample, its gated convolutions gathered. `model` has batch 1 and fixed sizes everywhere."""
    return _Rewriter(model).run()


class _Rewriter:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.shape_inference.infer_shapes(model)
        self.graph = self.model.graph
        self.weights = {w.name: numpy_helper.to_array(w) for w in self.graph.initializer}
        self.shapes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            for v in (*self.graph.value_info, *self.graph.input, *self.graph.output)
        }
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in self.graph.output}
        self.emit = Emitter({*self.weights, *self.makers, *self.shapes})
        self.values: dict[str, Value] = {}
        self.picks: dict[str, Picked] = {}
        self.masked: dict[str, str] = {}
        self.gated = self._find()

    def run(self) -> Rewritten:
        """The new model."""
        late = {gated.conv.name: gated for gated in self.gated.values()}
        for node in self.graph.node:
            if node.name in late:
                continue  # done where its mask is multiplied
            self._node(node)
        for name in self.outputs:
            self._full(name)
        return Rewritten(self._model(), tuple(late), self.masked)

    # --- what is there

    def _find(self) -> dict[str, GatedConv]:
        """The gated convolutions by the name of their Mul."""
        found = {}
        for mul in self.graph.node:
            logits = self._mask_of(mul)
            if not logits:
                continue
            conv = next((self.makers[i] for i in mul.input if i in self.makers and self.makers[i].op_type == "Conv"), None)
            reason = self._refusal(conv, logits)
            if not reason and conv is not None:
                found[mul.name] = GatedConv(conv, mul, logits)
            elif conv is not None:
                self.masked[conv.name] = reason
        return found

    def _mask_of(self, mul: NodeProto) -> str:
        """The logits that a Mul's mask is made of, or ""."""
        if mul.op_type != "Mul":
            return ""
        for name in mul.input:
            node = self.makers.get(name)
            if len(self.shapes.get(name, ())) != 4:
                continue
            while node is not None and node.op_type in PASSES:
                node = self.makers.get(node.input[0])
            if node is not None and node.op_type == "Greater" and self._is_zero(node.input[1]):
                return node.input[0]
        return ""

    def _is_zero(self, name: str) -> bool:
        return name in self.weights and self.weights[name].size == 1 and float(self.weights[name].item()) == 0

    def _refusal(self, conv: NodeProto | None, logits: str) -> str:
        """Why a masked convolution can't be gathered, or ""."""
        if conv is None or conv.input[1] not in self.weights:
            return "its weight is not a constant"
        if len(self.readers[conv.output[0]]) != 1 or conv.output[0] in self.outputs:
            return "its output is read before the mask"
        channels = self.weights[conv.input[1]].shape[0]
        if _attribute(conv, "group", 1) != 1:
            return "ONNX fixes a convolution's groups, so its channels can't come and go"
        if self.shapes.get(logits) != (1, channels):
            return f"its mask has the shape {self.shapes.get(logits)} and not {(1, channels)}"
        gemm = self.makers.get(logits)
        if gemm is None or gemm.op_type != "Gemm" or not _plain(gemm) or any(n not in self.weights for n in gemm.input[1:]):
            return "its predictor does not end in a linear layer"
        return ""

    # --- the walk

    def _node(self, node: NodeProto) -> None:
        out = node.output[0]
        logits = self._mask_of(node)
        if node.name in self.gated:
            self.values[out] = self._gathered(self.gated[node.name])
        elif node.op_type == "Conv" and _attribute(node, "group", 1) == 1 and self._compact(node.input[0]):
            self._copy(node, self._conv_inputs(node, outputs=None))
        elif self._per_channel(node):
            self._spread(node)
        elif logits:
            self._copy(node, [self._full(name) for name in node.input])
            self.values[out] = Value(logits, zero_outside=True)
        elif node.op_type in ("Add", "Mul", "Sub") and self._joined(node):
            return
        else:
            self._copy(node, [self._full(name) for name in node.input])

    def _copy(self, node: NodeProto, inputs: list[str], *, out: str = "") -> str:
        """The node on other inputs; it writes `out`, or what it wrote before."""
        new = NodeProto()
        new.CopyFrom(node)
        del new.input[:]
        new.input.extend(inputs)
        if out:
            new.name = out
            new.output[0] = out
        self.emit.nodes.append(new)
        return new.output[0]

    def _picked(self, logits: str) -> Picked:
        if logits not in self.picks:
            gemm = self.makers[logits]
            weight, bias = (self.weights[name] for name in gemm.input[1:])
            self.picks[logits] = pick(self.emit, self._full(gemm.input[0]), weight, bias, at=self.emit.name(f"{logits}/pick"))
        return self.picks[logits]

    def _gathered(self, gated: GatedConv) -> Value:
        """A gated convolution: the picked channels alone, times their mask."""
        picked = self._picked(gated.logits)
        out = gated.mul.output[0]
        compact = self._copy(gated.conv, self._conv_inputs(gated.conv, outputs=picked), out=self.emit.name(f"{out}/compact"))
        return Value(gated.logits, zero_outside=True, compact=compact)

    def _conv_inputs(self, conv: NodeProto, *, outputs: Picked | None) -> list[str]:
        """Input, weight and bias of a convolution whose input is taken compact where it can be."""
        value = self.values.get(conv.input[0], Value())
        compact = self._compact(conv.input[0])
        inputs = self._picked(value.gate) if compact else None
        at = self.emit.name(f"{conv.output[0]}/gather")
        found = [compact or self._full(conv.input[0])]
        found.append(gather_weight(self.emit, self.weights[conv.input[1]], outputs=outputs, inputs=inputs, at=at))
        if len(conv.input) > 2:
            found.append(gather_bias(self.emit, self.weights[conv.input[2]], outputs, at=at))
        return found

    def _per_channel(self, node: NodeProto) -> bool:
        """Whether a node works on each channel of its only varying input for itself."""
        varying = [name for name in node.input if name and name not in self.weights]
        if len(varying) != 1 or varying[0] != node.input[0] or len(node.output) != 1 or varying[0] not in self.values:
            return False
        if node.op_type in REDUCES:
            axes = self.weights[node.input[1]].tolist() if len(node.input) > 1 else []
            return bool(axes) and all(axis in (2, 3, -1, -2) for axis in axes)
        scalars = all(self.weights[name].size == 1 for name in node.input if name in self.weights)
        return scalars and node.op_type in KEEPS_ZERO | MOVES_ZERO | {"Mul", "Div", "Add", "Sub", "Clip"}

    def _keeps_zero(self, node: NodeProto) -> bool:
        if node.op_type == "Clip":
            low, high = (self.weights[n].item() if n else None for n in (*node.input[1:], "", "")[:2])
            return (low is None or low <= 0) and (high is None or high >= 0)
        return node.op_type in KEEPS_ZERO | REDUCES | {"Mul", "Div"}

    def _spread(self, node: NodeProto) -> None:
        """A node that works on each channel for itself, done on the compact form."""
        value, out = self.values[node.input[0]], node.output[0]
        zero = value.zero_outside and self._keeps_zero(node)
        if value.compact:
            compact = self._copy(node, [value.compact, *node.input[1:]], out=self.emit.name(f"{out}/compact"))
            full = "" if zero else self._copy(node, [self._full(node.input[0]), *node.input[1:]])
            self.values[out] = Value(value.gate, zero_outside=zero, compact=compact, full=full)
            return
        self._copy(node, [self._full(node.input[0]), *node.input[1:]])
        if zero:
            self.values[out] = Value(value.gate, zero_outside=True)

    def _joined(self, node: NodeProto) -> bool:
        """Whether a sum or product of two values could be done on compact forms."""
        out, (a, b) = node.output[0], node.input
        left, right = self.values.get(a, Value()), self.values.get(b, Value())
        if left.compact and right.compact and left.gate == right.gate and self._same_rank(a, b):
            zero = (left.zero_outside and right.zero_outside) or (
                node.op_type == "Mul" and (left.zero_outside or right.zero_outside)
            )
            if zero:
                compact = self._copy(node, [left.compact, right.compact], out=self.emit.name(f"{out}/compact"))
                self.values[out] = Value(left.gate, zero_outside=True, compact=compact)
                return True
        if node.op_type == "Mul":
            return self._scaled(node)
        if node.op_type == "Add" and self.shapes.get(a) == self.shapes.get(b) == self.shapes.get(out):
            for name, value, other in ((a, left, b), (b, right, a)):
                if value.compact and value.zero_outside and not value.full:
                    shape = self.shapes[name]
                    onto = self._full(other)
                    scatter(self.emit, value.compact, shape, self._picked(value.gate), onto=onto, out=out)
                    return True
        return False

    def _scaled(self, node: NodeProto) -> bool:
        """Whether a product of a compact value and one number per channel (squeeze-and-excitation) was done compact."""
        out = node.output[0]
        for name, other in (tuple(node.input), tuple(node.input)[::-1]):
            value, shape = self.values.get(name, Value()), self.shapes.get(other, ())
            if value.compact and value.zero_outside and shape[2:] == (1, 1) and shape[:2] == self.shapes[name][:2]:
                channels = self._picked(value.gate).channels
                factor = self.emit.op("Gather", self._full(other), channels, out=f"{out}/factor", axis=1)
                compact = self.emit.op("Mul", value.compact, factor, out=f"{out}/compact")
                self.values[out] = Value(value.gate, zero_outside=True, compact=compact)
                return True
        return False

    def _same_rank(self, a: str, b: str) -> bool:
        return len(self.shapes.get(a, ())) == len(self.shapes.get(b, ())) > 0

    # --- forms

    def _compact(self, name: str) -> str:
        """The compact form of a value that is zero elsewhere, or ""."""
        value = self.values.get(name)
        if value is None or not value.zero_outside:
            return ""
        return value.compact

    def _full(self, name: str) -> str:
        """The full form of a value, scattered once."""
        value = self.values.get(name)
        if value is None or not value.compact or value.full:
            return name
        value.full = scatter(self.emit, value.compact, self.shapes[name], self._picked(value.gate), out=name)
        return name

    # --- the new model

    def _model(self) -> onnx.ModelProto:
        """Inputs and outputs as before, and the nodes and constants that they need."""
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


def _plain(gemm: NodeProto) -> bool:
    """Whether a Gemm is x · Wᵀ + b."""
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    found = {name: _attribute(gemm, name, default) for name, default in defaults.items()}
    return found == {**defaults, "transB": 1} and len(gemm.input) == 3


def masks_of(model: onnx.ModelProto) -> Mapping[str, str]:
    """For every gated convolution that can be gathered, by its node's name: the logits of its gate."""
    return {gated.conv.name: gated.logits for gated in _Rewriter(model).gated.values()}
