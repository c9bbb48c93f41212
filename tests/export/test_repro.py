"""Repro scripts, run by plain Python: they show the failure they were written for, and nothing once it is gone."""

import ast
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_convert import CONTRACT, lively
from test_explain import LEFT, changed, negated
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export.convert import module_source
from trimtab.export.explain.bisect import Culprit, bisect_source
from trimtab.export.explain.pieces import Target
from trimtab.export.explain.pieces_onnx import OnnxPieces
from trimtab.export.explain.pieces_torch import TorchPieces
from trimtab.export.explain.repro import write_repro
from trimtab.export.explain.repro_formats import OWN
from trimtab.export.parity import probes

BARRED = "import sys\nsys.modules['trimtab'] = None\n"


@pytest.fixture(scope="module")
def source():
    return module_source(lively(make(width=8)), CONTRACT, label="user")


@pytest.fixture(scope="module")
def found(source):
    return probes(CONTRACT, source.reference, real=images(16, seed=1), seed=0)


@pytest.fixture(scope="module")
def inverse():
    """The piece of a network that ONNX, Core ML and ExecuTorch have no operation for."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, image):
            return torch.linalg.inv(self.conv(image)).mean((2, 3))

    torch.manual_seed(0)
    contract = CONTRACT.model_copy(
        update={"outputs": (CONTRACT.outputs[0].model_copy(update={"shape": ("N", 3)}),), "classes": ()}
    )
    small = contract.model_copy(update={"inputs": (contract.inputs[0].model_copy(update={"shape": ("N", 3, 4, 4)}),)})
    net = Net().eval()

    def reference(inputs):
        with torch.inference_mode():
            return {"logits": net(torch.from_numpy(inputs["image"])).numpy()}

    pieces = TorchPieces(net, small, probes(small, reference, real=None, seed=0))
    return {"inverse": pieces.between(1, 2), "before": pieces.prefix(1)}


def culprit_of(piece, kind="conversion", message="refused"):
    place = piece.places[-1]
    told = {"node": place.node, "op": place.op, "module": place.module, "line": place.line, "kind": kind, "message": message}
    return Culprit(**told, sqnr_db=None, alone=True, complete=True, tries=1, others=(), piece=piece)


def ran(script, *, barred=True):
    """The finished process of `python repro.py` in a folder of its own; `barred`: with trimtab out of reach."""
    if barred:
        (script.parent / "barred").mkdir(exist_ok=True)
        (script.parent / "barred" / "sitecustomize.py").write_text(BARRED)
    path = str(script.parent / "barred") if barred else os.environ.get("PYTHONPATH", "")
    return subprocess.run(
        [sys.executable, "-W", "ignore", script.name],
        cwd=script.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def needs(*names):
    for name in names:
        pytest.importorskip(name, reason=f"{name} is not installed")


PACKAGES = {"onnx": "onnxruntime", "coreml": "coremltools", "executorch": "executorch"}


@pytest.mark.parametrize("name", list(PACKAGES))
def test_an_operation_that_a_converter_has_not(source, inverse, tmp_path, name):
    needs(PACKAGES[name])
    script = write_repro(source, name, "fp32", culprit_of(inverse["inverse"]), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["repro.py"]  # its one small input stands in the script
    done = ran(script)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "FAILED: " in done.stdout
    assert "linalg_inv" in done.stdout + done.stderr


def test_what_a_converter_can_do_ends_with_zero(source, inverse, tmp_path):
    needs("onnxruntime")
    script = write_repro(source, "onnx", "fp32", culprit_of(inverse["before"], "parity"), tmp_path)
    done = ran(script)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "It does not happen here: SQNR" in done.stdout


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_planted_weight_is_shown_by_the_graph_s_one_node(source, found, tmp_path, name):
    needs({"onnx": "onnxruntime", "openvino": "openvino"}[name])
    wrong = dataclasses.replace(source, graph=changed(source.graph, LEFT, negated))
    culprit = bisect_source(wrong, Target(name, "fp32"), inputs=found)
    script = write_repro(wrong, name, "fp32", culprit, tmp_path)
    text = script.read_text()
    assert text.startswith(f'"""{name} fp32 of user: Conv in left.0 (user_net.py:')
    assert text.count("helper.make_node(") == 1
    assert "import torch" not in text
    assert (tmp_path / "repro.safetensors").exists()
    done = ran(script)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "is below 90 dB" in done.stdout
    sound = dataclasses.replace(culprit, piece=OnnxPieces(source, found).prefix(3))
    assert ran(write_repro(source, name, "fp32", sound, tmp_path / "sound")).returncode == 0


def test_a_weight_that_half_precision_can_t_hold(tmp_path):
    class Large(nn.Module):
        """float16 ends at 65504."""

        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 10)
            with torch.no_grad():
                self.second.weight[1] = 3e5

        def forward(self, image):
            x = torch.relu(self.first(image))
            return self.head((self.second(x) * 1e-5).mean((2, 3)))

    torch.manual_seed(0)
    large = module_source(Large().eval(), CONTRACT, label="large")
    found = probes(CONTRACT, large.reference, real=images(16, seed=1), seed=0)
    culprit = bisect_source(large, Target("onnx", "fp16"), inputs=found)
    assert culprit.kind == "parity"
    assert culprit.module == "second"
    done = ran(write_repro(large, "onnx", "fp16", culprit, tmp_path / "graph"))
    assert done.returncode == 1, done.stderr[-2000:]
    assert "is below 45 dB" in done.stdout
    as_module = TorchPieces(large.module, CONTRACT, found).between(2, 3)
    assert as_module.places[0].module == "second"
    script = write_repro(large, "onnx", "fp16", dataclasses.replace(culprit, piece=as_module), tmp_path / "module")
    assert "torch.ops.aten.conv2d.default(" in script.read_text()
    done = ran(script)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "is below 45 dB" in done.stdout


