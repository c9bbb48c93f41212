"""A network's operators, as trimtab laid them out for TFLite, executed by TensorFlow: a SavedModel, run once for a check."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .tf_call import Call
from .tf_ops import TABLE

SIGNATURE = "serving_default"


def quiet_tensorflow() -> Any:
    """TensorFlow, without its advice."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import tensorflow as tf  # type: ignore[import-not-found, import-untyped, unused-ignore]

    tf.get_logger().setLevel("ERROR")
    return tf


def save(tf: Any, program: dict[str, Any], constants: Any, out: str, *, runs: bool) -> None:
    """None; the SavedModel of `program` lies at `out`, with one signature. `constants` holds arrays by tensor number; `runs` says
    that TensorFlow will run it.
    """
    tensors = program["tensors"]
    specs = [
        tf.TensorSpec([None if d < 0 else d for d in tensors[number]["shape"]], tensors[number]["dtype"], name=name)
        for name, number in program["inputs"].items()
    ]
    arrays = {int(key): constants[key] for key in constants.files}

    @tf.function(input_signature=specs, autograph=False)
    def network(*given: Any) -> dict[str, Any]:
        values = dict(zip(program["inputs"].values(), given, strict=True))

        def value(number: int) -> Any:
            if number not in values:
                values[number] = tf.constant(arrays[number])
            return values[number]

        for op in program["ops"]:
            numbers = op["inputs"]
            inputs = [None if number < 0 else value(number) for number in numbers]
            known = [arrays.get(number) for number in numbers]
            made = TABLE[op["kind"]](Call(tf, inputs, known, op["options"], tensors[op["outputs"][0]]["dtype"], runs))
            values.update(zip(op["outputs"], made if isinstance(made, list) else [made], strict=True))
        return {name: tf.identity(value(number), name=name) for name, number in program["outputs"].items()}

    holder = tf.Module()
    holder.network = network
    tf.saved_model.save(holder, out, signatures={SIGNATURE: network.get_concrete_function()})


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Where the outputs of the saved network lie, for the inputs of `job["feeds"]`.

    `job`: `program` (JSON), `constants` and `feeds` (npz), `saved` (the folder to write) and `answers` (the npz of outputs to write).
    """
    tf = quiet_tensorflow()
    with np.load(job["constants"], allow_pickle=False) as constants:
        save(tf, json.loads(Path(job["program"]).read_text()), constants, job["saved"], runs=True)
    run = tf.saved_model.load(job["saved"]).signatures[SIGNATURE]
    with np.load(job["feeds"], allow_pickle=False) as feeds:
        found = run(**{name: tf.constant(feeds[name]) for name in feeds.files})
    np.savez(job["answers"], **{name: tensor.numpy() for name, tensor in found.items()})
    return {"answers": job["answers"]}
