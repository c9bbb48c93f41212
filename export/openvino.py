"""OpenVINO: the ONNX graph as OpenVINO's own files, the graph and its weights together in one folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.contract import Contract
from ..models.errors import UserError
from .exporter import Exported, ExporterCard, ExportRequest, Runner, Tensors, exporters
from .kept_log import kept_log
from .openvino_core import MODEL, core, graph_file, library
from .openvino_int8 import OpenVinoOptions, compressed, quantised

if TYPE_CHECKING:
    import onnx

CARD = ExporterCard(
    title="OpenVINO",
    suffix=".openvino",
    source="onnx",
    precisions={"fp32": "", "fp16": "", "int8": "", "int8-weights": ""},
    defaults=("fp32",),
    packages=("openvino", "nncf"),
    extra="openvino",
    runtimes=("openvino",),
    calibrated=("int8",),
    options=OpenVinoOptions,
    keeps_float="",
    taps="values",
)
SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",  # its own default computes in bfloat16 where the CPU can
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}
_FLOATS = ("f32", "f16", "bf16")


class OpenVinoExporter:
    """Writes `model.openvino/` folders with `model.xml` and `model.bin`, and runs them on the CPU.

    "fp16" holds weights in half precision and computes in what the device has; "int8" and "int8-weights": see `openvino_int8`.
    """

    def export(self, request: ExportRequest) -> Exported:
        """Facts about the folder written at `request.out`.

        Raises UserError for a graph that OpenVINO does not read, and for one that can't be quantised as asked.
        """
        CARD.refuse(request.precision)
        if request.graph is None:
            raise UserError(
                "OpenVINO files are written from an ONNX graph and none was given", hint="export the module to ONNX first"
            )
        from .openvino_graph import audit, histogram

        model, warnings = read(request.graph), list[str]()
        tools = ["openvino"]
        if request.precision.startswith("int8"):
            tools.append("nncf")
            model, warnings = _in_integers(model, request)
        model.set_rt_info(request.contract.model_dump_json(), ["trimtab", "contract"])
        write(model, request.out, half=request.precision == "fp16")
        saved = core().read_model(graph_file(request.out))
        return Exported(
            contract=request.contract,
            ops=histogram(saved),
            spec_version=f"OpenVINO IR {_version(request.out)}",
            warnings=tuple(warnings),
            evaluator=f"OpenVINO {_release('openvino')} (CPU, f32)",
            tool_versions={name: _release(name) for name in tools},
            audit=audit(saved),
        )

    def runner(self, path: Path, contract: Contract) -> Runner:
        """Evaluates the saved files. Raises UserError when OpenVINO rejects them."""
        model = _loaded(path)
        return _Session(model, [spec.name for spec in contract.outputs])

    def tapped(self, path: Path, contract: Contract) -> Runner:
        """Runs the saved files; besides the outputs, every inner float value that has an ONNX name, as it is before it is rounded
        (constants left out, and values that OpenVINO computes no more because it fused the nodes around them).
        """
        model = _loaded(path).clone()
        names = [spec.name for spec in contract.outputs]
        own = {name for port in (*model.inputs, *model.outputs) for name in port.get_names()}
        for op in model.get_ordered_ops():
            if op.get_type_name() in ("Constant", "Parameter", "Result"):
                continue
            for port in op.outputs():
                found = sorted(port.get_names() - own)
                if found and port.get_element_type().get_type_name() in _FLOATS:
                    model.add_outputs(port)
                    names += found
        return _Session(model, names)


exporters.register("openvino", CARD)(OpenVinoExporter())


def _in_integers(model: Any, request: ExportRequest) -> tuple[Any, list[str]]:
    graph, kept = request.graph, request.keep_float
    assert graph is not None  # noqa: S101  # the exporter has looked
    if request.precision == "int8-weights":
        return compressed(model, graph, keep_float=kept)
    options = request.options if isinstance(request.options, OpenVinoOptions) else OpenVinoOptions()
    return quantised(model, graph, request.calibration, options=options, keep_float=kept)


def read(graph: onnx.ModelProto) -> Any:
    """The OpenVINO model of an ONNX graph, simplified. Raises UserError for what OpenVINO has no operator for."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="trimtab-") as work:
        path = Path(work) / "model.onnx"
        onnx.save(graph, path)
        try:
            with kept_log():  # where it fails, it leaves every logger of the process at ERROR
                return library().convert_model(path, share_weights=False)
        except Exception as error:  # it refuses with several kinds of exception
            lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"OpenVINO does not read the network's ONNX graph: {(lines or [type(error).__name__])[-1][:200]}",
                hint="export it to onnx, and run that in ONNX Runtime",
            ) from error


def write(model: Any, out: Path, *, half: bool) -> None:
    """None; the model lies in the folder `out`, its weights in float16 if `half`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    library().save_model(model, out / MODEL, compress_to_fp16=half)


def _loaded(path: Path) -> Any:
    try:
        return core().read_model(graph_file(path))
    except Exception as error:
        lines = [line.strip() for line in str(error).replace(str(path), path.name).splitlines() if line.strip()]
        raise UserError(
            f"OpenVINO rejects {path.name}: {(lines or [type(error).__name__])[-1][:200]}", hint="export it again"
        ) from error


def _version(folder: Path) -> str:
    """The version of the format that a folder's graph is written in."""
    from xml.etree import ElementTree

    for _, element in ElementTree.iterparse(graph_file(folder), events=("start",)):  # noqa: S314  # written by us just now
        return str(element.get("version", "?"))
    return "?"


def _release(package: str) -> str:
    from importlib.metadata import version

    return version(package)


class _Session:
    """A model compiled for one set of input shapes at a time: that is how it is timed, and kernels for free shapes may differ."""

    def __init__(self, model: Any, names: list[str]) -> None:
        self.model, self.names = model, names
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, inputs: Tensors) -> dict[str, np.ndarray]:
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != self.shapes:
            model = self.model.clone()
            if model.is_dynamic():
                model.reshape({name: list(shape) for name, shape in shapes.items()})
            self.compiled, self.shapes = core().compile_model(model, "CPU", SETTINGS), shapes
        request = self.compiled.create_infer_request()
        kept = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        request.infer(kept)
        return {name: _plain(request.get_tensor(name).data) for name in self.names}


def _plain(values: np.ndarray) -> np.ndarray:
    """A copy, halves as float32."""
    return np.array(values, dtype=np.float32 if values.dtype == np.float16 else None)