def test_formats_that_trimtab_writes_call_trimtab_and_say_so(source, found, tmp_path):
    needs("ai_edge_litert")
    wrong = dataclasses.replace(source, graph=changed(source.graph, LEFT, negated))
    culprit = bisect_source(wrong, Target("tflite", "fp32"), inputs=found)
    script = write_repro(wrong, "tflite", "fp32", culprit, tmp_path)
    assert "this script calls its public functions" in script.read_text().split('"""')[1]
    done = ran(script, barred=False)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "is below 90 dB" in done.stdout
    assert "No module named 'trimtab.export'" in ran(script).stderr  # the other tests' scripts truly do without it


def test_integers_take_their_calibration_inputs_along(source, found, tmp_path):
    feeds = [{"image": images(1, seed=k)} for k in range(16)]
    piece = OnnxPieces(source, found, feeds=feeds).prefix(2)
    script = write_repro(source, "onnx", "int8", culprit_of(piece, "parity"), tmp_path)
    done = ran(script, barred=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    ratio = float(done.stdout.rsplit("SQNR ", 1)[1].split(" ")[0])
    assert 25 <= ratio < 70  # rounded, within the gate


@pytest.mark.parametrize(("name", "origin"), list(OWN))
def test_every_template_is_python_and_imports_only_what_it_names(source, found, inverse, tmp_path, name, origin):
    piece = inverse["inverse"] if origin == "module" else OnnxPieces(source, found).between(2, 4)
    text = write_repro(source, name, "fp32", culprit_of(piece), tmp_path).read_text()
    tree = ast.parse(text)
    top = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    own = {"coremltools", "executorch", "ncnn", "pnnx", "MNN", "_tools", "onnxruntime"}
    assert "trimtab" not in top
    assert top <= {"io", "math", "pathlib", "sys", "tempfile", "numpy", "torch", "onnx", "safetensors"} | own
    assert ("torch" in top) == (origin == "module")


@pytest.mark.parametrize("legacy", [False, "1.13"])
def test_short_tensors_stand_in_the_script_to_the_last_bit(tmp_path, legacy):
    from trimtab.export.explain.repro_code import tensors_code

    rng = np.random.default_rng(0)
    values = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": np.array([np.inf, -np.inf, np.nan, -0.0], np.float64),
        "c": np.array(7, np.int64),
        "d": rng.normal(size=5).astype(np.float16),
    }
    scope = {}
    with np.printoptions(legacy=legacy):
        code = tensors_code(values, tmp_path)
    exec("\n".join([*code.imports, code.body]), scope)  # noqa: S102 - the script's own text
    for name, value in values.items():
        assert scope["TENSORS"][name].dtype == value.dtype
        assert scope["TENSORS"][name].shape == value.shape
        np.testing.assert_array_equal(scope["TENSORS"][name], value)
    assert not list(tmp_path.iterdir())
    tensors_code({"big": np.zeros(10_000, np.float32)}, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["repro.safetensors"]
