"""The fixed rendering: its steps against their formulas, tiles against the whole mosaic, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from raw_kit import photograph, synthetic

from trimtab.models.errors import UserError
from trimtab.models.raw import classical
from trimtab.models.raw.classical import DEMOSAICS, demosaiced, render
from trimtab.models.raw.packing import PATTERNS, sample

library = pytest.importorskip("colour_demosaicing")


def smooth(height=32, width=40):
    """A linear picture of smooth gradients, (3, H, W): every method fills such a mosaic in almost exactly."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([0.2 + 0.3 * y / height, 0.1 + 0.5 * x / width, 0.4 - 0.2 * y / height]).astype(np.float32)


class TestDemosaicing:
    @pytest.mark.parametrize("pattern", PATTERNS)
    @pytest.mark.parametrize("method", DEMOSAICS)
    def test_every_phase_and_method_fills_gradients_in(self, pattern, method):
        rgb = smooth()
        filled = demosaiced(sample(rgb, pattern), pattern, method=method)
        assert (filled.shape, filled.dtype) == (rgb.shape, np.float32)
        # linear interpolation is exact on gradients up to float32; a mirrored edge isn't a gradient, and Menon's sees far: leave 8 out
        np.testing.assert_allclose(filled[:, 8:-8, 8:-8], rgb[:, 8:-8, 8:-8], atol=1e-6)

    @pytest.mark.parametrize("method", DEMOSAICS)
    def test_tiles_are_the_whole(self, method, monkeypatch):
        """Tiles of 64 on a noisy mosaic of 130×200 (the last row of tiles is 2 high) against the library's own run over all of it."""
        monkeypatch.setattr(classical, "TILE", 64)
        mosaic = np.random.default_rng(0).random((130, 200), dtype=np.float32)
        whole = getattr(library, DEMOSAICS[method])(mosaic, "GBRG").transpose(2, 0, 1)
        # only the rounding of float64 to float32 lies between, 6e-8 of values below 2
        np.testing.assert_allclose(demosaiced(mosaic, "GBRG", method=method), whole, atol=2.5e-7)

    def test_another_phase_is_another_picture(self):
        mosaic = sample(smooth(), "RGGB")
        assert np.abs(demosaiced(mosaic, "RGGB") - demosaiced(mosaic, "BGGR")).max() > 0.1


class TestSteps:
    def test_gains_clip_stretch_and_gamma(self):
        """Against the formula, step by step in float64, on a mosaic with values beyond 0…1."""
        mosaic = np.random.default_rng(1).uniform(-0.1, 1.1, (16, 16)).astype(np.float32)
        rgb = library.demosaicing_CFA_Bayer_Menon2007(mosaic, "RGGB").transpose(2, 0, 1)
        rgb = np.clip(rgb * np.array([1.6, 1.2, 1.4])[:, None, None], 0, 1)
        rgb = ((rgb - rgb.min()) / (rgb.max() - rgb.min())) ** (1 / 2.2)
        found = render(mosaic, "RGGB")
        # near 0 the gamma's slope turns a rounding of 6e-8 into (6e-8)^(1/2.2) = 5e-4
        np.testing.assert_allclose(found, rgb, atol=1e-3)
        assert np.median(np.abs(found - rgb)) < 1e-6

    def test_the_matrix_comes_after_the_gains_and_before_the_gamma(self):
        mosaic = np.full((8, 8), 0.25, np.float32)
        matrix = np.array([[1.5, -0.5, 0.0], [0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
        found = render(mosaic, "RGGB", gains=(2, 1, 1), matrix=matrix, stretch=False, gamma=1)
        wanted = np.clip(matrix @ [0.5, 0.25, 0.25], 0, 1)
        np.testing.assert_allclose(found, np.broadcast_to(wanted[:, None, None], found.shape), atol=1e-6)

    def test_a_given_stretch(self):
        mosaic = np.full((8, 8), 0.3, np.float32)
        found = render(mosaic, "RGGB", gains=(1, 1, 1), stretch=(0.2, 0.7), gamma=1)
        np.testing.assert_allclose(found, 0.2, atol=1e-6)

    @pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
    def test_a_constant_picture_is_left_as_it_is(self, level):
        found = render(np.full((8, 8), level, np.float32), "RGGB", gains=(1, 1, 1), gamma=1)
        np.testing.assert_allclose(found, level, atol=1e-6)

    def test_the_camera_s_own_gains_and_matrix_lead_back_to_the_photograph(self):
        """With the tone curve on top; what is left is demosaicing, since each pixel kept one colour of a sharp picture."""
        made = synthetic("flower", shot=None)
        mosaic, gains = made.frame().normalised(), [gain / made.exposure for gain in made.gains]

        def psnr(pattern="RGGB", **settings):
            coded = render(mosaic, pattern, stretch=False, **{"gains": gains, "matrix": made.matrix, **settings})
            return -10 * np.log10(np.square(coded * coded * (3 - 2 * coded) - photograph("flower") / 255.0).mean())

        # 32.3 dB: Menon's of the finished photograph's own mosaic has 35.6, and the way back amplifies its errors
        assert psnr() > 31
        # each of the three counts: 28.6, 24.5, 12.0 dB without it
        assert max(psnr(gains=made.gains), psnr(matrix=None), psnr("BGGR")) < 29


class TestRefusals:
    @pytest.mark.parametrize(
        ("shape", "settings", "words"),
        [
            ((7, 8), {}, "can't be demosaiced"),
            ((2, 8), {}, "can't be demosaiced"),
            ((3, 8, 8), {}, "can't be demosaiced"),
            ((8, 8), {"demosaic": "menn"}, "demosaic='menn' is unknown"),
            ((8, 8), {"gains": (1, 1)}, "gains"),
            ((8, 8), {"gains": (1, -1, 1)}, "gains"),
            ((8, 8), {"matrix": np.eye(4)}, "colour matrix"),
            ((8, 8), {"gamma": 0}, "gamma=0"),
            ((8, 8), {"stretch": (0.5, 0.5)}, "stretch"),
        ],
    )
    def test_shapes_and_settings(self, shape, settings, words):
        with pytest.raises(UserError, match=words):
            render(np.zeros(shape, np.float32), "RGGB", **settings)

    def test_a_missing_library_is_named_with_the_line_that_installs_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "colour_demosaicing", None)
        with pytest.raises(UserError, match=r"colour-demosaicing.*is not installed") as raised:
            render(np.zeros((8, 8), np.float32), "RGGB")
        assert raised.value.hint == "pip install 'trimtab[isp]'"

    def test_a_library_does_not_change_how_numpy_prints(self):
        code = (
            "import numpy as np\nfrom trimtab.models.raw.libraries import library\n"
            "before = np.get_printoptions()\nlibrary('colour_demosaicing')\nlibrary('colour')\n"
            "print(np.get_printoptions() == before)"
        )
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert made.stdout.split() == ["True"], made.stderr
