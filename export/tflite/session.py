"""A saved `.tflite` file in LiteRT's interpreter, resized to its inputs as they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError
from ..exporter import Tensors


class Session:
    """A loaded interpreter on one thread, called with input arrays by name; `settings` go to LiteRT's `Interpreter`.

    Raises UserError when the file is missing, no TFLite model, or lacks a tensor of the contract.
    """

    def __init__(self, path: Path, contract: Contract, **settings: Any) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.path = path
        if not path.is_file():
            raise UserError(f"{path} does not exist", hint="export again")
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise UserError(f"{path} is not a TFLite model (its identifier is {data[4:8]!r})", hint="export again")
        try:
            self.interpreter: Any = Interpreter(model_content=data, num_threads=1, **settings)
            signature = self.interpreter._get_full_signature_list()["serving_default"]
        except (ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"LiteRT cannot load {path}: {error}", hint="the file is damaged; export again") from None
        self.inputs = self._indices(contract.inputs, signature["inputs"])
        self.outputs = self._indices(contract.outputs, signature["outputs"])
        self.specs = {spec.name: spec for spec in contract.inputs}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def _indices(self, specs: tuple[TensorSpec, ...], known: Mapping[str, int]) -> dict[str, int]:
        missing = [spec.name for spec in specs if spec.name not in known]
        if missing:
            raise UserError(
                f"{self.path} has no tensor named {missing[0]!r} (it has {', '.join(known)})", hint="use the contract beside it"
            )
        return {spec.name: known[spec.name] for spec in specs}

    def __call__(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """The outputs by name. Raises UserError for a missing input or a shape that the file cannot take."""
        arrays = {name: self._array(name, tensors) for name in self.inputs}
        shapes = {name: array.shape for name, array in arrays.items()}
        try:
            if shapes != self.shapes:
                for name, shape in shapes.items():
                    self.interpreter.resize_tensor_input(self.inputs[name], shape, strict=True)
                self.interpreter.allocate_tensors()
                self.shapes = shapes
            for name, array in arrays.items():
                self.interpreter.set_tensor(self.inputs[name], array)
            self.interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            self.shapes = {}
            raise UserError(f"LiteRT cannot run {self.path} on {shapes}: {error}", hint="see the contract's shapes") from None
        return {name: self.interpreter.get_tensor(index) for name, index in self.outputs.items()}

    def _array(self, name: str, tensors: Tensors) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"{self.path} needs the input {name!r}, not given", hint="pass every input of the contract")
        return np.asarray(tensors[name], dtype=self.specs[name].dtype, order="C")
