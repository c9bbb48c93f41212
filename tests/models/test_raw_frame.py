"""A frame's levels and forms, and what it refuses to be made of."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from trimtab.models.errors import UserError
from trimtab.models.raw.frame import RawFrame, checked_levels
from trimtab.models.raw.packing import packed

BLACK = (60.0, 61.0, 62.0, 63.0)


def frame(**changes):
    counts = np.random.default_rng(0).integers(40, 1100, (6, 8), dtype=np.uint16)
    return RawFrame(**{"mosaic": counts, "pattern": "GRBG", "black": BLACK, "white": 1023.0, **changes})


class TestForms:
    def test_each_site_has_its_black_level_and_nothing_is_clipped(self):
        made = frame()
        found = made.normalised()
        levels = np.tile(np.reshape(BLACK, (2, 2)), (3, 4))
        wanted = (made.mosaic - levels) / (1023 - levels)
        # float32 arithmetic against float64: a few units of 6e-8 in values up to 1.1
        np.testing.assert_allclose(found, wanted, atol=3e-7)
        assert (found.dtype, found.min() < 0, found.max() > 1) == (np.float32, True, True)

    def test_the_packed_form_is_the_normalised_mosaic_packed(self):
        made = frame()
        assert np.array_equal(made.packed(), packed(made.normalised(), "GRBG"))

    def test_no_float64_copy_is_made(self):
        """The peak over the result itself stays below the mosaic's own 2 bytes per pixel; float64 would take 8."""
        made = frame(mosaic=np.zeros((1024, 1024), np.uint16))
        for form in (made.normalised, made.packed):
            tracemalloc.start()
            result = form()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak - result.nbytes < made.mosaic.nbytes

    def test_notes_are_added_once(self):
        assert frame(notes=("a",)).noted("b", "a").notes == ("a", "b")


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"mosaic": np.zeros((4, 5), np.uint16)}, r"shape \(4, 5\)"),
            ({"mosaic": np.zeros((4, 4), np.float32)}, "float32"),
            ({"mosaic": np.zeros((3, 4, 4), np.uint16)}, r"shape \(3, 4, 4\)"),
            ({"pattern": "RGBG"}, "no Bayer phase"),
            ({"white": 63.0}, "black level 63 is not below the white level 63"),
            ({"gains": (1.0, 0.0, 1.0)}, "white-balance gains"),
            ({"matrix": np.zeros((3, 4))}, "colour matrix"),
            ({"matrix": np.full((3, 3), math.nan)}, "colour matrix"),
        ],
    )
    def test_a_frame_that_makes_no_sense(self, changes, words):
        with pytest.raises(UserError, match=words):
            frame(**changes)

    @pytest.mark.parametrize(
        ("black", "white", "words"),
        [
            (64, 64, "not below"),
            (1023, 64, "not below"),
            ((1, 2), 64, "2 levels"),
            (-1, 64, "not negative"),
            (math.nan, 64, "finite"),
            (0, math.inf, "finite"),
            ("dark", 64, "numbers"),
            (None, 64, "numbers"),
        ],
    )
    def test_levels(self, black, white, words):
        with pytest.raises(UserError, match=words) as raised:
            checked_levels(black, white, source="frame.png")
        assert str(raised.value).startswith("frame.png: ")

    def test_one_black_level_stands_for_four(self):
        assert checked_levels(25, 1023) == ((25.0, 25.0, 25.0, 25.0), 1023.0)
