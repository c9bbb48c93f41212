"""A network's operators → SavedModel → `.tflite` by TensorFlow's own converter."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .refusal import RefusedError
from .tf_program import SIGNATURE, quiet_tensorflow, save


def main(job: dict[str, Any]) -> dict[str, Any]:
    """The size of the file written at `job["out"]`.

    `job`: `program` (JSON), `constants` (npz), `precision` (fp32, fp16, int8, sparse), `io` (dtype of an int8 file's doors) and
    `feeds` (a list of npz files to take ranges from).
    """
    tf = quiet_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        saved = str(Path(folder) / "saved")
        with np.load(job["constants"], allow_pickle=False) as constants:
            save(tf, json.loads(Path(job["program"]).read_text()), constants, saved, runs=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=[SIGNATURE])
        _configure(tf, converter, job)
        try:
            data = converter.convert()
        except Exception as error:
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:250]
            raise RefusedError(f"its converter can't hold this network: {said}", "use trimtab's own writer") from error
    Path(job["out"]).write_bytes(data)
    return {"size_bytes": len(data)}


def _configure(tf: Any, converter: Any, job: dict[str, Any]) -> None:
    """Tell the converter the precision."""
    precision, optimise = job["precision"], tf.lite.Optimize
    if precision == "fp16":
        converter.optimizations = [optimise.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    elif precision == "int8":
        converter.optimizations = [optimise.DEFAULT]
        converter.representative_dataset = lambda: _feeds(job["feeds"])
        kinds = tf.lite.OpsSet
        converter.target_spec.supported_ops = [kinds.TFLITE_BUILTINS_INT8, kinds.TFLITE_BUILTINS]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, job["io"])
    elif precision == "sparse":
        converter.optimizations = [optimise.EXPERIMENTAL_SPARSITY]


def _feeds(paths: list[str]) -> Iterator[dict[str, np.ndarray]]:
    for path in paths:
        with np.load(path, allow_pickle=False) as feed:
            yield {name: feed[name] for name in feed.files}
