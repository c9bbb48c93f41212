"""Filter quality and shift, against formulas written anew in NumPy."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.compress.analyse.filter_shift import BINS, filter_shift, network_kernels, state_kernels
from trimtab.compress.analyse.filters import Limits, filter_quality, random_threshold, suggested_cut
from trimtab.models.errors import UserError


def conv(weight, **more):
    """A convolution with these weights (out, in / groups, kh, kw)."""
    weight = torch.as_tensor(weight, dtype=torch.float32)
    groups = more.get("groups", 1)
    layer = nn.Conv2d(weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]), bias=False, **more)
    layer.weight.data = weight
    return layer


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def only(layer, limits=None):
    (row,) = filter_quality(nn.Sequential(layer), limits)
    return row


def entropy_of(weight):
    """By the singular values of the centred matrix, as the paper has it."""
    flat = weight.reshape(-1, math.prod(weight.shape[2:])).double().numpy()
    values = np.linalg.svd(flat - flat.mean(0), compute_uv=False) ** 2 / (len(flat) - 1)
    shares = values[values > 0] / values.sum()
    return -sum(p * math.log10(p) for p in shares)


def orthogonality_of(weight):
    flat = weight.reshape(len(weight), -1).double().numpy()
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    n = len(flat)
    return 1 - sum(np.abs(unit[i] @ np.delete(unit, i, axis=0).T).sum() for i in range(n)) / (n * (n - 1))


# ---------------------------------------------------------------- the figures


def test_figures_are_the_papers_formulas():
    weight = normal(12, 5, 3, 3) * torch.tensor([3.0, 1, 0.2]).view(1, 1, 3, 1)
    weight[0] *= 0.001
    weight[1, :2] *= 0.001
    row = only(conv(weight))
    largest = weight.abs().max()
    small = (weight.abs() < largest / 100).all(-1).all(-1)
    assert row.sparsity == pytest.approx(small.double().mean().item())
    assert row.sparse_filters == pytest.approx(1 / 12)
    assert (row.kernels, row.filters, row.params) == (60, 12, 540)
    assert row.entropy == pytest.approx(entropy_of(weight), abs=1e-9)  # both in float64
    assert row.clean_entropy == pytest.approx(entropy_of(weight.reshape(60, 1, 3, 3)[~small.reshape(-1)]), abs=1e-9)
    assert row.ratio == pytest.approx(row.entropy / row.threshold)
    assert row.orthogonality == pytest.approx(orthogonality_of(weight), abs=1e-6)  # float32 products


@pytest.mark.parametrize(("n", "value"), [(64, 0.906), (256, 0.943), (1024, 0.950), (4096, 0.951)])
def test_the_threshold_is_the_published_one(n, value):
    assert random_threshold(n) == pytest.approx(value, abs=0.0006)  # three printed digits


@pytest.mark.parametrize("n", [16, 64, 256, 1024, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_untrained_weights_are_called_so(n, seed):
    row = only(conv(normal(n, 1, 3, 3, seed=seed)))
    assert row.entropy >= row.threshold
    assert (row.verdict, row.cut) == ("random-like", 0.0)
    assert ("too few to tell" in row.reason) == (n < 64)


@pytest.mark.parametrize("value", [1.0, 0.1, -3e-7])
def test_equal_kernels_have_no_entropy(value):
    row = only(conv(torch.full((8, 8, 3, 3), value)))
    assert row.entropy == 0
    assert row.orthogonality == pytest.approx(0, abs=1e-6)
    assert row.verdict == "redundant"
    assert row.cut == pytest.approx(1 - 10 ** (0 - random_threshold(64)))


def test_duplicates_are_redundant():
    few = normal(2, 1, 3, 3)
    row = only(conv(few.repeat(64, 1, 1, 1)))
    assert row.entropy == pytest.approx(0, abs=1e-6)  # two points lie on one line
    assert row.verdict == "redundant"
    assert 0 < row.cut <= 0.9
    assert only(conv(few.repeat(64, 1, 1, 1)), Limits(low_entropy=0)).verdict == "healthy"


def test_a_mask_shows():
    weight = normal(16, 16, 3, 3) * torch.tensor([3.0, 1, 0.2]).view(1, 1, 3, 1)
    weight[:10] = 0
    row = only(conv(weight))
    assert row.zeros == row.sparsity == row.sparse_filters == 10 / 16
    assert (row.verdict, row.cut) == ("degenerate", 10 / 16)
    assert row.clean_entropy > 0


def test_scattered_zeros_are_not_taken_for_untrained_weights():
    weight = normal(64, 16, 3, 3)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.4] = 0
    row = only(conv(weight))
    assert row.entropy > row.threshold
    assert row.verdict == "not judged"
    assert "zeros inside the kernels" in row.reason


def test_a_layer_of_zeros_is_degenerate():
    row = only(conv(torch.zeros(8, 4, 3, 3)))
    assert (row.sparsity, row.zeros, row.entropy, row.clean_entropy, row.cut) == (1, 1, 0, 0, 0.9)
    assert row.verdict == "degenerate"


# ---------------------------------------------------------------- kinds of layers


def test_other_kernels_are_measured_and_not_judged():
    row = only(conv(normal(16, 8, 5, 5)))
    assert row.threshold is None
    assert row.ratio == pytest.approx(entropy_of(normal(16, 8, 5, 5)) / math.log10(25))
    assert row.verdict == "not judged"
    assert "3×3 kernels alone, these are 5×5" in row.reason
    one = only(conv(normal(16, 8, 1, 1)))
    assert (one.entropy, one.threshold, one.ratio, one.verdict) == (None, None, None, "not judged")
    assert one.orthogonality == pytest.approx(orthogonality_of(normal(16, 8, 1, 1)), abs=1e-6)
    nine = only(nn.Conv1d(4, 16, 9))
    assert (nine.kernel, nine.threshold) == ((9,), None)
    assert only(nn.Conv3d(2, 4, 3)).kernel == (3, 3, 3)


def test_few_kernels_get_no_verdict():
    row = only(conv(normal(8, 1, 3, 3)))
    assert (row.verdict, row.ratio) == ("not judged", None)
    assert "8 kernels are too few" in row.reason
    assert only(conv(normal(1, 1, 3, 3))).orthogonality is None


def test_depthwise_grouped_and_transposed_layers():
    assert only(conv(normal(32, 1, 3, 3), groups=32)).kernels == 32
    assert only(conv(normal(32, 4, 3, 3), groups=8)).kernels == 128
    weight = normal(6, 4, 3, 3)
    there = nn.ConvTranspose2d(4, 6, 3, bias=False)
    there.weight.data = weight.transpose(0, 1).contiguous()
    mine, plain = asdict(only(there)), asdict(only(conv(weight)))
    for name in ("filters", "kernels", "sparse_filters"):
        assert mine[name] == plain[name]
    for name in ("entropy", "orthogonality"):
        assert mine[name] == pytest.approx(plain[name], abs=1e-6)
    assert only(nn.ConvTranspose2d(8, 12, 3, groups=4)).filters == 12


def test_filters_beyond_one_block_are_all_compared():
    weight = normal(1500, 4, 1, 1)
    assert only(conv(weight)).orthogonality == pytest.approx(orthogonality_of(weight), abs=1e-5)  # float32 products


def test_linear_layers_have_sparsity_and_orthogonality():
    row = only(nn.Linear(10, 10, bias=False))
    assert row.entropy is None
    assert row.cut == 0
    eye = nn.Linear(10, 10)
    eye.weight.data = torch.eye(10)
    assert only(eye).orthogonality == pytest.approx(1)
    assert only(eye).sparsity == pytest.approx(0.9)


def test_what_can_t_be_looked_at():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2))
    net[1].weight.data[0, 0, 0, 0] = math.nan
    net[2].weight.data[0, 0] = math.inf
    with pytest.raises(UserError, match=r"NaN or infinity: 1, 2\n"):
        filter_quality(net)
    with pytest.raises(UserError, match="no convolution and no linear layer"):
        filter_quality(nn.ReLU())
    with pytest.raises(UserError, match=r"low_entropy=1.5 must be in 0 … 1"):
        Limits(low_entropy=1.5)


def test_cuts_follow_their_rule():
    assert suggested_cut("random-like", 0.3, 0.95, 0.94) == 0
    assert suggested_cut("healthy", 0.3, 0.8, 0.94) == 0.3
    assert suggested_cut("redundant", 0.0, 0.2, 0.95) == pytest.approx(1 - 10 ** (0.2 - 0.95))
    assert suggested_cut("degenerate", 1.0, None, None) == 0.9


# ---------------------------------------------------------------- the shift


def nets(seed=0, scale=(1.0, 1.0, 1.0)):
    """Two layers of normal kernels whose rows are scaled."""
    rows = torch.tensor(scale).view(1, 1, 3, 1)
    return nn.Sequential(conv(normal(16, 8, 3, 3, seed=seed) * rows), conv(normal(32, 16, 3, 3, seed=seed + 100) * rows))


def divergence_of(a, b):
    """The paper's D, written with loops."""
    a, b = (np.array([k / np.abs(k).max() if np.abs(k).max() else k for k in x]) for x in (a, b))
    pool = np.concatenate([a, b])
    _, singular, axes = np.linalg.svd(pool - pool.mean(0), full_matrices=False)
    axes = np.array([v * np.sign(v[np.abs(v).argmax()]) for v in axes])
    p_all, q_all = ((x - pool.mean(0)) @ axes.T for x in (a, b))
    both = np.concatenate([p_all, q_all])
    limits = (both.min(), both.max())
    total = 0.0
    for i in range(9):
        shares = []
        for x in (p_all, q_all):
            counts = np.histogram(x[:, i], BINS, limits)[0] / len(x)
            counts[counts == 0] = np.finfo(np.float32).eps
            shares.append(counts / counts.sum())
        p, q = shares
        total += singular[i] ** 2 / (singular**2).sum() * ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum())
    return total


