"""MNN on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import noise
from .runtime import (
    Ports,
    RejectedError,
    RuntimeCard,
    RuntimeFacts,
    Shapes,
    Tensors,
    check_names,
    check_shapes,
    in_turn,
    runtimes,
)

NAME = "mnn"
_TYPES = {"float32": "float", "int32": "int", "uint8": "uint8", "int8": "int8"}
_FAILURES = (SystemError, RuntimeError, ValueError)


class MnnSession:
    """A Module, resized when inputs of another shape arrive."""

    def __init__(self, path: Path, contract: Ports, *, threads: int, precision: str) -> None:
        self.path, self.contract, self.threads, self.precision = path, contract, threads, precision
        names = [spec.name for spec in contract.inputs], [spec.name for spec in contract.outputs]
        try:
            with noise.hushed() as heard:
                import MNN

                self.expr = MNN.expr
                present = [variable.name for variable in MNN.expr.load_as_list(str(path))]
                for kind, wanted in zip(("input", "output"), names, strict=True):
                    if present:  # a file that MNN cannot read has none, and is refused below
                        check_names(NAME, path, wanted=wanted, present=present, kind=kind)
                settings = ({"backend": "CPU", "precision": precision, "numThread": threads},)
                self.manager = MNN.nn.create_runtime_manager(settings)
                self.module: Any = MNN.nn.load_module_from_file(str(path), *names, runtime_manager=self.manager)
        except _FAILURES as error:
            raise RejectedError(NAME, path, (heard.lines() or [str(error.__cause__ or error)])[-1]) from error

    def _variables(self, inputs: Tensors) -> list[Any]:
        check_shapes(NAME, self.path, contract=self.contract, inputs=inputs)
        variables = []
        for spec in self.contract.inputs:
            array = np.ascontiguousarray(inputs[spec.name].astype(spec.dtype, copy=False))
            variable = self.expr.placeholder(list(array.shape), self.expr.NCHW, getattr(self.expr, _TYPES[spec.dtype]))
            variable.write(array)
            variables.append(variable)
        return variables

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Output arrays by name. Raises RejectedError."""
        variables, found = self._variables(inputs), list[np.ndarray]()
        with noise.hushed() as heard, contextlib.suppress(*_FAILURES):
            found = [np.array(self.expr.convert(v, self.expr.NCHW).read()) for v in self.module.forward(variables)]
        if len(found) != len(self.contract.outputs):  # it answers what it cannot compute with an empty list
            raise RejectedError(NAME, self.path, (heard.lines() or ["it cannot compute these inputs"])[-1])
        return {spec.name: value for spec, value in zip(self.contract.outputs, found, strict=True)}

    def bind(self, inputs: Tensors) -> Callable[[], object]:
        """One forward pass, its outputs read. Raises RejectedError."""
        self.run(inputs)
        variables, module = self._variables(inputs), self.module

        def call() -> object:
            return [output.read() for output in module.forward(variables)]

        return call

    def cycle(self, inputs: Sequence[Tensors]) -> Callable[[], object]:
        """A call that runs all of `inputs`, each set now. Raises RejectedError."""
        return in_turn([self.bind(given) for given in inputs])

    def describe(self) -> RuntimeFacts:
        """Version, and threads and precision as they were set: MNN does not tell what is in force."""
        return RuntimeFacts(
            runtime=NAME,
            version=Mnn.version(),
            threads=self.threads,
            provider="CPU",
            hints={"precision": self.precision},
            timed_region="Module.forward and a read of every output; inputs set once",
            reduced_precision=self.precision == "low",
        )


@runtimes.register(
    NAME,
    RuntimeCard(
        title="MNN",
        formats=("mnn",),
        packages=("MNN",),
        extra="mnn",
        threads="numThread of the runtime manager",
        options={"precision": ("high", "normal", "low")},
    ),
)
class Mnn:
    """Loads `.mnn` files."""

    @staticmethod
    def version() -> str:
        """The runtime's version; imports it."""
        with noise.hushed():
            import MNN  # noqa: F401  (so that its import is in nobody's load time)

        return metadata.version("mnn")

    @staticmethod
    def load(path: Path, contract: Ports, *, shapes: Shapes, threads: int, options: Mapping[str, str]) -> MnnSession:
        """A session; `shapes` need no preparation here. Raises RejectedError."""
        return MnnSession(path, contract, threads=threads, precision=options["precision"])
