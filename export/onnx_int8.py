"""ONNX int8: QDQ by ONNX Runtime's static quantiser, weights signed per channel, activations unsigned (or signed, where asked), ranges
the samples' min and max.

Unsigned activations are what runs fast on x86; OpenVINO runs the same file in int8.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.errors import UnchangedError, UserError, did_you_mean
from .kept_log import kept_log

if TYPE_CHECKING:
    import numpy as np
    import onnx

COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that integers are asked for."""


def quantised(
    graph: onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    keep_float: frozenset[str] = frozenset(),
    signed: bool = False,
) -> tuple[onnx.ModelProto, list[str]]:
    """`graph` with quantise/dequantise pairs around what integers can compute, and warnings naming what stays in float: the nodes of
    `keep_float`, and what can't be helped. `signed`: activations are signed integers too.

    Raises UserError for a graph that decides (`If`, `Loop`: branches are not calibrated), where nothing could be quantised, and for
    names in `keep_float` that are no nodes of the graph.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if deciding := [
        node.op_type for node in graph.graph.node if any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)
    ]:
        raise UserError(
            f"ONNX int8 of a network that decides ({', '.join(sorted(set(deciding)))}) can't be calibrated: not all of it runs",
            hint="export fp32 or fp16",
        )
    check_names(keep_float, graph)
    with tempfile.TemporaryDirectory(prefix="trimtab-") as work, kept_log(level=logging.ERROR):
        prepared, out = Path(work) / "prepared.onnx", Path(work) / "int8.onnx"
        quant_pre_process(graph, str(prepared), skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=sorted(keep_float),
        )
        made = onnx.load(out)
    integer, floating = _split(made)
    if not integer:
        raise UnchangedError(
            f"int8 was asked, and none of the network's {len(floating)} convolutions and products could be quantised",
            hint="export fp32 or fp16",
        )
    warnings = []
    if floating:
        warnings.append(
            f"{len(floating)} of {len(floating) + len(integer)} convolutions and products stay in float: {', '.join(floating[:5])}"
        )
    return made, warnings


def check_names(keep_float: frozenset[str], graph: onnx.ModelProto) -> None:
    """None, when all names in `keep_float` are nodes of `graph`. Raises UserError for the first that is not."""
    known = {node.name for node in graph.graph.node}
    if unknown := sorted(keep_float - known):
        raise UserError(f"{unknown[0]!r}, to be kept in float, is no node of the graph", hint=did_you_mean(unknown[0], known))


def _split(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """The names of computing nodes whose operands are dequantised integers, and of the others."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    integer: list[str] = []
    floating: list[str] = []
    for node in model.graph.node:
        if node.op_type in COMPUTING:
            both = all(makers.get(name) == "DequantizeLinear" for name in node.input[:2])
            (integer if both else floating).append(node.name or node.output[0])
    return integer, floating


class _Feeds:
    """The quantiser's reader of calibration data."""

    def __init__(self, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.left: Iterator[Mapping[str, np.ndarray]] = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed, None after the last."""
        feed = next(self.left, None)
        return None if feed is None else dict(feed)
