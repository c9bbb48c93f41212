"""SkipblockNet: the published counts, any width, any size, and what its skip blocks add."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trimtab.compress.cost import count
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError
from trimtab.models.zoo.layers import make_divisible
from trimtab.models.zoo.skipblocknet import AveragePoolTo, M

torch.set_num_threads(1)


def build(name="skipblocknet_small", **arguments):
    torch.manual_seed(0)
    return architectures.get(name)(**arguments).eval()


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def lively(net):
    """The network with norm statistics that make every channel matter."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            layer.bias.data.normal_(0, 0.3)
    return net


def sizes_of(net, x):
    """(H, W) of every group's output and of every skip block's, by group."""
    groups, skips, handles = {}, {}, []
    for at, group in enumerate(net.groups):
        handles.append(group.register_forward_hook(lambda _m, _a, out, at=at: groups.update({at: tuple(out.shape[1:])})))
    for at, skip in net.skips.items():
        handles.append(skip.register_forward_hook(lambda _m, _a, out, at=at: skips.update({int(at): tuple(out.shape[1:])})))
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return groups, skips


# ---------------------------------------------------------------- the published network


@pytest.fixture(scope="module")
def published():
    net = build("skipblocknet_m")
    return net, count(net, [torch.zeros(1, 3, 224, 224)])


def test_m_has_the_published_size(published):
    """5.53 M parameters and 236.6 M MACs at 224×224, as counted from the released code's table; both to the last digit given."""
    _, cost = published
    assert round(cost.params / 1e6, 2) == 5.53
    assert round(cost.macs / 1e6, 1) == 236.6


def test_m_by_an_independent_count(published):
    """Both figures again, from the table alone."""
    _, cost = published
    params, macs, side, channels = 27 * 16 + 32, 27 * 16 * 112**2, 112, 16

    def inverted(hidden, outputs, kernel, *, side, inputs, stride=1, squeeze=False):
        out = side // stride
        weights = inputs * hidden + kernel**2 * hidden + hidden * outputs
        work = inputs * hidden * side**2 + (kernel**2 * hidden + hidden * outputs) * out**2
        norms, gate = 2 * (2 * hidden + outputs), 2 * hidden * (hidden // 4) if squeeze else 0
        biases = hidden + hidden // 4 if squeeze else 0
        return weights + norms + gate + biases, work + gate

    blocks = [inverted(16, 16, 3, side=112, inputs=16)]
    for row in [row for group in M.groups for row in group]:
        hidden = make_divisible(channels * row.expansion)
        blocks.append(
            inverted(hidden, row.outputs, row.kernel, side=side, inputs=channels, stride=row.stride, squeeze=row.squeeze)
        )
        side, channels = side // row.stride, row.outputs
    blocks += [inverted(96, 40, 5, side=28, inputs=16), inverted(40, 80, 3, side=14, inputs=16)]
    params += sum(p for p, _ in blocks) + 160 * 960 + 2 * 960 + 960 * 1280 + 1280 + 1280 * 1000 + 1000
    macs += sum(m for _, m in blocks) + 160 * 960 * 7**2 + 960 * 1280 + 1280 * 1000
    assert (cost.params, cost.macs) == (params, macs)


def test_m_at_224_pools_to_the_papers_28_and_14(published):
    groups, skips = sizes_of(published[0], images(1, 3, 224, 224))
    assert skips == {0: (40, 28, 28), 1: (80, 14, 14)}
    assert groups == {**skips, 2: (112, 14, 14), 3: (160, 7, 7)}


# ---------------------------------------------------------------- widths and sizes


@pytest.mark.parametrize("width", [0.1, 0.35, 0.5, 0.75, 1.25, 1.37, 2.0])
@pytest.mark.parametrize("name", ["skipblocknet_m", "skipblocknet_small"])
def test_any_width_runs_and_keeps_its_divisor(name, width):
    net = build(name, width=width, num_classes=7, in_channels=1, stem_stride=1)
    divisor = 8 if name.endswith("_m") else 2
    gates = {id(m) for n, m in net.named_modules() if n.endswith(("fc1", "fc2"))}
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and id(m) not in gates]
    assert all(layer.out_channels % divisor == 0 for layer in convolutions)
    with torch.no_grad():
        assert net(images(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (45, 51), (30, 17), (7, 9), (1, 1)])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_skip_blocks_have_the_size_of_what_they_are_added_to(size, stem_stride):
    net = build("skipblocknet_m", width=0.25, in_channels=1, num_classes=3, stem_stride=stem_stride)
    groups, skips = sizes_of(net, images(1, 1, *size))
    assert sorted(skips) == [0, 1]
    assert all(groups[at] == shape for at, shape in skips.items())


