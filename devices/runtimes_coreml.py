"""Core ML on a Mac: this machine when it is one, or one that is reached over ssh."""

from __future__ import annotations

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

NAME = "coreml"
UNITS = {
    "all": ("ALL", "CPU, GPU and Neural Engine as Core ML chooses"),
    "cpu_only": ("CPU_ONLY", "CPU"),
    "cpu_and_gpu": ("CPU_AND_GPU", "CPU and GPU as Core ML chooses"),
    "cpu_and_ne": ("CPU_AND_NE", "CPU and Neural Engine as Core ML chooses"),
}
"""Choices of compute units: coremltools' name, and what may run the model then."""


class CoreMlSession:
    """An MLModel. It runs any shape that the package allows, on as many threads as Core ML likes."""

    def __init__(self, path: Path, contract: Ports, *, threads: int, units: str) -> None:
        self.path, self.contract, self.threads, self.units = path, contract, threads, units
        try:
            with noise.hushed():
                import coremltools

                self.library = coremltools
                self.unit = getattr(coremltools.ComputeUnit, UNITS[units][0])
                self.model: Any = coremltools.models.MLModel(str(path), compute_units=self.unit)
                described = self.model.get_spec().description
        except Exception as error:  # coremltools raises Exception itself, and protobuf its own
            raise RejectedError(NAME, path, error) from error
        present = [feature.name for feature in described.input]
        check_names(NAME, path, wanted=[s.name for s in contract.inputs], present=present, kind="input")
        check_names(
            NAME, path, wanted=[s.name for s in contract.outputs], present=[f.name for f in described.output], kind="output"
        )
        if images := [f.name for f in described.input if f.type.WhichOneof("Type") == "imageType"]:
            raise RejectedError(
                NAME, path, f"input {images[0]!r} is an image of 8-bit pixels: packages of arrays alone are measured"
            )

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Output arrays by name. Raises RejectedError."""
        found = self._predict(self._given(inputs))
        return {spec.name: np.asarray(found[spec.name]).astype(spec.dtype, copy=False) for spec in self.contract.outputs}

    def bind(self, inputs: Tensors) -> Callable[[], object]:
        """One `predict`. Raises RejectedError."""
        given, model = self._given(inputs), self.model
        self._predict(given)

        def call() -> object:
            return model.predict(dict(given))  # a copy: predict writes to what it is given

        return call

    def cycle(self, inputs: Sequence[Tensors]) -> Callable[[], object]:
        """A call that runs all of `inputs`, one after the other. Raises RejectedError."""
        return in_turn([self.bind(given) for given in inputs])

    def describe(self) -> RuntimeFacts:
        """Version and what may run the model; which of them did is Core ML's secret (its plan is in the profile of operations)."""
        return RuntimeFacts(
            runtime=NAME,
            version=CoreMl.version(),
            threads=self.threads,
            provider=UNITS[self.units][1],
            hints={"compute_units": self.units, "threads": "as Core ML likes: it cannot be told"},
            timed_region="MLModel.predict from Python: inputs copied in, outputs copied out",
        )

    def _given(self, inputs: Tensors) -> dict[str, np.ndarray]:
        check_shapes(NAME, self.path, contract=self.contract, inputs=inputs)
        return {
            spec.name: np.ascontiguousarray(inputs[spec.name].astype(spec.dtype, copy=False)) for spec in self.contract.inputs
        }

    def _predict(self, given: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = self.model.predict(dict(given))
        except Exception as error:
            raise RejectedError(NAME, self.path, error) from error
        return found


@runtimes.register(
    NAME,
    RuntimeCard(
        title="Core ML",
        formats=("coreml",),
        packages=("coremltools",),
        extra="coreml",
        threads="Core ML's own choice",
        options={"compute_units": tuple(UNITS)},
        systems=("macOS",),
    ),
)
class CoreMl:
    """Loads `.mlpackage` folders."""

    @staticmethod
    def version() -> str:
        """coremltools' version and the system's, whose part Core ML is; imports it."""
        import platform

        with noise.hushed():
            import coremltools  # noqa: F401  (so that its import is in nobody's load time)

        return f"{metadata.version('coremltools')} on macOS {platform.mac_ver()[0] or 'unknown'}"

    @staticmethod
    def load(path: Path, contract: Ports, *, shapes: Shapes, threads: int, options: Mapping[str, str]) -> CoreMlSession:
        """A session, compiled for the Mac by Core ML; `shapes` need no preparation here. Raises RejectedError."""
        return CoreMlSession(path, contract, threads=threads, units=options["compute_units"])
