"""One TFLite operator to be done by TensorFlow, which comes with it, so that this can be read without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

PADDING = ("SAME", "VALID")
ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH")


@dataclass(frozen=True)
class Call:
    """One operator: TensorFlow, its input tensors, the arrays of those that are constant, its options, its output's dtype.

    `runs` says that TensorFlow itself is to run the network: its CPU kernels don't take grouped convolutions once they are fused.
    """

    tf: Any
    inputs: list[Any]
    constants: list[np.ndarray | None]
    options: dict[str, Any]
    dtype: str
    runs: bool = False

    def known(self, index: int) -> Any:
        """An input as an array where it is constant, else as a tensor."""
        constant = self.constants[index]
        return self.inputs[index] if constant is None else constant

    def turned(self, index: int, perm: tuple[int, ...]) -> Any:
        """A weight with its axes in another order, at conversion where it is constant."""
        constant = self.constants[index]
        if constant is None:
            return self.tf.transpose(self.inputs[index], perm)
        return self.tf.constant(np.ascontiguousarray(constant.transpose(perm)))

    def flag(self, name: str) -> Any:
        """An option, 0 where it is not set."""
        return self.options.get(name, 0)


def activated(call: Call, tensor: Any) -> Any:
    """`tensor` after the operator's fused activation."""
    kind = ACTIVATIONS[call.flag("fusedActivationFunction")]
    return tensor if kind == "NONE" else activation(call.tf, kind, tensor)


def activation(tf: Any, kind: str, x: Any) -> Any:
    """One of TFLite's activations of x."""
    if kind == "RELU_N1_TO_1":
        return tf.clip_by_value(x, -1.0, 1.0)
    if kind == "RELU_0_TO_1":
        return tf.clip_by_value(x, 0.0, 1.0)
    return {"RELU": tf.nn.relu, "RELU6": tf.nn.relu6, "TANH": tf.tanh}[kind](x)


def biased(call: Call, tensor: Any, index: int) -> Any:
    """`tensor` plus the bias over its last axis, if there is one, after the fused activation."""
    given = len(call.inputs) > index and call.inputs[index] is not None
    return activated(call, call.tf.nn.bias_add(tensor, call.inputs[index]) if given else tensor)


def function(tf: Any, name: str) -> Any:
    """TensorFlow's function of this dotted name."""
    found = tf
    for part in name.split("."):
        found = getattr(found, part)
    return found
