"""ExecuTorch: lowered for XNNPACK, run back in its own runtime, proven at every size, and refused in words."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_convert import CONTRACT, lively, plant
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export.convert import convert, module_source
from trimtab.export.exporter import ExportRequest, exporters
from trimtab.export.parity import sqnr_db
from trimtab.models.architectures import architectures
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.errors import UserError

pytest.importorskip("executorch", reason="the ExecuTorch exporter needs executorch (pip install 'trimtab[executorch]')")
pytest.importorskip("torchao", reason="the ExecuTorch exporter needs torchao (pip install 'trimtab[executorch]')")
EXECUTORCH = exporters.get("executorch")
CARD = exporters.entry("executorch").card


def contract(inputs, outputs=("y",)):
    """Inputs by shape; outputs that the exporter takes by name alone."""
    return Contract(
        inputs=tuple(
            TensorSpec(name=name, shape=shape, layout="NCHW" if len(shape) == 4 else "other") for name, shape in inputs.items()
        ),
        outputs=tuple(TensorSpec(name=name, shape=("N",)) for name in outputs),
    )


def export(module, io, folder, precision="fp32", **options):
    request = ExportRequest(io, precision, folder / "model.pte", module=module.eval(), options=CARD.configured(options))
    done = EXECUTORCH.export(request)
    return done, EXECUTORCH.runner(folder / "model.pte", done.contract)


def worst(module, io, run, sizes):
    """The least SQNR over sizes and outputs."""
    found = []
    for dims in sizes:
        inputs = io.random_inputs(dims, seed=3)
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(value) for value in inputs.values()))
        wanted = list(wanted.values()) if isinstance(wanted, dict) else [wanted]
        got = run(inputs)
        assert [value.shape for value in got.values()] == [tuple(value.shape) for value in wanted]
        found += [sqnr_db(w.numpy(), g) for w, g in zip(wanted, got.values(), strict=True)]
    return min(found)


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return module_source(lively(make()), CONTRACT, label="user")


def exported(source, precision, folder, **options):
    given = {"real": images(16, seed=1), "calibration": images(64), **options}
    (made,) = convert(source, [("executorch", precision)], folder, **given)
    return made


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """The user's network in every precision."""
    folder = tmp_path_factory.mktemp("made")
    return {precision: exported(source, precision, folder) for precision in ("fp32", "fp16", "int8")}


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 90, 200), ("fp16", 45, 90), ("int8", 25, 60)])
def test_every_precision_is_what_it_says_and_is_proven(made, precision, least, most):
    artifact = made[precision].artifact
    assert made[precision].ok, artifact.parity.reason
    assert least <= artifact.parity.sqnr_db < most  # the upper bounds: not float in disguise
    assert {case.dims["N"] for case in artifact.parity.cases} == {1, 2, 5}
    assert artifact.ops["XNNPACK: convolution"] == 10
    assert artifact.ops["XNNPACK delegate"] >= 1
    assert artifact.audit.delegates["XNNPACK"] == () or precision == "fp16"
    assert any("free dimensions (N 1…8)" in warning for warning in artifact.warnings)


def test_int8_says_what_stays_in_float_and_is_small(made):
    artifact = made["int8"].artifact
    assert {"hardswish", "sigmoid"} <= set(artifact.audit.islands)  # XNNPACK has no integer form of either
    assert not {"convolution", "linear", "relu"} & set(artifact.audit.islands)
    assert any(w.startswith("these compute in float inside the int8 program") and "sigmoid ×1" in w for w in artifact.warnings)
    assert artifact.size_bytes < 0.5 * made["fp32"].artifact.size_bytes


def test_half_precision_says_that_its_file_is_no_smaller(made):
    artifact = made["fp16"].artifact
    assert artifact.size_bytes > 0.9 * made["fp32"].artifact.size_bytes
    assert any("the file is no smaller" in warning for warning in artifact.warnings)
    assert artifact.audit.casts == 2


