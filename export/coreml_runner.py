"""Runs saved Core ML packages through the evaluator, on what every artifact is fed: normalised tensors, any batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..models.contract import Contract
from .coreml_eval import Program, evaluate, load_program
from .coreml_image import to_pixels
from .coreml_layers import read_layers
from .exporter import Runner, Tensors


def outputs_of(path: Path, contract: Contract) -> Runner:
    """A function that evaluates the package; outputs come back in the contract's order."""
    program = load_program(path)

    def run(inputs: Tensors) -> dict[str, np.ndarray]:
        found = _evaluated(program, inputs, contract, {})
        return {spec.name: found[spec.name] for spec in contract.outputs}

    return run


def taps_of(path: Path, contract: Contract) -> Runner:
    """A function that evaluates the package; behind its outputs come what its modules return, by their paths.

    Raises UserError when the package does not tell its layers.
    """
    program = load_program(path)
    layers = read_layers(program.metadata)

    def run(inputs: Tensors) -> dict[str, np.ndarray]:
        found = _evaluated(program, inputs, contract, layers)
        outputs = {spec.name: found[spec.name] for spec in contract.outputs}
        inner = {layer: found[name] for layer, name in layers.items() if layer not in outputs}
        return outputs | {layer: value.astype(np.float32, copy=False) for layer, value in inner.items()}

    return run


def _evaluated(program: Program, inputs: Tensors, contract: Contract, layers: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Outputs and the values of `layers` by their MIL names; packages of one image or label run a batch sample by sample."""
    given = dict(inputs)
    for spec in contract.inputs:
        if spec.name in program.images and spec.name in given:
            given[spec.name] = to_pixels(np.asarray(given[spec.name]), spec)
    keep = frozenset(layers.values())
    batch = {len(given[spec.name]) for spec in contract.inputs if spec.shape and spec.shape[0] == 1 and spec.name in given}
    if not (program.images or program.classes) or batch == {1} or len(batch) != 1:
        return evaluate(program, given, keep=keep)
    singles = {spec.name for spec in contract.inputs if spec.shape and spec.shape[0] == 1}
    runs = [
        evaluate(program, {name: value[i : i + 1] if name in singles else value for name, value in given.items()}, keep=keep)
        for i in range(batch.pop())
    ]
    return {name: np.concatenate([np.atleast_1d(run[name]) for run in runs]) for name in runs[0]}
