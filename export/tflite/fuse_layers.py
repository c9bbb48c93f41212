"""Rewrites that put constant factors, offsets and pads into the convolution or linear layer before or after them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .editor import Editor
from .graph import Node
from .rules_binary import affine


def gemm(edit: Editor) -> None:
    """Gemm by a constant matrix and vector: Linear, its factors folded in."""
    for node in [n for n in edit.graph.nodes if n.op == "Gemm"]:
        weight = edit.const(node.inputs[1])
        bias = edit.const(node.input(2)) if node.input(2) else np.zeros(1, dtype=np.float32)
        if weight is None or bias is None or node.attr("transA", 0):
            continue
        laid = weight.T if node.attr("transB", 0) else weight
        if bias.size not in (1, laid.shape[1]):
            continue
        scaled = laid.astype(np.float64) * float(node.attr("alpha", 1.0))
        offset = np.broadcast_to(bias.astype(np.float64).reshape(-1) * float(node.attr("beta", 1.0)), laid.shape[1:])
        names = [
            edit.add(node.outputs[0] + "_weight", scaled.astype(np.float32)),
            edit.add(node.outputs[0] + "_bias", offset.astype(np.float32)),
        ]
        edit.replace(node, "Linear", [node.inputs[0], *names], {})


def linear(edit: Editor) -> None:
    """MatMul by a constant matrix → Add of a constant vector: one Linear."""
    for product in [n for n in edit.graph.nodes if n.op == "MatMul"]:
        weight, total = edit.const(product.inputs[1]), edit.only(product.outputs[0])
        rank = edit.probe(product.inputs[0])
        if weight is None or weight.ndim != 2 or total is None or total.op != "Add" or rank is None or rank.shape[1] < 2:
            continue
        other = total.inputs[1] if total.inputs[0] == product.outputs[0] else total.inputs[0]
        bias = edit.const(other)
        if (
            bias is None
            or bias.size != weight.shape[1]
            or (bias.ndim and bias.shape[-1] != bias.size)
            or bias.ndim > rank.shape[1]
        ):
            continue
        flat = edit.add(product.outputs[0] + "_bias", bias.reshape(-1))
        edit.replace(total, "Linear", [product.inputs[0], product.inputs[1], flat], {})


def fold_affine(edit: Editor) -> None:
    """Conv, ConvTranspose or Linear → BatchNormalization, or Mul/Add/Sub/Div by constants per channel: one scaled layer."""
    for node in list(edit.graph.nodes):
        source = edit.producers.get(node.inputs[0]) or edit.producers.get(node.input(1))
        if source is None or source.op not in ("Conv", "ConvTranspose", "Linear") or edit.only(source.outputs[0]) is not node:
            continue
        weight = edit.const(source.inputs[1])
        offset = edit.const(source.input(2)) if source.input(2) else np.zeros(1, dtype=np.float32)
        if weight is None or offset is None or not np.issubdtype(weight.dtype, np.floating):
            continue
        channels = weight.shape[0] if source.op == "Conv" else weight.shape[1] * int(source.attr("group", 1))
        found = _affine_of(edit, node, source, channels)
        if found is None:
            continue
        scale, shift = (np.asarray(v, dtype=np.float64) for v in found)
        scaled = _scale_outputs(source, weight.astype(np.float64), np.broadcast_to(scale, (channels,)))
        names = [
            edit.add(node.outputs[0] + "_weight", scaled.astype(np.float32)),
            edit.add(node.outputs[0] + "_bias", np.broadcast_to(offset * scale + shift, (channels,)).astype(np.float32)),
        ]
        new = edit.replace(node, source.op, [source.inputs[0], *names], source.attrs)
        edit.drop(source)
        edit.producers[new.outputs[0]] = new


def _affine_of(edit: Editor, node: Node, source: Node, channels: int) -> tuple[Any, Any] | None:
    """(scale, shift) per output channel that `node` applies to its layer's output, or None."""
    if node.op == "BatchNormalization":
        known = [edit.const(name) for name in node.inputs[1:5]]
        arrays = [array for array in known if array is not None]
        if len(arrays) < 4 or node.attr("training_mode", 0) or len(node.outputs) > 1:
            return None
        return affine(arrays[0], arrays[1], arrays[2], arrays[3], float(node.attr("epsilon", 1e-5)))
    vector = _per_channel(edit, node, source, channels) if node.op in ("Mul", "Add", "Sub", "Div") else None
    if vector is None:
        return None
    first = node.inputs[0] == source.outputs[0]
    if node.op == "Div":
        return (1 / vector, 0.0) if first and np.all(vector != 0) else None
    return {
        "Mul": (vector, 0.0),
        "Add": (1.0, vector),
        "Sub": (1.0, -vector) if first else (-1.0, vector),
    }[node.op]


def _per_channel(edit: Editor, node: Node, source: Node, channels: int) -> np.ndarray | None:
    """The constant operand of an element-wise node as one number, or one per output channel of its layer; else None."""
    first = node.inputs[0] == source.outputs[0]
    number = edit.const(node.inputs[1 if first else 0])
    shape, out = edit.probe(source.outputs[0]), edit.probe(node.outputs[0])
    if number is None or shape is None or out is None or not np.array_equal(shape, out):
        return None
    axis = shape.shape[1] - 1 if source.op == "Linear" else 1
    wide = np.reshape(number, [1] * (shape.shape[1] - number.ndim) + list(number.shape))
    if number.size not in (1, channels) or wide.shape[axis] != number.size:
        return None
    return wide.reshape(-1).astype(np.float64)


def _scale_outputs(node: Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A layer's weight with every output channel scaled."""
    if node.op == "Conv":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    if node.op == "Linear":
        return weight * scale
    groups = int(node.attr("group", 1))
    per = np.repeat(scale.reshape(groups, weight.shape[1]), weight.shape[0] // groups, axis=0)
    return weight * per.reshape(*per.shape, *[1] * (weight.ndim - 2))


def fold_pads(edit: Editor) -> None:
    """Pad with zeros → Conv or AveragePool: the window's own pads, which may be TFLite's SAME."""
    for node in [n for n in edit.graph.nodes if n.op == "Conv"]:
        pad = edit.producers.get(node.inputs[0])
        if (
            pad is None
            or pad.op != "Pad"
            or edit.only(pad.outputs[0]) is not node
            or node.attr("auto_pad", "NOTSET") != "NOTSET"
        ):
            continue
        known = edit.const(pad.input(1)) if pad.input(1) else np.asarray(pad.attr("pads", []))
        filler = edit.number(pad.inputs[2]) if pad.input(2) else float(pad.attr("value", 0.0))
        if pad.attr("mode", "constant") != "constant" or known is None or pad.input(3) or filler != 0 or np.any(known < 0):
            continue
        amounts = np.asarray(known).reshape(2, -1)
        if amounts[:, :2].any():
            continue
        inner = amounts[:, 2:]
        own = np.asarray(node.attr("pads", [0] * inner.size)).reshape(2, -1)
        edit.replace(node, "Conv", [pad.inputs[0], *node.inputs[1:]], node.attrs | {"pads": (own + inner).ravel().tolist()})
