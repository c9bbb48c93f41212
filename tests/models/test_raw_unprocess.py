"""Synthetic RAW: the way back, the noise's statistics, the camera's matrices, determinism, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from raw_kit import photograph, synthetic, write_dng

from trimtab.models.errors import UserError
from trimtab.models.raw.packing import PATTERNS, sample
from trimtab.models.raw.unprocess import (
    MATRICES,
    Camera,
    downscaled,
    drawn_matrix,
    drawn_noise,
    process,
    to_camera,
    unprocess,
)


def psnr(a, b):
    return 10 * np.log10(1 / np.square(a - b).mean())


def drawn(seed=0):
    return {"gains": (2.1, 1.0, 1.7), "exposure": 0.8, "matrix": drawn_matrix(Camera(), np.random.default_rng(seed))}


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["china", "flower"])
    def test_the_inverse_gives_the_photograph_back_where_nothing_clips(self, name):
        photo = photograph(name) / np.float32(255)
        camera = to_camera(photograph(name), **drawn())
        kept = (camera < 0.99).all(axis=0) & (camera > 0).all(axis=0) & (photo.max(axis=0) < 0.9)
        assert kept.mean() > 0.5
        # float32's curves and matrices in and out: 50 dB is asked for, above 100 is what exactness looks like
        assert psnr(process(camera, **drawn())[:, kept], photo[:, kept]) > 100

    @pytest.mark.parametrize(("name", "range_"), [("china", 960), ("flower", 3840)])
    def test_whole_counts_cost_little(self, name, range_):
        """With highlights and clipping: above 50 dB at 10 bits, and of flower.jpg, which is dark (10 bits: 49.5 dB), at 12."""
        counts = np.rint(to_camera(photograph(name), **drawn()) * range_) / range_
        assert psnr(process(counts, **drawn()), photograph(name) / 255.0) > 50

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_without_noise_the_mosaic_is_the_camera_s_picture_sampled(self, pattern):
        black = (60.0, 61.0, 62.0, 63.0)
        made = synthetic("china", pattern=pattern, shot=None, black=black)
        rgb = to_camera(photograph("china"), gains=made.gains, exposure=made.exposure, matrix=made.matrix)
        # half a count of 960, and a float32's rounding
        assert np.abs(made.frame().normalised() - sample(rgb, pattern)).max() < 0.5 / 960 + 1e-5
        assert (made.frame().pattern, made.frame().black, made.noise) == (pattern, black, (0.0, 0.0))

    def test_white_saturates_the_sensor_and_black_is_the_black_level(self):
        ends = np.zeros((3, 4, 4), np.uint8)
        ends[:, :, 2:] = 255
        counts = unprocess(ends, Camera(shot=None), np.random.default_rng(0)).mosaic
        assert counts[:, :2].tolist() == [[63, 63]] * 4
        assert counts[:, 2:].tolist() == [[1023, 1023]] * 4

    def test_floats_and_8_bits_agree(self):
        """The table of 256 values is the formula at these values."""
        as_float = to_camera(photograph("flower").astype(np.float32) / 255, **drawn())
        np.testing.assert_allclose(as_float, to_camera(photograph("flower"), **drawn()), atol=1e-6)


class TestNoise:
    @pytest.mark.parametrize("level", [60, 140, 210])
    def test_its_variance_is_shot_times_signal_plus_read(self, level):
        """On a flat patch at 14 bits: 65 536 samples, so a variance is known to 0.55 % (one sigma); 3 % is asked for."""
        flat = np.full((3, 256, 256), level, np.uint8)
        camera = Camera(bits=14, black=1024, white=16383, shot=(0.004, 0.004), exposure=(0.8, 0), read=(2.18, 1.2, 0.26))
        made = unprocess(flat, camera, np.random.default_rng(3))
        clean = to_camera(flat, gains=made.gains, exposure=made.exposure, matrix=made.matrix)[1, 0, 0]
        green = made.frame().normalised()[0::2, 1::2]
        shot, read = made.noise
        assert shot == pytest.approx(0.004)
        assert green.mean() == pytest.approx(clean, rel=0.01)
        wanted = shot * clean + read
        assert green.var() == pytest.approx(wanted, rel=0.03)

    def test_the_drawn_parameters_follow_the_published_line(self):
        rng = np.random.default_rng(0)
        shot, read = np.log([drawn_noise(Camera(), rng) for _ in range(4000)]).T
        assert np.log(1e-4) <= shot.min() < np.log(1.1e-4)
        assert np.log(1.1e-2) < shot.max() <= np.log(1.2e-2)
        slope, offset = np.polyfit(shot, read, 1)
        # 4000 points over a range of 4.8: standard errors 0.003 of the slope and 0.02 of the offset
        assert slope == pytest.approx(2.18, abs=0.015)
        assert offset == pytest.approx(1.20, abs=0.1)
        assert (read - slope * shot - offset).std() == pytest.approx(0.26, abs=0.01)

    def test_neighbours_are_independent(self):
        flat = np.full((3, 128, 128), 128, np.uint8)
        noise = unprocess(flat, Camera(shot=(0.01, 0.01)), np.random.default_rng(0)).mosaic[::2, 1::2].astype(float)
        noise -= noise.mean()
        # 4032 pairs: a correlation of 0 has a standard error of 0.016
        assert abs((noise[:, 1:] * noise[:, :-1]).mean() / noise.var()) < 0.06


class TestCameras:
    def test_matrices_keep_white_white(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            np.testing.assert_allclose(drawn_matrix(Camera(), rng).sum(axis=1), 1, atol=1e-9)

    @pytest.mark.parametrize(
        ("maker", "model", "at"), [(b"SONY", b"ILCE-7R", 0), (b"SONY", b"DSC-RX100M4", 1), (b"OLYMPUS", b"E-M10", 2)]
    )
    def test_matrices_are_those_that_libraw_knows(self, tmp_path, maker, model, at):
        """LibRaw has its own table; a DNG without a matrix, of such a camera, makes it look there."""
        rawpy = pytest.importorskip("rawpy")
        names = {271: (2, [*maker, 0]), 272: (2, [*model, 0]), 50708: (2, [*maker, *b" ", *model, 0])}
        path = write_dng(tmp_path / "a.dng", np.full((32, 32), 500, np.uint16), more=names)
        with rawpy.imread(str(path)) as raw:
            # the table has four decimals, read as float32
            np.testing.assert_allclose(raw.rgb_xyz_matrix[:3], MATRICES[at], atol=1e-6)

    def test_draws_lie_in_their_ranges_and_differ(self):
        made = [unprocess(np.zeros((3, 4, 4), np.uint8), Camera(), np.random.default_rng(seed)) for seed in range(50)]
        red, green, blue = np.transpose([one.gains for one in made])
        assert (red >= 1.9).all()
        assert (red <= 2.4).all()
        assert (green == 1).all()
        assert (blue >= 1.5).all()
        assert (blue <= 1.9).all()
        assert red.std() > 0.1
        assert blue.std() > 0.08
        # 50 draws of a standard deviation of 0.1: the mean's standard error is 0.014
        assert np.mean([one.exposure for one in made]) == pytest.approx(0.8, abs=0.05)

    def test_equal_seeds_make_equal_mosaics(self):
        first, again, other = (synthetic("flower", seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(first.mosaic, again.mosaic)
        assert not np.array_equal(first.mosaic, other.mosaic)

    @pytest.mark.parametrize(("bits", "black", "white"), [(10, 25, 1023), (12, 256, 4095), (14, 512, 16383)])
    def test_counts_fill_the_bits(self, bits, black, white):
        counts = synthetic("china", bits=bits, black=black, white=white).mosaic
        assert counts.dtype == np.uint16
        assert counts.max() == white
        assert abs(int(np.quantile(counts, 0.001)) - black) < 0.15 * white


class TestDownscaling:
    def test_means_are_taken_in_linear_light(self):
        board = np.zeros((3, 4, 6), np.uint8)
        board[:, ::2, ::2] = board[:, 1::2, 1::2] = 255
        # half of the light, coded
        np.testing.assert_allclose(downscaled(board, 2), np.full((3, 2, 3), 0.5 ** (1 / 2.2)), atol=1e-6)

    def test_a_flat_picture_keeps_its_value_and_a_rest_is_cut(self):
        flat = np.full((3, 11, 14), 77, np.uint8)
        small = downscaled(flat, 3)
        assert small.shape == (3, 3, 4)
        np.testing.assert_allclose(small, 77 / 255, atol=1e-6)

    @pytest.mark.parametrize("factor", [0, -1, 12])
    def test_factors_out_of_range(self, factor):
        with pytest.raises(UserError, match=f"factor={factor}"):
            downscaled(np.zeros((3, 11, 14), np.uint8), factor)


class TestRefusals:
    @pytest.mark.parametrize(
        ("picture", "words"),
        [
            (np.zeros((3, 5, 4), np.uint8), "odd side"),
            (np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\)"),
            (np.zeros((3, 4, 4), np.int64), "int64"),
            (np.full((3, 4, 4), 255.0), "255…255"),
            (np.full((3, 4, 4), np.nan), "nan"),
        ],
    )
    def test_pictures(self, picture, words):
        with pytest.raises(UserError, match=words):
            unprocess(picture, Camera(), np.random.default_rng(0))

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"pattern": "XTRA"}, "no Bayer phase"),
            ({"black": 1023}, "not below the white level"),
            ({"bits": 8, "white": 255}, "bits=8"),
            ({"bits": 10, "white": 4095}, "white=4095"),
            ({"red_gain": (2.0, 1.0)}, "red_gain"),
            ({"blue_gain": (0.0, 1.0)}, "blue_gain"),
            ({"shot": (0.0, 0.1)}, "shot"),
            ({"exposure": (0.0, 0.1)}, "exposure"),
            ({"matrices": ()}, "no colour matrix"),
        ],
    )
    def test_cameras(self, settings, words):
        with pytest.raises(UserError, match=words):
            Camera(**settings)

    def test_process_wants_every_colour_at_every_pixel(self):
        with pytest.raises(UserError, match=r"shape \(4, 4\)"):
            process(np.zeros((4, 4)), **drawn())
