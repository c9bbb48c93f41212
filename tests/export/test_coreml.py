"""The Core ML exporter: torch modules → saved packages → the evaluator's outputs against torch's own."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trimtab.export.coreml import CARD, CoremlExporter
from trimtab.export.exporter import ExportRequest, exporters
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError

pytest.importorskip("coremltools", reason="the Core ML exporter needs coremltools (pip install 'trimtab[coreml]')")
torch.set_num_threads(1)

FP32_DB = 90.0
"""float32 against float32 in another order of summation: 24 bits give 144 dB, losing 9 bits over a few layers would be a bug."""
FP16_DB = 45.0
"""Weights and every tensor rounded to 11 bits (66 dB each) over a few dozen layers; measured here 64 dB and more."""


def block(i, o, k=3, s=1, g=1, act=nn.ReLU):
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), act())


class Vgg(nn.Sequential):
    def __init__(self):
        head = (nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
        super().__init__(block(3, 8), nn.MaxPool2d(2), block(8, 16), nn.MaxPool2d(2), *head)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.down = block(3, 8), block(8, 16, s=2), block(16, 16), nn.Conv2d(8, 16, 1, 2)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.b(self.a(x)) + self.down(x)), 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class MobileV3(nn.Sequential):
    def __init__(self):
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.Hardswish(), nn.Linear(32, 10))
        wide = (block(16, 32, 1, act=nn.Hardswish), block(32, 32, 5, g=32, act=nn.Hardswish), SqueezeExcite(32))
        super().__init__(block(3, 16, s=2, act=nn.Hardswish), *wide, nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16), *head)


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.Conv2d(4, 8, 3, padding=2, dilation=2)
        self.slope, self.mix = nn.PReLU(16), nn.Conv2d(16, 8, 1, groups=4)
        with torch.no_grad():
            self.slope.weight.uniform_(0.05, 0.6)
        self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True)

    def forward(self, x):
        return self.pool(F.leaky_relu(self.mix(self.slope(torch.cat([self.a(x), self.b(x)], 1))), 0.1))


class Isp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(4, 16, 3, padding=1), nn.PReLU(16), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))


class Vit(nn.Module):
    def __init__(self, d=32, heads=4):
        super().__init__()
        self.heads = heads
        self.patch, self.token = nn.Conv2d(3, d, 4, 4), nn.Parameter(torch.randn(1, 1, d))
        self.place = nn.Parameter(torch.randn(1, 17, d) * 0.1)
        self.norms, self.qkv, self.out = (
            nn.ModuleList([nn.LayerNorm(d) for _ in range(2)]),
            nn.Linear(d, 3 * d),
            nn.Linear(d, d),
        )
        self.mlp, self.head = nn.Sequential(nn.Linear(d, 64), nn.GELU(), nn.Linear(64, d)), nn.Linear(d, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        n, length, d = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(n, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, d))
        return self.head((x + self.mlp(self.norms[1](x)))[:, 0])


class Seg(nn.Module):
    """Pyramid pooling: adaptive pools to 1, 2, 3 and 4 (3 does not divide 8), bilinear back up, and up again."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, s=2), block(16, 16, s=2))
        self.branches = nn.ModuleList([nn.Conv2d(16, 4, 1) for _ in range(4)])
        self.out, self.up = nn.Conv2d(32, 5, 1), nn.ConvTranspose2d(5, 5, 4, 2, 1)

    def forward(self, x):
        f = self.stem(x)
        pooled = [b(F.adaptive_avg_pool2d(f, n)) for n, b in zip((1, 2, 3, 4), self.branches, strict=True)]
        ups = [F.interpolate(p, size=f.shape[-2:], mode="bilinear", align_corners=False) for p in pooled]
        return F.interpolate(self.up(self.out(torch.cat([f, *ups], 1))), scale_factor=2, mode="bilinear", align_corners=False)


