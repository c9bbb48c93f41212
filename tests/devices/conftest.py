"""Tiny real artifacts: an ONNX net and a TFLite net, each in a folder with its manifest and golden outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trimtab.export.manifest import GOLDEN, MANIFEST, Artifact, Contract, Parity, TensorSpec, write_json
from trimtab.models import files


def write_artifact(
    folder: Path,
    *,
    name: str,
    kind: str,
    file: str,
    contract: Contract,
    golden: dict | None,
    ok=True,
    gate_db=60.0,
    precision="fp32",
) -> Path:
    case = {"dims": {"N": 2}, "inputs": 2, "max_abs_error": 1e-6, "sqnr_db": 120.0}
    artifact = Artifact(
        name=name,
        format=kind,
        precision=precision,
        file=file,
        size_bytes=files.size_bytes(folder / file),
        sha256=files.sha256(folder / file),
        contract=contract,
        spec_version="test",
        ops={},
        parity=Parity(
            ok=ok,
            gate_db=gate_db,
            sqnr_db=120.0,
            max_abs_error=1e-6,
            top1_agreement=None,
            inputs="random",
            evaluator="numpy",
            cases=(case,),
            reason="" if ok else "12.0 dB, 60 asked",
        ),
    )
    write_json(folder / MANIFEST, artifact.model_dump(mode="json"))
    if golden is not None:
        np.savez(folder / GOLDEN, **golden)
    return folder


def image_contract(batch: int | str = "N", size: int | str = 16) -> Contract:
    return Contract(
        inputs=(TensorSpec(name="image", shape=(batch, 3, size, size), layout="NCHW", value_range=(0.0, 1.0)),),
        outputs=(TensorSpec(name="logits", shape=(batch, 10), layout="NC"),),
    )


def build_onnx(
    folder: Path, *, name="net", width=8, batch: int | str = "N", size: int | str = 16, golden_error=0.0, **more
) -> Path:
    """conv 3×3 → relu → global mean → linear; golden outputs by onnx's reference evaluator, which no tested runtime shares."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    folder.mkdir(parents=True)
    rng = np.random.default_rng(width)
    weights = {
        "w1": rng.normal(size=(width, 3, 3, 3)).astype(np.float32) * 0.2,
        "w2": rng.normal(size=(width, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    image = rng.uniform(size=(2 if batch == "N" else batch, 3, 16, 16)).astype(np.float32)
    (logits,) = ReferenceEvaluator(model).run(None, {"image": image})
    golden = {"input:image": image, "output:logits": logits * (1 + golden_error)}
    return write_artifact(
        folder, name=name, kind="onnx", file="model.onnx", contract=image_contract(batch, size), golden=golden, **more
    )


def build_tflite(folder: Path, *, name="dense", width=10, features=64, **more) -> Path:
    """One fully connected layer with a free batch; golden outputs by NumPy."""
    flatbuffers = pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(width)
    weight = rng.normal(size=(width, features)).astype(np.float32)
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers = 3, [schema.BufferT()]
    graph.tensors = []

    def tensor(label, shape, data=None, signature=None):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = label, list(shape), schema.TensorType.FLOAT32, 0
        if signature:
            made.shapeSignature = list(signature)
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), dtype=np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    x = tensor("features", (1, features), signature=(-1, features))
    w = tensor("w", weight.shape, weight)
    b = tensor("b", (width,), np.zeros(width, np.float32))
    y = tensor("scores", (1, width), signature=(-1, width))
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [x, w, b], [y]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators, graph.inputs, graph.outputs = [operator], [x], [y]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (folder / "model.tflite").write_bytes(bytes(builder.Output()))
    contract = Contract(
        inputs=(TensorSpec(name="features", shape=("N", features), layout="NC"),),
        outputs=(TensorSpec(name="scores", shape=("N", width), layout="NC"),),
    )
    given = rng.normal(size=(2, features)).astype(np.float32)
    golden = {"input:features": given, "output:scores": given @ weight.T}
    return write_artifact(folder, name=name, kind="tflite", file="model.tflite", contract=contract, golden=golden, **more)


def build_exported(folder: Path, kind: str) -> Path:
    """The network of `build_onnx`, with its golden outputs, as this package's exporter of `kind` writes it."""
    import onnx
    import torch
    from onnx import numpy_helper

    from trimtab.export.exporter import ExportRequest, exporters

    build_onnx(folder)
    graph = onnx.load(folder / "model.onnx")
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.graph.initializer}

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = (torch.nn.Parameter(weights[name]) for name in ("w1", "w2"))

        def forward(self, image):
            return torch.relu(torch.nn.functional.conv2d(image, self.w1, padding=1)).mean((2, 3)) @ self.w2

    entry = exporters.entry(kind)
    path = folder / f"model{entry.card.suffix}"
    done = entry.value.export(ExportRequest(image_contract(), "fp32", path, graph=graph, module=Net().eval()))
    golden = dict(np.load(folder / GOLDEN, allow_pickle=False))
    if done.contract.inputs[0].layout == "NHWC":
        golden["input:image"] = np.ascontiguousarray(golden["input:image"].transpose(0, 2, 3, 1))
    return write_artifact(folder, name="net", kind=kind, file=path.name, contract=done.contract, golden=golden)


@pytest.fixture
def exported_folder(tmp_path):
    return lambda kind: build_exported(tmp_path / f"for-{kind}", kind)


@pytest.fixture
def onnx_folder(tmp_path):
    return lambda at="net", **more: build_onnx(tmp_path / at, **{"name": at, **more})


@pytest.fixture
def tflite_folder(tmp_path):
    return lambda at="dense", **more: build_tflite(tmp_path / at, **{"name": at, **more})


@pytest.fixture
def rewrite():
    """The manifest of a folder written anew around its (changed) file, so that its hash is right again."""

    def again(folder: Path, **changes) -> Path:
        old = Artifact.model_validate(files.read_json(folder / MANIFEST))
        path = folder / old.file
        new = old.model_copy(update={"sha256": files.sha256(path), "size_bytes": files.size_bytes(path), **changes})
        write_json(folder / MANIFEST, new.model_dump(mode="json"))
        return folder

    return again


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests of a file; skips where it or the engines can't be had."""
    from browser_kit import Browser, need_chromium, need_engine_files

    need_engine_files()
    running = Browser(need_chromium())
    yield running
    running.close()
