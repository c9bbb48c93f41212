"""A float `.tflite` file in fewer bits, by ai-edge-quantizer: weights cast to float16, weights in int8, or integers throughout.

Ranges of activations are the least and greatest value seen: the quantiser's own moving average forgets outliers.
Inputs and outputs stay float32, with one QUANTIZE and one DEQUANTIZE inside, unless integers are asked for there too.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...models.errors import UnchangedError, UserError
from .anatomy import BRIDGES, FLOATS, anatomy

if TYPE_CHECKING:
    import numpy as np

    from .ir import Program

SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Quantised:
    """The file, and warnings naming what stays in float."""

    data: bytes
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Scope:
    """One operator, as the quantiser finds it: its kind, and an expression that its outputs' names alone match."""

    kind: str
    names: str


def kept(program: Program, nodes: frozenset[str]) -> tuple[Scope, ...]:
    """The operators that compute any of these ONNX nodes, alone or together with others."""
    chosen = [op for op in program.ops if op.origins & nodes]
    return tuple(Scope(op.kind, "^" + re.escape(";".join(t.name for t in op.outputs)) + ";$") for op in chosen)


def quantised(
    data: bytes,
    precision: str,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    keep: Sequence[Scope] = (),
    doors: bool = False,
) -> Quantised:
    """`data` as "fp16" (weights alone), "int8-dynamic" (weights; activations while it runs), "int8" or "int16x8" (activations ×
    weights, ranges from `feeds`: inputs of the file, in its layout). `keep`: what computes in float all the same; `doors`: inputs and
    outputs are integers too.

    Raises UserError for a file that decides (`IF`: the quantiser reads one graph), and where nothing became what was asked.
    """
    from ai_edge_quantizer import quantizer

    if any(step.subgraph for step in anatomy(data).steps):
        raise UserError(
            f"TFLite {precision} of a network that decides can't be made: the quantiser does not follow IF",
            hint="export fp32",
        )
    recipe = _recipe(precision, doors=doors)
    _except(recipe, keep)
    work = quantizer.Quantizer(data, recipe.get_quantization_recipe())
    with _quietly():
        ranges = _ranges(data, feeds, recipe) if work.need_calibration else None
        made = bytes(work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False).quantized_model)
    return Quantised(made, _checked(made, precision))


def _recipe(precision: str, *, doors: bool) -> Any:
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
        for door in () if doors else (operator.INPUT, operator.OUTPUT):
            recipe.add_quantization_config(".*", door, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return recipe


def _except(recipe: Any, keep: Sequence[Scope]) -> None:
    """Leave these operators out; kinds that the quantiser doesn't know stay in float anyway."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    known = {kind.value for kind in qtyping.TFLOperationName}
    for scope in keep:
        if scope.kind in known:
            kind = qtyping.TFLOperationName(scope.kind)
            recipe.add_quantization_config(scope.names, kind, algorithm_key=AlgorithmName.NO_QUANTIZE)


def _ranges(data: bytes, feeds: Sequence[Mapping[str, np.ndarray]], recipe: Any) -> Any:
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    found = calibrator.Calibrator(data, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    found.calibrate({SIGNATURE: [dict(feed) for feed in feeds]}, model_recipe_manager=recipe)
    return found.get_model_qsvs()


def _checked(data: bytes, precision: str) -> tuple[str, ...]:
    """What stays in float in a quantised file. Raises UserError when nothing is as it was asked."""
    found = anatomy(data)
    steps = [step for step in found.steps if step.kind not in BRIDGES]
    floating = Counter(step.kind for step in steps if found.dtype(step) in FLOATS)
    integer = len(steps) - floating.total()
    stored = {found.dtypes[key] for key in found.fixed}
    if precision == "fp16" and "float16" not in stored:
        missing = "no weight could be held in float16"
    elif precision == "int8-dynamic" and "int8" not in stored:
        missing = "no weight could be held in int8"
    elif precision in ("int8", "int16x8") and not integer:
        missing = f"no operator computes in integers ({', '.join(floating)})"
    else:
        missing = ""
    if missing:
        raise UnchangedError(f"TFLite {precision} was asked, and {missing}", hint="export fp32")
    if precision not in ("int8", "int16x8") or not floating:
        return ()
    named = ", ".join(f"{count} {name}" for name, count in floating.most_common())
    return (f"{floating.total()} of {len(steps)} operators stay in float: {named}",)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the quantiser's progress bars and the interpreter's advice on memory."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
