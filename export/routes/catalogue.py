"""What the environments hold: pinned requirements, the Pythons that they exist for, and where they lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...models import files


@dataclass(frozen=True)
class Environment:
    """What is installed into one environment: pinned `requirements`, for which Pythons, and what it takes on disk.

    `modules` are imported once before it counts as ready, after `prepare()` of the script `prepared_by`.
    """

    name: str
    purpose: str
    requirements: tuple[str, ...]
    pythons: tuple[str, ...]
    size_gb: float
    modules: tuple[str, ...]
    prepared_by: str = ""

    @property
    def place(self) -> Path:
        """The folder it belongs in; other requirements, another folder."""
        return cache() / f"{self.name}-{files.digest_of(self.requirements)[:12]}"


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            name="litert-torch",
            purpose="writes TFLite by Google's own converter for torch modules",
            requirements=(
                "torch==2.13.0",
                "litert-torch==0.10.0",
                "litert-converter==0.5.0",
                "ai-edge-litert==2.3.0",
                "ai-edge-quantizer==0.10.0",
                "torchao==0.18.0",
                "jax==0.10.2",
                "jaxlib==0.10.2",
                "transformers==5.24.0",
                "scipy==1.17.1",
                "numpy==2.4.6",
            ),
            pythons=("3.11", "3.12", "3.13"),
            size_gb=2.2,
            modules=("torch", "litert_torch"),
        ),
        Environment(
            name="tensorflow",
            purpose="writes TFLite by TensorFlow's converter, sparsely encoded TFLite, and SavedModels",
            requirements=(
                "tensorflow==2.21.0",
                "keras==3.15.1",
                "numpy==2.4.6",
                "protobuf==7.36.2",
                "ml_dtypes==0.6.0",
                "h5py==3.14.0",
            ),
            pythons=("3.11", "3.12", "3.13"),
            size_gb=2.2,
            modules=("tensorflow",),
        ),
        Environment(
            name="tflite-support",
            purpose="reads and writes TFLite metadata by the original library, as a cross-check",
            requirements=(
                "tflite-support==0.4.4",
                "protobuf==3.20.3",
                "flatbuffers==25.12.19",
                "numpy==2.2.6",
                "libusb-package==1.0.30.0",
            ),
            pythons=("3.10", "3.11"),
            size_gb=0.3,
            modules=("tflite_support",),
            prepared_by="metadata",
        ),
    )
}


def cache() -> Path:
    """The folder that holds all environments: `$XDG_CACHE_HOME/trimtab/environments`, by default below `~/.cache`."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path.home() / ".cache") / "trimtab" / "environments"
