"""RAW files read: what LibRaw gives of DNGs, mosaics in image and array files, and every refusal with its reason."""

from __future__ import annotations

import errno
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_kit import ASCII, LONG, N900, QUAD, SHORT, XTRANS, counts, photograph, synthetic, write_dng

from trimtab.models.errors import UserError
from trimtab.models.raw.packing import PATTERNS
from trimtab.models.raw.reading import read_raw
from trimtab.models.raw.unprocess import MATRICES, SRGB_TO_XYZ

TOLD = {"pattern": "GRBG", "black": 63, "white": 1023}


def needs_rawpy():
    return pytest.importorskip("rawpy", reason="rawpy (extra isp) reads DNG files")


@cache
def mosaic(pattern="GRBG"):
    """uint16 (426, 640), black 63, white 1023."""
    counts = synthetic("flower", pattern=pattern).mosaic
    counts.setflags(write=False)
    return counts


def small():
    """A part of its bright middle, for files that are slow to compress."""
    return np.ascontiguousarray(mosaic()[200:320, 240:400])


def refused(path, words, **told):
    with pytest.raises(UserError, match=words) as raised:
        read_raw(path, **told)
    assert str(path) in str(raised.value)
    assert raised.value.hint
    return raised.value


class TestDng:
    @pytest.fixture(autouse=True)
    def _library(self):
        needs_rawpy()

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_counts_pattern_levels_and_balance(self, tmp_path, pattern):
        path = write_dng(tmp_path / "a.dng", mosaic(pattern), pattern=pattern, black=(60, 61, 62, 63))
        frame = read_raw(path)
        assert np.array_equal(frame.mosaic, mosaic(pattern))
        assert (frame.pattern, frame.black, frame.white) == (pattern, (60.0, 61.0, 62.0, 63.0), 1023.0)
        # AsShotNeutral 0.5, 1, 0.625 by its inverse, as float32
        assert frame.gains == pytest.approx((2.0, 1.0, 1.6), rel=1e-6)
        assert (frame.matrix, frame.notes, frame.source) == (None, (), str(path))

    @pytest.mark.parametrize("known", [True, False])
    def test_its_colour_matrix_leads_from_the_camera_s_answers_to_srgb(self, tmp_path, known):
        """Sensor answers to red, green, blue and white light of sRGB, balanced, come out as that light: by the matrix that LibRaw
        has for a camera that it knows, and by the file's own for another one."""
        names = {271: (ASCII, [*b"SONY\0"]), 272: (ASCII, [*b"ILCE-7R\0"])} if known else {}
        from_xyz = np.array(MATRICES[0 if known else 1])
        path = write_dng(tmp_path / "a.dng", mosaic(), pattern="GRBG", black=63, matrix=None if known else from_xyz, more=names)
        light = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]])
        answers = from_xyz @ SRGB_TO_XYZ @ light
        # both have four decimals; LibRaw keeps float32
        np.testing.assert_allclose(read_raw(path).matrix @ (answers / answers[:, 3:]), light, atol=1e-4)

    def test_without_balance_and_black_level(self, tmp_path):
        frame = read_raw(write_dng(tmp_path / "a.dng", mosaic(), pattern="GRBG", neutral=None))
        assert (frame.gains, frame.matrix, frame.black) == (None, None, (0.0,) * 4)
        assert "the file gives no black level: 0 is taken" in frame.notes

    def test_what_is_told_overrules_the_file_and_is_noted(self, tmp_path):
        path = write_dng(tmp_path / "a.dng", mosaic(), pattern="GRBG", black=10)
        frame = read_raw(path, pattern="gbrg", black=63, white=1000)
        assert (frame.pattern, frame.black, frame.white) == ("GBRG", (63.0,) * 4, 1000.0)
        assert "the pattern GBRG was given, a.dng itself says GRBG" in frame.notes

    def test_a_file_that_names_the_wrong_phase_is_warned_of(self, tmp_path):
        frame = read_raw(write_dng(tmp_path / "a.dng", mosaic("GRBG"), pattern="RGGB", black=63))
        assert any(note.startswith("the pattern RGGB looks wrong") and "GRBG" in note for note in frame.notes)

    @pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 4)])
    def test_masked_borders_are_left_out_and_the_phase_stays_the_visible_area_s(self, tmp_path, corner):
        """DNG counts the CFA cell from the active area's corner; LibRaw moves odd corners to even ones and the phase with them."""
        (top, left), whole = corner, mosaic("RGGB")
        named = "".join("RGGB"[2 * ((row + top) % 2) + (column + left) % 2] for row in (0, 1) for column in (0, 1))
        area = {50829: (LONG, [top, left, *whole.shape])}
        frame = read_raw(write_dng(tmp_path / "a.dng", whole, pattern=named, black=63, more=area))
        first = (top + top % 2, left + left % 2)
        assert frame.pattern == "RGGB"
        assert np.array_equal(frame.mosaic, whole[first[0] :, first[1] :])
        assert frame.notes == ()

    def test_odd_sides_are_cut_with_a_note(self, tmp_path):
        frame = read_raw(write_dng(tmp_path / "a.dng", mosaic()[:-1, :-1], pattern="GRBG", black=63))
        assert np.array_equal(frame.mosaic, mosaic()[:-2, :-2])
        assert frame.notes == ("the odd last row and column of 425×639 was cut off",)

    @pytest.mark.parametrize(("orientation", "words"), [(6, "90° clockwise"), (8, "90° anticlockwise"), (3, "180°")])
    def test_it_is_not_turned_and_says_so(self, tmp_path, orientation, words):
        path = write_dng(tmp_path / "a.dng", mosaic(), pattern="GRBG", black=63, more={274: (SHORT, [orientation])})
        frame = read_raw(path)
        assert np.array_equal(frame.mosaic, mosaic())
        assert frame.notes == (f"the file asks to be turned by {words}: the mosaic is not turned",)

    def test_8_bits_are_warned_of(self, tmp_path):
        frame = read_raw(write_dng(tmp_path / "a.dng", mosaic() // 4, pattern="GRBG", black=15, white=255))
        assert any("no more than 8 bits" in note for note in frame.notes)


class TestNoBayer:
    @pytest.fixture(autouse=True)
    def _library(self):
        needs_rawpy()

    @pytest.mark.parametrize(
        ("pattern", "more", "words"),
        [
            (XTRANS, {}, r"not Bayer: .*6×6 pixels: Fujifilm X-Trans"),
            (QUAD, {}, r"not Bayer: .*RRGG, as the corner of a quad-Bayer"),
            ("RGGB", {262: (SHORT, [34892])}, r"not Bayer: its sensor has no colour filters \(monochrome\)"),
        ],
    )
    def test_other_filters_are_refused_with_the_reason(self, tmp_path, pattern, more, words):
        error = refused(write_dng(tmp_path / "a.dng", mosaic()[:420, :636], pattern=pattern, more=more), words)
        assert "RGGB, GRBG, GBRG, BGGR" in error.hint

    def test_linear_dng(self, tmp_path):
        refused(write_dng(tmp_path / "a.dng", np.dstack([mosaic()] * 3)), "not Bayer: each pixel has several values")

    @pytest.mark.parametrize(("black", "white"), [(1023, 1023), (1100, 1023)])
    def test_black_not_below_white(self, tmp_path, black, white):
        path = write_dng(tmp_path / "a.dng", mosaic(), pattern="GRBG", black=black, white=white)
        refused(path, f"black level {black} is not below the white level {white}")
        assert read_raw(path, black=63).black == (63.0,) * 4


class TestDamaged:
    @pytest.fixture(autouse=True)
    def _library(self):
        needs_rawpy()

    @pytest.mark.parametrize("kept", [0, 4, 100, 1000, 272_000, -1])
    def test_truncated(self, tmp_path, kept):
        path = write_dng(tmp_path / "a.dng", mosaic(), pattern="GRBG", black=63)
        path.write_bytes(path.read_bytes()[:kept])
        refused(path, "truncated or damaged")

    def test_something_else(self, tmp_path):
        path = tmp_path / "a.dng"
        path.write_text("no picture at all\n" * 1000)
        refused(path, "no RAW file that LibRaw")

    @pytest.mark.parametrize("suffix", [".jpg", ".dng", ".nef"])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_a_finished_picture_whatever_its_name(self, tmp_path, suffix, kind):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(photograph("china").transpose(1, 2, 0)).save(path, kind)
        refused(path, rf"finished picture \({kind}\), not RAW")

    def test_a_tiff_is_not_called_finished(self, tmp_path):
        """A camera's RAW that LibRaw doesn't know may be a TIFF too."""
        Image.fromarray(photograph("china").transpose(1, 2, 0)).save(tmp_path / "a.dng", "TIFF")
        refused(tmp_path / "a.dng", "no RAW file that LibRaw")

    def test_a_picture_s_suffix_on_something_unreadable(self, tmp_path):
        path = tmp_path / "a.heic"
        path.write_bytes(b"ftypheic" * 1000)
        refused(path, r"finished picture \(HEIC\), not RAW")


class TestImagesAndArrays:
    def written(self, tmp_path, suffix, array):
        path = tmp_path / f"a{suffix}"
        if suffix == ".npy":
            np.save(path, array)
        else:
            Image.fromarray(array).save(path)
        return path

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".npy"])
    def test_counts_with_what_was_told(self, tmp_path, suffix):
        frame = read_raw(self.written(tmp_path, suffix, small()), pattern="grbg", black=(60, 61, 62, 63), white=1023)
        assert np.array_equal(frame.mosaic, small())
        assert (frame.mosaic.dtype, frame.pattern, frame.black, frame.white) == (
            np.uint16,
            "GRBG",
            (60.0, 61.0, 62.0, 63.0),
            1023,
        )
        assert (frame.gains, frame.matrix, frame.notes) == (None, None, ())

    @pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", "<i8", "<u4"])
    def test_arrays_of_other_whole_numbers(self, tmp_path, kind):
        frame = read_raw(self.written(tmp_path, ".npy", small().astype(kind)), **TOLD)
        assert np.array_equal(frame.mosaic, small())
        assert frame.mosaic.dtype == np.dtype("=u2")

    @pytest.mark.parametrize("missing", ["pattern", "black", "white"])
    def test_what_is_missing_is_named(self, tmp_path, missing):
        told = {name: value for name, value in TOLD.items() if name != missing}
        refused(self.written(tmp_path, ".png", small()), f"doesn't say its {missing}\n", **told)

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    @pytest.mark.parametrize("told", [{}, TOLD])
    def test_an_rgb_picture(self, tmp_path, suffix, told):
        """Refused as what it is, before levels are asked for."""
        picture = photograph("china").transpose(1, 2, 0)
        refused(self.written(tmp_path, suffix, picture), "picture of mode RGB, 426×640, not a mosaic", **told)

    @pytest.mark.parametrize("suffix", [".png", ".npy"])
    def test_8_bits(self, tmp_path, suffix):
        path = self.written(tmp_path, suffix, (small() // 4).astype(np.uint8))
        refused(path, "has 8 bits, but the white level is 1023", **TOLD)
        frame = read_raw(path, pattern="GRBG", black=15, white=255)
        assert any("no more than 8 bits" in note for note in frame.notes)

    def test_a_grey_picture_is_warned_of(self, tmp_path):
        grey = counts(photograph("china").mean(axis=0) / 255)
        frame = read_raw(self.written(tmp_path, ".png", grey), **TOLD)
        assert any("grey photograph" in note for note in frame.notes)

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.full((4, 4), 5.5), "float64, not counts"),
            (np.full((4, 4), True), "bool, not counts"),
            (np.full((4, 4), -3), "values in -3…-3"),
            (np.full((4, 4), 70_000), "values in 70000…70000"),
            (np.zeros((4, 4, 3), np.uint16), "an RGB picture and not a mosaic"),
            (np.zeros((4, 4, 4), np.uint16), "four colours already apart"),
            (np.zeros(16, np.uint16), r"shape \(16,\)"),
            (np.zeros((1, 4), np.uint16), "1×4 is too small"),
            (np.zeros((0, 0), np.uint16), "0×0 is too small"),
            (np.array([[{}]], object), "can't be read"),
        ],
    )
    def test_arrays_that_are_no_mosaic(self, tmp_path, array, words):
        refused(self.written(tmp_path, ".npy", array), words, **TOLD)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, of a TIFF without its end
    @pytest.mark.parametrize("cut", [0, 6, 60, 5000])
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
    def test_truncated(self, tmp_path, suffix, cut):
        path = self.written(tmp_path, suffix, small())
        path.write_bytes(path.read_bytes()[:cut])
        refused(path, r"not an image|truncated|can't be read", **TOLD)

    def test_an_archive_and_several_pages(self, tmp_path):
        np.savez(tmp_path / "a.npz", mosaic=mosaic())
        path = (tmp_path / "a.npz").rename(tmp_path / "a.npy")
        refused(path, "archive of arrays", **TOLD)
        pages = [Image.fromarray(small()) for _ in range(2)]
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        refused(tmp_path / "a.tif", "holds 2 pictures", **TOLD)

    @pytest.mark.parametrize(
        ("told", "words"),
        [
            ({**TOLD, "black": 1023}, "not below the white level"),
            ({**TOLD, "black": (1, 2)}, "black has 2 levels"),
        ],
    )
    def test_levels_that_make_no_sense(self, tmp_path, told, words):
        refused(self.written(tmp_path, ".npy", small()), words, **told)

    def test_an_unknown_phase(self, tmp_path):
        with pytest.raises(UserError, match="no Bayer phase"):
            read_raw(self.written(tmp_path, ".npy", small()), **{**TOLD, "pattern": "RGBG"})

    def test_the_real_frame(self):
        frame = read_raw(N900, pattern="GRBG", black=25, white=1023)
        assert (frame.size, frame.notes) == ((1968, 2592), ())
        with Image.open(N900) as image:
            assert np.array_equal(frame.mosaic, np.asarray(image))


class TestPaths:
    def test_what_is_not_there(self, tmp_path):
        refused(tmp_path / "a.dng", "is not there")
        refused(tmp_path, "is a folder")

    def test_what_may_not_be_read(self, tmp_path, monkeypatch):
        path = tmp_path / "a.dng"
        path.write_bytes(b"x")

        def denied(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", denied)  # root, as whom tests may run, can read what no one else can
        refused(path, "can't be opened: Permission denied")

    def test_without_rawpy(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "rawpy", None)
        (tmp_path / "a.dng").write_bytes(b"x")
        with pytest.raises(UserError, match=r"rawpy.*is not installed") as raised:
            read_raw(tmp_path / "a.dng")
        assert raised.value.hint == "pip install 'trimtab[isp]'"
