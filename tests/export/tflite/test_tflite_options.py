"""What a TFLite file can be told: the layout of its images, and integers at its doors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")
pytest.importorskip("ai_edge_quantizer", reason="needs trimtab[tflite]")

from ai_edge_litert.interpreter import Interpreter
from tflite_nets import build
from tflite_requests import ENTRY, images, user_source, verdict, write
from torch import nn

from trimtab.export.convert import convert, module_source
from trimtab.export.parity import relayout
from trimtab.export.tflite.doors import with_integer_doors
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.errors import UserError


@pytest.fixture(scope="module")
def source():
    return user_source()


def doors(path):
    """(dtype, scale, zero point) of the file's one input and one output, as LiteRT reads them."""
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    sides = (*interpreter.get_input_details(), *interpreter.get_output_details())
    return [(np.dtype(side["dtype"]).name, *side["quantization"]) for side in sides]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_images_come_as_nchw_on_request(source, tmp_path, precision):
    out = tmp_path / "m.tflite"
    facts = write(source, precision, out, layout="NCHW")
    assert facts.contract.inputs[0].layout == "NCHW"
    assert facts.contract.inputs[0].shape == ("N", 3, 32, 32)
    assert facts.ops["TRANSPOSE"] == facts.audit.transposes == 1
    assert verdict(source, facts, out, precision).ok
    assert "TRANSPOSE" not in write(source, precision, out).ops


def test_an_image_that_goes_out_is_turned_too(tmp_path):
    shape = ("N", 4, 32, 32)
    contract = Contract(
        inputs=(TensorSpec(name="raw", shape=shape, layout="NCHW"),),
        outputs=(TensorSpec(name="rgb", shape=("N", 3, 64, 64), layout="NCHW"),),
    )
    source = module_source(build("isp"), contract, label="isp")
    out = tmp_path / "m.tflite"
    facts = write(source, "fp32", out, layout="NCHW")
    assert facts.ops["TRANSPOSE"] == 2
    x = np.random.default_rng(0).uniform(size=(2, 4, 32, 32)).astype(np.float32)
    (found,) = ENTRY.value.runner(out, facts.contract)({"raw": x}).values()
    np.testing.assert_allclose(found, source.reference({"raw": x})["rgb"], atol=1e-5)  # float32 sums of a few hundred terms


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integer_doors(source, tmp_path, dtype):
    out = tmp_path / "m.tflite"
    facts = write(source, "int8", out, io=dtype)
    specs = (*facts.contract.inputs, *facts.contract.outputs)
    assert [(s.dtype, s.scale, s.zero_point) for s in specs] == doors(out)
    assert {s.dtype for s in specs} == {dtype}
    assert all(0 < s.scale < 1 for s in specs)
    assert facts.ops.get("QUANTIZE", 0) == (2 if dtype == "uint8" else 0)
    assert "DEQUANTIZE" not in facts.ops
    parity = verdict(source, facts, out, "int8")
    assert parity.ok
    assert {case.dims["N"] for case in parity.cases} == {1, 2, 5}
    plain = write(source, "int8", tmp_path / "f.tflite")
    floating = verdict(source, plain, tmp_path / "f.tflite", "int8")
    # the same integers are computed: rounding the output once more costs at most a decibel at this size
    assert abs(parity.sqnr_db - floating.sqnr_db) < 1


def test_uint8_doors_hold_the_int8_ones_shifted_by_128(source, tmp_path):
    signed, unsigned = (write(source, "int8", tmp_path / f"{io}.tflite", io=io) for io in ("int8", "uint8"))
    x = signed.contract.inputs[0].stored(images(4).transpose(0, 2, 3, 1))
    one = ENTRY.value.runner(tmp_path / "int8.tflite", signed.contract)({"image": x})["logits"]
    wide = (x.astype(np.int16) + 128).astype(np.uint8)
    other = ENTRY.value.runner(tmp_path / "uint8.tflite", unsigned.contract)({"image": wide})["logits"]
    np.testing.assert_array_equal(other, one.astype(np.int16) + 128)