def test_a_free_batch_reaches_its_bound_whatever_torch_s_own_kernels_are(source, tmp_path):
    """Torch's choice of convolution kernels asks for a batch below 16, and would bound it at 15."""
    done, run = export(source.module, CONTRACT, tmp_path, max_batch=20)
    assert any("N 1…20" in warning for warning in done.warnings)
    assert worst(source.module, CONTRACT, run, [{"N": 1}, {"N": 16}, {"N": 20}]) >= 90
    with pytest.raises(UserError, match="Attempted to resize a bounded tensor") as caught:
        run({"image": images(21)})
    assert "executorch.max_batch" in caught.value.hint


@pytest.mark.parametrize("name", ["resnet8"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_zoo(tmp_path, name, precision):
    torch.manual_seed(0)
    net = lively(architectures.get(name)(in_channels=3, num_classes=10))
    artifact = exported(module_source(net, CONTRACT, label=name), precision, tmp_path).artifact
    assert artifact.parity.sqnr_db >= {"fp32": 90, "int8": 20}[precision]  # untrained nets are hard to quantise


@pytest.mark.parametrize("fault", ["a wrong weight", "swapped channels", "a dropped bias", "a wrong normalisation"])
def test_a_planted_fault_is_rejected(source, tmp_path, fault):
    tampered = type(source)(source.label, source.contract, source.reference, source.graph, plant(source.module, fault), {})
    artifact = exported(tampered, "fp32", tmp_path).artifact
    assert not artifact.parity.ok
    assert "below the fp32 gate" in artifact.parity.reason


class Picky(nn.Module):
    """Its answers hang on each pixel of each channel, as a trained network's do; an untrained one with a mean at its end sees little."""

    def __init__(self):
        super().__init__()
        self.entry, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4)), nn.Linear(8 * 64, 10)

    def forward(self, x):
        return self.head(torch.relu(self.entry(x)).flatten(1))


@pytest.mark.parametrize("fault", ["", "a wrong weight", "swapped channels", "a dropped bias", "a wrong normalisation"])
def test_a_planted_fault_is_rejected_in_int8(tmp_path, fault):
    torch.manual_seed(0)
    net = Picky().eval()
    net.head.bias.data += 1
    source = module_source(net, CONTRACT, label="picky")
    wrong = plant(net, fault) if fault else net
    tampered = type(source)(source.label, source.contract, source.reference, source.graph, wrong, {})
    artifact = exported(tampered, "int8", tmp_path).artifact
    assert artifact.parity.ok == (not fault)
    assert artifact.parity.ok or "below the int8 gate" in artifact.parity.reason


def grid():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    ).eval()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_free_sides_and_an_adaptive_pool_to_a_grid(precision, tmp_path):
    module, io = grid(), contract({"image": ("N", 3, "H", "W")})
    done, run = export(module, io, tmp_path, precision, max_side=128)
    sizes = [{"N": 1, "H": 16, "W": 24}, {"N": 2, "H": 33, "W": 47}, {"N": 3, "H": 70, "W": 18}, {"N": 1, "H": 128, "W": 128}]
    assert worst(module, io, run, sizes) >= {"fp32": 90, "fp16": 45}[precision]
    assert any("H 8…128" in warning for warning in done.warnings)
    assert any("portable kernels, which are many times slower" in warning for warning in done.warnings)
    (pool,) = [one for one in done.audit.delegates["XNNPACK"] if "pool" in one.op]
    assert (pool.op, pool.count) == ("_adaptive_avg_pool2d", 1)


