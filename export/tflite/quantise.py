"""A float `.tflite` file in fewer bits, by ai-edge-quantizer: weights cast to float16, weights in int8, or integers throughout.

Ranges of activations are the least and greatest value seen: the quantiser's own moving average forgets outliers.
Inputs and outputs stay float32, with one QUANTIZE and one DEQUANTIZE inside.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...models.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SIGNATURE = "serving_default"
_FLOAT = (0, 1)
"""The schema's numbers of float32 and float16."""
_INT8 = 9
_BRIDGES = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class Quantised:
    """The file, how often each operator is in it, and warnings naming what stays in float."""

    data: bytes
    ops: Mapping[str, int]
    warnings: tuple[str, ...]


def quantised(data: bytes, precision: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> Quantised:
    """`data` as "fp16" (weights alone), "int8-dynamic" (weights; activations while it runs), "int8" or "int16x8" (activations ×
    weights, ranges from `feeds`: inputs of the file, in its layout).

    Raises UserError for a file that decides (`IF`: the quantiser reads one graph), and where nothing became what was asked.
    """
    from ai_edge_quantizer import quantizer

    if len(_read(data).subgraphs) > 1:
        raise UserError(
            f"TFLite {precision} of a network that decides can't be made: the quantiser does not follow IF",
            hint="export fp32",
        )
    recipe = _recipe(precision)
    work = quantizer.Quantizer(data, recipe.get_quantization_recipe())
    with _quietly():
        ranges = _ranges(data, feeds, recipe) if work.need_calibration else None
        made = bytes(work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False).quantized_model)
    return Quantised(made, *_checked(made, precision))


def _recipe(precision: str) -> Any:
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe, operator = RecipeManager(), qtyping.TFLOperationName
    if precision == "fp16":
        cast = qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        recipe.add_quantization_config(".*", operator.ALL_SUPPORTED, cast, AlgorithmName.FLOAT_CASTING)
    elif precision == "int8-dynamic":
        recipe.add_dynamic_config(".*", operator.ALL_SUPPORTED, 8)
    else:
        recipe.add_static_config(".*", operator.ALL_SUPPORTED, {"int8": 8, "int16x8": 16}[precision], 8)
        for door in (operator.INPUT, operator.OUTPUT):
            recipe.add_quantization_config(".*", door, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return recipe


def _ranges(data: bytes, feeds: Sequence[Mapping[str, np.ndarray]], recipe: Any) -> Any:
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    found = calibrator.Calibrator(data, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    found.calibrate({SIGNATURE: [dict(feed) for feed in feeds]}, model_recipe_manager=recipe)
    return found.get_model_qsvs()


def _read(data: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(bytearray(data), 0)


def _checked(data: bytes, precision: str) -> tuple[Mapping[str, int], tuple[str, ...]]:
    """The operators of a quantised file, and what stays in float. Raises UserError when nothing is as it was asked."""
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    model = _read(data)
    (graph,) = model.subgraphs
    codes = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    ops = [(codes[op.opcodeIndex], op) for op in graph.operators]
    floating = Counter(name for name, op in ops if name not in _BRIDGES and graph.tensors[op.outputs[0]].type in _FLOAT)
    integer = sum(name not in _BRIDGES for name, _ in ops) - floating.total()
    stored = {tensor.type for tensor in graph.tensors if model.buffers[tensor.buffer].data is not None}
    if precision == "fp16" and 1 not in stored:
        missing = "no weight could be held in float16"
    elif precision == "int8-dynamic" and _INT8 not in stored:
        missing = "no weight could be held in int8"
    elif precision in ("int8", "int16x8") and not integer:
        missing = f"no operator computes in integers ({', '.join(floating)})"
    else:
        missing = ""
    if missing:
        raise UserError(f"TFLite {precision} was asked, and {missing}", hint="export fp32")
    islands: tuple[str, ...] = ()
    if precision in ("int8", "int16x8") and floating:
        named = ", ".join(f"{count} {name}" for name, count in floating.most_common())
        islands = (f"{floating.total()} of {floating.total() + integer} operators stay in float: {named}",)
    return dict(Counter(name for name, _ in ops).most_common()), islands


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the quantiser's progress bars and the interpreter's advice on memory."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
