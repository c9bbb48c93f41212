"""TFLite: an ONNX graph written straight into an NHWC flatbuffer that LiteRT's XNNPACK delegate takes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...models import files
from ...models.contract import Contract, TensorSpec
from ...models.errors import UserError
from ..exporter import Exported, ExporterCard, ExportRequest, Runner, Tensors, exporters

CARD = ExporterCard(
    title="TFLite",
    suffix=".tflite",
    source="onnx",
    precisions={"fp32": "", "fp16": "", "int8": "", "int8-dynamic": "", "int16x8": ""},
    defaults=("fp32",),
    packages=("ai_edge_litert", "flatbuffers", "ai_edge_quantizer"),
    extra="tflite",
    runtimes=("litert",),
    calibrated=("int8", "int16x8"),
)


class TFLiteExporter:
    """Writes `.tflite` files with one signature, "serving_default", and runs them."""

    def export(self, request: ExportRequest) -> Exported:
        """Facts about the flatbuffer written at `request.out`; images are NHWC in its contract.

        Raises UserError for operators that TFLite cannot hold (all at once), for a graph that is not the contract's, and for one
        that can't be quantised as asked.
        """
        CARD.refuse(request.precision)
        if request.graph is None:
            raise UserError("TFLite is written from an ONNX graph and none was given", hint="export the module to ONNX first")
        from .model import build
        from .sizes import with_sizes
        from .writer import SCHEMA_VERSION

        contract = nhwc(request.contract)
        program = build(request.graph, contract)
        data = with_sizes(program, description="trimtab")
        ops: Mapping[str, int] = program.histogram()
        warnings: tuple[str, ...] = ()
        tools = ["ai-edge-litert", "flatbuffers"]
        if request.precision != "fp32":
            from ..parity import inputs_in_layout
            from .quantise import quantised

            feeds = [inputs_in_layout(feed, module=request.contract, artifact=contract) for feed in request.calibration]
            made = quantised(data, request.precision, feeds)
            data, ops, warnings = made.data, made.ops, made.warnings
            tools.append("ai-edge-quantizer")
        files.write_bytes(request.out, data)
        return Exported(
            contract=contract,
            ops=ops,
            spec_version=f"tflite schema {SCHEMA_VERSION}",
            warnings=warnings,
            evaluator=f"LiteRT {importlib.metadata.version('ai-edge-litert')} interpreter, XNNPACK, 1 thread",
            tool_versions={name: importlib.metadata.version(name) for name in tools},
        )

    def runner(self, path: Path, contract: Contract) -> Runner:
        """A function that runs the saved file in LiteRT on one thread, resizing its inputs as they come.

        Raises UserError when the file is missing, no TFLite model, or lacks a tensor of the contract.
        """
        return _Session(path, contract)


exporters.register("tflite", CARD)(TFLiteExporter())


def nhwc(contract: Contract) -> Contract:
    """The same contract with every image in NHWC."""
    return contract.model_copy(
        update={side: tuple(spec.as_layout("NHWC") for spec in getattr(contract, side)) for side in ("inputs", "outputs")}
    )


class _Session:
    """A loaded interpreter, called with input arrays by name."""

    def __init__(self, path: Path, contract: Contract) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.path = path
        if not path.is_file():
            raise UserError(f"{path} does not exist", hint="export again")
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise UserError(f"{path} is not a TFLite model (its identifier is {data[4:8]!r})", hint="export again")
        try:
            self.interpreter: Any = Interpreter(model_content=data, num_threads=1)
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
