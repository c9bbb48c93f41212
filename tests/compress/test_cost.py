import inspect

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trimtab.compress.cost import count
from trimtab.models.architectures import architectures

SMALL = {
    "resnet18": 64,
    "resnet50": 64,
    "mobilenet_v1": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_lite0": 64,
}


@pytest.mark.parametrize("name", architectures.names())
def test_macs_agree_with_torch_to_the_last_digit(name):
    entry = architectures.entry(name)
    channels, side, _ = entry.card.input
    side = 64 if entry.card.task == "anomaly" else SMALL.get(name, side)
    sizes = {"num_classes": 10} | ({"image_size": side} if entry.card.task == "anomaly" else {})
    taken = inspect.signature(entry.value).parameters
    module = entry.value(**{key: size for key, size in sizes.items() if key in taken}).eval()
    x = torch.randn(1, channels, side, side)
    counter = FlopCounterMode(display=False)
    # the kernel of plain matrix products: torch does not count the CPU's fused attention
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(x)
    cost = count(module, [x])
    assert cost.macs * 2 == counter.get_total_flops()
    assert sum(layer.macs for layer in cost.layers) == cost.macs
    assert cost.params == sum(p.numel() for p in module.parameters()) == sum(layer.params for layer in cost.layers)


class Attention(nn.Module):
    """Products outside any layer: 2 · tokens² · width MACs on top of the projections."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return torch.softmax(q @ k.transpose(1, 2), -1) @ v


def test_macs_by_hand():
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    assert count(conv, [torch.randn(1, 4, 5, 7)]).macs == 6 * 2 * 9 * 5 * 7
    attention = count(nn.Sequential(Attention()), [torch.randn(1, 5, 8)])
    assert attention.macs == 5 * 8 * 24 + 2 * 5 * 5 * 8
    assert {layer.path: layer.macs for layer in attention.layers} == {"0": 2 * 5 * 5 * 8, "0.qkv": 5 * 8 * 24}


def test_the_activation_peak_is_the_live_maximum_not_the_sum():
    # 1 MiB in, then 1 MiB out of each ReLU; at most input + two neighbours are alive
    x = torch.randn(1, 256, 1024)
    chain = nn.Sequential(*(nn.ReLU() for _ in range(6)))
    mib = 2**20
    assert count(chain, [x]).activation_peak_bytes == 3 * mib


def test_shared_weights_count_once():
    layer = nn.Linear(4, 4)
    assert count(nn.Sequential(layer, nn.ReLU(), layer), [torch.randn(1, 4)]).params == 20


def test_the_training_mode_comes_back():
    module = nn.Sequential(nn.Linear(4, 4)).train()
    count(module, [torch.randn(1, 4)])
    assert module.training
