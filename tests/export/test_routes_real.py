"""Routes in their real environments, made here when they are not there: most are slow, and `make test-export` runs them."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_convert import CONTRACT, lively
from test_onnx_precisions import images
from test_routes import decibels, request
from torch import nn
from user_net import make

from trimtab.export.convert import module_source
from trimtab.export.exporter import ExportRequest, exporters
from trimtab.export.parity import relayout, run_in_layout, sqnr_db
from trimtab.export.routes import tensorflow
from trimtab.export.routes.environment import find, python_of, setup
from trimtab.export.routes.litert_torch import export_litert_torch
from trimtab.export.routes.process import run_script
from trimtab.export.routes.scripts.tf_ops import TABLE
from trimtab.export.routes.support import read_metadata_genuine, write_metadata_genuine
from trimtab.export.routes.tensorflow import export_tensorflow, saved_model
from trimtab.export.tflite.exporter import nhwc
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError


@pytest.fixture(scope="module")
def source():
    return module_source(lively(make()), CONTRACT, label="user")


def needs(name):
    """The environment, made now if it is not there."""
    setup(name, wait=True)


def zoo(name):
    torch.manual_seed(0)
    return module_source(lively(architectures.get(name)(in_channels=3, num_classes=10)), CONTRACT, label=name)


def agree_with_own_writer(source, facts, path, folder):
    """Both roads compute the same function; 90 dB is the gate of float32 artifacts."""
    own = exporters.get("tflite").export(request(source, "fp32", folder / "own.tflite"))
    inputs = {"image": images(2, seed=6)}
    outputs = [
        run_in_layout(
            exporters.get("tflite").runner(file, told.contract), inputs, module=source.contract, artifact=told.contract
        )
        for file, told in ((path, facts), (folder / "own.tflite", own))
    ]
    assert sqnr_db(outputs[1]["logits"], outputs[0]["logits"]) >= 90
    assert facts.contract == own.contract


@pytest.mark.slow
@pytest.mark.parametrize("name", ["user", "resnet8", "mobilenet_v2"])
def test_litert_torch_writes_the_same_function(name, source, tmp_path):
    needs("litert-torch")
    source = source if name == "user" else zoo(name)
    out = tmp_path / "model.tflite"
    facts = export_litert_torch(request(source, "fp32", out))
    assert facts.tool_versions["litert-torch"] == "0.10.0"
    assert facts.ops["CONV_2D"] > 3
    assert min(decibels(source, facts, out, batch) for batch in (1, 3)) >= 90
    agree_with_own_writer(source, facts, out, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["N", 1])
def test_litert_torch_shuffles_pixels_at_any_batch(tmp_path, batch):
    """Its own dynamic shapes don't go so far."""
    needs("litert-torch")
    shuffle = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PixelShuffle(2)).eval()
    spec = CONTRACT.inputs[0].model_copy(update={"shape": (batch, 3, 32, 32)})
    sharp = spec.model_copy(update={"name": "sharp", "shape": (batch, 2, 64, 64), "mean": (), "std": ()})
    contract = CONTRACT.model_copy(update={"inputs": (spec,), "outputs": (sharp,), "classes": ()})
    out = tmp_path / "a.tflite"
    facts = export_litert_torch(ExportRequest(contract, "fp32", out, module=shuffle))
    runner = exporters.get("tflite").runner(out, facts.contract)
    for size in (1, 3) if batch == "N" else (1,):
        x = contract.random_inputs({"N": size}, seed=0)
        got = run_in_layout(runner, x, module=contract, artifact=facts.contract)["sharp"]
        with torch.no_grad():
            assert sqnr_db(shuffle(torch.from_numpy(x["image"])).numpy(), got) >= 90


@pytest.mark.slow
def test_litert_torch_refuses_what_it_bakes_in(tmp_path):
    needs("litert-torch")

    class Token(nn.Module):
        """A learnt row before every sample's own, as in a vision transformer."""

        def __init__(self):
            super().__init__()
            self.row = nn.Parameter(torch.randn(1, 1, 16))
            self.head = nn.Linear(33 * 16, 10)

        def forward(self, image):
            rows = image.flatten(1).reshape(-1, 192, 16)[:, :32]
            return self.head(torch.cat([self.row.expand(rows.shape[0], -1, -1), rows], 1).flatten(1))

    with pytest.raises(UserError, match="litert-torch bakes the traced batch into this network's file") as caught:
        export_litert_torch(ExportRequest(CONTRACT, "fp32", tmp_path / "a.tflite", module=Token().eval()))
    assert "fix the batch at 1" in caught.value.hint
    assert not (tmp_path / "a.tflite").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["user", "resnet8", "mobilenet_v3_small"])
