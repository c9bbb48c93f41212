"""Exports of the user network with options, judged, and what its file and its ONNX graph compute inside."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_convert import CONTRACT, lively
from test_onnx_precisions import images
from user_net import make

from trimtab.export.artifact import Parity
from trimtab.export.convert import Source, module_source
from trimtab.export.exporter import Exported, ExportRequest, exporters
from trimtab.export.parity import judge, probes

ENTRY = exporters.entry("tflite")


def user_source() -> Source:
    """The user network with batch statistics of its own."""
    return module_source(lively(make()), CONTRACT, label="user")


def write(source: Source, precision: str, out: Path, *, keep: Any = (), graph: Any = None, **options: Any) -> Exported:
    """The exporter's facts about the file at `out`, calibrated on smooth pictures."""
    (spec,) = source.contract.inputs
    feeds = tuple({spec.name: image[None]} for image in images(32))
    request = ExportRequest(
        contract=source.contract,
        precision=precision,
        out=out,
        graph=graph or source.graph,
        calibration=feeds,
        options=ENTRY.card.configured(options),
        keep_float=frozenset(keep),
    )
    return ENTRY.value.export(request)


def verdict(source: Source, facts: Exported, out: Path, precision: str) -> Parity:
    """The parity verdict on the file, over the batches that its contract leaves free."""
    found = probes(source.contract, source.reference, real=images(16, seed=1), seed=0)
    runner = ENTRY.value.runner(out, facts.contract)
    return judge(
        runner, found, module=source.contract, artifact=facts.contract, precision=precision, inputs="real", evaluator="LiteRT"
    )


def onnx_values(graph: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of an ONNX graph, in the order in which ONNX Runtime, unoptimised, computes them."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    names = [name for node in model.graph.node for name in node.output if name]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