@pytest.mark.parametrize("size", [(24, 16), (28, 28), (14, 21), (1, 8)])
def test_pooling_is_adaptive_where_windows_are_equal(size):
    """Four windows of 7 in 28, though the stride is 8."""
    x = images(2, 3, *size)
    expected = F.adaptive_avg_pool2d(x, tuple(-(-side // 8) for side in size))
    # float32 sums of at most 64 numbers of order 1
    torch.testing.assert_close(AveragePoolTo(8)(x), expected, rtol=0, atol=1e-6)


def test_a_ragged_side_is_cut_off_at_the_border():
    x = images(1, 1, 20, 9)
    windows = [[x[0, 0, r : r + 8, c : c + 8].double().mean().item() for c in (0, 8)] for r in (0, 8, 16)]
    # float32 sums of at most 64 numbers of order 1
    np.testing.assert_allclose(AveragePoolTo(8)(x)[0, 0].numpy(), windows, rtol=0, atol=1e-6)


def test_skip_blocks_are_added_to_their_groups():
    """The forward pass again by hand, for a network of which every channel matters."""
    net = lively(build())
    x = images(2, 1, 28, 28)
    with torch.no_grad():
        early = net.base(net.stem(x))
        first = net.groups[0](early) + net.skips["0"].block(F.avg_pool2d(early, 4))
        second = net.groups[1](first) + net.skips["1"].block(F.avg_pool2d(early, 7))
        expected = net.classifier(net.last(second).mean((2, 3)))
        # the same operations, the last mean in another order
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)


def test_the_plain_network_has_no_skip_blocks_and_a_width_matches_its_macs():
    x = [torch.zeros(1, 1, 28, 28)]
    skip, plain, wider = (count(build(**kw), x) for kw in ({}, {"skip": False}, {"skip": False, "width": 1.07}))
    assert 1e6 < skip.macs < 3e6
    assert plain.macs < 0.95 * skip.macs
    assert wider.macs / skip.macs == pytest.approx(1, abs=0.02)
    assert not any("skips" in name for name, _ in build(skip=False).named_parameters())


def test_gradients_reach_the_skip_blocks():
    net = build().train()
    net(images(4, 1, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.skips.parameters())


# ---------------------------------------------------------------- export


@pytest.mark.parametrize("size", [28, 30, 32])
def test_onnx_with_a_free_batch_computes_the_same(size, tmp_path):
    """30 leaves ragged windows; the graph holds plain poolings in any case."""
    import onnx
    import onnxruntime

    net, path = lively(build()), tmp_path / "net.onnx"
    torch.onnx.export(
        net, (images(1, 1, size, size),), path, dynamo=False, input_names=["image"], dynamic_axes={"image": {0: "N"}}
    )
    graph = onnx.load(path)
    pools = [node for node in graph.graph.node if node.op_type == "AveragePool"]
    assert len(pools) == 2
    assert not {node.op_type for node in graph.graph.node} & {"Shape", "Gather", "Loop", "If"}
    x = images(3, 1, size, size)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        # two float32 runtimes over some 40 layers, logits of order 1
        np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], net(x).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"width": 0}, "width=0 must be above 0 and at most 16"),
        ({"stem_stride": 4}, "stem_stride=4 must be 1 or 2"),
        ({"num_classes": 0}, "num_classes=0 must be 1 or more"),
    ],
)
@pytest.mark.parametrize("name", ["skipblocknet_m", "skipblocknet_small"])
def test_wrong_values_are_named(name, arguments, said):
    with pytest.raises(UserError, match=said):
        architectures.get(name)(**arguments)
