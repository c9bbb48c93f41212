"""The terms of unpaired ISP training against NumPy and against finite differences, and the critics' shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.compress.procedures.isp_critics import MapCritic, TokenCritic
from trimtab.compress.procedures.isp_losses import (
    blurred,
    content_loss,
    critic_loss,
    gradient_penalty,
    grey,
    lightness,
    network_loss,
    total_variation,
)

torch.set_num_threads(1)


def uniform(*shape, seed=0, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- what the features see


@pytest.mark.parametrize(
    ("colour", "lab"),
    # CIELab under D65, as published in tables of sRGB's primaries (two decimals)
    [((1, 1, 1), 100.0), ((0, 0, 0), 0.0), ((1, 0, 0), 53.24), ((0, 1, 0), 87.73), ((0, 0, 1), 32.30), ((0.5,) * 3, 53.39)],
)
def test_lightness_of_known_colours(colour, lab):
    pictures = torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)
    assert 100 * lightness(pictures).item() == pytest.approx(lab, abs=0.01)


def test_lightness_agrees_with_a_library():
    colour = pytest.importorskip("colour")
    pictures = uniform(2, 3, 5, 7)
    pictures[0, :, :2] *= 0.02  # both straight parts near black
    expected = colour.XYZ_to_Lab(colour.sRGB_to_XYZ(pictures.permute(0, 2, 3, 1).numpy()))[..., 0] / 100
    # the library's white point and matrix differ from ours in the fifth digit
    assert np.allclose(lightness(pictures)[:, 0].numpy(), expected, atol=2e-4)


def test_lightness_has_a_finite_gradient_beyond_the_range():
    pictures = torch.tensor([-0.7, -0.01, 0.0, 0.04045, 1.0, 1.9]).view(1, 1, 1, 6).expand(1, 3, 1, 6).clone().requires_grad_()
    lightness(pictures).sum().backward()
    assert torch.isfinite(pictures.grad).all()
    assert (pictures.grad > 0).all()  # it rises everywhere: no picture is out of the content term's reach


def test_grey_and_blur_by_numpy():
    pictures = uniform(2, 3, 24, 30)
    x = pictures.numpy()
    assert np.allclose(grey(pictures).numpy(), np.tensordot([0.299, 0.587, 0.114], x, (0, 1))[:, None].repeat(3, 1))
    at = np.arange(-10, 11)
    kernel = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 3.0**2))
    kernel /= kernel.sum()
    wide = np.pad(x, ((0, 0), (0, 0), (10, 10), (10, 10)), mode="reflect")
    expected = np.array([(wide[1, 2, i : i + 21, j : j + 21] * kernel).sum() for i, j in ((0, 0), (11, 7), (23, 29))])
    got = blurred(pictures, 3.0)
    assert got.shape == pictures.shape
    assert np.allclose([got[1, 2, i, j].item() for i, j in ((0, 0), (11, 7), (23, 29))], expected)


def test_the_released_kernel_is_a_gaussian_of_sigma_three_root_two():
    """Its code takes the square root of the outer product of two normal densities of σ = 3."""
    at = np.arange(-10, 11)
    row = np.exp(-(at**2) / (2 * 3.0**2))
    kernel = np.sqrt(np.outer(row, row))
    point = torch.zeros(1, 3, 41, 41, dtype=torch.float64)
    point[:, :, 20, 20] = 1
    got = blurred(point, 3 * 2**0.5)[0, 0, 10:31, 10:31].numpy()
    assert np.allclose(got, kernel / kernel.sum())


# ---------------------------------------------------------------- the terms


def test_content_and_variation_by_numpy():
    a, b = uniform(3, 4, 5, 6, seed=1), uniform(3, 4, 5, 6, seed=2)
    assert content_loss(a, b).item() == pytest.approx(2 * ((a - b).numpy() ** 2).sum() / (4 * 5 * 6))
    x = uniform(2, 3, 5, 7).numpy()
    dx, dy = np.diff(x, axis=3), np.diff(x, axis=2)
    expected = 2 * (0.5 * (dx**2).sum() / (6 * 5 * 3) + 0.5 * (dy**2).sum() / (4 * 7 * 3)) / 2
    assert total_variation(torch.from_numpy(x)).item() == pytest.approx(expected)


def test_the_pairing_losses_by_numpy():
    real, fake = uniform(5, 1, seed=1, low=-3, high=3), uniform(5, 1, seed=2, low=-3, high=3)
    r, f = real.numpy(), fake.numpy()
    assert network_loss(fake, real).item() == pytest.approx(np.log1p(np.exp(-(f - r))).mean())
    assert critic_loss(real, fake).item() == pytest.approx(np.log1p(np.exp(-(r - f))).mean())


@pytest.mark.parametrize("kind", ["map", "token"])
def test_the_penalty_by_finite_differences(kind):
    """Mean over the batch of the squared length of D's gradient on each picture's own maps."""
    torch.manual_seed(0)
    critic = (MapCritic(2, (4, 4), width=0.03) if kind == "map" else TokenCritic(2, width=0.01)).double()
    maps = uniform(3, 2, 4, 4, seed=5).requires_grad_()
    got = gradient_penalty(critic(maps), maps)
    step, total = 1e-6, 0.0
    with torch.no_grad():
        for place in range(maps[0].numel()):
            shift = torch.zeros(maps[0].numel(), dtype=torch.float64)
            shift[place] = step
            shift = shift.view(1, *maps.shape[1:])
            total += ((critic(maps + shift) - critic(maps - shift)) / (2 * step)).square().sum().item()
    # central differences of a piecewise linear function: exact up to rounding, 1e-16 / 1e-6 relative
    assert got.item() == pytest.approx(total / 3, rel=1e-6)
    assert got.item() > 0
    got.backward()  # R1 and R2 are trained through
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.parameters())


# ---------------------------------------------------------------- the critics


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (31, 17), (32, 32), (63, 63)])
def test_the_map_critic_is_built_for_its_maps(size):
    critic = MapCritic(8, size, width=0.1)
    assert critic(torch.rand(2, 8, *size)).shape == (2, 1)


def test_sizes_as_published():
    """Convolutions 48, 128, 192, 192, 128 and a hidden layer of 1024, on an AlexNet's 64 maps of a picture of 256 pixels."""
    critic = MapCritic(64, (63, 63))
    convolutions = [(5, 64, 48), (3, 48, 128), (3, 128, 192), (3, 192, 192), (3, 192, 128)]
    expected = sum(k * k * a * b + b for k, a, b in convolutions) + (128 * 8 * 8 * 1024 + 1024) + (1024 + 1)
    assert sum(p.numel() for p in critic.parameters()) == expected
    token = TokenCritic(768)
    assert sum(p.numel() for p in token.parameters()) == (768 * 512 + 512) + (512 * 512 + 512) + (512 + 1)


def test_the_token_critic_is_the_mean_over_positions():
    torch.manual_seed(0)
    critic, maps = TokenCritic(5, width=0.05), torch.rand(2, 5, 3, 4)
    alone = torch.stack([critic(maps[..., i : i + 1, j : j + 1]) for i in range(3) for j in range(4)]).mean(0)
    # two orders of float32 sums over twelve scores of size one
    assert torch.allclose(critic(maps), alone, atol=1e-6)
