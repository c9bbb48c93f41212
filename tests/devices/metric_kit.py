"""A metric that is the same wherever an artifact runs: how far its outputs for seven drawn samples are from the export's own reference."""

from __future__ import annotations

import numpy as np

from trimtab.devices.profile import Evaluation
from trimtab.export.exporter import exporters

SAMPLES = 7


def evaluation(folder) -> Evaluation:
    """The largest difference to the artifact's runner of this machine, over samples that fill no whole number of batches."""

    def score(artifact, run):
        spec = artifact.contract.inputs[0]
        shape = (SAMPLES, *spec.concrete({})[1:])
        samples = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
        name = artifact.contract.outputs[0].name
        there = run({spec.name: samples})[name]
        runner = exporters.get(artifact.format).runner(artifact.path(folder), artifact.contract)
        here = np.concatenate([runner({spec.name: samples[k : k + 1]})[name] for k in range(SAMPLES)])
        assert there.shape == here.shape
        return {"largest": float(np.abs(there - here).max()), "size": float(np.abs(here).max())}

    return Evaluation("seven drawn samples", SAMPLES, score)


def check(found) -> None:
    """Float32 sums of a few dozen products in another order: a millionth of the outputs' size, times 10."""
    assert found.samples == SAMPLES
    assert found.metrics["size"] > 0
    assert found.metrics["largest"] <= 1e-5 * found.metrics["size"]
