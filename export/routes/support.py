"""TFLite metadata by tflite-support, the original reader and writer, in an environment of its own: a cross-check of trimtab's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ...models import files
from ...models.errors import UserError
from .environment import run

NAME = "tflite-support"
SECONDS = 120.0


def read_metadata_genuine(path: Path) -> dict[str, Any]:
    """The `metadata` of a `.tflite` file as tflite-support shows it (its own JSON), and `files`, its associated files' texts by name.

    Raises UserError when the environment is not set up, the file is missing, or tflite-support finds no metadata in it.
    """
    _refuse_missing(path)
    return run(NAME, "metadata", {"do": "read", "path": str(path.absolute())}, seconds=SECONDS)


def write_metadata_genuine(
    path: Path,
    out: Path,
    *,
    labels: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    kind: Literal["image_classifier"] = "image_classifier",
) -> Path:
    """`out`, the file at `path` with an image classifier's metadata by tflite-support. `mean` and `std` are those of pixels in
    0…255, one entry or one per channel.

    Raises UserError when the environment is not set up, and where tflite-support refuses the file, the labels or the normalisation.
    """
    _refuse_missing(path)
    if kind != "image_classifier":
        raise UserError(
            f"tflite-support's metadata is written for image_classifier here, not {kind!r}", hint="image_classifier"
        )
    with tempfile.TemporaryDirectory(prefix="trimtab-metadata-") as folder:
        made = Path(folder) / "model.tflite"
        job = {"do": "write", "path": str(path.absolute()), "out": str(made)}
        run(NAME, "metadata", {**job, "labels": list(labels), "mean": list(mean), "std": list(std)}, seconds=SECONDS)
        return files.write_bytes(out, made.read_bytes())


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist", hint="check the path")
