"""Vision transformers: names, sizes and arithmetic by independent formulas, and every export format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from torch import nn
from torch.nn import functional as F

from trimtab.compress.cost import count
from trimtab.export.convert import convert, module_source
from trimtab.export.exporter import exporters
from trimtab.models.architectures import architectures
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError
from trimtab.models.zoo.vit import bicubic

torch.set_num_threads(1)
SMALL = {"num_classes": 3, "in_channels": 2, "image_size": 6, "patch": 2, "dim": 8, "depth": 2, "heads": 2, "mlp_ratio": 1.5}


def build(name="vit_nano", *, lively=0.0, **arguments):
    torch.manual_seed(0)
    module = architectures.get(name)(**arguments).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # away from the small initial values, where much is nearly linear
            parameter.add_(torch.randn_like(parameter) * lively)
    return module


@pytest.mark.parametrize(("name", "total", "dim"), [("deit_tiny", 5_717_416, 192), ("deit_small", 22_050_664, 384)])
def test_deit_has_the_published_parameters_under_timms_names(name, total, dim):
    """The counts of the published checkpoints (the paper's table 1 rounds them to 5 M and 22 M)."""
    shapes = {key: tuple(value.shape) for key, value in build(name).state_dict().items()}
    assert sum(np.prod(shape) for shape in shapes.values()) == total
    block = {
        "norm1.weight": (dim,), "norm1.bias": (dim,), "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,),
        "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
        "mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,), "mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,),
    }  # fmt: skip
    assert shapes == {
        "cls_token": (1, 1, dim), "pos_embed": (1, 197, dim), "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (1000, dim), "head.bias": (1000,),
        **{f"blocks.{n}.{key}": shape for n in range(12) for key, shape in block.items()},
    }  # fmt: skip


def by_numpy(state, images, *, patch, heads, depth, pool):
    """The network in float64 from its weights, the class token put in front by concatenation."""
    w = {key: value.double().numpy() for key, value in state.items()}

    def norm(x, at):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * w[f"{at}.weight"] + w[f"{at}.bias"]

    def linear(x, at):
        return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]

    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    out = []
    for image in images:
        kernel = w["patch_embed.proj.weight"]
        x = np.stack(
            [
                (kernel * image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]).sum((1, 2, 3))
                for i in range(rows)
                for j in range(columns)
            ]
        )
        x = np.concatenate([w["cls_token"][0], x + w["patch_embed.proj.bias"]]) + w["pos_embed"][0]
        for n in range(depth):
            q, k, v = np.split(linear(norm(x, f"blocks.{n}.norm1"), f"blocks.{n}.attn.qkv"), 3, axis=1)
            d = x.shape[1] // heads
            mixed = [
                softmax(q[:, s] @ k[:, s].T / np.sqrt(d), axis=1) @ v[:, s]
                for s in (slice(h * d, h * d + d) for h in range(heads))
            ]
            x = x + linear(np.concatenate(mixed, axis=1), f"blocks.{n}.attn.proj")
            hidden = linear(norm(x, f"blocks.{n}.norm2"), f"blocks.{n}.mlp.fc1")
            x = x + linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), f"blocks.{n}.mlp.fc2")
        x = norm(x, "norm")
        out.append(linear(x[0] if pool == "cls" else x[1:].mean(0), "head"))
    return np.stack(out)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_arithmetic_by_numpy(pool):
    """float64 on both sides: 1e-10 leaves room for sums in another order alone."""
    module = build(**SMALL, pool=pool, lively=0.3).double()
    images = np.random.default_rng(0).normal(size=(3, 2, 6, 6))
    expected = by_numpy(module.state_dict(), images, patch=2, heads=2, depth=2, pool=pool)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(images)).numpy(), expected, rtol=0, atol=1e-10)


