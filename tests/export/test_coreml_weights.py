"""Core ML packages with packed weights: what lies in them, decoded here by formulas of our own, against what they compute."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.export.convert import convert, module_source
from trimtab.export.coreml import CARD, CoremlExporter
from trimtab.export.coreml_eval import load_program
from trimtab.export.coreml_layers import read_layers
from trimtab.export.coreml_weights import FORMS
from trimtab.export.exporter import ExportRequest
from trimtab.export.parity import GATES_DB, sqnr_db
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.errors import UserError
from trimtab.models.files import size_bytes

ct = pytest.importorskip("coremltools", reason="needs coremltools (pip install 'trimtab[coreml]')")
from coremltools.converters.mil.frontend.milproto.load import load  # noqa: E402

torch.set_num_threads(1)
IO = Contract(
    inputs=(TensorSpec(name="x", shape=(2, 3, 8, 8), value_range=(-1.0, 1.0)),), outputs=(TensorSpec(name="y", shape=(2, 20)),)
)


def made(zeros=0.0):
    """Every kind of weight: plain, wide, depthwise, grouped, transposed and linear; `zeros` of each but the first are zero."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 96, 1),
        nn.Conv2d(96, 96, 3, padding=1, groups=96),
        nn.ReLU(),
        nn.Conv2d(96, 64, 1, groups=2),
        nn.ConvTranspose2d(64, 32, 2, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 20),
    ).eval()
    with torch.no_grad():
        for layer in list(module)[1:]:
            if hasattr(layer, "weight") and zeros:
                weight = layer.weight
                weight *= weight.abs() > weight.abs().flatten().kthvalue(int(zeros * weight.numel())).values
    return module


def exported(module, folder, precision, io=IO, **options):
    out = folder / f"{precision}.mlpackage"
    done = CoremlExporter.export(
        ExportRequest(contract=io, precision=precision, out=out, module=module, options=CARD.configured(options))
    )
    return done, out


def bits(packed, count, width):
    """`count` numbers of `width` bits each, the lowest bit first, out of bytes."""
    row = np.array([[byte >> i & 1 for i in range(8)] for byte in packed.reshape(-1).astype(np.uint8)]).reshape(-1)
    return (row[: count * width].reshape(count, width) << np.arange(width)).sum(1)


