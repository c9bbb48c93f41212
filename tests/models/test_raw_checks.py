"""What is noticed about counts: a wrong phase, what is no Bayer mosaic, wrong levels, 8 bits; and silence about good frames."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from PIL import Image
from raw_kit import N900, QUAD, XTRANS, cells, counts, framed, photograph, synthetic

from trimtab.models.raw.checks import level_notes, looks_grey, looks_quad, phase_notes, sites_of
from trimtab.models.raw.packing import PATTERNS

OTHER_DIAGONAL = {"RGGB": "GRBG", "GRBG": "RGGB", "GBRG": "BGGR", "BGGR": "GBRG"}
EXCHANGED = {"RGGB": "BGGR", "GRBG": "GBRG", "GBRG": "GRBG", "BGGR": "RGGB"}
CORNERS = {"GRBG": (0, 0), "RGGB": (0, 1), "BGGR": (1, 0), "GBRG": (1, 1)}
"""Where to begin in the real frame, which is GRBG, for each phase."""


@cache
def real():
    """uint16 (1968, 2592): a Nokia N900's counts of 10 bits, GRBG, black 25, white 1023."""
    with Image.open(N900) as image:
        return np.asarray(image).astype(np.uint16)


def real_frame(truth, claimed):
    """The real frame, begun where its phase is `truth`, said to be `claimed`."""
    top, left = CORNERS[truth]
    return framed(real()[top : top + 1966, left : left + 2590], claimed, black=25.0)


class TestPhase:
    @pytest.mark.parametrize("truth", PATTERNS)
    def test_the_real_frame_s_right_phase_is_not_warned_of(self, truth):
        frame = real_frame(truth, truth)
        assert (phase_notes(frame), level_notes(frame)) == ((), ())

    @pytest.mark.parametrize("truth", PATTERNS)
    @pytest.mark.parametrize("exchange", [False, True])
    def test_the_real_frame_s_wrong_diagonal_is(self, truth, exchange):
        """Both wrong phases, and both times the two right ones are named."""
        claimed = OTHER_DIAGONAL[EXCHANGED[truth] if exchange else truth]
        (note,) = phase_notes(real_frame(truth, claimed))
        assert note.startswith(f"the pattern {claimed} looks wrong")
        likelier = note.split("; ")[1]
        assert truth in likelier
        assert EXCHANGED[truth] in likelier
        assert claimed not in likelier

    @pytest.mark.parametrize("truth", PATTERNS)
    def test_an_exchange_of_red_and_blue_is_beyond_counts(self, truth):
        """The documented limit: the greens stand where they should."""
        assert phase_notes(real_frame(truth, EXCHANGED[truth])) == ()

    @pytest.mark.parametrize("name", ["china", "flower"])
    @pytest.mark.parametrize("truth", PATTERNS)
    def test_synthetic_frames(self, name, truth):
        mosaic = synthetic(name, pattern=truth).mosaic
        for claimed in PATTERNS:
            warned = any("looks wrong" in note for note in phase_notes(framed(mosaic, claimed)))
            assert warned == (claimed not in {truth, EXCHANGED[truth]})

    def test_heavy_noise_gives_no_false_alarm(self):
        """The most shot noise that is drawn, 1.2e-2: a standard deviation of 11 % of white at full signal."""
        for pattern in PATTERNS:
            assert phase_notes(synthetic("flower", pattern=pattern, shot=(1.2e-2, 1.2e-2)).frame()) == ()

    @pytest.mark.parametrize(("level", "usable"), [(63, False), (1023, False), (500, True)])
    def test_dark_and_saturated_blocks_say_nothing(self, level, usable):
        mosaic = np.full((64, 64), level, np.uint16)
        mosaic[0, 0] = 600
        assert (sites_of(framed(mosaic)) is not None) == usable

    @pytest.mark.parametrize("shape", [(2, 2), (2, 64), (6, 6)])
    def test_a_frame_of_a_few_cells_says_nothing(self, shape):
        mosaic = np.random.default_rng(0).integers(100, 900, shape, dtype=np.uint16)
        assert phase_notes(framed(mosaic)) == ()


