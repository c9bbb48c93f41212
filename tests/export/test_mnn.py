"""MNN: written by its own converter, run back in MNN, proven at every size, and refused in words."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from test_convert import CONTRACT, lively, plant
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export.convert import convert, module_source
from trimtab.export.exporter import ExportRequest, exporters
from trimtab.models.architectures import architectures
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.errors import UserError

pytest.importorskip("MNN", reason="the MNN exporter needs mnn (pip install 'trimtab[mnn]')")

FREE = image_classifier(channels=3, height="H", width="W", classes=tuple("abcdefghij"), mean=(0.4,) * 3, std=(0.2,) * 3)


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return module_source(lively(make()), CONTRACT, label="user")


def exported(source, precision, folder, **options):
    given = {"real": images(16, seed=1), "calibration": images(64), **options}
    (made,) = convert(source, [("mnn", precision)], folder, **given)
    return made


@pytest.mark.parametrize(
    ("precision", "least", "most"),
    [("fp32", 90, 200), ("fp16", 45, 90), ("int8-weights", 30, 60)],
)
def test_every_precision_is_what_it_says_and_is_proven(source, tmp_path, precision, least, most):
    made = exported(source, precision, tmp_path)
    artifact = made.artifact
    assert made.ok, artifact.parity.reason
    assert least <= artifact.parity.sqnr_db < most  # the upper bounds: not float in disguise
    assert {case.dims["N"] for case in artifact.parity.cases} == {1, 2, 5}
    assert artifact.ops["Convolution"] >= 9
    assert artifact.parity.evaluator.startswith("MNN ")


def test_files_shrink_with_their_bits(source, tmp_path):
    size = {p: exported(source, p, tmp_path).artifact.size_bytes for p in ("fp32", "fp16", "int8-weights")}
    assert size["fp16"] < 0.6 * size["fp32"]
    assert size["int8-weights"] < 0.45 * size["fp32"]


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v1"])
@pytest.mark.parametrize("precision", ["fp32", "int8-weights"])
def test_the_zoo(tmp_path, name, precision):
    torch.manual_seed(0)
    net = lively(architectures.get(name)(in_channels=3, num_classes=10))
    made = exported(module_source(net, CONTRACT, label=name), precision, tmp_path)
    assert made.artifact.parity.sqnr_db >= {"fp32": 90, "int8-weights": 25}[precision]


def tampered(source, fault):
    wrong = module_source(plant(source.module, fault), CONTRACT, label="wrong")
    return type(source)(source.label, source.contract, source.reference, wrong.graph, wrong.module, {})


@pytest.mark.parametrize("fault", ["a wrong weight", "swapped channels", "a dropped bias", "a wrong normalisation"])
def test_a_planted_fault_is_rejected(source, tmp_path, fault):
    made = exported(tampered(source, fault), "fp32", tmp_path)
    assert not made.ok
    assert "below the fp32 gate" in made.artifact.parity.reason


class Picky(nn.Module):
    """Its answers hang on each pixel of each channel, as a trained network's do; an untrained one with a mean at its end sees little."""

    def __init__(self):
        super().__init__()
        self.entry, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4)), nn.Linear(8 * 64, 10)

    def forward(self, x):
        return self.head(torch.relu(self.entry(x)).flatten(1))


@pytest.mark.parametrize("fault", ["", "a wrong weight", "swapped channels", "a dropped bias", "a wrong normalisation"])
def test_a_planted_fault_is_rejected_in_int8_weights(tmp_path, fault):
    torch.manual_seed(0)
    net = Picky().eval()
    net.head.bias.data += 1
    source = module_source(net, CONTRACT, label="picky")
    made = exported(tampered(source, fault) if fault else source, "int8-weights", tmp_path)
    assert made.ok == (not fault)
    assert made.ok or "below the int8-weights gate" in made.artifact.parity.reason