def test_tensorflow_writes_the_same_function(name, source, tmp_path):
    needs("tensorflow")
    source = source if name == "user" else zoo(name)
    out = tmp_path / "model.tflite"
    facts = export_tensorflow(request(source, "fp32", out))
    assert min(decibels(source, facts, out, batch) for batch in (1, 3)) >= 90
    agree_with_own_writer(source, facts, out, tmp_path)


def op_table():
    """Cases of every ONNX operator that the TFLite writer takes."""
    sys.path.append(str(Path(__file__).parent / "tflite"))
    from tflite_op_table import CASES

    return CASES


def contract_of(model):
    """The contract of one of its models."""
    from tflite_support import contract_of as told

    return told(model)


def reference(model, feeds):
    """What ONNX Runtime computes."""
    from tflite_support import reference as computed

    return computed(model, feeds)


def test_every_operator_that_is_written_has_a_tensorflow_call():
    from trimtab.export.tflite.model import build

    programs = (build(model, nhwc(contract_of(model))) for model in (case.model() for case in op_table()))
    kinds = {op.kind for program in programs for op in program.ops}
    assert len(kinds) > 60
    assert kinds <= set(TABLE)


ALL_AT_ONCE = """
import sys, types
def main(job):
    package = types.ModuleType("routes_scripts")
    package.__path__ = [job["scripts"]]
    sys.modules["routes_scripts"] = package
    from routes_scripts.tf_program import main as run_one
    for each in job["jobs"]:
        run_one(each)
    return {}
"""


@pytest.mark.slow
def test_every_operator_computes_in_tensorflow_what_onnx_runtime_computes(tmp_path):
    """Tolerance: 1e-4 absolute and 1e-5 relative, float32 sums of a few hundred terms of size one in another order."""
    needs("tensorflow")
    cases = [(case, case.model()) for case in op_table()]
    sizes = {"N": 3, "H": 10, "W": 14, "L": 9, "K": 3}
    jobs, wanted = [], []
    for number, (case, model) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        contract = contract_of(model)
        laid, program = tensorflow.program_of(ExportRequest(contract, "fp32", folder, graph=model))
        names = tensorflow.safe_names(laid)
        feeds = case.feeds(model, sizes, 0)
        held = {
            s.name: relayout(np.asarray(feeds[s.name], s.dtype), s, t)
            for s, t in zip(contract.inputs, laid.inputs, strict=True)
        }
        np.savez(folder / "feeds.npz", **{names[name]: array for name, array in held.items()})
        places = {key: str(folder / f"{key}.npz") for key in ("feeds", "answers")}
        jobs.append({**tensorflow.write_program(program, names, folder), **places, "saved": str(folder / "saved")})
        wanted.append((case, contract, laid, names, reference(model, feeds), folder / "answers.npz"))
    script = tmp_path / "all_at_once.py"
    script.write_text(ALL_AT_ONCE)
    scripts = str(Path(tensorflow.__file__).parent / "scripts")
    run_script(python_of(find("tensorflow")), script, {"jobs": jobs, "scripts": scripts}, seconds=500, label="TensorFlow")
    for case, contract, laid, names, outputs, path in wanted:
        with np.load(path, allow_pickle=False) as answers:
            for own, there in zip(contract.outputs, laid.outputs, strict=True):
                got = relayout(answers[names[own.name]], there, own).reshape(outputs[own.name].shape)
                np.testing.assert_allclose(
                    got.astype(np.float64),
                    outputs[own.name].astype(np.float64),
                    rtol=1e-5,
                    atol=max(case.atol, 1e-4),
                    err_msg=case.id,
                )


@pytest.mark.slow
def test_tensorflow_writes_fewer_bits(source, tmp_path):
    """Gates: those of parity, 45 dB for half weights and 25 dB for integers."""
    needs("tensorflow")
    feeds = tuple({"image": image[None]} for image in images(32))
    export_tensorflow(request(source, "fp32", tmp_path / "fp32.tflite"))
    whole = (tmp_path / "fp32.tflite").stat().st_size
    for precision, io, gate in (("fp16", "float32", 45), ("int8", "float32", 25), ("int8", "int8", 25), ("int8", "uint8", 25)):
        out = tmp_path / f"{precision}-{io}.tflite"
        facts = export_tensorflow(request(source, precision, out, calibration=feeds), io=io)
        assert out.stat().st_size < 0.6 * whole
        assert {spec.dtype for spec in (*facts.contract.inputs, *facts.contract.outputs)} == {io}
        assert (facts.contract.inputs[0].scale is None) == (io == "float32")
        assert gate <= decibels(source, facts, out, 1) < 90
        assert decibels(source, facts, out, 3) >= gate
        assert not facts.warnings


