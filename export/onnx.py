"""ONNX: the module traced to a graph, slimmed, and run back in ONNX Runtime."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..models.contract import Contract
from ..models.errors import UserError
from .exporter import Exported, ExporterCard, ExportRequest, Options, Runner, Tensors, exporters
from .noise import hushed

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

OPSET = 18


def to_graph(module: nn.Module, contract: Contract, example: tuple[Tensor, ...]) -> onnx.ModelProto:
    """The slimmed ONNX graph of `module` (opset 18): BatchNorm folded, the contract's symbolic dimensions dynamic, its names kept.

    `example` holds one tensor per input. Raises UserError when the network can't be traced.
    """
    import onnx
    import onnxslim
    import torch

    specs = (*contract.inputs, *contract.outputs)
    dynamic = {s.name: {i: d for i, d in enumerate(s.shape) if isinstance(d, str)} for s in specs}
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad(), hushed():  # at a failure torch prints the whole graph
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(t.int() if t.dtype == torch.uint16 else t for t in example),  # its tracer does not know uint16
                buffer,  # type: ignore[arg-type]  # torch's own annotation forgets that it takes a file object
                opset_version=OPSET,
                input_names=[s.name for s in contract.inputs],
                output_names=[s.name for s in contract.outputs],
                dynamic_axes={name: axes for name, axes in dynamic.items() if axes},
                dynamo=False,  # 20× faster than the dynamo exporter, and it refuses what dynamo bakes in wrongly (adaptive pools)
            )
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:300]
        raise UserError(
            f"the network can't be traced to ONNX: {type(error).__name__}: {first}{_place(module, contract, first)}",
            hint="replace the operation in the module, or export --to coreml,executorch, which are written from the module itself; "
            "a size that must be fixed can be fixed (--fix)",
        ) from error
    graph = onnx.load_from_string(buffer.getvalue())
    given = {spec.name: tensor for spec, tensor in zip(contract.inputs, example, strict=True)}
    for entry in graph.graph.input:  # what the network never reads is missing here
        if given[entry.name].dtype == torch.uint16:
            entry.type.tensor_type.elem_type = onnx.TensorProto.UINT16
            _only_cast(graph, entry.name)
    return named(onnxslim.slim(graph))


def _only_cast(graph: onnx.ModelProto, name: str) -> None:
    """None, when the unsigned 16-bit input `name` is made a float before anything else is done to it. Raises UserError otherwise."""
    if wrong := next((node.op_type for node in graph.graph.node if name in node.input and node.op_type != "Cast"), None):
        raise UserError(
            f"input {name!r} is uint16, and the network does {wrong} on it as it is",
            hint="let it call .float() on its input first",
        )


def _place(module: nn.Module, contract: Contract, text: str) -> str:
    """ ", in features.2 (net.py:41)": where the operator that an error names is used; "" when it names none."""
    from .explain.scopes import origins

    found = re.search(r"'(?:\w+::)?(\w+)'", text)
    places = [str(each) for each in origins(module, contract) if found and each.op.strip("_") == found[1].strip("_")]
    return f", in {places[0]}" if places else ""


def named(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, every node under a name of its own: nodes are spoken of by name when layers are kept in float or explained."""
    taken: set[str] = set()
    for number, node in enumerate(graph.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}" if not node.name else f"{node.name}_{number}"
        taken.add(node.name)
    return graph