class Gated(nn.Module):
    """A per-sample mask of the eight strongest channels, as dynamic pruning gates make it."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(3, 16), nn.Linear(16, 10)

    def forward(self, x):
        scores = self.gate(x.mean((2, 3)))
        mask = torch.zeros_like(scores).scatter_(1, scores.topk(8, 1).indices, 1.0)
        return self.head((F.relu(self.conv(x)) * (mask * scores.sigmoid())[:, :, None, None]).mean((2, 3)))


FIXED = {"vgg": (Vgg, 16), "residual": (Residual, 32), "mobilev3": (MobileV3, 32), "vit": (Vit, 16), "gated": (Gated, 16)}


def spec(name, *shape):
    return TensorSpec(name=name, shape=shape, value_range=(-1.0, 1.0))


def contract(inputs, outputs=("out",)):
    shaped = tuple(spec(name, *shape) for name, shape in inputs.items())
    return Contract(inputs=shaped, outputs=tuple(spec(name, "N") for name in outputs))


def made(cls):
    torch.manual_seed(0)
    module = cls().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # statistics of a trained network, not 0 and 1
            part.running_mean.uniform_(-0.3, 0.3)
            part.running_var.uniform_(0.5, 2.0)
    return module


def export(module, io, folder, precision="fp32", **more):
    out = folder / f"net_{precision}.mlpackage"
    exporter = CoremlExporter()
    done = exporter.export(ExportRequest(contract=io, precision=precision, out=out, module=module, **more))
    return done, exporter.runner(out, done.contract)


def sqnr(reference, got):
    noise = np.square(reference.astype(np.float64) - got.astype(np.float64)).sum()
    return 10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-300))


def worst(module, io, run, dims):
    """The lowest SQNR in dB over outputs and sizes, of the package against torch."""
    values = []
    for seed, sizes in enumerate(dims):
        inputs = io.random_inputs(sizes, seed=seed)
        with torch.no_grad():
            wanted = module(*map(torch.from_numpy, inputs.values()))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        got = run(inputs)
        assert list(got) == [s.name for s in io.outputs]
        for tensor, array in zip(wanted, got.values(), strict=True):
            assert array.shape == tuple(tensor.shape)
            values.append(sqnr(tensor.numpy(), array))
    return min(values)


@pytest.mark.parametrize(("precision", "floor"), [("fp32", FP32_DB), ("fp16", FP16_DB)])
@pytest.mark.parametrize("name", FIXED)
def test_package_computes_what_torch_computes_at_any_batch(name, precision, floor, tmp_path):
    cls, side = FIXED[name]
    module, io = made(cls), contract({"image": ("N", 3, side, side)})
    done, run = export(module, io, tmp_path, precision)
    assert worst(module, io, run, [{"N": n} for n in (1, 2, 5)]) >= floor
    assert done.spec_version == "mlprogram spec 7 (iOS16)"
    assert "const" not in done.ops
    assert sum(count for op, count in done.ops.items() if op in ("conv", "linear")) >= 3


@pytest.mark.parametrize(("precision", "floor"), [("fp32", FP32_DB), ("fp16", FP16_DB)])
@pytest.mark.parametrize(("cls", "channels"), [(Isp, 4), (Grouped, 4), (MobileV3, 3)])
def test_free_height_and_width(cls, channels, precision, floor, tmp_path):
    module, io = made(cls), contract({"image": ("N", channels, "H", "W")})
    done, run = export(module, io, tmp_path, precision)
    sizes = [{"N": 1, "H": 16, "W": 24}, {"N": 2, "H": 33, "W": 47}, {"N": 3, "H": 70, "W": 18}]
    assert worst(module, io, run, sizes) >= floor
    assert any("Neural Engine" in warning and "H 8…4096, default 64" in warning for warning in done.warnings)


@pytest.mark.parametrize(("precision", "floor"), [("fp32", FP32_DB), ("fp16", FP16_DB)])
def test_adaptive_pools_with_a_free_batch(precision, floor, tmp_path):
    module, io = made(Seg), contract({"image": ("N", 3, 32, 32)})
    done, run = export(module, io, tmp_path, precision)
    assert worst(module, io, run, [{"N": 1}, {"N": 4}]) >= floor
    assert not [warning for warning in done.warnings if "Neural Engine" not in warning]


def test_fixed_shape_gives_no_warning_and_a_default_from_the_example(tmp_path):
    module, io = made(Isp), contract({"raw": (1, 4, 16, 16)})
    done, run = export(module, io, tmp_path, "fp16", example=(torch.rand(1, 4, 16, 16),))
    assert done.warnings == ()
    assert worst(module, io, run, [{}]) >= FP16_DB
    assert done.ops["pixel_shuffle"] == 1
    assert done.ops["conv"] == 2
    assert done.evaluator.startswith(
        "MIL evaluator on the saved package (runtime-independent; not Apple's kernels), coremltools "
    )
    assert set(done.tool_versions) == {"coremltools", "torch"}


def test_the_examples_sides_become_the_defaults(tmp_path):
    done, run = export(made(Isp), contract({"raw": ("N", 4, "H", "W")}), tmp_path, example=(torch.rand(1, 4, 6, 40),))
    assert "H 6…4096, default 6, W 8…4096, default 40" in done.warnings[0]
    with pytest.raises(UserError, match=re.escape("has shape (1, 4, 5, 40), the package takes (1…64, 4, 6…4096, 8…4096)")):
        run({"raw": np.zeros((1, 4, 5, 40), np.float32)})


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(5, 8)

    def forward(self, x, y):
        f = F.silu(self.a(x))
        return f + self.b(y)[:, :, None, None], f.mean((2, 3)).softmax(1)


def test_names_of_two_inputs_and_two_outputs(tmp_path):
    io = contract({"photo": ("N", 3, 16, 16), "meta_2": ("N", 5)}, ("features", "shares"))
    module = made(Fused)
    done, run = export(module, io, tmp_path)
    assert done.contract == io
    assert worst(module, io, run, [{"N": 1}, {"N": 3}]) >= FP32_DB
    swapped = {"photo": np.zeros((1, 5), np.float32), "meta_2": np.zeros((1, 3, 16, 16), np.float32)}
    with pytest.raises(UserError, match="'photo' has shape"):
        run(swapped)
    with pytest.raises(UserError, match="not the package's"):
        run({"photo": np.zeros((1, 3, 16, 16), np.float32)})


def _scale_one_filter(module):
    module[0][0].weight[3] *= 1.5


def _swap_channels(module):
    module[2][0].weight[[0, 1]] = module[2][0].weight[[1, 0]]


def _shift_last_bias(module):
    module[-1].bias[2] += 0.5


@pytest.mark.parametrize("tamper", [_scale_one_filter, _swap_channels, _shift_last_bias])
def test_a_planted_fault_in_the_saved_package_is_caught(tamper, tmp_path):
    module, wrong, io = made(Vgg), made(Vgg), contract({"image": ("N", 3, 16, 16)})
    with torch.no_grad():
        tamper(wrong)
    _, run = export(wrong, io, tmp_path, "fp16")
    assert worst(wrong, io, run, [{"N": 4}]) >= FP16_DB
    assert worst(module, io, run, [{"N": 4}]) < 30


def test_export_falls_back_to_torch_export_and_says_so(tmp_path, monkeypatch):
    from trimtab.export import coreml_trace

    def refuse(*_, **__):
        raise RuntimeError("tracing is broken today\nsecond line")

    monkeypatch.setattr(coreml_trace, "trace", refuse)
    module, io = made(Residual), contract({"image": ("N", 3, 32, 32)})
    done, run = export(module, io, tmp_path)
    assert "converted through torch.export, since tracing failed: RuntimeError: tracing is broken today" in done.warnings
    assert worst(module, io, run, [{"N": 1}, {"N": 5}]) >= FP32_DB


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_an_operation_core_ml_lacks_is_named_with_its_module(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), Bessel())).eval()
    with pytest.raises(UserError, match=re.escape("no operation for torch's 'special_bessel_j0' (module 1.1)")) as caught:
        export(module, contract({"image": (1, 3, 8, 8)}), tmp_path)
    assert "export to another format" in caught.value.hint

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Bessel()

        def forward(self, x):
            return x, self.odd(x)

    with pytest.raises(UserError, match=re.escape("(module odd)")):
        export(Two().eval(), contract({"image": (1, 3, 8, 8)}, ("a", "b")), tmp_path)


def test_adaptive_pooling_with_free_sides_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="pool adaptively to a fixed grid while height and width are free") as caught:
        export(made(Seg), contract({"image": ("N", 3, "H", "W")}), tmp_path)
    assert "fix height and width" in caught.value.hint


class AsDict(nn.Module):
    def __init__(self, *extra):
        super().__init__()
        self.inner, self.extra = nn.Sequential(nn.ReLU(), nn.Tanh()), extra

    def forward(self, x):
        return {"near": x * 2, "far": self.inner(x)} | dict.fromkeys(self.extra, "text")


def test_a_modules_dict_is_taken_in_order(tmp_path):
    module, io = AsDict().eval(), contract({"x": ("N", 5)}, ("doubled", "squashed"))
    _, run = export(module, io, tmp_path)
    x = np.linspace(-2, 2, 10, dtype=np.float32).reshape(2, 5)
    got = run({"x": x})
    np.testing.assert_allclose(got["doubled"], x * 2)
    np.testing.assert_allclose(got["squashed"], np.tanh(np.maximum(x, 0)), rtol=1e-6)  # tanh differs in the last bit


@pytest.mark.parametrize(
    ("module", "io", "message"),
    [
        (AsDict("note"), contract({"x": (1, 3, 8, 8)}), "output 'note' is a str, Core ML outputs are tensors"),
        (nn.ReLU(), contract({"x": (1, 3, 8, 8)}, ("a", "b")), r"returns 1 tensors, the contract has 2 outputs \(a, b\)"),
        (nn.ReLU(), contract({"x.1": (1, 3, 8, 8)}), r"'x.1' is not legal in Core ML"),
        (nn.ReLU(), contract({"state": (1, 3, 8, 8)}), r"renamed the inputs \['state'\]"),
        (None, contract({"x": (1, 3, 8, 8)}), "written from a torch module"),
    ],
)
def test_what_cannot_be_written_is_refused(module, io, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export(module, io, tmp_path)
    assert not list(tmp_path.iterdir())


def test_types(tmp_path):
    io = Contract(inputs=(TensorSpec(name="x", shape=(2, 4), dtype="uint8"),), outputs=(spec("y", 2, 4),))
    with pytest.raises(UserError, match="'x' is uint8, Core ML arrays are float32, float16, int32"):
        export(nn.ReLU(), io, tmp_path)

    class Pick(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    io = Contract(inputs=(spec("x", "N", 7),), outputs=(TensorSpec(name="best", shape=("N",), dtype="int64"),))
    done, run = export(Pick().eval(), io, tmp_path)
    assert done.contract.outputs[0].dtype == "int32"
    assert "'best' is int32 in the package" in done.warnings[0]
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    best = run({"x": x})["best"]
    assert best.dtype == np.int32
    assert best.tolist() == x.argmax(1).tolist()


def test_python_control_flow_on_values_is_reported(tmp_path):
    class Branch(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.mean()) > 0 else x

    done, _ = export(Branch().eval(), contract({"x": (2, 4)}), tmp_path)
    assert any("trace might not generalize" in warning for warning in done.warnings)


def test_the_card_and_module_load_without_torch_or_coremltools():
    code = (
        "import sys; from trimtab.export.coreml import CARD; assert CARD.suffix == '.mlpackage';"
        "assert not {'torch', 'coremltools'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert CARD.defaults == ("fp16",)
    with pytest.raises(ValueError, match="'coreml' is registered twice"):
        exporters.register("coreml", CARD)(CoremlExporter)


def test_export_is_silent(tmp_path, capfd):
    export(made(Residual), contract({"image": ("N", 3, 32, 32)}), tmp_path, "fp16")
    assert tuple(capfd.readouterr()) == ("", "")
