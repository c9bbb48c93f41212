"""Small ONNX models, their contract, and the comparison of ONNX Runtime with LiteRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from trimtab.export.exporter import Exported, ExportRequest, exporters
from trimtab.models.contract import Contract, TensorSpec


def spec(name: str, shape: Sequence[int | str], dtype: Any) -> TensorSpec:
    """A contract entry; rank 4 counts as images."""
    held = {"bool": "int32"}.get(str(np.dtype(dtype)), str(np.dtype(dtype)))
    return TensorSpec(name=name, shape=tuple(shape), dtype=held, layout="NCHW" if len(shape) == 4 else "other")


def contract_of(model: onnx.ModelProto) -> Contract:
    """The contract of an ONNX model as its value infos state it."""

    def specs(values: Any) -> tuple[TensorSpec, ...]:
        found = []
        for value in values:
            tensor = value.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
            found.append(spec(value.name, shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
        return tuple(found)

    known = {tensor.name for tensor in model.graph.initializer}
    return Contract(inputs=specs([v for v in model.graph.input if v.name not in known]), outputs=specs(model.graph.output))


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Sequence[int | str], Any]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """A checked model whose output types come from ONNX's shape inference."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(d)), list(s))
            for n, (s, d) in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9 if opset < 21 else 10)
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info}
    inferred |= {v.name: v for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output}
    for value in model.graph.output:
        value.CopyFrom(
            inferred[value.name]
            if value.name in inferred and inferred[value.name].type.WhichOneof("value")
            else _like(model.graph.input[0], value.name)
        )
    onnx.checker.check_model(model)
    return model


def _like(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A value info of the same type (for operators that ONNX does not infer: they keep the shape)."""
    found = onnx.ValueInfoProto()
    found.CopyFrom(value)
    found.name = name
    return found


def reference(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes, unoptimised, so that it is independent of any fusion."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


@dataclass
class Converted:
    """An exported model and its session."""

    facts: Exported
    run: Any
    source: Contract

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """LiteRT's outputs for NCHW feeds, in NCHW."""
        laid = {s.name: turn(feeds[s.name], s, "in") for s in self.source.inputs}
        found = self.run(laid)
        return {s.name: turn(found[s.name], s, "out") for s in self.source.outputs}


def turn(array: np.ndarray, entry: TensorSpec, way: str) -> np.ndarray:
    """NCHW ↔ NHWC for the contract's images."""
    if entry.layout != "NCHW":
        return array
    return array.transpose(0, 2, 3, 1) if way == "in" else array.transpose(0, 3, 1, 2)


def export(model: onnx.ModelProto, folder: Path, contract: Contract | None = None) -> Converted:
    """The model through the registered exporter and its runner."""
    contract = contract or contract_of(model)
    exporter = exporters.get("tflite")
    out = folder / "model.tflite"
    facts = exporter.export(ExportRequest(contract=contract, precision="fp32", out=out, graph=model))
    return Converted(facts, exporter.runner(out, facts.contract), contract)


def sqnr_db(reference_values: np.ndarray, found: np.ndarray) -> float:
    """10·log10(Σ ref² / Σ (found − ref)²) in dB."""
    noise = float(np.sum((found.astype(np.float64) - reference_values) ** 2))
    return 10 * np.log10(float(np.sum(reference_values.astype(np.float64) ** 2)) / noise) if noise else float("inf")


@dataclass
class Case:
    """One line of the operator table: a node on inputs of given shapes."""

    op: str
    shapes: Sequence[Sequence[int | str]] = (("N", 4, "H", "W"),)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, np.ndarray] = field(default_factory=dict)
    low: float = -2.0
    high: float = 2.0
    dtypes: Sequence[Any] = ()
    opset: int = 18
    outputs: int = 1
    atol: float = 2e-5
    note: str = ""

    @property
    def id(self) -> str:
        rank = "x".join(str(len(s)) for s in self.shapes)
        return f"{self.op}-{rank}d{'-' + self.note if self.note else ''}"

    def model(self) -> onnx.ModelProto:
        """A model of the node alone."""
        names, inputs = [], {}
        slots = len(self.shapes) + len(self.constants)
        shapes = iter(enumerate(self.shapes))
        for slot in range(max([slots, *(k + 1 for k in self.constants)])):
            if slot in self.constants:
                names.append(f"c{slot}")
            else:
                number, shape = next(shapes, (None, None))
                if shape is None:
                    names.append("")
                    continue
                dtype = self.dtypes[number] if number < len(self.dtypes) else np.float32
                inputs[f"x{number}"] = (shape, np.dtype(dtype))
                names.append(f"x{number}")
        outs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, outs, **self.attrs)
        constants = {f"c{slot}": array for slot, array in self.constants.items()}
        return make_model([node], inputs, outs, constants, self.opset)

    def feeds(self, model: onnx.ModelProto, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
        """Seeded inputs of concrete sizes."""
        rng = np.random.default_rng(seed)
        found = {}
        for entry in contract_of(model).inputs:
            shape = tuple(d if isinstance(d, int) else sizes[d] for d in entry.shape)
            values = rng.uniform(self.low, self.high, shape)
            index = int(entry.name[1:])
            dtype = self.dtypes[index] if index < len(self.dtypes) else np.float32
            found[entry.name] = values > 0 if np.dtype(dtype) == bool else values.astype(dtype)
        return found
