"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .runtime import Ports, RejectedError, RuntimeCard, RuntimeFacts, Shapes, Tensors, check_names, in_turn, runtimes

NAME = "onnxruntime"


class OnnxRuntimeSession:
    """An InferenceSession: sequential, one inter-op thread, CPU provider. It runs any shape that the model allows."""

    def __init__(self, path: Path, contract: Ports, *, threads: int, optimise: bool) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        level = ort.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        settings.log_severity_level = 3  # errors come back as exceptions; warnings would break progress bars
        self.path, self.contract, self.threads = path, contract, threads
        try:
            self.session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes, which share no base but this
            raise RejectedError(NAME, path, error) from error
        present = [tensor.name for tensor in self.session.get_inputs()]
        check_names(NAME, path, wanted=[s.name for s in contract.inputs], present=present, kind="input")
        present = [tensor.name for tensor in self.session.get_outputs()]
        check_names(NAME, path, wanted=[s.name for s in contract.outputs], present=present, kind="output")
        self.version = ort.__version__
        self.optimised = optimise

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Output arrays by name. Raises RejectedError."""
        names = [spec.name for spec in self.contract.outputs]
        try:
            return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise RejectedError(NAME, self.path, error) from error

    def bind(self, inputs: Tensors) -> Callable[[], object]:
        """One `run_with_iobinding`. Raises RejectedError."""
        binding = self.session.io_binding()
        kept = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in kept.items():
            binding.bind_cpu_input(name, array)
        for spec in self.contract.outputs:
            binding.bind_output(spec.name, "cpu")
        session = self.session

        def call(kept: Any = kept) -> object:  # the arrays must outlive the binding, which holds their addresses
            return session.run_with_iobinding(binding)

        try:
            call()
        except Exception as error:
            raise RejectedError(NAME, self.path, error) from error
        return call

    def cycle(self, inputs: Sequence[Tensors]) -> Callable[[], object]:
        """A call that runs all of `inputs`, each bound now. Raises RejectedError."""
        return in_turn([self.bind(given) for given in inputs])

    def describe(self) -> RuntimeFacts:
        """Version, threads, provider and settings in force."""
        settings = self.session.get_session_options()
        return RuntimeFacts(
            runtime=NAME,
            version=self.version,
            threads=settings.intra_op_num_threads,
            provider=", ".join(self.session.get_providers()),
            hints={"graph_optimizations": "all" if self.optimised else "off", "execution": "sequential"},
            timed_region="run_with_iobinding: inputs bound once, outputs left where the runtime put them",
        )


@runtimes.register(
    NAME,
    RuntimeCard(
        title="ONNX Runtime",
        formats=("onnx",),
        packages=("onnxruntime",),
        extra="",
        threads="intra_op_num_threads; the calling thread is one of them",
        options={"graph_optimizations": ("all", "off")},
    ),
)
class OnnxRuntime:
    """Loads `.onnx` files."""

    @staticmethod
    def version() -> str:
        """The runtime's version; imports it."""
        import onnxruntime

        return onnxruntime.__version__

    @staticmethod
    def load(path: Path, contract: Ports, *, shapes: Shapes, threads: int, options: Mapping[str, str]) -> OnnxRuntimeSession:
        """A session; `shapes` need no preparation here. Raises RejectedError."""
        return OnnxRuntimeSession(path, contract, threads=threads, optimise=options["graph_optimizations"] == "all")
