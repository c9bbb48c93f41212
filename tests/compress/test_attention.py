"""Average attention distance and mutual information of attention, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from trimtab.compress.analyse.attention import (
    attention_distance,
    attention_map,
    attention_nmi,
    between_patches,
    measure_attention,
    qkv_layers,
)
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError

torch.set_num_threads(1)
GRID, PATCH = (2, 3), 4


def attention(*, images=2, heads=3, tokens=6, sharp=2.0):
    logits = np.random.default_rng(0).normal(0, sharp, (images, heads, tokens, tokens))
    return softmax(logits, axis=-1)


def vit(**more):
    torch.manual_seed(0)
    made = {"in_channels": 1, "image_size": 12, "dim": 8, "depth": 2, "heads": 2, "num_classes": 3} | more
    module = architectures.get("vit_nano")(**made)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return module


def test_the_map_by_numpy():
    """One head at a time from columns h·d … of each third; float32 logits of order 1: 1e-6."""
    qkv = np.random.default_rng(1).normal(size=(2, 5, 3 * 8))
    got = attention_map(torch.from_numpy(qkv), 2).numpy()
    for n in range(2):
        q, k, _ = np.split(qkv[n], 3, axis=1)
        for h in range(2):
            s = slice(4 * h, 4 * h + 4)
            np.testing.assert_allclose(got[n, h], softmax(q[:, s] @ k[:, s].T / 2, axis=1), atol=1e-6)


def test_the_distance_by_loops():
    """float32 sums of 6 products of pixels up to 13: 1e-5."""
    a = attention()
    got = attention_distance(torch.from_numpy(a), GRID, PATCH).numpy()
    for n in range(2):
        for h in range(3):
            total = 0.0
            for q in range(6):
                for k in range(6):
                    total += a[n, h, q, k] * PATCH * math.dist(divmod(q, 3), divmod(k, 3))
            assert got[n, h] == pytest.approx(total / 6, abs=1e-5)


def test_the_mutual_information_by_loops():
    """Σ p·log(p/(p_q·p_k)) / √(H_q·H_k) in float64: 1e-10."""
    a = attention()
    got = attention_nmi(torch.from_numpy(a)).numpy()
    for n in range(2):
        for h in range(3):
            keys = [sum(a[n, h, q, k] / 6 for q in range(6)) for k in range(6)]
            info = sum(a[n, h, q, k] / 6 * math.log(a[n, h, q, k] / keys[k]) for q in range(6) for k in range(6))
            scale = math.sqrt(math.log(6) * -sum(p * math.log(p) for p in keys))
            assert got[n, h] == pytest.approx(info / scale, abs=1e-10)


def test_the_limits():
    """Itself alone: distance 0, information 1. Everything alike: the mean distance of two places, information 0. One key: 0."""
    own, even = torch.eye(6)[None, None], torch.full((1, 1, 6, 6), 1 / 6)
    one = torch.zeros(1, 1, 6, 6)
    one[..., 2] = 1
    assert attention_distance(own, GRID, PATCH).item() == 0
    mean = np.mean([PATCH * math.dist(divmod(q, 3), divmod(k, 3)) for q in range(6) for k in range(6)])
    assert attention_distance(even, GRID, PATCH).item() == pytest.approx(mean, rel=1e-6)
    # sixths are rounded in float32
    assert attention_nmi(own).item() == pytest.approx(1, abs=1e-9)
    assert attention_nmi(even).item() == pytest.approx(0, abs=1e-6)
    assert attention_nmi(one).item() == 0


def test_rows_sum_to_one_again_without_the_class_token():
    a = torch.from_numpy(attention(tokens=7))
    inner = between_patches(a, 1)
    assert inner.shape == (2, 3, 6, 6)
    torch.testing.assert_close(inner.sum(-1), torch.ones(2, 3, 6, dtype=torch.float64))
    torch.testing.assert_close(inner[0, 0, 2], a[0, 0, 3, 1:] / a[0, 0, 3, 1:].sum())


def test_a_network_is_measured_over_all_batches_and_left_as_it_was():
    """Against the figures of its own qkv outputs, image by image; float32: 1e-5."""
    module, images = vit().train(), torch.randn(5, 1, 12, 16)
    module.blocks[0].eval()
    modes = [part.training for part in module.modules()]
    got = measure_attention(module, images, batch_size=2)
    assert got.layers == ("blocks.0.attn.qkv", "blocks.1.attn.qkv") == qkv_layers(module)
    assert [part.training for part in module.modules()] == modes
    assert not any(part._forward_hooks for part in module.modules())
    outputs = []
    handle = module.blocks[1].attn.qkv.register_forward_hook(lambda _m, _a, out: outputs.append(out))
    with torch.no_grad():
        for image in images:
            module(image[None])
    handle.remove()
    inner = [between_patches(attention_map(out, 2), 1) for out in outputs]
    distance = torch.stack([attention_distance(a, (3, 4), 4)[0] for a in inner]).mean(0)
    nmi = torch.stack([attention_nmi(a)[0] for a in inner]).mean(0)
    np.testing.assert_allclose(got.distance_px[1], distance.numpy(), rtol=1e-5)
    np.testing.assert_allclose(got.nmi[1], nmi.numpy(), rtol=1e-5)


class TestRefusals:
    def test_no_transformer(self):
        with pytest.raises(UserError, match=r"no layer called …attn.qkv"):
            measure_attention(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8))

    def test_a_wrong_path(self):
        with pytest.raises(UserError, match=r"no module 'blocks.7.attn.qkv'\n.*did you mean .*blocks.\d.attn.qkv"):
            measure_attention(vit(), torch.zeros(1, 1, 12, 12), layers=("blocks.7.attn.qkv",))

    def test_tokens_that_are_no_patches(self):
        with pytest.raises(UserError, match=r"sees 10 tokens, 2 of them no patches; the image has 3×3 patches"):
            measure_attention(vit(), torch.zeros(1, 1, 12, 12), prefix=2)

    def test_no_images(self):
        with pytest.raises(UserError, match="no images to measure the attention on"):
            measure_attention(vit(), torch.zeros(0, 1, 12, 12))

    def test_an_attention_without_a_number_of_heads(self):
        module = vit()
        del module.blocks[1].attn.num_heads
        with pytest.raises(UserError, match=r"'blocks.1.attn' does not say how many heads it has"):
            measure_attention(module, torch.zeros(1, 1, 12, 12))

    def test_normalised_queries(self):
        module = vit()
        module.blocks[0].attn.q_norm = nn.LayerNorm(4)
        with pytest.raises(UserError, match=r"'blocks.0.attn' normalises queries and keys"):
            measure_attention(module, torch.zeros(1, 1, 12, 12))

    def test_no_patches(self):
        module = vit()
        module.patch_embed.proj = nn.Identity()
        with pytest.raises(UserError, match=r"no convolution patch_embed.proj"):
            measure_attention(module, torch.zeros(1, 1, 12, 12))
