"""Convolutions, linear layers and pools of TFLite by TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .tf_call import PADDING, Call, activated, biased


def conv(call: Call) -> Any:
    """x (N, H, W, C) by weights (O, kh, kw, C / groups)."""
    weights = call.turned(1, (1, 2, 3, 0))
    strides = (call.options["strideH"], call.options["strideW"])
    dilations = (call.options.get("dilationHFactor", 1), call.options.get("dilationWFactor", 1))
    padding = PADDING[call.options["padding"]]
    groups = call.inputs[0].shape[3] // weights.shape[2]
    if groups == 1 or not call.runs:
        return biased(call, call.tf.nn.conv2d(call.inputs[0], weights, strides, padding, dilations=dilations), 2)
    parts = zip(call.tf.split(call.inputs[0], groups, axis=3), call.tf.split(weights, groups, axis=3), strict=True)
    done = [call.tf.nn.conv2d(x, part, strides, padding, dilations=dilations) for x, part in parts]
    return biased(call, call.tf.concat(done, axis=3), 2)


def depthwise(call: Call) -> Any:
    """x (N, H, W, C) by weights (1, kh, kw, C·m)."""
    weights, per = call.known(1), call.options["depthMultiplier"]
    strides = (1, call.options["strideH"], call.options["strideW"], 1)
    dilations = (call.options.get("dilationHFactor", 1), call.options.get("dilationWFactor", 1))
    if max(strides) > 1 and max(dilations) > 1:
        weights, dilations = _spaced(np.asarray(weights), dilations), (1, 1)
    _, height, width, channels = weights.shape
    laid = call.tf.reshape(weights, (height, width, channels // per, per))
    padding = PADDING[call.options["padding"]]
    return biased(call, call.tf.nn.depthwise_conv2d(call.inputs[0], laid, strides, padding, dilations=dilations), 2)


def _spaced(weights: np.ndarray, dilations: tuple[int, int]) -> np.ndarray:
    """Weights (1, kh, kw, C) with zeros between them: TensorFlow's own dilation is wrong beside a stride."""
    (_, height, width, channels), (down, across) = weights.shape, dilations
    wide = np.zeros((1, (height - 1) * down + 1, (width - 1) * across + 1, channels), dtype=weights.dtype)
    wide[:, ::down, ::across] = weights
    return wide


def transposed(call: Call) -> Any:
    """Inputs: the output's shape, weights (O, kh, kw, I), x, bias."""
    weights = call.turned(1, (1, 2, 0, 3))
    strides = (call.options["strideH"], call.options["strideW"])
    padding = PADDING[call.options["padding"]]
    return biased(call, call.tf.nn.conv2d_transpose(call.inputs[2], weights, call.inputs[0], strides, padding), 3)


def linear(call: Call) -> Any:
    """x (…, I) by weights (O, I)."""
    x, weights = call.inputs[0], call.turned(1, (1, 0))
    if not call.flag("keepNumDims"):
        x = call.tf.reshape(x, (-1, call.inputs[1].shape[1]))
    return biased(call, call.tf.matmul(x, weights), 2)


def pool(name: str) -> Callable[[Call], Any]:
    """A pool of `tf.nn` over windows."""

    def run(call: Call) -> Any:
        size = (call.options["filterHeight"], call.options["filterWidth"])
        strides = (call.options["strideH"], call.options["strideW"])
        return activated(call, getattr(call.tf.nn, name)(call.inputs[0], size, strides, PADDING[call.options["padding"]]))

    return run