def test_the_shift_is_the_papers_formula():
    a, b = network_kernels(nets()), network_kernels(nets(7, (2.0, 1.0, 0.3)))
    found = filter_shift(a, b)
    expected = divergence_of(np.concatenate(list(a.values())), np.concatenate(list(b.values())))
    # a coefficient on the edge of a bin may fall on either side: one of 640 kernels moves D by less than 1 %
    assert found.overall.divergence == pytest.approx(expected, rel=0.01)
    assert sum(found.explained) == pytest.approx(1)
    assert [row.name for row in found.layers] == ["0", "1"]
    assert [row.kernels for row in found.depths] == [(128, 128), (512, 512)]
    back = filter_shift(b, a).overall.divergence
    assert back == pytest.approx(found.overall.divergence, rel=0.01)  # symmetrical, but for the same rounding


def test_the_same_kernels_have_no_shift_at_all():
    a = network_kernels(nets())
    found = filter_shift(a, network_kernels(nets()))
    assert found.overall.divergence == 0
    assert all(row.divergence == 0 for row in (*found.layers, *found.depths))
    assert found.overall.chance > 0


@pytest.mark.parametrize("n", [7, 100, 1003])
def test_the_order_of_kernels_is_no_shift(n):
    kernels = np.random.default_rng(0).normal(size=(n, 9))
    turned = {"0": kernels[::-1].copy()}
    assert filter_shift({"0": kernels}, turned).overall.divergence == 0