class FreeNet(nn.Module):
    """Pixels to pixels, and sizes that are not the traced one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3, stride=2, padding=1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))).mean((2, 3))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-weights"])
def test_free_height_and_width(tmp_path, precision):
    torch.manual_seed(0)
    source = module_source(FreeNet().eval(), FREE, label="free")
    made = exported(source, precision, tmp_path, calibration=images(64, size=64), real=images(16, size=64, seed=1))
    assert made.ok, made.artifact.parity.reason
    assert len({(case.dims["H"], case.dims["W"]) for case in made.artifact.parity.cases}) == 3


def test_an_adaptive_pool_to_a_grid_with_free_sides_is_refused_before_it_is_wrong(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)).eval()
    with pytest.raises(UserError, match="can't be traced to ONNX"):
        convert(module_source(net, FREE, label="grid"), [("mnn", "fp32")], tmp_path)
    assert not list(tmp_path.iterdir())


def graph_of(*nodes):
    value = helper.make_tensor_value_info
    shape = ["N", 3, 32, 32]
    graph = helper.make_graph(
        list(nodes), "g", [value("image", TensorProto.FLOAT, shape)], [value("logits", TensorProto.FLOAT, None)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)])


def test_an_operator_mnn_lacks_is_named_with_its_node(tmp_path):
    graph = graph_of(
        helper.make_node("Relu", ["image"], ["a"]),
        helper.make_node("Weird", ["a"], ["logits"], name="head/weird", domain="custom"),
    )
    with pytest.raises(UserError, match=r"MNN has no operator for Weird \(node head/weird\)"):
        exporters.get("mnn").export(ExportRequest(CONTRACT, "fp32", tmp_path / "model.mnn", graph=graph))
    assert not list(tmp_path.iterdir())


def test_integers_that_nothing_becomes_are_refused(source, tmp_path):
    class Shift(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).exp()

    contract = image_classifier(channels=3, height=32, width=32, classes=tuple("abc"), mean=(0.4,) * 3, std=(0.2,) * 3)
    with pytest.raises(UserError, match="MNN int8-weights was asked, and the network has no convolution"):
        exported(module_source(Shift(), contract, label="shift"), "int8-weights", tmp_path)
    with pytest.raises(UserError, match="MNN cannot be written as int8: MNN's own quantiser crashes") as caught:
        exporters.get("mnn").export(ExportRequest(CONTRACT, "int8", tmp_path / "model.mnn", graph=source.graph))
    assert caught.value.hint == "use fp32, fp16, int8-weights"


def test_damaged_files_and_wrong_inputs_are_named(source, tmp_path):
    made = exported(source, "fp32", tmp_path)
    path, contract = made.folder / "model.mnn", made.artifact.contract
    run = exporters.get("mnn").runner(path, contract)
    with pytest.raises(UserError, match=r"input 'image' has shape 1×5×32×32, model\.mnn takes N×3×32×32"):
        run({"image": np.zeros((1, 5, 32, 32), np.float32)})
    other = contract.model_copy(update={"outputs": (contract.outputs[0].model_copy(update={"name": "elsewhere"}),)})
    with pytest.raises(UserError, match=r"MNN cannot load model\.mnn"):
        exporters.get("mnn").runner(path, other)
    data = path.read_bytes()
    for damaged in (b"", b"junk" * 99, data[: len(data) // 2], b"\x07" * 64 + data[64:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"MNN cannot load model\.mnn"):
            exporters.get("mnn").runner(path, contract)


def test_two_inputs_two_outputs_and_int64(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(5, 8)

        def forward(self, x, y):
            f = torch.relu(self.a(x))
            return f + self.b(y)[:, :, None, None], f.mean((2, 3)).argmax(1)

    contract = Contract(
        inputs=(TensorSpec(name="photo", shape=("N", 3, 16, 16), layout="NCHW"), TensorSpec(name="meta", shape=("N", 5))),
        outputs=(
            TensorSpec(name="features", shape=("N", 8, 16, 16), layout="NCHW"),
            TensorSpec(name="best", shape=("N",), dtype="int64"),
        ),
    )
    torch.manual_seed(0)
    (made,) = convert(module_source(Two().eval(), contract, label="two"), [("mnn", "fp32")], tmp_path)
    assert made.ok, made.artifact.parity.reason
    assert made.artifact.contract.outputs[1].dtype == "int32"
    assert any("'best' is int32" in warning for warning in made.artifact.warnings)


def test_nothing_phones_home_and_nothing_is_printed(source, tmp_path):
    """MNN's console scripts install and run a telemetry client; its name must never be imported, nor a word be printed."""
    code = (
        "import sys, onnx, pathlib\n"
        "from trimtab.export.exporter import ExportRequest, exporters\n"
        "from trimtab.models.contract import Contract\n"
        "contract = Contract.model_validate_json(pathlib.Path('contract.json').read_text())\n"
        "request = ExportRequest(contract, 'fp16', pathlib.Path('model.mnn'), graph=onnx.load('model.onnx'))\n"
        "exporters.get('mnn').export(request)\n"
        "import numpy as np\n"
        "exporters.get('mnn').runner(pathlib.Path('model.mnn'), contract)({'image': np.zeros((1, 3, 32, 32), np.float32)})\n"
        "assert not [m for m in sys.modules if m.startswith(('aliyun', 'MNN.tools'))]\n"
    )
    (tmp_path / "contract.json").write_text(CONTRACT.model_dump_json())
    onnx.save(source.graph, tmp_path / "model.onnx")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
