"""LiteRT (the TFLite runtime) on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .runtime import Ports, RejectedError, RuntimeCard, RuntimeFacts, Shapes, Tensors, check_names, runtimes

NAME = "litert"


class LiteRtSession:
    """An Interpreter, resized when inputs of another shape arrive. The XNNPACK delegate is on unless asked otherwise."""

    def __init__(self, path: Path, contract: Ports, *, shapes: Shapes, threads: int, delegate: bool) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.path, self.contract, self.threads = path, contract, threads
        resolver = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            self.interpreter = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=resolver)
        except (ValueError, RuntimeError) as error:
            raise RejectedError(NAME, path, error) from error
        self.graph_ops = len(self._ops())
        self.inputs = self._indices("inputs", self.interpreter.get_input_details())
        self.outputs = self._indices("outputs", self.interpreter.get_output_details())
        check_names(NAME, path, wanted=[s.name for s in contract.inputs], present=list(self.inputs), kind="input")
        check_names(NAME, path, wanted=[s.name for s in contract.outputs], present=list(self.outputs), kind="output")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._prepare(shapes)

    def _ops(self) -> list[str]:
        return [op["op_name"] for op in self.interpreter._get_ops_details()]

    def _indices(self, side: str, details: list[dict[str, Any]]) -> dict[str, int]:
        """Tensor indices by the tensors' names and, where the file has a signature, by its names too."""
        found = {detail["name"]: detail["index"] for detail in details}
        for signature in self.interpreter._get_full_signature_list().values():
            found.update({name: index for name, index in signature[side].items() if index in found.values()})
        return found

    def _prepare(self, shapes: Shapes) -> None:
        """Memory for inputs of these shapes."""
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        try:
            current = {detail["index"]: tuple(detail["shape"]) for detail in self.interpreter.get_input_details()}
            for name, shape in self.shapes.items():
                if current[self.inputs[name]] != shape:
                    self.interpreter.resize_tensor_input(self.inputs[name], list(shape))
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise RejectedError(NAME, self.path, error) from error

    def _feed(self, inputs: Tensors) -> None:
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != self.shapes:
            self._prepare(shapes)
        try:
            for name, array in inputs.items():
                self.interpreter.set_tensor(self.inputs[name], array)
            self.interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise RejectedError(NAME, self.path, error) from error

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Output arrays by name. Raises RejectedError."""
        self._feed(inputs)
        return {spec.name: self.interpreter.get_tensor(self.outputs[spec.name]) for spec in self.contract.outputs}

    def bind(self, inputs: Tensors) -> Callable[[], object]:
        """One `invoke` on inputs set now. Raises RejectedError."""
        self._feed(inputs)
        return self.interpreter.invoke

    def cycle(self, inputs: Sequence[Tensors]) -> Callable[[], object]:
        """A call that runs all of `inputs`; each is copied in within the timed call. Raises RejectedError."""
        self._feed(inputs[0])
        placed = [[(self.inputs[name], array) for name, array in given.items()] for given in inputs]
        interpreter = self.interpreter

        def call() -> None:
            for given in placed:
                for index, array in given:
                    interpreter.set_tensor(index, array)
                interpreter.invoke()

        return call

    def describe(self) -> RuntimeFacts:
        """Version, threads and delegate. The interpreter tells how many partitions the delegate took, not how many ops."""
        partitions = self._ops().count("DELEGATE")
        return RuntimeFacts(
            runtime=NAME,
            version=LiteRt.version(),
            threads=self.threads,
            provider="XNNPACK" if partitions else "builtin kernels",
            hints={"graph_ops": str(self.graph_ops), "delegate_partitions": str(partitions)},
            timed_region="Interpreter.invoke: inputs set once, outputs not read",
        )


@runtimes.register(
    NAME,
    RuntimeCard(
        title="LiteRT",
        formats=("tflite",),
        packages=("ai_edge_litert",),
        extra="tflite",
        threads="num_threads of the Interpreter and its XNNPACK delegate",
        options={"delegate": ("xnnpack", "none")},
    ),
)
class LiteRt:
    """Loads `.tflite` files."""

    @staticmethod
    def version() -> str:
        """The runtime's version; imports it."""
        import ai_edge_litert.interpreter  # noqa: F401  (so that its import is in nobody's load time)

        return metadata.version("ai-edge-litert")

    @staticmethod
    def load(path: Path, contract: Ports, *, shapes: Shapes, threads: int, options: Mapping[str, str]) -> LiteRtSession:
        """A session with memory for `shapes`. Raises RejectedError."""
        return LiteRtSession(path, contract, shapes=shapes, threads=threads, delegate=options["delegate"] == "xnnpack")
