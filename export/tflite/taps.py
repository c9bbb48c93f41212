"""What a saved `.tflite` file computes inside, tensor by tensor."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ...models.contract import Contract
from ..exporter import Tensors
from .names import HIDDEN
from .session import Session

_SUFFIXES = ("_quantized", "_dequant")
"""What the quantiser appends to the name of a tensor's copy in another type; the tensor itself keeps its name."""


class TappedSession(Session):
    """A session whose call returns inner values beside the outputs."""

    def __init__(self, path: Path, contract: Contract) -> None:
        from ai_edge_litert.interpreter import OpResolverType

        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate keeps its inner tensors to itself
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that keeping tensors takes memory
            super().__init__(path, contract, experimental_op_resolver_type=plain, experimental_preserve_all_tensors=True)

    def __call__(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """Outputs by name, as the contract has them, and inner values in float32 by the name of their ONNX value."""
        outputs = super().__call__(tensors)
        return {**self._values(), **outputs}

    def _values(self) -> dict[str, np.ndarray]:
        computed = {int(index) for op in self.interpreter._get_ops_details() for index in op["outputs"]}
        known = {entry["index"]: entry for entry in self.interpreter.get_tensor_details()}
        names = {entry["name"] for entry in known.values()}
        found = {}
        for index, entry in known.items():
            if index not in computed or HIDDEN in entry["name"] or _base(entry["name"]) in names:
                continue
            value = _real(np.asarray(self.interpreter.get_tensor(index)), entry["quantization_parameters"])
            if value is not None:
                found[entry["name"]] = value
        return found


def _base(name: str) -> str | None:
    """The name without what the quantiser appended, or None."""
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), None)


def _real(held: np.ndarray, quantisation: dict[str, np.ndarray]) -> np.ndarray | None:
    """The numbers that a tensor's entries stand for, in float32; None for whole numbers and truth values."""
    if held.dtype.kind == "f":
        return np.asarray(held, dtype=np.float32)
    scales, zeros = quantisation["scales"], quantisation["zero_points"]
    if held.dtype.kind != "i" or len(scales) != 1:
        return None
    return (held.astype(np.float32) - np.float32(zeros[0])) * np.float32(scales[0])
