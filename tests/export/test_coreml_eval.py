"""The Core ML evaluator on whole saved programs: built in MIL by hand, damaged, or with compressed weights."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError

ct = pytest.importorskip("coremltools", reason="the Core ML evaluator needs coremltools (pip install 'trimtab[coreml]')")

import coremltools.optimize.coreml as cto  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import types  # noqa: E402

from trimtab.export.coreml import CoremlExporter, operations  # noqa: E402
from trimtab.export.coreml_eval import evaluate, load_program  # noqa: E402
from trimtab.export.coreml_ops import KERNELS  # noqa: E402
from trimtab.export.exporter import ExportRequest  # noqa: E402

torch.set_num_threads(1)


def saved(program, path, **options):
    """The package of a MIL program built by hand."""
    options = {"minimum_deployment_target": ct.target.iOS16, "compute_precision": ct.precision.FLOAT32} | options
    ct.convert(program, convert_to="mlprogram", skip_model_load=True, **options).save(str(path))
    return path


def test_an_operation_without_kernel_goes_through_coremltools(tmp_path):
    assert "quantize" not in KERNELS

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 3), dtype=types.fp32)], opset_version=ct.target.iOS17)
    def program(x):
        q = mb.quantize(input=x, scale=np.float32(0.1), zero_point=np.int8(3), output_dtype="int8")
        return mb.dequantize(input=q, scale=np.float32(0.1), zero_point=np.int8(3), name="y")

    path = saved(program, tmp_path / "q.mlpackage", minimum_deployment_target=ct.target.iOS17)
    x = np.array([[0.14, -0.26, 5.0], [-40.0, 40.0, 0.0]], np.float32)
    wanted = (np.clip(np.round(x / np.float32(0.1)) + 3, -128, 127) - 3) * np.float32(0.1)
    np.testing.assert_allclose(evaluate(load_program(path), {"x": x})["y"], wanted, rtol=1e-6, atol=1e-6)


def test_an_operation_that_nobody_computes_is_named(tmp_path):
    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1, 4, 4), dtype=types.fp32), mb.TensorSpec(shape=(1, 4, 2), dtype=types.fp32)]
    )
    def program(boxes, scores):
        return mb.non_maximum_suppression(boxes=boxes, scores=scores, iou_threshold=0.5, score_threshold=0.1, max_boxes=2)[0]

    loaded = load_program(saved(program, tmp_path / "nms.mlpackage"))
    rng = np.random.default_rng(0)
    inputs = {"boxes": rng.random((1, 4, 4), np.float32), "scores": rng.random((1, 4, 2), np.float32)}
    with pytest.raises(UserError, match="'non_maximum_suppression' has no kernel here") as caught:
        evaluate(loaded, inputs)
    assert "check it on a Mac" in caught.value.hint


def test_a_choice_runs_the_block_that_was_chosen_and_that_one_alone(tmp_path, monkeypatch):
    """sign(Σx) picks between x + k and, by whether the first entry is large, 2x and x − k; both depths read x and k from outside."""
    k = np.array([10.0, 20.0], np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(2,), dtype=types.fp32)])
    def program(x):
        outer = mb.mul(x=x, y=k)
        flag = mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=0.0)

        def other():
            high = mb.greater(x=mb.reduce_max(x=x, keep_dims=False), y=-1.0)
            return mb.cond(pred=high, _true_fn=lambda: mb.exp(x=outer), _false_fn=lambda: mb.sub(x=x, y=k))

        return mb.cond(pred=flag, _true_fn=lambda: mb.add(x=outer, y=1.0), _false_fn=other)

    path = saved(program, tmp_path / "cond.mlpackage", compute_precision=ct.precision.FLOAT32)
    ran = []
    for kind in ("add", "exp", "sub"):
        kernel = KERNELS[kind]
        monkeypatch.setitem(KERNELS, kind, lambda args, kind=kind, kernel=kernel: (ran.append(kind), kernel(args))[1])
    loaded = load_program(path)
    (name,) = loaded.inputs
    for x, wanted, kind in (
        ([1.0, 2.0], [11.0, 41.0], "add"),
        ([-0.5, -0.25], np.exp([-5.0, -5.0]), "exp"),
        ([-2.0, -3.0], [-12.0, -23.0], "sub"),
    ):
        (found,) = evaluate(loaded, {name: np.array(x, np.float32)}).values()
        np.testing.assert_allclose(found, wanted, rtol=1e-6)  # two float32 operations
        assert ran == [kind]
        ran.clear()


def test_constants_that_the_loader_adds_do_not_take_the_names_of_weights(tmp_path):
    """Loading a choice, coremltools leaves constants named const_0, const_1 … behind, names that weights have already."""
    weight, bias = np.arange(8, dtype=np.float32).reshape(4, 2), np.ones(4, np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 2), dtype=types.fp32)])
    def program(x):
        y = mb.linear(x=x, weight=mb.const(val=weight, name="const_0"), bias=mb.const(val=bias, name="const_1"))
        flag = mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=0.0)
        return mb.cond(pred=flag, _true_fn=lambda: mb.relu(x=y), _false_fn=lambda: mb.abs(x=y))

    path = saved(program, tmp_path / "names.mlpackage", compute_precision=ct.precision.FLOAT32)
    loaded = load_program(path)
    (name,) = loaded.inputs
    for x in (np.array([[1.0, 10.0]], np.float32), np.array([[1.0, -10.0]], np.float32)):
        y = x @ weight.T + bias  # small whole numbers: exact
        (found,) = evaluate(loaded, {name: x}).values()
        np.testing.assert_array_equal(found, np.maximum(y, 0) if x.sum() > 0 else np.abs(y))


def test_loops_are_refused(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec(shape=(1,), dtype=types.fp32)])
    def program(x):
        return mb.while_loop(
            _cond=lambda v: mb.less(x=mb.squeeze(x=v), y=10.0), _body=lambda v: (mb.add(x=v, y=1.0),), loop_vars=(x,)
        )

    with pytest.raises(UserError, match=r"'while_loop' .* holds nested blocks"):
        load_program(saved(program, tmp_path / "loop.mlpackage"))


def test_half_precision_rounds_after_every_operation(tmp_path):
    def rounded(precision):
        @mb.program(input_specs=[mb.TensorSpec(shape=(3,), dtype=types.fp32)])
        def program(x):
            return mb.sub(x=mb.add(x=x, y=2048.0), y=2048.0, name="y")

        path = saved(program, tmp_path / f"{precision.name}.mlpackage", compute_precision=precision)
        return evaluate(load_program(path), {"x": x})["y"]

    x = np.array([0.3, 1.2, 3.9], np.float32)
    wanted = (np.float16(x) + np.float16(2048)) - np.float16(2048)  # between 2048 and 4096 float16 counts in twos
    assert rounded(ct.precision.FLOAT16).tolist() == wanted.astype(np.float32).tolist() == [0.0, 2.0, 4.0]
    np.testing.assert_allclose(rounded(ct.precision.FLOAT32), x, atol=2.0**-12)  # float32 counts in 2⁻¹² there


def test_a_file_that_is_no_package(tmp_path):
    (tmp_path / "no.mlpackage").mkdir()
    with pytest.raises(UserError, match=re.escape("no.mlpackage cannot be read as a Core ML program")):
        load_program(tmp_path / "no.mlpackage")


FORMULA_DB = 40.0
"""coremltools may round a weight on a boundary the other way; one step of a few weights in hundreds stays under 1 % of the sum."""


def sqnr(reference, got):
    noise = np.square(reference.astype(np.float64) - got.astype(np.float64)).sum()
    return 10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-300))


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 8))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(a torch module, its saved float32 package)."""
    torch.manual_seed(0)
    module = Small().eval()
    io = Contract(inputs=(TensorSpec(name="x", shape=("N", 3, 8, 8)),), outputs=(TensorSpec(name="y", shape=("N", 8)),))
    path = tmp_path_factory.mktemp("small") / "net.mlpackage"
    CoremlExporter().export(ExportRequest(contract=io, precision="fp32", out=path, module=module))
    return module, path


