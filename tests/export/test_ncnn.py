"""ncnn: written by pnnx, run back in ncnn image by image, proven at every size, and refused in words."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_convert import CONTRACT, lively, plant
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export.artifact import load_artifact
from trimtab.export.convert import convert, module_source
from trimtab.export.exporter import ExportRequest, exporters
from trimtab.export.parity import sqnr_db
from trimtab.models.architectures import architectures
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError

pytest.importorskip("ncnn", reason="the ncnn exporter needs ncnn and pnnx (pip install 'trimtab[ncnn]')")
pytest.importorskip("pnnx", reason="the ncnn exporter needs ncnn and pnnx (pip install 'trimtab[ncnn]')")
NCNN = exporters.get("ncnn")


def contract(inputs, outputs=("y",)):
    """Inputs by shape; outputs that the exporter takes by name alone, with a free batch."""
    return Contract(
        inputs=tuple(
            TensorSpec(name=name, shape=shape, layout="NCHW" if len(shape) == 4 else "other") for name, shape in inputs.items()
        ),
        outputs=tuple(TensorSpec(name=name, shape=("N", "C", "A", "B")) for name in outputs),
    )


def export(module, io, folder, precision="fp32"):
    done = NCNN.export(ExportRequest(io, precision, folder / "model.ncnn", module=module.eval()))
    return done, NCNN.runner(folder / "model.ncnn", done.contract)


def worst(module, io, run, sizes):
    """The least SQNR over sizes and outputs."""
    found = []
    for dims in sizes:
        inputs = io.random_inputs(dims, seed=3)
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(value) for value in inputs.values()))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        got = run(inputs)
        assert [value.shape for value in got.values()] == [tuple(value.shape) for value in wanted]
        found += [sqnr_db(w.numpy(), g) for w, g in zip(wanted, got.values(), strict=True)]
    return min(found)


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return module_source(lively(make()), CONTRACT, label="user")


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 90, 200), ("fp16", 45, 90)])
def test_every_precision_is_what_it_says_and_is_proven(source, tmp_path, precision, least, most):
    (made,) = convert(source, [("ncnn", precision)], tmp_path, real=images(16, seed=1))
    artifact = load_artifact(made.folder)
    assert made.ok, artifact.parity.reason
    assert least <= artifact.parity.sqnr_db < most
    assert {case.dims["N"] for case in artifact.parity.cases} == {1, 2, 5}  # the runner goes through them one by one
    assert artifact.contract.inputs[0].shape == (1, 3, 32, 32)
    assert any("ncnn has no batch" in warning for warning in artifact.warnings)
    assert sorted(file.name for file in artifact.path(made.folder).iterdir()) == ["model.ncnn.bin", "model.ncnn.param"]
    text = (artifact.path(made.folder) / "model.ncnn.param").read_text()
    assert " image" in text  # the contract's names stand in the file
    assert " logits" in text
    assert artifact.ops["Convolution"] >= 6


def test_half_files_are_half_as_large(source, tmp_path):
    size = {}
    for precision in ("fp32", "fp16"):
        (made,) = convert(source, [("ncnn", precision)], tmp_path)
        size[precision] = made.artifact.size_bytes
    assert size["fp16"] < 0.6 * size["fp32"]


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v1", "vgg16_bn"])
def test_the_zoo(tmp_path, name):
    torch.manual_seed(0)
    net = lively(architectures.get(name)(in_channels=3, num_classes=10))
    (made,) = convert(module_source(net, CONTRACT, label=name), [("ncnn", "fp32")], tmp_path)
    assert made.ok, made.artifact.parity.reason


@pytest.mark.parametrize("fault", ["a wrong weight", "swapped channels", "a dropped bias", "a wrong normalisation"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_planted_fault_is_rejected(source, tmp_path, precision, fault):
    wrong = plant(source.module, fault)
    tampered = type(source)(source.label, source.contract, source.reference, source.graph, wrong, {})
    (made,) = convert(tampered, [("ncnn", precision)], tmp_path)
    assert not made.ok
    assert f"below the {precision} gate" in made.artifact.parity.reason


def grid():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    ).eval()


def isp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.PReLU(16), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2)
    ).eval()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("net", [grid, isp])
def test_free_height_and_width(net, precision, tmp_path):
    module, io = net(), contract({"image": ("N", 3, "H", "W")})
    done, run = export(module, io, tmp_path, precision)
    sizes = [{"N": 1, "H": 16, "W": 24}, {"N": 2, "H": 33, "W": 47}, {"N": 3, "H": 70, "W": 18}, {"N": 1, "H": 64, "W": 64}]
    assert worst(module, io, run, sizes) >= {"fp32": 90, "fp16": 45}[precision]
    assert done.contract.inputs[0].shape == (1, 3, "H", "W")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(5, 8)

    def forward(self, x, y):
        f = F.silu(self.a(x))
        return {"features": f + self.b(y)[:, :, None, None], "shares": f.mean((2, 3)).softmax(1)}


def test_two_inputs_and_a_dict_of_outputs(tmp_path):
    module, io = Two().eval(), contract({"photo": ("N", 3, 16, 16), "meta": ("N", 5)}, ("features", "shares"))
    _, run = export(module, io, tmp_path)
    given = io.random_inputs({"N": 3}, seed=0)
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(value) for value in given.values()))
    for name, got in run(given).items():
        assert sqnr_db(wanted[name].numpy(), got) >= 90
    with pytest.raises(UserError, match="batches of different sizes"):
        run({**given, "meta": given["meta"][:2]})


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_a_layer_ncnn_lacks_is_named_with_its_module_and_line(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), Bessel()))
    wanted = re.escape("ncnn has no layer for aten::special_bessel_j0 (module 1.1, test_ncnn.py:") + r"\d+\)"
    with pytest.raises(UserError, match=wanted):
        export(module, contract({"image": (1, 3, 8, 8)}), tmp_path)
    assert not list(tmp_path.iterdir())

    class Best(nn.Module):
        def forward(self, x):
            return {"best": torch.topk(x.flatten(1), 3)[0]}

    with pytest.raises(UserError, match=r"ncnn has no layer for torch\.topk \(test_ncnn\.py:\d+\)"):
        export(Best(), contract({"image": (1, 3, 8, 8)}), tmp_path)


@pytest.mark.parametrize(
    ("io", "message"),
    [
        (contract({"image": (2, 3, 8, 8)}), "first dimension must be a batch of 1 or a free one"),
        (contract({"my image": (1, 3, 8, 8)}), "tensor name 'my image' is not legal in ncnn"),
        (contract({"1": (1, 3, 8, 8)}), "tensor name '1' is not legal in ncnn, or an inner value has it"),
        (contract({"image": (1, 3, 8, 8)}, ("a", "b")), r"returns 1 tensors, the contract has 2 outputs \(a, b\)"),
        (
            Contract(
                inputs=(TensorSpec(name="x", shape=("N", 4), dtype="int64"),), outputs=(TensorSpec(name="y", shape=("N", 4)),)
            ),
            "tensor 'x' is int64, ncnn arrays are float32",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(io, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), io, tmp_path)
    assert not list(tmp_path.iterdir())


def test_int8_and_graphs_alone_are_refused_with_their_reasons(tmp_path):
    with pytest.raises(UserError, match="ncnn cannot be written as int8: its quantisers ncnn2table and ncnn2int8"):
        export(isp(), contract({"image": (1, 3, 8, 8)}), tmp_path, "int8")
    with pytest.raises(UserError, match="written from a torch module"):
        NCNN.export(ExportRequest(CONTRACT, "fp32", tmp_path / "model.ncnn"))


def test_damaged_files_and_wrong_inputs_are_named(source, tmp_path):
    done, run = export(source.module, CONTRACT, tmp_path)
    path = tmp_path / "model.ncnn"
    with pytest.raises(UserError, match=r"input 'image' has shape 1×5×32×32, model\.ncnn takes 1×3×32×32"):
        run({"image": np.zeros((1, 5, 32, 32), np.float32)})  # ncnn itself would answer with something
    other = done.contract.model_copy(update={"outputs": (done.contract.outputs[0].model_copy(update={"name": "elsewhere"}),)})
    with pytest.raises(UserError, match=r"model\.ncnn has no tensor named 'elsewhere'"):
        NCNN.runner(path, other)
    weights = (path / "model.ncnn.bin").read_bytes()
    (path / "model.ncnn.bin").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"ncnn cannot load model\.ncnn"):
        NCNN.runner(path, done.contract)
    (path / "model.ncnn.bin").write_bytes(weights)
    graph = (path / "model.ncnn.param").read_text()
    for damaged in ("", "junk", graph[: len(graph) // 2]):
        (path / "model.ncnn.param").write_text(damaged)
        with pytest.raises(UserError, match=r"model\.ncnn\.param is not an ncnn graph"):
            NCNN.runner(path, done.contract)


def test_export_and_run_are_silent(source, tmp_path, capfd):
    _, run = export(source.module, CONTRACT, tmp_path)
    run({"image": images(1)})
    assert tuple(capfd.readouterr()) == ("", "")
