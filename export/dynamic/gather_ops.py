"""What gathering is made of, as ONNX nodes: which channels are on, their weights, and the way back to full width.

At least one channel is always gathered, since pools refuse an input of none: a spare one of zeros, number C, is on where a
pivot, the channel that is most often on, is off. Its logit is the pivot's with the sign changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

OVERLAP = 1e-3
"""How far the spare's range reaches into the pivot's, relative to the logit's scale: rounding must not switch both off."""


class Emitter:
    """Collects the nodes and constants of a new graph. Equal constants are kept once; new names never meet `taken` ones."""

    def __init__(self, taken: set[str]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._taken = set(taken)
        self._kept: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def name(self, wish: str) -> str:
        """`wish`, or with a number where it is taken."""
        name, number = wish, 1
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        return name

    def constant(self, array: np.ndarray, wish: str) -> str:
        """The name of a constant."""
        array = np.asarray(array, order="C")
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._kept:
            self._kept[key] = self.name(wish)
            self.constants.append(numpy_helper.from_array(array, self._kept[key]))
        return self._kept[key]

    def ints(self, *values: int) -> str:
        """The name of a constant int64 vector."""
        return self.constant(np.array(values, dtype=np.int64), "ints_" + "_".join(str(v) for v in values))

    def op(self, kind: str, *inputs: str, out: str, exact: bool = False, **attributes: Any) -> str:
        """The output's name of a new node: `out` itself when `exact`, else `out` made unique."""
        name = out if exact else self.name(out)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name


@dataclass(frozen=True)
class Picked:
    """The channels that one gate switches on, as values of the graph.

    `channels` (k,) int64 in 0…C, C being the spare. `inside` (k,): the same with the pivot in the spare's place; `places` (k, 2):
    these as positions in (1, C).
    """

    channels: str
    places: str
    inside: str


def pick(emit: Emitter, features: str, weight: np.ndarray, bias: np.ndarray, *, at: str) -> Picked:
    """The channels whose logit is positive; logits (1, C) = features (1, F) · weight (C, F)ᵀ + bias (C,)."""
    count, pivot = len(bias), int(np.argmax(bias))
    overlap = np.float32(OVERLAP * (1 + np.abs(bias[pivot]) + np.abs(weight[pivot]).sum()))
    weights = emit.constant(np.concatenate([weight, -weight[pivot : pivot + 1]]), f"{at}/weight")
    biases = emit.constant(np.append(bias, overlap - bias[pivot]).astype(np.float32), f"{at}/bias")
    logits = emit.op("Gemm", features, weights, biases, out=f"{at}/logits", transB=1)
    on = emit.op("Greater", logits, emit.constant(np.array(0, dtype=np.float32), "zero"), out=f"{at}/on")
    found = emit.op("NonZero", on, out=f"{at}/nonzero")
    channels = emit.op("Gather", found, emit.constant(np.array(1, dtype=np.int64), "one"), out=f"{at}/channels", axis=0)
    real = np.append(np.arange(count, dtype=np.int64), pivot)
    inside = emit.op("Gather", emit.constant(real, f"{at}/real"), channels, out=f"{at}/inside")
    table = emit.constant(np.stack([np.zeros_like(real), real], axis=1), f"{at}/table")
    return Picked(channels, emit.op("Gather", table, channels, out=f"{at}/places"), inside)


def gather_weight(emit: Emitter, weight: np.ndarray, *, outputs: Picked | None, inputs: Picked | None, at: str) -> str:
    """The rows of the picked output channels and the columns of the picked input channels of (O, I, kh, kw)."""
    spare = [(0, int(outputs is not None)), (0, int(inputs is not None)), (0, 0), (0, 0)]
    value = emit.constant(np.pad(weight, spare), f"{at}/full")
    if outputs is not None:
        value = emit.op("Gather", value, outputs.channels, out=f"{at}/rows", axis=0)
    if inputs is not None:
        value = emit.op("Gather", value, inputs.channels, out=f"{at}/weight", axis=1)
    return value


def gather_bias(emit: Emitter, bias: np.ndarray, outputs: Picked | None, *, at: str) -> str:
    """The biases of the picked output channels of (O,)."""
    if outputs is None:
        return emit.constant(bias, f"{at}/biases")
    return emit.op("Gather", emit.constant(np.append(bias, np.float32(0)), f"{at}/biases"), outputs.channels, out=f"{at}/bias")


def scatter(emit: Emitter, value: str, shape: Sequence[int], picked: Picked, *, onto: str | None = None, out: str) -> str:
    """The full value (1, C, …) of the picked channels' one: zeros elsewhere, or added `onto` a full value. Its name is `out`.

    It is a sum since the spare channel's zeros go to the pivot's place.
    """
    nothing = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    data = onto or emit.op("ConstantOfShape", emit.ints(*shape), out=f"{out}/zeros", value=nothing)
    updates = emit.op("Squeeze", value, emit.ints(0), out=f"{out}/updates")
    return emit.op("ScatterND", data, picked.places, updates, out=out, exact=True, reduction="add")