def stretched(scale, shape):
    """A scale per block as a scale per number."""
    for axis, (n, blocks) in enumerate(zip(shape, scale.shape, strict=True)):
        scale = np.take(scale, np.arange(n) // (n // blocks), axis=axis)
    return scale


def under(mask, numbers):
    """`numbers` in the places of a mask's ones, in row-major order; zeros elsewhere."""
    dense = np.zeros(mask.size)
    dense[np.flatnonzero(mask.reshape(-1))] = numbers
    return dense.reshape(mask.shape)


def looked_up(indices, lut):
    """Per place, its palette's entry; palettes lie along axis 0 or 1 in blocks, entries along the last but one axis."""
    which = [np.arange(n) // (n // groups) for n, groups in zip(indices.shape, lut.shape[: indices.ndim], strict=True)]
    return lut[(*np.ix_(*which), indices, 0)]


def decoded(op):
    """The dense array that a `constexpr` operation of a loaded program stands for, in float64."""
    v = {name: getattr(var, "val", None) for name, var in op.inputs.items() if var is not None}
    f = {name: np.asarray(value).astype(np.float64) for name, value in v.items() if value is not None}
    kind = op.op_type
    if kind == "constexpr_affine_dequantize":
        side = [1] * f["quantized_data"].ndim
        side[int(v["axis"])] = -1
        zero, scale = (np.broadcast_to(f[n], np.atleast_1d(f["scale"]).shape).reshape(side) for n in ("zero_point", "scale"))
        return (f["quantized_data"] - zero) * scale
    if kind == "constexpr_blockwise_shift_scale":
        return f["data"] * stretched(f["scale"], f["data"].shape)
    if kind == "constexpr_lut_to_dense" and "shape" in v:
        shape = tuple(int(n) for n in v["shape"])
        return f["lut"][bits(v["indices"], int(np.prod(shape)), int(np.log2(f["lut"].size)))].reshape(shape)
    if kind == "constexpr_lut_to_dense":
        return looked_up(f["indices"].astype(int), f["lut"])
    assert kind == "constexpr_sparse_to_dense", kind
    return unmasked(op, v, f)


def unmasked(op, v, f):
    """The dense array under a bit mask, whose numbers may be packed themselves."""
    if "shape" in v:
        shape = tuple(int(n) for n in v["shape"])
        return under(bits(v["mask"], int(np.prod(shape)), 1).reshape(shape), f["nonzero_data"])
    inner = op.inputs["nonzero_data"].op
    if inner.op_type == "const":
        return under(f["mask"], f["nonzero_data"])
    given = {name: np.asarray(var.val).astype(np.float64) for name, var in inner.inputs.items() if var is not None}
    if inner.op_type == "constexpr_sparse_blockwise_shift_scale":
        whole = under(given["data_mask"], given["nonzero_data"])
        return whole * stretched(given["scale"], whole.shape)
    assert inner.op_type == "constexpr_lut_to_sparse", inner.op_type
    mask = given["indices_mask"]
    return looked_up(under(mask, given["indices_nonzero_data"]).astype(int), given["lut"]) * mask


def weights_in(path):
    """{module path: (operation that holds the weight, the weight decoded)} of a saved package."""
    model = ct.models.MLModel(str(path), skip_model_load=True)
    program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    paths = {name: layer for layer, name in read_layers(load_program(path).metadata).items()}
    found = {}
    for op in program.functions["main"].operations:
        if op.op_type in ("conv", "conv_transpose", "linear"):
            holder = op.inputs["weight"].op
            weight = holder.val.val.astype(np.float64) if holder.op_type == "const" else decoded(holder)
            found[next(paths[var.name] for var in consumers(op) if var.name in paths)] = (holder.op_type, weight)
    return found


def consumers(op):
    """The operation's output and what a cast makes of it."""
    return [op.outputs[0], *(cast.outputs[0] for cast in op.outputs[0].child_ops if cast.op_type == "cast")]


@functools.cache
def case(precision, tmp):
    """(module, facts, path, {module path: (holder, decoded weight)}) of the network packed as `precision`."""
    module = made(zeros=0.7 if "sparse" in precision else 0.0)
    done, path = exported(module, tmp, precision)
    return module, done, path, weights_in(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packed")


HOLDERS = {
    "int8": "constexpr_affine_dequantize",
    "int4": "constexpr_blockwise_shift_scale",
    "palette6": "constexpr_lut_to_dense",
    "palette4": "constexpr_lut_to_dense",
    "sparse": "constexpr_sparse_to_dense",
    "sparse-int8": "constexpr_sparse_to_dense",
    "sparse-palette4": "constexpr_sparse_to_dense",
}


@pytest.mark.parametrize("precision", FORMS)
def test_the_evaluator_computes_with_the_weights_that_lie_in_the_package(precision, folder):
    """Weights decoded here go into a torch twin in float32: the package agrees with it to float16, and less with the original."""
    module, done, path, weights = case(precision, folder)
    twin = made()
    with torch.no_grad():
        for layer, source in zip(twin, module, strict=True):
            if hasattr(source, "bias"):
                layer.bias.copy_(source.bias)
        for layer, (_, weight) in weights.items():
            twin[int(layer)].weight.copy_(torch.from_numpy(weight))
        x = torch.from_numpy(IO.random_inputs({}, seed=3)["x"])
        wanted, plain = twin(x).numpy(), module(x).numpy()
    got = CoremlExporter.runner(path, done.contract)({"x": x.numpy()})["y"]
    assert len(weights) == 6
    assert sum(holder == HOLDERS[precision] for holder, _ in weights.values()) >= 4
    assert sqnr_db(wanted, got) >= GATES_DB["fp16"]
    if precision != "sparse":
        assert sqnr_db(wanted, got) > sqnr_db(plain, got) + 3, "at least half the noise is the weights'"


def test_int8_rounds_every_weight_to_half_a_step_of_its_channel(folder):
    module, _, _, weights = case("int8", folder)
    for layer, (_, weight) in weights.items():
        original = module[int(layer)].weight.detach().numpy().astype(np.float64)
        axis = 1 if isinstance(module[int(layer)], nn.ConvTranspose2d) else 0
        step = np.abs(original).max(tuple(i for i in range(original.ndim) if i != axis), keepdims=True) / 127
        # half a step, and the float16 of weight and scale: 2⁻¹¹ of up to 127 steps
        assert (np.abs(weight - original) <= step * (0.5 + 127 * 2 * 2.0**-11)).all()
        assert len(np.unique(np.round(weight / step, 1))) > 100, "one scale per channel, not one bit"


@pytest.mark.parametrize("precision", ["sparse", "sparse-int8", "sparse-palette4"])
def test_zeros_stay_zero_and_nothing_else_becomes_zero(precision, folder):
    module, done, _, weights = case(precision, folder)
    masked = {layer: weight for layer, (holder, weight) in weights.items() if holder == "constexpr_sparse_to_dense"}
    assert set(masked) == {"2", "3", "5", "6", "10"}
    for layer, weight in masked.items():
        original = module[int(layer)].weight.detach().numpy()
        assert (weight[original == 0] == 0).all()
        if precision == "sparse":
            np.testing.assert_array_equal(weight, original.astype(np.float16))
    if precision == "sparse":
        assert done.warnings == (
            "1 weight stays float16 in the sparse package, with fewer than 64 numbers or 6.2% zeros too small to gain: 0 (32×3×3×3)",
        )
        assert done.audit.islands == {"conv": 1}
    else:
        assert not done.warnings, "the first weight has no zeros, and is packed without a mask"
        assert done.audit.islands == {}


@pytest.mark.parametrize(("precision", "entries"), [("palette6", 64), ("palette4", 16)])
def test_palettes_hold_as_many_values_as_their_bits_tell(precision, entries, folder):
    _, _, _, weights = case(precision, folder)
    for holder, weight in weights.values():
        assert holder == "const" or len(np.unique(weight)) <= entries
    assert max(len(np.unique(weight)) for holder, weight in weights.values() if holder != "const") > entries // 2


def test_int4_scales_span_32_input_channels_or_what_divides_them(folder):
    _, _, path, _ = case("int4", folder)
    model = ct.models.MLModel(str(path), skip_model_load=True)
    program = load(model.get_spec(), 9, model.weights_dir)
    shapes = {
        tuple(op.inputs["data"].val.shape): tuple(op.inputs["scale"].val.shape)
        for op in program.functions["main"].operations
        if op.op_type == "constexpr_blockwise_shift_scale"
    }
    assert shapes == {
        (32, 3, 3, 3): (32, 1, 1, 1),
        (96, 32, 1, 1): (96, 2, 1, 1),  # 16 and 16: 32 would be all of them, one scale per channel
        (96, 1, 3, 3): (96, 1, 1, 1),
        (64, 48, 1, 1): (64, 2, 1, 1),
        (64, 32, 2, 2): (2, 32, 1, 1),
        (20, 32): (20, 2),
    }


def test_systems_and_sizes(folder):
    """iOS 16 reads what its operations hold; blocks and joint forms need iOS 18. The more packed, the smaller."""
    facts = {precision: case(precision, folder)[1:3] for precision in FORMS}
    assert {p for p, (done, _) in facts.items() if "iOS18" in done.spec_version} == {"int4", "sparse-int8", "sparse-palette4"}
    assert all("iOS16" in done.spec_version or "iOS18" in done.spec_version for done, _ in facts.values())
    sizes = {precision: size_bytes(path) for precision, (_, path) in facts.items()}
    sizes["fp16"] = size_bytes(exported(made(), folder, "fp16")[1])
    assert sizes["fp16"] > sizes["int8"] > sizes["palette6"] > sizes["palette4"]
    assert sizes["int8"] > sizes["int4"]
    assert sizes["fp16"] > sizes["sparse"] > sizes["sparse-int8"] > sizes["sparse-palette4"]


def test_the_same_network_gives_the_same_weights_twice(tmp_path):
    paths = [exported(made(), tmp_path / name, "palette4")[1] for name in "ab"]
    first, second = (next(path.rglob("weight.bin")).read_bytes() for path in paths)
    assert first == second


@pytest.mark.parametrize("precision", ["sparse", "sparse-int8", "sparse-palette4"])
def test_too_few_zeros_are_named(precision, tmp_path):
    module = made()
    with torch.no_grad():
        module[2].weight[0, 0] = 0  # 1 of 3072
    share = {"sparse": "6.2%", "sparse-int8": "12.5%", "sparse-palette4": "25.0%"}[precision]
    with pytest.raises(
        UserError, match=rf"no weight has enough of them: 2 \(96×32×1×1\) has the most, 0.0%; from {share}"
    ) as e:
        exported(module, tmp_path, precision)
    assert "prune the network first" in e.value.hint
    assert not list(tmp_path.iterdir())


def test_a_network_too_small_to_pack_is_refused_not_given_in_float(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Linear(10, 4)).eval()
    io = IO.model_copy(update={"outputs": (TensorSpec(name="y", shape=(2, 4)),)})
    done, _ = exported(module, tmp_path, "palette4", io)
    assert done.warnings[0].startswith("1 weight stays float16 in the palette4 package, with fewer than 512 numbers")
    assert "2 (4×10)" in done.warnings[0]
    assert done.audit.islands == {"linear": 1}
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    for precision in ("int8", "int4", "palette4"):
        with pytest.raises(UserError, match=rf"no weight is worth packing as {precision}: the largest has 12 numbers"):
            exported(tiny, tmp_path, precision, io)


def test_position_embeddings_are_no_weights(tmp_path):
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.mix = nn.Parameter(torch.randn(1, 64, 3)), nn.Linear(3, 64)

        def forward(self, x):
            return self.mix(x.flatten(2).transpose(1, 2) + self.place).mean(1)

    io = IO.model_copy(update={"outputs": (TensorSpec(name="y", shape=(2, 64)),)})
    done, _ = exported(Placed().eval(), tmp_path, "int8", io)
    assert done.ops["constexpr_affine_dequantize"] == 1


@pytest.mark.parametrize("precision", ["palette4", "palette6"])
def test_a_group_of_channels_has_a_palette_of_its_own(precision, folder, tmp_path):
    module, _, _, whole = case(precision, folder)
    done, path = exported(module, tmp_path, precision, group=16)
    grouped = weights_in(path)
    assert "iOS18" in done.spec_version

    def noise(weights, layer):
        return float(np.square(weights[layer][1] - module[int(layer)].weight.detach().numpy()).sum())

    for layer in ("2", "5"):
        assert noise(grouped, layer) < noise(whole, layer)
        values = [len(np.unique(part)) for part in grouped[layer][1].reshape(-1, 16, *grouped[layer][1].shape[1:])]
        assert max(values) <= 2 ** int(precision[-1])


def test_an_older_system_than_the_form_needs_is_refused(tmp_path):
    with pytest.raises(UserError, match="to run on iOS16, and such weights need iOS18") as caught:
        exported(made(), tmp_path, "int4", minimum_target="iOS16")
    assert caught.value.hint == "set minimum_target to iOS18, or choose another precision"
    with pytest.raises(UserError, match="need iOS18"):
        exported(made(), tmp_path, "palette4", minimum_target="iOS17", group=8)


def test_activations_in_int8_are_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"int8-activations: coremltools takes the ranges .* on macOS alone") as caught:
        exported(made(), tmp_path, "int8-activations")
    assert caught.value.hint == "use fp32, fp16, int8, int4, palette6, palette4, sparse, sparse-int8, sparse-palette4"


def test_a_channel_of_zeros_is_packed_in_silence(tmp_path, capfd):
    module = made()
    with torch.no_grad():
        module[2].weight[5] = 0
    done, path = exported(module, tmp_path, "int8")
    assert done.warnings == ()
    assert not weights_in(path)["2"][1][5].any()
    assert tuple(capfd.readouterr()) == ("", "")


def test_convolutions_that_share_a_bias_are_packed_alike(tmp_path):
    """Equal biases are one constant in the package; blocks of different length beside it were a contradiction to coremltools."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 128, 3),
        nn.ReLU(),
        nn.Conv2d(128, 60, 1),
        nn.ReLU(),
        nn.Conv2d(60, 128, 1),
        nn.Flatten(),
        nn.Linear(128 * 14 * 14, 5),
    )
    with torch.no_grad():
        net[0].bias.zero_()
        net[4].bias.zero_()
    contract = image_classifier(channels=3, height=16, width=16, classes=tuple("abcde"), mean=(0.5,) * 3, std=(0.25,) * 3)
    (made,) = convert(module_source(net.eval(), contract, label="shared"), [("coreml", "int4")], tmp_path)
    assert made.artifact.parity.sqnr_db > 12
    assert made.artifact.size_bytes < 100_000  # 4 bits each: 144,000 weights