def test_chance_is_what_splits_of_whole_kernels_give():
    a, b = (np.random.default_rng(seed).normal(size=(400, 9)) for seed in (0, 1))
    found = filter_shift({"0": a}, {"0": b}).overall.chance
    pool, rng = np.concatenate([a, b]), np.random.default_rng(2)
    drawn = []
    for _ in range(30):
        order = rng.permutation(800)
        drawn.append(divergence_of(pool[order[:400]], pool[order[400:]]))
    # both are means of 30 splits; one split's D varies by its standard deviation
    assert found == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) * math.sqrt(2 / 30))


def test_seeds_lie_nearer_than_trained_and_random():
    trained, again, random = (network_kernels(n) for n in (nets(0, (3.0, 1.0, 0.1)), nets(1, (3.0, 1.0, 0.1)), nets(2)))
    seeds, apart = filter_shift(trained, again).overall, filter_shift(trained, random).overall
    assert seeds.divergence < apart.divergence / 2
    assert apart.divergence > 2 * apart.chance


def test_names_sizes_and_orders_may_differ():
    net = nets()
    state = {f"body.{name}": value for name, value in net.state_dict().items()} | {"fc.weight": torch.zeros(3, 3)}
    found = filter_shift(network_kernels(net), state_kernels(state), ordered=False)
    assert found.overall.divergence == 0
    assert (found.layers, found.depths) == ((), ())
    assert "no layer's name is in both" in found.note
    assert "no order of layers" in found.note
    pruned = nn.Sequential(conv(net[0].weight.detach()[:8]), conv(net[1].weight.detach()[:, :8]))
    assert [row.kernels for row in filter_shift(network_kernels(net), network_kernels(pruned)).layers] == [
        (128, 64),
        (512, 256),
    ]
    zeros = {"0": np.zeros((4, 9))}
    assert filter_shift(zeros, zeros).overall.divergence == 0


def test_networks_without_such_kernels_are_refused():
    kernels = network_kernels(nets())
    with pytest.raises(UserError, match="the second network has no 3×3 kernel"):
        filter_shift(kernels, network_kernels(nn.Sequential(nn.Conv2d(1, 4, 5), nn.Conv3d(1, 1, 3))))
    with pytest.raises(UserError, match="NaN or infinity in the second network: 0"):
        filter_shift(kernels, {"0": np.full((4, 9), np.nan)})
