"""How each format's own converter and runtime are called, as source text: `convert(model, inputs)` returns a function that runs.

`model` is a torch module, or an ONNX graph where the format starts from one; `inputs` maps names to arrays, and so does what the
returned function takes; it returns the outputs as a list. `HALF` says whether the artifact holds half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..exporter import exporters

Origin = Literal["module", "graph"]


@dataclass(frozen=True)
class Template:
    """One way to a format: the packages that a user installs, import lines, and `convert`'s source."""

    packages: tuple[str, ...]
    imports: tuple[str, ...]
    body: str
    note: str = ""


_ONNX_RUN = """\
    if HALF:
        model = convert_float_to_float16(model, keep_io_types=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(OUTPUTS, inputs)
"""
_TO_ONNX = """\
    buffer = io.BytesIO()
    example = tuple(torch.from_numpy(value) for value in inputs.values())
    torch.onnx.export(
        model, example, buffer, opset_version=18, dynamo=False, input_names=list(inputs), output_names=OUTPUTS
    )
    model = onnx.load_from_string(buffer.getvalue())
"""
_HALVES = "from onnxruntime.transformers.float16 import convert_float_to_float16"

_COREML = """\
def convert(model, inputs):
    example = tuple(torch.from_numpy(value) for value in inputs.values())
    package = coremltools.convert(
        torch.jit.trace(model, example, check_trace=False),
        inputs=[coremltools.TensorType(name=name, shape=value.shape, dtype=value.dtype) for name, value in inputs.items()],
        outputs=[coremltools.TensorType(name=name, dtype=np.float32) for name in OUTPUTS],
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target.iOS18,
        compute_precision=coremltools.precision.FLOAT16 if HALF else coremltools.precision.FLOAT32,
        skip_model_load=sys.platform != "darwin",
    )
    if sys.platform == "darwin":
        return lambda inputs: [package.predict(inputs)[name] for name in OUTPUTS]
    # Core ML runs on Apple systems alone: elsewhere the saved package is evaluated by trimtab (pip install trimtab)
    from trimtab.export.coreml_eval import evaluate, load_program

    folder = Path(tempfile.mkdtemp()) / "piece.mlpackage"
    package.save(str(folder))
    program = load_program(folder)
    return lambda inputs: [evaluate(program, inputs)[name] for name in OUTPUTS]
"""

_EXECUTORCH = """\
def convert(model, inputs):
    example = tuple(torch.from_numpy(value) for value in inputs.values())
    program = to_edge_transform_and_lower(torch.export.export(model, example), partitioner=[XnnpackPartitioner()])
    loaded = Runtime.get().load_program(bytes(program.to_executorch().buffer))
    method = loaded.load_method("forward")

    def run(inputs):
        return [value.numpy() for value in method.execute([torch.from_numpy(value) for value in inputs.values()])]

    run.program = loaded  # the method reads its memory
    return run
"""

_OPENVINO = """\
    sys.modules["openvino_telemetry"] = None  # it would report to Google Analytics that OpenVINO is used
    import openvino

    path = Path(tempfile.mkdtemp()) / "piece.onnx"
    onnx.save(model, path)
    model = openvino.convert_model(path)
    if HALF:
        openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=True)
        model = openvino.Core().read_model(path.with_suffix(".xml"))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [compiled(inputs)[name] for name in OUTPUTS]
"""

_NCNN = """\
def convert(model, inputs):
    folder = Path(tempfile.mkdtemp())
    example = tuple(torch.from_numpy(value) for value in inputs.values())
    pnnx.export(model, str(folder / "piece.pt"), example, fp16=HALF)
    net = ncnn.Net()
    net.opt.use_vulkan_compute = net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(folder / "piece.ncnn.param")) != 0:  # it does not raise
        raise RuntimeError("ncnn does not know a layer of piece.ncnn.param")
    net.load_model(str(folder / "piece.ncnn.bin"))

    def run(inputs):
        extractor = net.create_extractor()
        for i, value in enumerate(inputs.values()):
            extractor.input(f"in{i}", ncnn.Mat(np.ascontiguousarray(value[0])).clone())  # ncnn has no batch
        return [np.array(extractor.extract(f"out{i}")[1])[None] for i in range(len(OUTPUTS))]

    return run
"""

_MNN = """\
    path = Path(tempfile.mkdtemp()) / "piece.onnx"
    onnx.save(model, path)
    target = path.with_suffix(".mnn")
    options = ["mnnconvert", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(target)]
    _tools.mnnconvert([*options, *(["--fp16"] if HALF else [])])
    if not target.exists():
        raise RuntimeError("mnnconvert wrote nothing; see what it printed above")
    module = MNN.nn.load_module_from_file(str(target), list(inputs), OUTPUTS)

    def run(inputs):
        given = [MNN.expr.convert(MNN.expr.const(v, list(v.shape)), MNN.expr.NCHW) for v in inputs.values()]
        made = module.forward(given)
        return [np.array(MNN.expr.convert(value, MNN.expr.NCHW).read()) for value in made]

    return run
"""

