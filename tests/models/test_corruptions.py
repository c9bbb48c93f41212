"""Corruptions: every kind on every kind of image, against NumPy where a formula says what must come out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from trimtab.models.errors import UserError
from trimtab.models.tasks.corruptions import (
    SEVERITIES,
    check_severities,
    corrupt,
    corruption_records,
    corruptions,
    record_of,
)

KINDS = corruptions.names()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=24, channels=3, height=40, width=32):
    """Smooth pictures over the whole range, with an edge."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, (count, channels, 1, 1))
    waves = 0.5 + 0.3 * np.sin(x / 3 + phase) * np.cos(y / 4 + phase) + 0.2 * (x > width / 2)
    return torch.from_numpy((255 * waves.clip(0, 1)).astype(np.uint8))


def distance(a, b):
    return (a.float() - b.float()).pow(2).mean().sqrt().item()


def test_every_family_is_there_with_ten_kinds_or_more_and_five_levels():
    records = corruption_records()
    assert len(records) >= 10
    assert [r.family for r in records] == sorted(
        (r.family for r in records), key=["noise", "blur", "weather", "digital", "geometry"].index
    )
    assert {r.family for r in records} == {"noise", "blur", "weather", "digital", "geometry"}
    for record in records:
        assert corruptions.entry(record.name).card is record
        assert len(set(record.levels)) == 5
        assert record.help
        assert record.unit


@pytest.mark.parametrize("kind", KINDS)
def test_distance_to_the_clean_picture_rises_with_severity(kind):
    clean = pictures()
    far = [distance(corrupt(clean, kind, severity, generator()), clean) for severity in SEVERITIES]
    assert far[0] > 0
    assert far == sorted(far)
    assert len(set(far)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_equal_pixels_and_the_input_stays(kind):
    clean = pictures(8)
    before = clean.clone()
    first, again = (corrupt(clean, kind, 3, generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(clean, before)
    assert first.dtype == torch.uint8
    assert first.shape == clean.shape


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "rotate", "translate"])
def test_what_is_random_comes_from_the_generator(kind):
    clean = pictures(8)
    assert not torch.equal(corrupt(clean, kind, 3, generator(1)), corrupt(clean, kind, 3, generator(2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (1, 2, 1, 1), (2, 4, 3, 9), (1, 3, 300, 200), (0, 1, 8, 8)])
def test_any_channels_and_any_size(kind, shape):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator())
    for severity in (1, 5):
        assert corrupt(pixels, kind, severity, generator()).shape == shape


def test_gaussian_noise_has_the_level_as_its_standard_deviation():
    grey = torch.full((4, 1, 128, 128), 128, dtype=torch.uint8)
    noise = (corrupt(grey, "gaussian_noise", 3, generator()).double() - 128) / 255
    level = record_of("gaussian_noise").levels[2]
    # 65536 draws: the deviation's standard error is level / √131072 ≈ 0.3 %; rounding adds 1/√12 of a grey level
    assert noise.std().item() == pytest.approx(np.hypot(level, 1 / 255 / np.sqrt(12)), rel=0.015)


def test_shot_noise_is_poisson():
    grey = torch.full((4, 1, 128, 128), 102, dtype=torch.uint8)  # 0.4
    noisy = corrupt(grey, "shot_noise", 3, generator()).double() / 255
    photons = record_of("shot_noise").levels[2]
    assert noisy.mean().item() == pytest.approx(0.4, abs=5 * np.sqrt(0.4 / photons / 65536))  # five standard errors
    assert noisy.var().item() == pytest.approx(0.4 / photons, rel=0.05)  # 65536 draws: about 0.6 % standard error, and clipping


def test_impulse_noise_hits_its_share_with_black_and_white_alike():
    grey = torch.full((4, 1, 128, 128), 100, dtype=torch.uint8)
    noisy = corrupt(grey, "impulse_noise", 5, generator())
    share = record_of("impulse_noise").levels[4]
    error = 5 * np.sqrt(share / 2 / 65536)  # five standard errors of a share
    for value in (0, 255):
        assert (noisy == value).double().mean().item() == pytest.approx(share / 2, abs=error)
    assert set(noisy.unique().tolist()) == {0, 100, 255}


def test_brightness_and_contrast_by_their_formulas():
    clean = pictures(3)
    x = clean.numpy() / 255
    bright = np.clip(x + record_of("brightness").levels[1], 0, 1) * 255
    mean = x.mean((2, 3), keepdims=True)
    flat = (mean + record_of("contrast").levels[1] * (x - mean)) * 255
    for kind, expected in (("brightness", bright), ("contrast", flat)):
        # half a grey level of rounding, and float32
        assert np.abs(corrupt(clean, kind, 2, generator()).numpy() - expected).max() <= 0.501


def test_gaussian_blur_is_scipys():
    from scipy.ndimage import gaussian_filter

    clean = pictures(2, height=50, width=40)
    sigma = record_of("gaussian_blur").levels[3] * 40
    expected = np.stack([[gaussian_filter(c.astype(np.float64), sigma) for c in image] for image in clean.numpy()])
    assert np.abs(corrupt(clean, "gaussian_blur", 4, generator()).numpy() - expected).max() <= 0.51  # rounding


@pytest.mark.parametrize(
    "kind", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "pixelate", "rotate", "translate"]
)
def test_a_flat_picture_stays_as_it_is(kind):
    flat = torch.full((3, 3, 20, 30), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(flat, kind, 5, generator()), flat)