def _int8(weight):
    scale = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / 127
    return torch.round(weight / scale).clamp(-127, 127) * scale


def _sparse(weight):
    return weight * (weight.abs() > weight.abs().flatten().kthvalue(weight.numel() // 2).values)


def _palette(weight):
    low, high = weight.min(), weight.max()
    step = (high - low) / 15
    return low + torch.round((weight - low) / step) * step


COMPRESSED = {
    "constexpr_affine_dequantize": (
        lambda model: cto.linear_quantize_weights(
            model, cto.OptimizationConfig(cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0))
        ),
        _int8,
    ),
    "constexpr_sparse_to_dense": (
        lambda model: cto.prune_weights(
            model, cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))
        ),
        _sparse,
    ),
    "constexpr_lut_to_dense": (
        lambda model: cto.palettize_weights(
            model, cto.OptimizationConfig(cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0))
        ),
        _palette,
    ),
}


@pytest.mark.parametrize("operation", COMPRESSED)
def test_compressed_weights_are_decoded(operation, small, tmp_path):
    """The package with compressed weights equals the module with the weights compressed by the textbook formula."""
    module, source = small
    compress, formula = COMPRESSED[operation]
    compress(ct.models.MLModel(str(source), skip_model_load=True)).save(str(tmp_path / "c.mlpackage"))
    assert operations(ct.utils.load_spec(str(tmp_path / "c.mlpackage")))[operation] >= 3
    twin = Small().eval()
    twin.load_state_dict(module.state_dict())
    x = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        for layer in twin:
            if hasattr(layer, "weight"):
                layer.weight.copy_(formula(layer.weight))
        wanted, plain = twin(torch.from_numpy(x)).numpy(), module(torch.from_numpy(x)).numpy()
    got = evaluate(load_program(tmp_path / "c.mlpackage"), {"x": x})["y"]

    assert sqnr(wanted, got) > sqnr(plain, got) + 20, "ten times closer to the compressed module than to the plain one"
    assert sqnr(wanted, got) > FORMULA_DB


def test_jointly_sparse_and_quantised_weights_are_decoded(small, tmp_path):
    """Sparse weights whose survivors are int8: one `constexpr` operation feeds another (iOS 18)."""
    module, _ = small
    traced = torch.jit.trace(module, torch.rand(2, 3, 8, 8))
    model = ct.convert(
        traced,
        inputs=[ct.TensorType(name="x", shape=(2, 3, 8, 8))],
        outputs=[ct.TensorType(name="y")],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    pruned = cto.prune_weights(
        model, cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))
    )
    config = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0))
    cto.linear_quantize_weights(pruned, config, joint_compression=True).save(str(tmp_path / "j.mlpackage"))
    assert operations(ct.utils.load_spec(str(tmp_path / "j.mlpackage")))["constexpr_sparse_blockwise_shift_scale"] >= 3
    twin = Small().eval()
    twin.load_state_dict(module.state_dict())
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        for layer in twin:
            if hasattr(layer, "weight"):
                layer.weight.copy_(_int8(_sparse(layer.weight)))
        wanted = twin(torch.from_numpy(x)).numpy()
    got = evaluate(load_program(tmp_path / "j.mlpackage"), {"x": x})["y"]
    assert sqnr(wanted, got) > FORMULA_DB
