"""OpenVINO models in integers, by NNCF: activations and weights with the samples' least and greatest values, or weights alone.

NNCF's own ranges are means over the samples' extremes, and its own choice is to correct biases fast. Neither is done here: on the
shipped ResNet-20 the first costs 16 dB of SQNR and the second 13 dB.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..models.errors import UnchangedError, UserError
from .exporter import Options
from .kept_log import kept_log
from .onnx_int8 import check_names
from .openvino_core import library
from .openvino_graph import operators_of, split, stored_in_integers

if TYPE_CHECKING:
    import numpy as np
    import onnx

_BETWEEN = ("Mul", "Div", "Add", "Sub", "Where", "Cast", "Reshape", "Identity", "Dropout", "Transpose")
"""What may stand between the products and the softmax of attention."""


class OpenVinoOptions(Options):
    """What can be told to the quantiser."""

    bias_correction: Literal["none", "fast", "full"] = Field(
        default="none",
        description="int8: none, fast or full: shift biases by the mean error that rounding leaves on the samples",
    )


def quantised(
    model: Any,
    graph: onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    options: OpenVinoOptions,
    keep_float: frozenset[str] = frozenset(),
) -> tuple[Any, list[str]]:
    """`model` (made of `graph`) with rounding around what integers can compute, weights stored in integers; and warnings naming what
    stays in float: the nodes of `keep_float`, and what can't be helped.

    Raises UserError for a graph that decides, where nothing could be quantised, and for names in `keep_float` that are no nodes of it.
    """
    nncf = library("nncf")
    scope = _scope(model, graph, keep_float, what="int8")
    parameters = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=options.bias_correction == "none",
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
    )
    with _quietly():
        made = nncf.quantize(
            model,
            nncf.Dataset([dict(feed) for feed in feeds]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(feeds),
            fast_bias_correction=options.bias_correction == "fast",
            model_type=nncf.ModelType.TRANSFORMER if attends(graph) else None,
            ignored_scope=scope,
            advanced_parameters=parameters,
        )
    return made, _left(*split(made), what="int8", but="stay in float")


def compressed(model: Any, graph: onnx.ModelProto, *, keep_float: frozenset[str] = frozenset()) -> tuple[Any, list[str]]:
    """`model` with its weights in int8, a scale and a zero point per output channel; activations and arithmetic stay in float.

    Raises UserError as `quantised` does.
    """
    nncf = library("nncf")
    scope = _scope(model, graph, keep_float, what="int8-weights")
    with _quietly():
        made = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=scope)
    return made, _left(*stored_in_integers(made), what="int8-weights", but="keep weights in float")


def attends(graph: onnx.ModelProto) -> bool:
    """Whether the graph has attention: a softmax of one matrix product that goes into another."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    def reaches(node: onnx.NodeProto, *, back: bool) -> bool:
        if back:
            near = [makers[name] for name in node.input if name in makers]
        else:
            near = [each for name in node.output for each in consumers.get(name, ())]
        return any(each.op_type == "MatMul" or (each.op_type in _BETWEEN and reaches(each, back=back)) for each in near)

    return any(
        node.op_type == "Softmax" and reaches(node, back=True) and reaches(node, back=False) for node in graph.graph.node
    )


def _scope(model: Any, graph: onnx.ModelProto, keep_float: frozenset[str], *, what: str) -> Any:
    """What the quantiser is to leave alone. Raises UserError for unknown names and graphs that decide."""
    if deciding := sorted({node.op_type for node in graph.graph.node if any(a.HasField("g") for a in node.attribute)}):
        raise UserError(
            f"OpenVINO {what} of a network that decides ({', '.join(deciding)}) can't be made: branches are not quantised",
            hint="export fp32 or fp16",
        )
    check_names(keep_float, graph)
    if not keep_float:
        return None
    names = {name for group in operators_of(model, graph, sorted(keep_float)).values() for name in group}
    return library("nncf").IgnoredScope(names=sorted(names))


def _left(integer: list[str], floating: list[str], *, what: str, but: str) -> list[str]:
    """The warning that names what is left in float, if something is. Raises UserError where nothing became integers."""
    if not integer:
        raise UnchangedError(
            f"{what} was asked, and none of the network's {len(floating)} convolutions and products could be quantised",
            hint="export fp32 or fp16",
        )
    if not floating:
        return []
    total = len(floating) + len(integer)
    more = ", …" if len(floating) > 5 else ""
    return [f"{len(floating)} of {total} convolutions and products {but}: {', '.join(floating[:5])}{more}"]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the quantiser's log and its progress bars."""
    with kept_log("nncf", level=logging.ERROR), contextlib.redirect_stdout(io.StringIO()):
        yield
