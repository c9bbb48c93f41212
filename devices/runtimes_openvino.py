"""OpenVINO on the CPU, reading `.onnx` files and OpenVINO's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import openvino_core
from .runtime import Ports, RejectedError, RuntimeCard, RuntimeFacts, Shapes, Tensors, check_names, in_turn, runtimes

NAME = "openvino"


class OpenVinoSession:
    """A model compiled for one set of input shapes at a time: other shapes compile it again.

    OpenVINO's own default on CPUs with AMX computes float32 models in bfloat16 (errors of 4e-4 where float32 has 4e-8), so
    the precision is set to f32 unless the user asks otherwise, and what is in force is read back.
    """

    def __init__(self, path: Path, contract: Ports, *, shapes: Shapes, threads: int, precision: str) -> None:
        self.openvino = openvino_core.library()
        self.path, self.contract = path, contract
        self.settings: dict[str, Any] = {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the runtime would overrule the affinity that the user set
        }
        if precision != "default":
            self.settings["INFERENCE_PRECISION_HINT"] = precision
        try:
            self.model = openvino_core.core().read_model(str(openvino_core.graph_file(path)))
        except Exception as error:
            raise RejectedError(NAME, path, error) from error
        present = [port.any_name for port in self.model.inputs]
        check_names(NAME, path, wanted=[s.name for s in contract.inputs], present=present, kind="input")
        present = [name for port in self.model.outputs for name in port.names]
        check_names(NAME, path, wanted=[s.name for s in contract.outputs], present=present, kind="output")
        self._compile(shapes)

    def _compile(self, shapes: Shapes) -> None:
        self.shapes = dict(shapes)
        try:
            model = self.model.clone()
            if model.is_dynamic():
                model.reshape({name: list(shape) for name, shape in shapes.items()})
            self.compiled = openvino_core.core().compile_model(model, "CPU", self.settings)
        except Exception as error:
            raise RejectedError(NAME, self.path, error) from error

    def _request(self, inputs: Tensors) -> tuple[Any, list[np.ndarray]]:
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != self.shapes:
            self._compile(shapes)
        request = self.compiled.create_infer_request()
        kept = [np.ascontiguousarray(array) for array in inputs.values()]
        try:
            for name, array in zip(inputs, kept, strict=True):
                request.set_tensor(name, self.openvino.Tensor(array, shared_memory=True))
        except Exception as error:
            raise RejectedError(NAME, self.path, error) from error
        return request, kept

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Output arrays by name. Raises RejectedError."""
        request, _kept = self._request(inputs)
        try:
            request.infer()
        except Exception as error:
            raise RejectedError(NAME, self.path, error) from error
        return {spec.name: np.array(request.get_tensor(spec.name).data) for spec in self.contract.outputs}

    def bind(self, inputs: Tensors) -> Callable[[], object]:
        """One synchronous `infer`. Raises RejectedError."""
        request, kept = self._request(inputs)

        def call(kept: Any = kept) -> object:  # the arrays must outlive the request, which shares their memory
            return request.infer(share_outputs=True)

        try:
            call()
        except Exception as error:
            raise RejectedError(NAME, self.path, error) from error
        return call

    def cycle(self, inputs: Sequence[Tensors]) -> Callable[[], object]:
        """A call that runs all of `inputs`, each bound now. Raises RejectedError."""
        return in_turn([self.bind(given) for given in inputs])

    def describe(self) -> RuntimeFacts:
        """Version, threads, provider and settings in force, read back from the compiled model."""
        read = self.compiled.get_property
        kind = self.openvino.Type
        hint = read("INFERENCE_PRECISION_HINT")
        name = {kind.f32: "f32", kind.bf16: "bf16", kind.f16: "f16"}.get(hint, str(hint))
        return RuntimeFacts(
            runtime=NAME,
            version=self.openvino.__version__,
            threads=int(read("INFERENCE_NUM_THREADS")),
            provider=", ".join(read("EXECUTION_DEVICES")),
            hints={
                "inference_precision": name,
                "num_streams": str(read("NUM_STREAMS")),
                "cpu_pinning": str(read("ENABLE_CPU_PINNING")),
            },
            timed_region="InferRequest.infer(share_outputs=True): inputs bound once, outputs not copied",
            reduced_precision=name in ("bf16", "f16"),
        )


@runtimes.register(
    NAME,
    RuntimeCard(
        title="OpenVINO",
        formats=("onnx", "openvino"),
        packages=("openvino",),
        extra="openvino",
        threads="INFERENCE_NUM_THREADS with NUM_STREAMS=1",
        options={"precision": ("f32", "default", "bf16")},
    ),
)
class OpenVino:
    """Loads `.onnx` files and `.openvino` folders."""

    @staticmethod
    def version() -> str:
        """The runtime's version; imports it."""
        return str(openvino_core.library().__version__)

    @staticmethod
    def load(path: Path, contract: Ports, *, shapes: Shapes, threads: int, options: Mapping[str, str]) -> OpenVinoSession:
        """A session compiled for `shapes`. Raises RejectedError."""
        return OpenVinoSession(path, contract, shapes=shapes, threads=threads, precision=options["precision"])
