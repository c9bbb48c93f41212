"""Augmentation against a brute-force search for the crop it took."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from trimtab.models.tasks.augment import crop_and_flip, crop_padding


def batch(count=64, channels=2, height=16, width=24):
    return torch.randint(
        0, 256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def explain(original, augmented):
    """All (dy, dx, flipped) that turn `original` (C, H, W) into `augmented`, tried one by one."""
    _, height, width = original.shape
    pad_y, pad_x = height // 8, width // 8
    padded = np.pad(original, ((0, 0), (pad_y, pad_y), (pad_x, pad_x)))
    found = []
    for dy, dx in itertools.product(range(2 * pad_y + 1), range(2 * pad_x + 1)):
        crop = padded[:, dy : dy + height, dx : dx + width]
        found += [
            (dy, dx, flipped) for flipped in (False, True) if np.array_equal(crop[..., ::-1] if flipped else crop, augmented)
        ]
    return found


@pytest.mark.parametrize("flip", [False, True])
def test_every_result_is_one_padded_crop_and_all_draws_occur(flip):
    pixels = batch(count=300)
    out = crop_and_flip(pixels, flip=flip, generator=generator())
    assert out.dtype == torch.uint8
    assert out.shape == pixels.shape
    found = [explain(a.numpy(), b.numpy()) for a, b in zip(pixels, out, strict=True)]
    assert all(len(options) == 1 for options in found)
    draws = [options[0] for options in found]
    # 300 draws from 5 and 7 offsets: a missing one has a probability below 1e-19
    assert {dy for dy, _, _ in draws} == set(range(5))
    assert {dx for _, dx, _ in draws} == set(range(7))
    flipped = sum(f for _, _, f in draws)
    # binomial(300, ½): 105…195 is ±5.2 standard deviations
    assert 105 < flipped < 195 if flip else flipped == 0


def test_the_generator_alone_decides():
    pixels = batch()
    before = torch.get_rng_state()
    first = crop_and_flip(pixels, flip=True, generator=generator(1))
    torch.rand(5)
    torch.set_rng_state(before)
    assert torch.equal(first, crop_and_flip(pixels, flip=True, generator=generator(1)))
    assert not torch.equal(first, crop_and_flip(pixels, flip=True, generator=generator(2)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("size", "pad"), [(32, 4), (28, 4), (224, 28), (8, 1), (2, 1)])
def test_padding_scales_with_the_image(size, pad):
    assert crop_padding(size) == pad