def test_int8_with_free_sides(tmp_path):
    torch.manual_seed(0)
    io = image_classifier(channels=3, height="H", width="W", classes=tuple("abcdefghij"), mean=(0.4,) * 3, std=(0.2,) * 3)
    source = module_source(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval(),
        io,
        label="free",
    )
    artifact = exported(source, "int8", tmp_path, calibration=images(64, size=64), real=images(16, size=64, seed=1)).artifact
    assert artifact.parity.ok, artifact.parity.reason
    assert len({(case.dims["H"], case.dims["W"]) for case in artifact.parity.cases}) == 3


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(5, 8)

    def forward(self, x, y):
        f = F.silu(self.a(x))
        return {"features": f + self.b(y)[:, :, None, None], "shares": f.mean((2, 3)).softmax(1)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_inputs_and_a_dict_of_outputs(tmp_path, precision):
    torch.manual_seed(0)
    module, io = Two().eval(), contract({"photo": ("N", 3, 16, 16), "meta": ("N", 5)}, ("features", "shares"))
    _, run = export(module, io, tmp_path, precision)
    assert worst(module, io, run, [{"N": 1}, {"N": 3}]) >= {"fp32": 90, "fp16": 45}[precision]


def test_channels_last_networks_are_taken(tmp_path):
    module = grid().to(memory_format=torch.channels_last)
    io = contract({"image": (1, 3, 16, 16)})
    done, run = export(module, io, tmp_path)
    assert worst(module, io, run, [{}]) >= 90
    assert not any("free" in warning for warning in done.warnings)


class Cond(nn.Module):
    def forward(self, x):
        return torch.cond(x.mean() > 0.5, lambda a: a.relu() * 2, lambda a: a.sigmoid(), (x,))


def test_branches_by_torch_cond_go_either_way(tmp_path):
    io = contract({"x": ("N", 3, 8, 8)})
    done, run = export(Cond(), io, tmp_path)
    for shift in (0.0, 1.0):
        x = np.linspace(-0.2, 0.2, 192, dtype=np.float32).reshape(1, 3, 8, 8) + np.float32(shift)
        assert sqnr_db(Cond()(torch.from_numpy(x)).numpy(), run({"x": x})["y"]) >= 90
    assert done.ops["gt"] == 1


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Decides(nn.Module):
    def forward(self, x):
        if x.mean() > 0:
            return x * 2
        return x


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3, 64)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Bessel(), r"ExecuTorch has no operator for torch's 'special_bessel_j0' \(module 1\.1, test_executorch\.py:\d+\)"),
        (Decides(), r"decides on the values of its input \(test_executorch\.py:\d+\)"),
        (Fixed(), r"a dimension that the contract leaves free is bound by the network's own code"),
    ],
    ids=["operator", "decision", "fixed"],
)
def test_what_cannot_be_written_is_named_with_its_place(module, message, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), module))
    with pytest.raises(UserError, match=message):
        export(net, contract({"image": ("N", 3, 8, 8)}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_int8_where_nothing_becomes_integer_and_missing_modules_are_refused(tmp_path):
    class Shift(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).exp()

    feeds = tuple({"image": image[None]} for image in images(16))
    request = ExportRequest(CONTRACT, "int8", tmp_path / "model.pte", module=Shift().eval(), calibration=feeds)
    with pytest.raises(UserError, match="int8 was asked, and none of the network's 0 convolutions and products became integer"):
        EXECUTORCH.export(request)
    with pytest.raises(UserError, match="written from a torch module"):
        EXECUTORCH.export(ExportRequest(CONTRACT, "fp32", tmp_path / "model.pte"))
    with pytest.raises(UserError, match=re.escape("max_batch = 1")):
        CARD.configured({"max_batch": 1})
    assert not list(tmp_path.iterdir())


def test_damaged_files_and_wrong_inputs_are_named(made, tmp_path):
    artifact = made["fp32"].artifact
    whole = (made["fp32"].folder / "model.pte").read_bytes()
    path = tmp_path / "model.pte"
    path.write_bytes(whole)
    run = EXECUTORCH.runner(path, artifact.contract)
    with pytest.raises(UserError, match=r"input 'image' has shape 1×5×32×32, model\.pte takes N×3×32×32"):
        run({"image": np.zeros((1, 5, 32, 32), np.float32)})
    for damaged in (b"", b"junk" * 99, whole[: len(whole) // 2], b"\x07" * 64 + whole[64:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"ExecuTorch cannot load model\.pte"):
            EXECUTORCH.runner(path, artifact.contract)


def test_export_and_run_are_silent(tmp_path, capfd):
    _, run = export(grid(), contract({"image": (1, 3, 16, 16)}), tmp_path)
    run({"image": np.zeros((1, 3, 16, 16), np.float32)})
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_bound_that_the_network_narrows_is_refused_in_words(tmp_path):
    class Narrow(nn.Module):
        def forward(self, x):
            if x.shape[0] < 6:
                return x.relu()
            return x.sigmoid()

    with pytest.raises(UserError, match=r"bound by the network's own code: .*range N <= 8 satisfy the generated guard .*<= 5"):
        export(Narrow(), contract({"x": ("N", 3, 8, 8)}), tmp_path)