def test_pixelate_is_the_mean_of_blocks():
    pixels = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=generator())
    assert record_of("pixelate").levels[4] == 0.25
    blocks = pixels.numpy().reshape(2, 1, 4, 4, 4, 4).mean((3, 5))
    expected = blocks.repeat(4, axis=2).repeat(4, axis=3)
    assert np.abs(corrupt(pixels, "pixelate", 5, generator()).numpy() - expected).max() <= 0.501


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_jpeg_is_pillows(channels):
    clean = pictures(2, channels)
    quality = int(record_of("jpeg").levels[2])

    def stored(array):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    found = corrupt(clean, "jpeg", 3, generator()).numpy()
    for image, got in zip(clean.numpy(), found, strict=True):
        expected = (
            stored(image.transpose(1, 2, 0)).transpose(2, 0, 1) if channels == 3 else np.stack([stored(c) for c in image])
        )
        assert np.array_equal(got, expected)


@pytest.mark.parametrize(("height", "width"), [(41, 41), (31, 61)])
def test_rotate_keeps_a_disc_and_turns_a_bar(height, width):
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    disc = np.clip((9 - np.hypot(y, x)) * 30 + 128, 0, 255)  # within 14 pixels of the centre
    angle = np.deg2rad(record_of("rotate").levels[4])
    pixels = torch.from_numpy(disc.astype(np.uint8)[None, None])
    # bilinear reading of an edge of 30 grey levels a pixel
    assert distance(corrupt(pixels, "rotate", 5, generator()), pixels) < 3

    def bar(turn):
        across = np.abs(y * np.cos(turn) + x * np.sin(turn))
        return (np.clip((3 - across) * 30 + 128, 0, 255) * (np.hypot(y, x) < 12)).astype(np.uint8)

    turned = corrupt(torch.from_numpy(bar(0)[None, None]), "rotate", 5, generator())[0, 0].numpy()
    inside = np.hypot(y, x) < 10
    error = [np.abs(turned.astype(float) - bar(sign * angle))[inside].mean() for sign in (-1, 1)]
    assert min(error) < 6  # as above, and the disc's edge
    assert max(error) > 30


def test_translate_moves_by_its_share_of_the_shorter_side():
    side = 60
    y, x = np.mgrid[:side, : 2 * side]
    spots = 255 * np.exp(-((y - 30) ** 2 + (x - 60) ** 2) / 32)
    clean = torch.from_numpy(np.repeat(spots.astype(np.uint8)[None, None], 6, axis=0))
    moved = corrupt(clean, "translate", 5, generator()).double()[:, 0].numpy()
    weight = moved.sum((1, 2))
    centre = np.stack([(moved * y).sum((1, 2)) / weight - 30, (moved * x).sum((1, 2)) / weight - 60])
    way = np.hypot(*centre)
    assert way == pytest.approx(record_of("translate").levels[4] * side, abs=0.1)  # a tenth of a pixel: rounding to grey levels
    assert np.abs(centre[:, 0] - centre[:, 1]).max() > 1  # directions differ


def test_unknown_kind_and_severity_are_answered():
    pixels = pictures(1)
    with pytest.raises(UserError, match=r"unknown corruption 'gausian_noise'(.|\n)*'gaussian_noise'"):
        corrupt(pixels, "gausian_noise", 1, generator())
    for wrong in (0, 6, 2.5, True, "3"):
        with pytest.raises(UserError, match=r"must be a whole number in 1…5"):
            corrupt(pixels, "fog", wrong, generator())
    with pytest.raises(UserError, match="no severity"):
        check_severities(())
    assert check_severities((5, 1, 5)) == (1, 5)
    with pytest.raises(UserError, match="'fog' is named twice"):
        corruption_records(("fog", "jpeg", "fog"))
    assert [r.name for r in corruption_records(("jpeg", "fog"))] == ["jpeg", "fog"]


@pytest.mark.parametrize("wrong", [torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)])
def test_other_pixels_are_refused(wrong):
    with pytest.raises(UserError, match=r"uint8 \(N, C, H, W\) is wanted"):
        corrupt(wrong, "fog", 1, generator())