def test_convert_writes_proves_and_keeps_integer_doors(source, tmp_path):
    options = {"tflite": ENTRY.card.configured({"io": "int8"})}
    (made,) = convert(source, [("tflite", "int8")], tmp_path, real=images(16, seed=1), calibration=images(64), options=options)
    assert made.ok
    golden = np.load(made.folder / "golden.npz")
    assert golden["input:image"].dtype == golden["output:logits"].dtype == np.int8
    run = ENTRY.value.runner(made.folder / "model.tflite", made.artifact.contract)
    steps = run({"image": golden["input:image"]})["logits"].astype(int) - golden["output:logits"]
    assert np.abs(steps).max() <= 12  # of 255 steps: 25 dB, the gate, is an error of 5.6 % of the output's size
    dumped = made.artifact.contract.model_dump_json()
    assert Contract.model_validate_json(dumped) == made.artifact.contract


def test_the_last_layer_kept_in_float_still_leaves_by_an_integer_door(source, tmp_path):
    last = source.graph.graph.node[-1].name
    out = tmp_path / "m.tflite"
    facts = write(source, "int8", out, io="int8", keep={last})
    assert facts.contract.outputs[0].dtype == "int8"
    assert facts.audit.islands["FULLY_CONNECTED"] == 1
    assert verdict(source, facts, out, "int8").ok


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-dynamic", "int16x8"])
def test_integer_doors_go_with_int8_alone(source, tmp_path, precision):
    with pytest.raises(UserError, match=rf"TFLite {precision} with uint8 inputs and outputs can't be made"):
        write(source, precision, tmp_path / "m.tflite", io="uint8")
    assert not list(tmp_path.iterdir())


def test_a_door_that_stays_float_is_refused(source, tmp_path):
    facts = write(source, "fp32", tmp_path / "m.tflite")
    with pytest.raises(UserError, match="int8 inputs and outputs was asked, and 'image' stays in float"):
        with_integer_doors((tmp_path / "m.tflite").read_bytes(), facts.contract, "int8")


def test_an_operator_without_integer_kernel_still_leaves_by_an_integer_door(tmp_path):
    class Powers(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3)).exp()

    torch.manual_seed(0)
    contract = image_classifier(channels=3, height=32, width=32, classes=tuple("abcd"), mean=(0.4,) * 3, std=(0.2,) * 3)
    powers = module_source(Powers(), contract, label="powers")
    facts = write(powers, "int8", tmp_path / "m.tflite", io="int8")
    assert facts.contract.outputs[0].dtype == "int8"
    assert facts.audit.islands["EXP"] == 1
    assert any("1 EXP" in warning for warning in facts.warnings)
    assert verdict(powers, facts, tmp_path / "m.tflite", "int8").ok


def test_unknown_options_and_values_are_refused():
    with pytest.raises(UserError, match="TFLite has no option 'layuot'"):
        ENTRY.card.configured({"layuot": "NCHW"})
    with pytest.raises(UserError, match="TFLite: io = 'int4'"):
        ENTRY.card.configured({"io": "int4"})


def test_a_contract_says_what_integers_stand_for():
    plain = TensorSpec(name="x", shape=(2, 3))
    assert "scale" not in plain.model_dump_json()  # contracts of before keep their hashes
    assert "zero_point" not in plain.model_dump_json()
    held = TensorSpec(name="x", shape=(2, 3), dtype="int8", scale=0.5, zero_point=-3)
    numbers = np.array([[-100, -0.26, 0], [0.24, 0.26, 100]], np.float32)
    np.testing.assert_array_equal(held.stored(numbers), np.array([[-128, -4, -3], [-3, -2, 127]], np.int8))
    np.testing.assert_array_equal(held.real(held.stored(numbers))[:, 1:2], [[-0.5], [0.5]])
    np.testing.assert_array_equal(relayout(numbers, plain, held), held.stored(numbers))
    np.testing.assert_array_equal(relayout(held.stored(numbers), held, plain), held.real(held.stored(numbers)))
    assert held.random({}, np.random.default_rng(0)).dtype == np.int8
    setting = held.model_copy(update={"name": "k", "shape": (2,), "default": (0.5, 1.0)})
    values = Contract(inputs=(setting,), outputs=(plain,)).defaults()["k"]
    np.testing.assert_array_equal(values, np.array([-2, -1], np.int8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "int8", "scale": 0.5}, "they go together"),
        ({"dtype": "int8", "zero_point": 1}, "they go together"),
        ({"scale": 0.5, "zero_point": 1}, "goes with int8 or uint8, dtype is float32"),
        ({"dtype": "int8", "scale": 0, "zero_point": 1}, "greater than 0"),
    ],
)
def test_a_scale_that_means_nothing_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TensorSpec(name="x", shape=(2,), **given)