@pytest.mark.slow
def test_tensorflow_stores_zeros_as_nothing(source, tmp_path):
    needs("tensorflow")
    with pytest.raises(UserError, match="no weight has zeros enough"):
        export_tensorflow(request(source, "sparse", tmp_path / "none.tflite"))
    net = lively(make())
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                size = module.weight.abs()
                module.weight.mul_(size > size.flatten().kthvalue(int(0.8 * size.numel())).values)
    pruned = module_source(net, CONTRACT, label="pruned")
    sizes = {}
    for precision in ("fp32", "sparse"):
        facts = export_tensorflow(request(pruned, precision, tmp_path / f"{precision}.tflite"))
        sizes[precision] = (tmp_path / f"{precision}.tflite").stat().st_size
        assert decibels(pruned, facts, tmp_path / f"{precision}.tflite", 2) >= 90
    assert sizes["sparse"] < 0.5 * sizes["fp32"]  # a fifth of the weights, and where they stand
    assert facts.ops["DENSIFY"] > 3
    assert "stored without their zeros" in facts.warnings[0]


@pytest.mark.slow
def test_a_saved_model_is_written_and_run(source, tmp_path):
    needs("tensorflow")
    made = saved_model(request(source, "fp32", tmp_path / "saved"))
    assert made.path == tmp_path / "saved"
    assert (made.path / "saved_model.pb").is_file()
    assert made.sqnr_db >= 90
    assert made.max_abs_error < 1e-5  # float32 logits of size one
    assert made.names == {"image": "image", "logits": "logits"}
    with pytest.raises(UserError, match="exists and is not empty"):
        saved_model(request(source, "fp32", tmp_path / "saved"))


@pytest.mark.slow
def test_the_original_metadata_library_reads_and_writes(source, tmp_path):
    needs("tflite-support")
    plain, full = tmp_path / "plain.tflite", tmp_path / "full.tflite"
    options = exporters.entry("tflite").card.configured({"metadata": False})
    exporters.get("tflite").export(request(source, "fp32", plain, options=options))
    with pytest.raises(UserError, match="it finds no metadata"):
        read_metadata_genuine(plain)
    labels = [f"class {letter}" for letter in "abcdefghij"]
    assert write_metadata_genuine(plain, full, labels=labels, mean=[102.0], std=[51.0]) == full
    told = read_metadata_genuine(full)
    entry = told["metadata"]["subgraph_metadata"][0]["input_tensor_metadata"][0]
    assert entry["process_units"][0]["options"] == {"mean": [102.0], "std": [51.0]}
    assert list(told["files"].values()) == ["".join(f"{label}\n" for label in labels)]
    facts = exporters.get("tflite").runner(full, source.contract)
    assert facts({"image": np.zeros((1, 32, 32, 3), np.float32)})["logits"].shape == (1, 10)
    with pytest.raises(UserError, match="does not exist"):
        read_metadata_genuine(tmp_path / "absent.tflite")
    with pytest.raises(UserError, match="can't write metadata"):
        write_metadata_genuine(plain, full, labels=labels, mean=[1.0, 2.0], std=[51.0])


@pytest.mark.slow
def test_the_original_library_reads_what_trimtab_writes(source, tmp_path):
    needs("tflite-support")
    exporters.get("tflite").export(request(source, "fp32", tmp_path / "own.tflite"))
    told = read_metadata_genuine(tmp_path / "own.tflite")
    units = told["metadata"]["subgraph_metadata"][0]["input_tensor_metadata"][0]["process_units"]
    mean, std = (np.array(units[0]["options"][key]) for key in ("mean", "std"))
    np.testing.assert_allclose(mean, 255 * np.array(CONTRACT.inputs[0].mean), rtol=1e-5)
    np.testing.assert_allclose(std, 255 * np.array(CONTRACT.inputs[0].std), rtol=1e-5)
    assert "\n".join(CONTRACT.classes) in next(iter(told["files"].values()))


@pytest.mark.slow
def test_the_original_library_writes_metadata_on_request(source, tmp_path):
    needs("tflite-support")
    options = exporters.entry("tflite").card.configured({"metadata_writer": "tflite-support"})
    made = exporters.get("tflite").export(
        dataclasses.replace(request(source, "fp32", tmp_path / "own.tflite"), options=options)
    )
    told = read_metadata_genuine(tmp_path / "own.tflite")
    assert told["metadata"]["name"] == "ImageClassifier"
    assert exporters.get("tflite").runner(tmp_path / "own.tflite", made.contract)
