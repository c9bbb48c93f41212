"""ExecuTorch on the CPU. Its thread pool belongs to the process: all sessions of one process share its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import noise
from .runtime import Ports, RejectedError, RuntimeCard, RuntimeFacts, Shapes, Tensors, check_shapes, in_turn, runtimes

NAME = "executorch"


class ExecuTorchSession:
    """A program's method "forward". Inputs and outputs have no names in the file: they come in the contract's order."""

    def __init__(self, path: Path, contract: Ports, *, threads: int, check: str) -> None:
        self.path, self.contract, self.threads, self.check = path, contract, threads, check
        try:
            with noise.hushed():
                import torch
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime, Verification

                self.torch, self.library = torch, portable_lib
                self._threads()
                kind = Verification.InternalConsistency if check == "full" else Verification.Minimal
                self.runtime = Runtime.get()
                self.program = self.runtime.load_program(path, verification=kind)
                self.method: Any = self.program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise RejectedError(NAME, path, error) from error
        facts = self.method.metadata
        for kind, count, specs in (
            ("inputs", facts.num_inputs(), contract.inputs),
            ("outputs", facts.num_outputs(), contract.outputs),
        ):
            if count != len(specs):
                raise RejectedError(NAME, path, f"it has {count} {kind}, the contract {len(specs)}")

    def _threads(self) -> None:
        """The pool is as large as this session wants; another one may have changed it."""
        if self.library._threadpool_get_thread_count() != self.threads:
            self.library._unsafe_reset_threadpool(self.threads)

    def _tensors(self, inputs: Tensors) -> list[Any]:
        check_shapes(NAME, self.path, contract=self.contract, inputs=inputs)
        arrays = [np.ascontiguousarray(inputs[spec.name].astype(spec.dtype, copy=False)) for spec in self.contract.inputs]
        return [self.torch.from_numpy(array) for array in arrays]

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Output arrays by name. Raises RejectedError."""
        tensors = self._tensors(inputs)
        try:
            with noise.hushed() as heard:
                self._threads()
                outputs = self.method.execute(tensors)
        except RuntimeError as error:
            told = next((line for line in heard.lines() if "Attempted to resize" in line), error)
            raise RejectedError(NAME, self.path, told) from error
        return {spec.name: np.array(value.numpy()) for spec, value in zip(self.contract.outputs, outputs, strict=True)}

    def bind(self, inputs: Tensors) -> Callable[[], object]:
        """One `execute`. Raises RejectedError."""
        self.run(inputs)
        tensors, method = self._tensors(inputs), self.method

        def call() -> object:
            return method.execute(tensors)

        return call

    def cycle(self, inputs: Sequence[Tensors]) -> Callable[[], object]:
        """A call that runs all of `inputs`. Raises RejectedError."""
        return in_turn([self.bind(given) for given in inputs])

    def describe(self) -> RuntimeFacts:
        """Version, the threads of the process's pool as they are now, and whether XNNPACK is there."""
        backends = self.runtime.backend_registry.registered_backend_names
        return RuntimeFacts(
            runtime=NAME,
            version=ExecuTorch.version(),
            threads=int(self.library._threadpool_get_thread_count()),
            provider="XNNPACK" if "XnnpackBackend" in backends else "portable kernels",
            hints={"thread_pool": "of the process", "program_check": self.check},
            timed_region="Method.execute: inputs taken and outputs returned as tensors",
        )


@runtimes.register(
    NAME,
    RuntimeCard(
        title="ExecuTorch",
        formats=("executorch",),
        packages=("executorch", "torch"),
        extra="executorch",
        threads="the pool of the whole process, set when a session loads and runs",
        options={"program_check": ("full", "minimal")},
    ),
)
class ExecuTorch:
    """Loads `.pte` programs."""

    @staticmethod
    def version() -> str:
        """The runtime's version; imports it."""
        with noise.hushed():
            import executorch.runtime  # noqa: F401  (so that its import is in nobody's load time)

        return metadata.version("executorch")

    @staticmethod
    def load(path: Path, contract: Ports, *, shapes: Shapes, threads: int, options: Mapping[str, str]) -> ExecuTorchSession:
        """A session; `shapes` need no preparation here. Raises RejectedError."""
        return ExecuTorchSession(path, contract, threads=threads, check=options["program_check"])
