"""TFLite in fewer bits: computed so, proven, smaller, free in its batch, and refused where nothing would become what was asked."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.export.convert import convert, file_source, module_source
from trimtab.export.exporter import exporters
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_convert import CONTRACT, lively
from test_onnx_precisions import images
from user_net import make

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
FLOAT16, INT16, INT8 = 1, 7, 9


@pytest.fixture(scope="module")
def source():
    return module_source(lively(make()), CONTRACT, label="user")


def exported(source, precision, folder, **options):
    given = {"real": images(16, seed=1), "calibration": images(64), **options}
    (made,) = convert(source, [("tflite", precision)], folder, **given)
    return made


def parts(made):
    """(tensors, (operator, first output's type) of each operator) of the file."""
    model = schema.ModelT.InitFromPackedBuf(bytearray((made.folder / "model.tflite").read_bytes()), 0)
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = [names[max(c.builtinCode, c.deprecatedBuiltinCode)] for c in model.operatorCodes]
    graph = model.subgraphs[0]
    return graph.tensors, [(codes[op.opcodeIndex], graph.tensors[op.outputs[0]].type) for op in graph.operators]


@pytest.mark.parametrize(
    ("precision", "kind", "least", "most"), [("int8", INT8, 25, 60), ("int16x8", INT16, 30, 90)], ids=["int8", "int16x8"]
)
def test_integers_throughout(source, tmp_path, precision, kind, least, most):
    made = exported(source, precision, tmp_path)
    assert made.ok
    assert made.artifact.parity.gate_db == 25
    assert least <= made.artifact.parity.sqnr_db < most
    tensors, ops = parts(made)
    assert {t for name, t in ops if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")} == {kind}
    assert ops[0][0] == "QUANTIZE"
    assert ops[-1][0] == "DEQUANTIZE"
    assert not made.artifact.warnings
    assert sum(t.type == INT8 for t in tensors) >= 3
    assert made.artifact.ops["QUANTIZE"] == 1
    assert made.artifact.contract.inputs[0].dtype == "float32"


@pytest.mark.parametrize(
    ("precision", "kind", "least"), [("fp16", FLOAT16, 45), ("int8-dynamic", INT8, 25)], ids=["fp16", "int8-dynamic"]
)
def test_weights_alone_need_no_data(source, tmp_path, precision, kind, least):
    made = exported(source, precision, tmp_path, calibration=None)
    assert made.ok
    assert made.artifact.parity.sqnr_db >= least
    tensors, ops = parts(made)
    assert any(t.type == kind for t in tensors)
    assert {t for name, t in ops if name == "CONV_2D"} == {0}


def test_a_free_batch_stays_free_and_files_shrink(source, tmp_path):
    sizes = {}
    for precision in ("fp32", "fp16", "int8", "int8-dynamic", "int16x8"):
        made = exported(source, precision, tmp_path)
        sizes[precision] = made.artifact.size_bytes
        assert {case.dims["N"] for case in made.artifact.parity.cases} == {1, 2, 5}
        run = exporters.get("tflite").runner(made.folder / "model.tflite", made.artifact.contract)
        assert run({"image": np.zeros((3, 32, 32, 3), np.float32)})["logits"].shape == (3, 10)
    assert sizes["int8-dynamic"] < sizes["fp16"] < sizes["fp32"]
    assert sizes["int8"] < sizes["fp32"]


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v1", "vgg16_bn"])
def test_the_zoo_in_int8(tmp_path, name):
    torch.manual_seed(0)
    net = lively(architectures.get(name)(in_channels=3, num_classes=10))
    made = exported(module_source(net, CONTRACT, label=name), "int8", tmp_path)
    assert made.artifact.parity.sqnr_db >= 20  # untrained nets are hard to quantise


def test_the_quantisers_average_of_ranges_is_not_used(tmp_path, monkeypatch):
    """With outliers in a few images, least and greatest values hold them, and a moving average forgets them."""
    from ai_edge_quantizer.utils import qsv_utils

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10, bias=False)
    net = module_source(nn.Sequential(*layers), CONTRACT, label="net")
    calibration = np.concatenate([4 * images(4), 0.2 * images(60)])
    ours = exported(net, "int8", tmp_path, calibration=calibration).artifact.parity.sqnr_db
    monkeypatch.setattr(qsv_utils, "min_max_update", qsv_utils.moving_average_update)
    theirs = exported(net, "int8", tmp_path, calibration=calibration, force=True).artifact.parity.sqnr_db
    assert ours > theirs + 6


def test_what_can_t_be_quantised_is_refused(source, tmp_path):
    with pytest.raises(UserError, match="TFLite int8 takes its ranges from real inputs, and there are none"):
        exported(source, "int8", tmp_path, calibration=None)

    class Shift(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).exp()

    contract = image_classifier(channels=3, height=32, width=32, classes=tuple("abc"), mean=(0.4,) * 3, std=(0.2,) * 3)
    shift = module_source(Shift(), contract, label="shift")
    for precision, message in (
        ("fp16", "TFLite fp16 was asked, and no weight could be held in float16"),
        ("int8-dynamic", "TFLite int8-dynamic was asked, and no weight could be held in int8"),
    ):
        with pytest.raises(UserError, match=message):
            exported(shift, precision, tmp_path)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_a_users_onnx_file_in_half(source, tmp_path):
    (made,) = convert(source, [("onnx", "fp32")], tmp_path / "a")
    (half,) = convert(file_source(made.folder / "model.onnx"), [("tflite", "fp16")], tmp_path / "b")
    assert half.ok