_TRIMTAB = """\
CONTRACT = Contract.model_validate_json({contract!r})
FEEDS = sorted({{name.split(".")[1] for name in TENSORS if name.startswith("feed.")}}, key=int)


def convert(model, inputs):
    exporter = exporters.entry({format!r})
    feeds = tuple({{spec.name: TENSORS[f"feed.{{i}}.{{spec.name}}"] for spec in CONTRACT.inputs}} for i in FEEDS)
    path = Path(tempfile.mkdtemp()) / f"piece{{exporter.card.suffix}}"
    request = ExportRequest(
        CONTRACT,
        {precision!r},
        path,
        {form},
        calibration=feeds,
        options=exporter.card.configured({options!r}),
    )
    exported = exporter.value.export(request)
    run = exporter.value.runner(path, exported.contract)

    def in_layout(inputs):
        made = run_in_layout(run, inputs, module=CONTRACT, artifact=exported.contract)
        return [made[name] for name in OUTPUTS]

    return in_layout
"""
_TRIMTAB_IMPORTS: tuple[str, ...] = (
    "import tempfile",
    "from pathlib import Path",
    "from trimtab.export.exporter import ExportRequest, exporters",
    "from trimtab.export.parity import run_in_layout",
    "from trimtab.models.contract import Contract",
)
_DEF = "def convert(model, inputs):\n"
_FILES = ("import tempfile", "from pathlib import Path")

OWN: dict[tuple[str, Origin], Template] = {
    ("onnx", "module"): Template(
        ("torch", "onnx", "onnxruntime"),
        ("import io", "import onnx", "import onnxruntime", _HALVES),
        _DEF + _TO_ONNX + _ONNX_RUN,
    ),
    ("onnx", "graph"): Template(("onnx", "onnxruntime"), ("import onnxruntime", _HALVES), _DEF + _ONNX_RUN),
    ("coreml", "module"): Template(
        ("torch", "coremltools"),
        ("import sys", *_FILES, "import coremltools", "import numpy as np"),
        _COREML,
        "Core ML runs on Apple systems alone. On others, values are checked by trimtab's evaluator; conversions need none.",
    ),
    ("executorch", "module"): Template(
        ("torch", "executorch"),
        (
            "from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner",
            "from executorch.exir import to_edge_transform_and_lower",
            "from executorch.runtime import Runtime",
        ),
        _EXECUTORCH,
    ),
    ("openvino", "module"): Template(
        ("torch", "onnx", "openvino"), ("import io", *_FILES, "import onnx"), _DEF + _TO_ONNX + _OPENVINO
    ),
    ("openvino", "graph"): Template(("onnx", "openvino"), (*_FILES, "import onnx"), _DEF + _OPENVINO),
    ("ncnn", "module"): Template(
        ("torch", "ncnn", "pnnx"), (*_FILES, "import ncnn", "import numpy as np", "import pnnx"), _NCNN
    ),
    ("mnn", "module"): Template(
        ("torch", "onnx", "MNN"),
        ("import io", *_FILES, "import _tools", "import MNN", "import numpy as np", "import onnx"),
        _DEF + _TO_ONNX + _MNN,
    ),
    ("mnn", "graph"): Template(
        ("onnx", "MNN"), (*_FILES, "import _tools", "import MNN", "import numpy as np", "import onnx"), _DEF + _MNN
    ),
}
"""The formats' own converters, by format and what the piece is. Float precisions; others are made by trimtab's exporter."""


def template(name: str, precision: str, origin: Origin, *, contract: str, options: dict[str, object]) -> Template:
    """The source that converts a piece: with the format's own packages where it has some for this precision, else with trimtab."""
    found = OWN.get((name, origin))
    if found is not None and precision in ("fp32", "fp16") and not options:
        return found
    form, imports = "module=model", _TRIMTAB_IMPORTS
    if origin == "graph":
        form = "graph=model"
    elif exporters.entry(name).card.source == "onnx":
        form = "graph=to_graph(model, CONTRACT, tuple(torch.from_numpy(value) for value in inputs.values()))"
        imports = (*imports, "from trimtab.export.onnx import to_graph")
    body = _TRIMTAB.format(contract=contract, format=name, precision=precision, form=form, options=options)
    note = f"{name} {precision} is written by trimtab itself, or with settings of its exporter: this script calls its public functions."
    return Template(("trimtab",), imports, body, note)
