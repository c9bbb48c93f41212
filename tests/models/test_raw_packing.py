"""The packed form, the planes and the mosaic of a picture: against sites written out by hand, in NumPy and torch alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.models.errors import UserError
from trimtab.models.raw.packing import PACKED, PATTERNS, checked_pattern, mosaic_of, offsets, packed, planes3, sample

MOSAIC = np.arange(2 * 6 * 8, dtype=np.uint16).reshape(2, 6, 8)
SITES = {  # (row, column) of B, the green in red's row, R, the green in blue's row
    "RGGB": ((1, 1), (0, 1), (0, 0), (1, 0)),
    "GRBG": ((1, 0), (0, 0), (0, 1), (1, 1)),
    "GBRG": ((0, 1), (1, 1), (1, 0), (0, 0)),
    "BGGR": ((0, 0), (1, 0), (1, 1), (0, 1)),
}


@pytest.mark.parametrize("pattern", PATTERNS)
class TestPhases:
    def test_offsets_are_in_packed_order(self, pattern):
        assert tuple(offsets(pattern)) == PACKED == ("B", "Gr", "R", "Gb")
        assert tuple(offsets(pattern).values()) == SITES[pattern]

    def test_channels_are_the_sites(self, pattern):
        found = packed(MOSAIC, pattern)
        assert (found.shape, found.dtype) == ((2, 4, 3, 4), np.uint16)
        for channel, (row, column) in enumerate(SITES[pattern]):
            assert np.array_equal(found[:, channel], MOSAIC[:, row::2, column::2])

    def test_the_inverse_gives_the_mosaic_back(self, pattern):
        assert np.array_equal(mosaic_of(packed(MOSAIC, pattern), pattern), MOSAIC)
        values = torch.rand(3, 1, 4, 6)
        assert torch.equal(mosaic_of(packed(values, pattern), pattern), values)

    def test_planes_hold_each_colour_where_it_was_sampled_and_one_elsewhere(self, pattern):
        mosaic = MOSAIC[0].astype(np.float32) + 2
        planes = planes3(mosaic, pattern)
        for row in range(6):
            for column in range(8):
                colour = "RGB".index(pattern[2 * (row % 2) + column % 2])
                wanted = [1.0, 1.0, 1.0]
                wanted[colour] = mosaic[row, column]
                assert planes[:, row, column].tolist() == wanted

    def test_a_sensor_keeps_one_colour_per_pixel(self, pattern):
        rgb = np.random.default_rng(0).random((3, 4, 6), dtype=np.float32)
        mosaic = sample(rgb, pattern)
        for row in range(4):
            for column in range(6):
                assert mosaic[row, column] == rgb["RGB".index(pattern[2 * (row % 2) + column % 2]), row, column]

    def test_torch_is_numpy(self, pattern):
        counts = torch.from_numpy(MOSAIC.astype(np.int32))
        rgb = np.random.default_rng(1).random((2, 3, 4, 6), dtype=np.float32)
        assert np.array_equal(packed(counts, pattern), packed(MOSAIC, pattern))
        assert np.array_equal(planes3(counts, pattern), planes3(MOSAIC, pattern))
        assert np.array_equal(mosaic_of(packed(counts, pattern), pattern), MOSAIC)
        assert np.array_equal(sample(torch.from_numpy(rgb), pattern), sample(rgb, pattern))


def test_gradients_pass_both_ways():
    values = torch.rand(1, 4, 4, requires_grad=True)
    mosaic_of(packed(values, "GRBG"), "GRBG").square().sum().backward()
    assert torch.equal(values.grad, 2 * values.detach())


def test_patterns_are_read_in_any_case():
    assert checked_pattern(" grbg ") == "GRBG"


@pytest.mark.parametrize("pattern", ["RGBG", "", "RGB", "GGRB", "xtrans"])
def test_another_pattern_is_refused(pattern):
    with pytest.raises(UserError, match="no Bayer phase") as raised:
        packed(MOSAIC, pattern)
    assert "RGGB, GRBG, GBRG, BGGR" in raised.value.hint


@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (0, 4), (4,)])
def test_odd_and_empty_sides_are_refused(shape):
    for does in (packed, planes3):
        with pytest.raises(UserError, match="not made of 2×2 cells"):
            does(np.zeros(shape), "RGGB")


def test_another_number_of_channels_is_refused():
    with pytest.raises(UserError, match="no 4 channels"):
        mosaic_of(np.zeros((3, 2, 2)), "RGGB")
    with pytest.raises(UserError, match="no 3 channels"):
        sample(torch.zeros(4, 2, 2), "RGGB")