class TestOtherMosaics:
    @pytest.mark.parametrize("claimed", PATTERNS)
    @pytest.mark.parametrize("name", ["china", "flower"])
    def test_quad_bayer(self, name, claimed):
        (note,) = phase_notes(framed(cells(name, QUAD), claimed))
        assert "quad-Bayer" in note

    @pytest.mark.parametrize("corner", [(0, 1), (1, 0), (1, 1), (2, 3)])
    def test_quad_bayer_that_begins_within_a_square(self, corner):
        top, left = corner
        mosaic = cells("flower", QUAD)[top : top + 400, left : left + 600]
        assert looks_quad(framed(mosaic))

    @pytest.mark.parametrize("name", ["china", "flower"])
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_bayer_is_not_quad(self, name, pattern):
        assert not looks_quad(framed(cells(name, pattern), pattern))
        assert not looks_quad(real_frame(pattern, pattern))

    @pytest.mark.parametrize("name", ["china", "flower"])
    def test_x_trans(self, name):
        (note,) = phase_notes(framed(cells(name, XTRANS)))
        assert "X-Trans" in note

    @pytest.mark.parametrize("name", ["china", "flower"])
    @pytest.mark.parametrize("gamma", [1.0, 2.2])
    def test_a_grey_photograph(self, name, gamma):
        grey = framed(counts((photograph(name).mean(axis=0) / 255) ** gamma))
        (note,) = phase_notes(grey)
        assert "grey photograph" in note

    def test_a_grey_scene_before_a_colour_sensor_is_a_mosaic(self):
        """Unbalanced, as sensors are: green twice red. The greens agree, so a grey scene is no reason for a warning."""
        light = np.repeat(photograph("china").mean(axis=0, keepdims=True) / 255 * 0.9, 3, axis=0)
        light[0] *= 0.5
        light[2] *= 0.6
        mosaic = np.empty(light.shape[1:])
        for at, colour in enumerate((0, 1, 1, 2)):
            mosaic[at // 2 :: 2, at % 2 :: 2] = light[colour, at // 2 :: 2, at % 2 :: 2]
        assert not looks_grey(sites_of(framed(counts(mosaic))))
        assert phase_notes(framed(counts(mosaic))) == ()


class TestLevels:
    def test_counts_above_white(self):
        mosaic = synthetic("china").mosaic.copy()
        mosaic[:2, :10] = 1030
        notes = level_notes(framed(mosaic))
        assert notes == ("0.01% of the counts are above the white level 1023 (up to 1030): is the white level right?",)

    def test_counts_far_below_black(self):
        (note,) = level_notes(framed(synthetic("flower").mosaic, black=200.0))
        assert "far below the black level" in note

    def test_read_noise_below_black_is_no_reason(self):
        mosaic = np.rint(np.random.default_rng(0).normal(63, 4, (300, 300))).astype(np.uint16)
        mosaic[:, :100] = synthetic("china").mosaic[:300, :100]
        assert not any("below" in note for note in level_notes(framed(mosaic)))

    def test_nothing_above_black(self):
        mosaic = np.random.default_rng(0).integers(50, 63, (64, 64), dtype=np.uint16)
        (note,) = level_notes(framed(mosaic))
        assert "no count is above the black level 63 (the largest is 62)" in note

    @pytest.mark.parametrize("level", [0, 63, 500, 1023])
    def test_constant_counts(self, level):
        frame = framed(np.full((64, 64), level, np.uint16))
        assert level_notes(frame)[0].startswith(f"every count is {level}:")
        assert phase_notes(frame) == ()


class TestEightBits:
    def test_a_white_level_of_8_bits(self):
        frame = framed((synthetic("china").mosaic // 4).astype(np.uint16), black=15.0, white=255.0)
        (note,) = level_notes(frame)
        assert note.startswith("a white level of 255 means no more than 8 bits")

    def test_counts_of_8_bits_under_a_white_level_of_10(self):
        (note,) = level_notes(framed((synthetic("china").mosaic // 4).astype(np.uint16), black=15.0))
        assert "8-bit data, or a dark picture" in note

    @pytest.mark.parametrize("white", [1020, 16383, 65535])
    def test_stretched_to_more_bits(self, white):
        mosaic = np.rint((synthetic("china").mosaic // 4).astype(float) * white / 255).astype(np.uint16)
        notes = level_notes(framed(mosaic, black=0.0, white=float(white)))
        assert any("8-bit data stretched to more bits" in note for note in notes)

    def test_ten_bits_stretched_are_not_8(self):
        mosaic = synthetic("china").mosaic * 16
        assert level_notes(framed(mosaic, black=1008.0, white=16383.0)) == ()

    def test_a_dark_frame_with_hot_pixels_is_not_stretched(self):
        """Few values and far apart, which counting them alone would take for 8 bits."""
        rng = np.random.default_rng(0)
        mosaic = np.rint(rng.normal(66, 3, (300, 300))).astype(np.uint16)
        mosaic.reshape(-1)[rng.choice(mosaic.size, 60, replace=False)] = rng.integers(200, 1023, 60)
        assert not any("8-bit" in note for note in level_notes(framed(mosaic)))
