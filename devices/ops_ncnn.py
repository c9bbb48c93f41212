"""Single layers of ncnn, which has no profiler: one inference, stopped after every layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..export.light import ncnn_files
from .ops import WARM, Op, OpProfile, cost, plain_ns
from .runtime import Ports, RejectedError
from .runtimes_ncnn import NAME, Ncnn, NcnnSession

_AS_IT_IS = 1
"""The kind of extraction that neither unpacks nor widens a value: what a layer left is what the next one reads."""


def profile_ops(
    path: Path, ports: Ports, *, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str], runs: int
) -> OpProfile:
    """Mean times between asking for a layer's output and having it, its inputs being there. Raises RejectedError."""
    shapes = {name: array.shape for name, array in inputs.items()}
    session = Ncnn.load(path, ports, shapes=shapes, threads=threads, options=options)
    plain = plain_ns(session.bind(inputs), runs)
    layers = needed(ncnn_files.layers_of(path / ncnn_files.PARAM), {spec.name for spec in ports.outputs})
    if not layers:
        return OpProfile(reason="no layer of this ncnn graph computes anything")
    times, watched, asking = _walks(session, session._images(inputs), layers=layers, runs=runs)
    ops = tuple(Op(layer.name, layer.kind, float(ns), "CPU") for layer, ns in zip(layers, times, strict=True))
    batch = len(next(iter(inputs.values())))
    each = f", each summed over {batch} images" if batch > 1 else ""
    return OpProfile(
        ops,
        runs,
        f"ncnn has no profiler: times from asking for a layer's output to having it, means over {runs} inferences{each}; asking for "
        f"what is there already takes {asking / 1e3:.1f} µs, which is in every time; {cost(watched, plain)}",
    )


def _walks(
    session: NcnnSession, images: list[Any], *, layers: list[ncnn_files.Layer], runs: int
) -> tuple[np.ndarray, float, float]:
    """Mean ns of every layer in an inference, the median of a whole one, and that of asking for a value that is there."""
    clock, times, whole, asking = time.perf_counter_ns, np.zeros((WARM + runs, len(layers))), list[int](), list[int]()
    for run in range(WARM + runs):
        spent = 0
        for image in images:
            begin = clock()
            extractor = session.net.create_extractor()
            for name, _, value in image:
                extractor.input(name, value)
            for place, layer in enumerate(layers):
                start = clock()
                code = extractor.extract(layer.outputs[0], _AS_IT_IS)[0]
                times[run, place] += clock() - start
                if code:
                    raise RejectedError(NAME, session.path, f"it cannot compute {layer.outputs[0]!r} (code {code})")
            start = clock()
            extractor.extract(layers[-1].outputs[0], _AS_IT_IS)
            asking.append(clock() - start)
            spent += start - begin
        whole.append(spent)
    return times[WARM:].mean(axis=0), float(np.median(whole[WARM:])), float(np.median(asking))


def needed(layers: list[ncnn_files.Layer], outputs: set[str]) -> list[ncnn_files.Layer]:
    """The layers that `outputs` are computed from, in the order that they run in; inputs and constants left out."""
    wanted, found = set(outputs), []
    for layer in reversed(layers):  # the file is in running order
        if wanted.intersection(layer.outputs):
            wanted.update(layer.inputs)
            if layer.kind not in ("Input", "MemoryData"):
                found.append(layer)
    return found[::-1]