def _halved(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float16, its inputs and outputs in float32 as they were."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights below float16's least number: the parity gate judges what that does
        return convert_float_to_float16(graph, keep_io_types=True)


def load_graph(path: Path) -> onnx.ModelProto:
    """A user's own `.onnx` file, checked and slimmed. Raises UserError when it is missing or invalid."""
    import onnx
    import onnxslim

    if not path.is_file():
        raise UserError(f"{path} does not exist", hint="check the path")
    try:
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
    except Exception as error:
        raise UserError(
            f"{path} is not a valid ONNX model: {(str(error).splitlines() or [''])[0][:200]}", hint="export it again"
        ) from error
    return named(onnxslim.slim(graph))


def contract_of(graph: onnx.ModelProto) -> Contract:
    """The contract an ONNX graph implies: 4-D inputs are taken as NCHW with values in 0…1."""
    from onnx import TensorProto

    types = {
        TensorProto.FLOAT: "float32",
        TensorProto.FLOAT16: "float16",
        TensorProto.UINT8: "uint8",
        TensorProto.UINT16: "uint16",
        TensorProto.INT8: "int8",
        TensorProto.INT32: "int32",
        TensorProto.INT64: "int64",
    }
    weights = {w.name for w in graph.graph.initializer}

    def spec(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value if d.dim_value > 0 else _symbol(d.dim_param, i) for i, d in enumerate(tensor.shape.dim))
        if tensor.elem_type not in types:
            raise UserError(
                f"ONNX tensor {value.name!r} has element type {TensorProto.DataType.Name(tensor.elem_type)}",
                hint="supported: " + ", ".join(types.values()),
            )
        layout = {4: "NCHW", 2: "NC"}.get(len(shape), "other")
        return {"name": value.name, "shape": shape, "dtype": types[tensor.elem_type], "layout": layout}

    return Contract.model_validate(
        {
            "inputs": [spec(v) for v in graph.graph.input if v.name not in weights],
            "outputs": [spec(v) for v in graph.graph.output],
        }
    )


def _symbol(name: str, axis: int) -> str:
    """A symbolic dimension's name: the batch axis is "N" whatever the file calls it."""
    return "N" if axis == 0 else name or f"D{axis}"


class OnnxOptions(Options):
    """What an `.onnx` file can be told."""

    activations: Literal["unsigned", "signed"] = Field(
        default="unsigned",
        description="int8: unsigned activations run fast on x86 and in OpenVINO; signed ones are what Arm's XNNPACK takes beside "
        "signed weights",
    )


@exporters.register(
    "onnx",
    ExporterCard(
        title="ONNX",
        suffix=".onnx",
        source="onnx",
        precisions={"fp32": "", "fp16": "", "int8": ""},
        defaults=("fp32",),
        packages=("onnx", "onnxruntime", "onnxslim"),
        extra="onnx",
        runtimes=("onnxruntime", "openvino"),
        calibrated=("int8",),
        options=OnnxOptions,
        keeps_float="",
        taps="values",
    ),
)
class OnnxExporter:
    """Writes the slimmed graph; runs it in ONNX Runtime on the CPU with one thread.

    "fp16" computes in half precision between float32 doors; "int8" is static QDQ (see `onnx_int8`).
    """

    @staticmethod
    def export(request: ExportRequest) -> Exported:
        """Facts about the `.onnx` file written at `request.out`. Raises UserError for a graph that can't be quantised."""
        import onnx

        from .onnx_audit import audit

        graph = request.graph
        if graph is None:
            raise ValueError("the ONNX exporter wants request.graph")
        heard: list[str] = []
        if request.precision == "fp16":
            graph = _halved(graph)
        elif request.precision == "int8":
            from .onnx_int8 import quantised

            options = request.options if isinstance(request.options, OnnxOptions) else OnnxOptions()
            signed = options.activations == "signed"
            graph, heard = quantised(graph, request.calibration, keep_float=request.keep_float, signed=signed)
        del graph.metadata_props[:]
        onnx.helper.set_model_props(graph, {"trimtab.contract": request.contract.model_dump_json()})
        onnx.save(graph, request.out)
        opset = max(o.version for o in graph.opset_import if o.domain in ("", "ai.onnx"))
        return Exported(
            contract=request.contract,
            ops=dict(Counter(node.op_type for node in graph.graph.node).most_common()),
            spec_version=f"ONNX IR {graph.ir_version}, opset {opset}",
            warnings=tuple(heard),
            evaluator=f"ONNX Runtime {version('onnxruntime')} (CPU)",
            tool_versions={name: version(name) for name in ("onnx", "onnxruntime", "onnxslim")},
            audit=audit(graph),
        )

    @staticmethod
    def runner(path: Path, contract: Contract) -> Runner:
        """Evaluates the saved file. Raises UserError when ONNX Runtime rejects it."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UserError(
                f"ONNX Runtime rejects {path.name}: {(str(error).splitlines() or [''])[0][:200]}", hint="report this graph"
            ) from error
        names = [spec.name for spec in contract.outputs]

        def run(inputs: Tensors) -> dict[str, Any]:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))

        return run

    @staticmethod
    def tapped(path: Path, contract: Contract) -> Runner:
        """Runs the saved file without optimisations; its outputs and, by name, every float value inside."""
        from .onnx_taps import tapped

        return tapped(path, contract)
