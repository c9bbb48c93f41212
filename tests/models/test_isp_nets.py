"""EfficientISP, RobustISP and RMFA-Net: sizes as published, forms of the input, the reach, and what can't be built."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.compress.cost import count
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError
from trimtab.models.raw.packing import packed, planes3


def build(name, **kwargs):
    torch.manual_seed(0)
    return architectures.get(name)(**kwargs).eval()


@pytest.mark.parametrize(
    ("name", "shape", "params", "macs_per_pixel"),
    [
        ("efficient_isp", (1, 4, 64, 64), 3060, 756),
        ("robust_isp", (1, 4, 64, 64), 1616, 396),
    ],
)
def test_sizes_are_those_of_the_released_networks(name, shape, params, macs_per_pixel):
    cost = count(build(name), [torch.zeros(shape)])
    assert cost.params == params
    assert cost.macs == macs_per_pixel * 128 * 128


def test_rmfa_tiny_has_the_published_parameters_and_its_blocks_and_width_are_arguments():
    def params(**kwargs):
        return sum(p.numel() for p in build("rmfa_tiny", **kwargs).parameters())

    assert params() == 29_223
    # two more blocks, and four times the weights of a convolution from twice the channels to twice
    block = (params(blocks=4) - params()) // 2
    assert params(blocks=8) == params() + 6 * block
    c = 32
    inner = c // 16
    own = (c * c // 2 + c // 2) + (9 * c * c // 2 + c // 2) + 3 * (9 * c * c + c) + (18 * c * c + c) + 2 * c * inner + 98
    ends = (27 * c + c) + (9 * c * c + c) + (27 * c + 3)
    assert params(blocks=1, width=c) == own + ends


def test_a_picture_has_the_mosaics_size_and_rmfas_stays_within_0_and_1():
    assert build("efficient_isp")(torch.rand(2, 4, 10, 14)).shape == (2, 3, 20, 28)
    assert build("robust_isp")(torch.rand(2, 4, 10, 14)).shape == (2, 3, 20, 28)
    picture = build("rmfa_tiny")(torch.rand(2, 3, 16, 24))
    assert picture.shape == (2, 3, 16, 24)
    assert picture.min() >= 0
    assert picture.max() <= 1


@pytest.mark.parametrize("name", ["efficient_isp", "robust_isp"])
def test_a_pixel_sees_14_by_14_of_the_mosaic(name):
    net = build(name)
    x = torch.rand(1, 4, 21, 21, requires_grad=True)
    net(x)[0, :, 20:22, 20:22].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen[7:14, 7:14].all()
    assert seen.sum() == 49  # 7×7 cells


@pytest.mark.parametrize("name", ["efficient_isp", "robust_isp"])
@pytest.mark.parametrize("seed", range(5))
def test_every_colour_can_learn_from_the_start(name, seed):
    """A last ReLU that starts shut would have no gradient: no output channel is 0 everywhere on a mosaic like any other."""
    torch.manual_seed(seed)
    net = architectures.get(name)()
    picture = net(torch.rand(1, 4, 32, 32))
    sites = torch.nn.functional.pixel_unshuffle(picture, 2)
    assert (sites.amax((0, 2, 3)) > 0).all()
    assert 0.2 < picture.mean() < 0.8


@pytest.mark.parametrize(("name", "form"), [("efficient_isp", packed), ("rmfa_tiny", planes3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_packing_inside_is_packing_outside(name, form, dtype):
    white = 255.0 if dtype == "uint8" else 1023.0
    counts = np.random.default_rng(0).integers(0, int(white) + 1, (1, 1, 24, 32))
    inside = build(name, packing="inside", pattern="GBRG", black=16.0, white=white, dtype=dtype)
    outside = build(name)
    assert inside.state_dict().keys() == outside.state_dict().keys()
    normalised = torch.from_numpy((counts[:, 0] - 16.0) / (white - 16.0)).float()
    with torch.no_grad():
        found = inside(torch.from_numpy(counts.astype(dtype)))
        expected = outside(form(normalised, "GBRG"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # the same sums in another order


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("efficient_isp", {"packing": "insides"}, "did you mean 'inside'"),
        ("efficient_isp", {"packing": "inside", "dtype": "uint32"}, "dtype='uint32' is unknown"),
        ("efficient_isp", {"packing": "inside", "dtype": "uint8"}, "does not fit dtype='uint8'"),
        ("efficient_isp", {"packing": "inside", "pattern": "RGB"}, "no Bayer phase"),
        ("efficient_isp", {"packing": "inside", "black": 2000}, "is not below the white level"),
        ("rmfa_tiny", {"blocks": 0}, "blocks=0"),
        ("rmfa_tiny", {"width": 1}, "half a channel"),
    ],
)
def test_what_cannot_be_built_is_said(name, kwargs, said):
    with pytest.raises(UserError) as caught:
        build(name, **kwargs)
    assert said in f"{caught.value} {caught.value.hint}"


def test_rmfa_refuses_sides_that_its_tone_branch_cannot_halve_twice():
    with pytest.raises(UserError, match="multiples of 4, not 18×16"):
        build("rmfa_tiny")(torch.rand(1, 3, 18, 16))
