"""ncnn on the CPU. It has no batch: the images of one are run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import UserError, ncnn_files, noise
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

NAME = "ncnn"


class NcnnSession:
    """A Net in float32, or in what ncnn takes by itself (half precision where the CPU has it)."""

    def __init__(self, path: Path, contract: Ports, *, threads: int, precision: str) -> None:
        self.path, self.contract, self.threads, self.precision = path, contract, threads, precision
        try:
            layers = ncnn_files.layers_of(path / ncnn_files.PARAM)
        except UserError as error:
            raise RejectedError(NAME, path, error) from error
        blobs = [blob for layer in layers for blob in layer.outputs]
        check_names(NAME, path, wanted=[s.name for s in contract.inputs], present=blobs, kind="input")
        check_names(NAME, path, wanted=[s.name for s in contract.outputs], present=blobs, kind="output")
        with noise.hushed() as heard:
            import ncnn

            self.ncnn, self.net = ncnn, ncnn.Net()
            if precision == "f32":
                ncnn_files.exact(self.net.opt, threads=threads)
            self.net.opt.num_threads = threads
            self.net.opt.use_vulkan_compute = False
            graph = self.net.load_param(str(path / ncnn_files.PARAM))
            weights = self.net.load_model(str(path / ncnn_files.BIN))
        if graph or weights:
            raise RejectedError(NAME, path, (heard.lines() or [f"codes {graph} and {weights}"])[-1])

    def _images(self, inputs: Tensors) -> list[list[tuple[str, np.ndarray, Any]]]:
        """For each image its inputs: name, array (kept, since ncnn reads its memory) and ncnn's view of it."""
        check_shapes(NAME, self.path, contract=self.contract, inputs=inputs, any_batch=True)
        arrays = {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self.contract.inputs}
        counts = {len(array) for array in arrays.values()}
        if len(counts) != 1:
            raise RejectedError(NAME, self.path, f"its inputs have batches of {sorted(counts)} images")
        return [[(name, array[i], self.ncnn.Mat(array[i])) for name, array in arrays.items()] for i in range(counts.pop())]

    def _outputs(self, image: list[tuple[str, np.ndarray, Any]]) -> list[Any]:
        extractor = self.net.create_extractor()
        for name, _, value in image:
            extractor.input(name, value)
        return [extractor.extract(spec.name) for spec in self.contract.outputs]

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Output arrays by name. Raises RejectedError."""
        found: dict[str, list[np.ndarray]] = {spec.name: [] for spec in self.contract.outputs}
        for image in self._images(inputs):
            for spec, (code, value) in zip(self.contract.outputs, self._outputs(image), strict=True):
                if code:
                    raise RejectedError(NAME, self.path, f"it cannot compute {spec.name!r} (code {code})")
                found[spec.name].append(np.array(value))
        return {name: np.stack(values) for name, values in found.items()}

    def bind(self, inputs: Tensors) -> Callable[[], object]:
        """One pass over the images of `inputs`. Raises RejectedError."""
        self.run(inputs)
        images = self._images(inputs)

        def call() -> None:
            for image in images:
                self._outputs(image)

        return call

    def cycle(self, inputs: Sequence[Tensors]) -> Callable[[], object]:
        """A call that runs all of `inputs`. Raises RejectedError."""
        return in_turn([self.bind(given) for given in inputs])

    def describe(self) -> RuntimeFacts:
        """Version, threads and the precision in force."""
        options = self.net.opt
        return RuntimeFacts(
            runtime=NAME,
            version=Ncnn.version(),
            threads=int(options.num_threads),
            provider="CPU",
            hints={
                "precision": self.precision,
                "fp16_arithmetic": str(bool(options.use_fp16_arithmetic)),
                "fp16_storage": str(bool(options.use_fp16_storage)),
            },
            timed_region="for each image: create_extractor, input, extract of every output; outputs not copied",
            reduced_precision=bool(options.use_fp16_arithmetic or options.use_fp16_storage),
        )


@runtimes.register(
    NAME,
    RuntimeCard(
        title="ncnn",
        formats=("ncnn",),
        packages=("ncnn",),
        extra="ncnn",
        threads="num_threads of the Net's options (OpenMP)",
        options={"precision": ("f32", "default")},
    ),
)
class Ncnn:
    """Loads `.ncnn` folders."""

    @staticmethod
    def version() -> str:
        """The runtime's version; imports it."""
        with noise.hushed():
            import ncnn  # noqa: F401  (so that its import is in nobody's load time)

        return metadata.version("ncnn")

    @staticmethod
    def load(path: Path, contract: Ports, *, shapes: Shapes, threads: int, options: Mapping[str, str]) -> NcnnSession:
        """A session; `shapes` need no preparation here. Raises RejectedError."""
        return NcnnSession(path, contract, threads=threads, precision=options["precision"])