def test_multiply_accumulates_by_the_textbook():
    """Patches P·p²·C·D; per block T·(3D² + D² + 8D²) and 2·T²·D for the two products of attention; the head D·K."""
    tokens, dim = 50, 64
    expected = 49 * 16 * dim + 4 * (tokens * 12 * dim**2 + 2 * tokens**2 * dim) + dim * 10
    assert count(build(in_channels=1), (torch.zeros(1, 1, 28, 28),)).macs == expected


@pytest.mark.parametrize(("size", "given"), [(8, 7), (7, 8), (11, 7), (3, 14), (5, 5), (4, 1)])
def test_position_weights_are_torchs_bicubic(size, given):
    """Against torch's own resize, in float64; 1e-12 for another order of four products."""
    signal = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, given, 1)))
    expected = F.interpolate(signal, size=(size, 1), mode="bicubic", align_corners=False)[0, 0]
    np.testing.assert_allclose(bicubic(size, given) @ signal[0, 0].numpy(), expected.numpy(), rtol=0, atol=1e-12)


def test_positions_for_another_image_are_a_resized_plane():
    module = build(**SMALL, lively=0.3)
    plane = module.pos_embed[:, 1:].reshape(1, 3, 3, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(plane, size=(4, 5), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    with torch.no_grad():
        got = module.positions(4, 5)
        # float32 products of values around 0.3
        torch.testing.assert_close(got[:, 1:], expected, rtol=0, atol=1e-6)
        assert torch.equal(got[:, :1], module.pos_embed[:, :1])
        assert module.positions(3, 3) is module.pos_embed
        assert module(torch.zeros(2, 2, 8, 11)).shape == (2, 3)


def test_structured_pruning_may_cut_the_hidden_layers_and_nothing_that_attention_splits():
    from trimtab.compress.groups import analyse

    groups = analyse(build(**SMALL), (torch.zeros(2, 2, 6, 6),)).groups
    assert sorted(group.root for group in groups) == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, r"image_size=30 is not a multiple of patch=4[\s\S]*image_size=32"),
        ({"dim": 66}, "dim=66 can't be split among heads=4"),
        ({"depth": 0}, "depth=0 must be 1 or more"),
        ({"patch": -4}, "patch=-4 must be 1 or more"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 must be above 0 and at most 16"),
        ({"pool": "max"}, "pool='max' must be 'cls' or 'mean'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        build(**arguments)


def source(module, side):
    contract = image_classifier(channels=1, height=side, width=side, classes=tuple("abcdefghij"), mean=(0.3,), std=(0.35,))
    return module_source(module, contract, label="vit")


@pytest.mark.parametrize(("pool", "side"), [("cls", 28), ("mean", 28), ("cls", 32)])
def test_the_graph_with_a_free_batch_has_no_shape_arithmetic(pool, side):
    graph = source(build(in_channels=1, pool=pool), side).graph
    assert not {node.op_type for node in graph.graph.node} & {"Shape", "Expand", "Concat", "Resize", "Loop", "If", "Where"}


FORMATS = [("onnx", "fp32"), ("tflite", "fp32"), ("coreml", "fp32"), ("coreml", "fp16")]


@pytest.mark.parametrize(("name", "precision"), FORMATS)
@pytest.mark.parametrize(("pool", "side"), [("cls", 28), ("mean", 32)])
def test_every_format_computes_the_same(tmp_path, name, precision, pool, side):
    if missing := exporters.entry(name).card.missing():
        pytest.skip(f"{name} packages not installed: {missing}")
    module = build(in_channels=1, pool=pool, lively=0.05)
    (made,) = convert(source(module, side), [(name, precision)], tmp_path)
    assert made.ok
    # float32 over 4 blocks; half precision has 11 bits, 66 dB at best
    assert made.artifact.parity.sqnr_db >= {"fp32": 90, "fp16": 45}[precision]


def test_torch_export_with_a_free_batch_at_another_size():
    module = build(in_channels=1)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (torch.randn(2, 1, 32, 30),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 1, 32, 30)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), module(x), rtol=1e-4, atol=1e-5)


def test_one_plain_linear_layer_makes_the_logits():
    assert type(build().head) is nn.Linear
