"""Point files, tables and arrays: what is read, and what is refused in which words."""

from __future__ import annotations

import json

import numpy as np
import pytest
from landmarks_kit import folder, picture, pts, some_points
from PIL import Image

from trimtab.models.errors import UserError
from trimtab.models.tasks.sources_landmark_files import read_ljson, read_pts
from trimtab.models.tasks.sources_landmark_shapes import FLIP_PAIRS, modes, sample_points, shapes
from trimtab.models.tasks.sources_landmarks import open_landmarks


def opened(text, *, size=None, crop=None, margin=0.1, skip_bad=False):
    return open_landmarks(str(text), size=size, crop=crop, margin=margin, skip_bad=skip_bad)


def centred(points, width, height):
    """Independent of the library: the centre of the first pixel is half a pixel from the edge."""
    return np.stack([(points[:, 0] + 0.5) / width - 0.5, (points[:, 1] + 0.5) / height - 0.5], axis=1).ravel()


class TestFiles:
    def test_pts_count_from_one(self, tmp_path):
        path = tmp_path / "a.pts"
        path.write_text("version: 1\nn_points:  2\n{\n1.0 1.0\n30.5 20.25\n}\n")
        assert read_pts(path).tolist() == [[0, 0], [29.5, 19.25]]

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_ljson_holds_y_then_x(self, tmp_path, wrapped):
        node = {"landmarks": {"points": [[1, 2], [3, None]]}, "labels": []}
        content = {"version": 3, "groups": {"LJSON": node}} if wrapped else {"version": 2, **node}
        (tmp_path / "a.ljson").write_text(json.dumps(content))
        np.testing.assert_array_equal(read_ljson(tmp_path / "a.ljson"), [[2, 1], [np.nan, 3]])

    def test_all_formats_say_the_same(self, tmp_path):
        points = [some_points(i) for i in range(6)]
        root = tmp_path / "set"
        for i in range(6):
            path = picture(root / f"{i}.png", seed=i)
            if i % 2:
                pts(path.with_suffix(".pts"), points[i])
            else:
                path.with_suffix(".ljson").write_text(json.dumps({"landmarks": {"points": points[i][:, ::-1].tolist()}}))
        header = ",".join(["file", *(f"{axis}{i}" for i in range(4) for axis in "xy")])
        rows = [",".join([f"set/{i}.png", *map(str, points[i].ravel())]) for i in range(6)]
        (tmp_path / "a.csv").write_text("\n".join([header, *rows]))
        (tmp_path / "a.json").write_text(json.dumps({f"set/{i}.png": points[i].tolist() for i in range(6)}))
        expected = np.stack([centred(p, 30, 20) for p in points])
        for spec in (f"points:{root}", f"csv:{tmp_path / 'a.csv'}", f"json:{tmp_path / 'a.json'}"):
            data = opened(spec)
            # float32 of numbers below 1, and the file's 1-based counting in float64
            np.testing.assert_allclose(data.images.targets, expected, atol=1e-7)
            assert data.images.targets.dtype == np.float32
            assert data.parts is None
            assert set(data.groups) == {"set"}
            assert data.images.read([3]).tolist() == [np.asarray(Image.open(root / "3.png")).transpose(2, 0, 1).tolist()]

    def test_parts_and_groups_of_tables(self, tmp_path):
        for i in range(4):
            picture(tmp_path / f"{i}.png", seed=i)
        head = "file,part,group,x0,y0,x1,y1\n"
        rows = "".join(f"{i}.png,{p},ann,3,4,{9 + i},9\n" for i, p in enumerate(["train", "train", "val", "test"]))
        (tmp_path / "a.csv").write_text(head + rows)
        data = opened(f"csv:{tmp_path / 'a.csv'}")
        assert data.parts.tolist() == ["train", "train", "val", "test"]
        assert set(data.groups) == {"ann"}
        table = {"train": {"0.png": [[3, 4], [9, 9]], "1.png": [[3, 4], [9, 8]]}, "test": {"2.png": [[3, 4], [9, 7]]}}
        (tmp_path / "a.json").write_text(json.dumps(table))
        assert opened(f"json:{tmp_path / 'a.json'}").parts.tolist() == ["train", "train", "test"]

    def test_npz(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (5, 8, 10), dtype=np.uint8)
        points = np.random.default_rng(1).uniform(0, 7, (5, 3, 2))
        np.savez(tmp_path / "a.npz", images=images, points=points, groups=np.array(list("aabbc")))
        data = opened(f"npz:{tmp_path / 'a.npz'}")
        assert data.images.shape == (1, 8, 10)
        np.testing.assert_allclose(data.images.targets[2], centred(points[2], 10, 8), atol=1e-7)
        assert data.groups.tolist() == list("aabbc")


class TestViews:
    """One bright pixel per point: after any view, the target must lie on the bright spot."""

    @staticmethod
    def spotted(path, spots, size=(60, 90)):
        pixels = np.zeros(size, dtype=np.uint8)
        for x, y in spots:
            pixels[y : y + 3, x : x + 3] = 255  # centre x + 1, y + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        pts(path.with_suffix(".pts"), np.array(spots) + 1.0)

    @pytest.mark.parametrize(
        ("size", "crop"), [(None, None), ((60, 60), None), ((40, 120), None), ((48, 48), 0.3), ((30, 60), 0.5)]
    )
    def test_points_stay_on_their_spots(self, tmp_path, size, crop):
        spots = [[(20, 10), (60, 40)], [(30, 44), (70, 12)], [(2, 2), (84, 54)]]
        for i, pair in enumerate(spots):
            self.spotted(tmp_path / f"{i}.png", pair)
        images = opened(f"points:{tmp_path}", size=size, crop=crop).images
        assert images.shape == (1, *(size or (60, 90)))
        check_spots(images, tolerance=0.6)

    def test_arrays_are_padded_to_another_shape(self, tmp_path):
        pixels, points = np.zeros((2, 20, 30), dtype=np.uint8), np.zeros((2, 2, 2))
        for i, pair in enumerate([[(4, 4), (24, 14)], [(6, 14), (20, 3)]]):
            for j, (x, y) in enumerate(pair):
                pixels[i, y : y + 3, x : x + 3] = 255
                points[i, j] = x + 1, y + 1
        np.savez(tmp_path / "a.npz", images=pixels, points=points)
        images = opened(f"npz:{tmp_path / 'a.npz'}", size=(60, 60)).images
        assert images.shape == (1, 60, 60)
        assert not images.read([0])[0, 0, :9].any()  # 20×30 in 60×60: 10 black rows above, blurred by one
        check_spots(images, tolerance=0.6)


def check_spots(images, *, tolerance):
    """Centroid of the brightness nearer to each point than to the other, against the target; resampling blurs by half a pixel."""
    _, height, width = images.shape
    y, x = np.mgrid[:height, :width]
    for i in range(len(images.targets)):
        bright = images.read([i])[0, 0].astype(float)
        points = (images.targets[i].reshape(-1, 2) + 0.5) * (width, height) - 0.5
        nearer = np.argmin([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)
        for j, point in enumerate(points):
            weight = bright * (nearer == j)
            found = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
            np.testing.assert_allclose(found, point, atol=tolerance)


class TestRefusals:
    def test_pictures_without_points(self, tmp_path):
        folder(tmp_path, people=1, per_person=5)
        for i in range(4):
            (tmp_path / "person0" / f"{i}.pts").unlink()
        message = r"4 of 5 pictures have no points file: .*0\.png; .*1\.png; .*2\.png; … and 1 more"
        with pytest.raises(UserError, match=message):
            opened(f"points:{tmp_path}")

    def test_wrong_numbers_of_points(self, tmp_path):
        folder(tmp_path, people=1, per_person=4)
        pts(tmp_path / "person0" / "2.pts", some_points(count=3))
        with pytest.raises(UserError, match=r"1 of 4 samples have another number of points than the others' 4: .*2\.png has 3"):
            opened(f"points:{tmp_path}")
        pts(tmp_path / "person0" / "2.pts", some_points(), promised=5)
        with pytest.raises(UserError, match=r"2\.pts promises 5 points and has 4"):
            opened(f"points:{tmp_path}")

    @pytest.mark.parametrize(
        ("bad", "said"), [((np.nan, 3), r"\(nan, 3\)"), ((-1, -1), r"\(-1, -1\)"), ((-2, -2), r"\(-2, -2\)")]
    )
    def test_missing_points_are_named(self, tmp_path, bad, said):
        folder(tmp_path, people=1, per_person=3)
        points = some_points()
        points[2] = bad
        pts(tmp_path / "person0" / "1.pts", points)
        with pytest.raises(UserError, match=rf"1 of 3 samples have missing points: .*1\.png, point 2 at {said}"):
            opened(f"points:{tmp_path}")

    def test_an_empty_cell_is_a_missing_point(self, tmp_path):
        picture(tmp_path / "a.png")
        (tmp_path / "a.csv").write_text("file,x0,y0,x1,y1\na.png,3,4,,9\n")
        with pytest.raises(UserError, match=r"missing points: .*a\.png, point 1 at \(nan, 9\)"):
            opened(f"csv:{tmp_path / 'a.csv'}")

    def test_points_outside_and_the_margin_that_lets_them_in(self, tmp_path):
        folder(tmp_path, people=1, per_person=3)
        points = some_points()
        points[1] = 34, 5  # the picture is 30 wide: 5 beyond its last pixel
        pts(tmp_path / "person0" / "0.pts", points)
        with pytest.raises(
            UserError, match=r"outside their picture by more than 0.1 of its side: .*0\.png, point 1 at \(34, 5\) in 30×20"
        ):
            opened(f"points:{tmp_path}")
        assert len(opened(f"points:{tmp_path}", margin=0.2).names) == 3

    def test_fractions_instead_of_pixels(self, tmp_path):
        picture(tmp_path / "a.png")
        (tmp_path / "a.json").write_text(json.dumps({"a.png": [[0.25, 0.5], [0.75, 0.5]]}))
        with pytest.raises(UserError, match=r"between 0.25 and 0.75: they look like fractions[\s\S]*give pixels"):
            opened(f"json:{tmp_path / 'a.json'}")

    def test_pickled_arrays(self, tmp_path):
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8), points=np.array([object(), object()]))
        with pytest.raises(UserError, match="pickled objects, which could run code"):
            opened(f"npz:{tmp_path / 'a.npz'}")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("file,x0,x1\na.png,1,2\n", "has the columns file, x0, x1"),
            ("file,x0,y0,x1,y1\na.png,1,2,3\n", "line 2 has 4 cells, the header 5"),
            ("file,x0,y0,x1,y1\na.png,1,2,3,four\n", r"line 2: point 1 is '3 four'"),
            ("file,x0,y0,x1,y1\nb.png,1,2,3,4\n", r"1 of 1 pictures in .* are not there: .*b\.png"),
            ("file,part,x0,y0,x1,y1\na.png,exam,1,2,3,4\n", "part 'exam' is unknown"),
            ("file,part,x0,y0,x1,y1\na.png,,1,2,3,4\na.png,train,1,2,3,4\n", "1 of 2 samples belong to no part"),
            ("file,part,x0,y0,x1,y1\na.png,train,1,2,3,4\n", r"part\(s\) train only"),
            ("file,x0,y0,x1,y1\n", "lists no pictures"),
            ("", "is empty"),
        ],
    )
    def test_tables(self, tmp_path, text, said):
        picture(tmp_path / "a.png")
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=said):
            opened(f"csv:{tmp_path / 't.csv'}")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ({"landmarks": {"points": [[1, 2]]}}, "holds the points of one picture"),
            ([1], "holds no table of files"),
            ({"a.png": 3}, "'a.png' has no list of points"),
            ({"a.png": [[1, 2, 3]]}, r"a\.png: point 0 is '1 2 3'"),
            ({"a.png": [[1, 2]]}, r"have 1 point\(s\) each"),
        ],
    )
    def test_json_tables(self, tmp_path, content, said):
        picture(tmp_path / "a.png")
        (tmp_path / "t.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            opened(f"json:{tmp_path / 't.json'}")

    def test_broken_point_files(self, tmp_path):
        (tmp_path / "a.pts").write_text("1 2\n3 4\n")
        with pytest.raises(UserError, match=r"a\.pts has no points in braces"):
            read_pts(tmp_path / "a.pts")
        (tmp_path / "a.ljson").write_text('{"groups": {"a": {}, "b": {}}}')
        with pytest.raises(UserError, match="has 2 groups of landmarks: a, b"):
            read_ljson(tmp_path / "a.ljson")
        (tmp_path / "a.ljson").write_text("{}")
        with pytest.raises(UserError, match=r"has no landmarks\.points"):
            read_ljson(tmp_path / "a.ljson")

    def test_broken_pictures_are_named_or_left_out(self, tmp_path):
        folder(tmp_path, people=1, per_person=4)
        (tmp_path / "person0" / "1.png").write_bytes(b"no picture")
        with pytest.raises(UserError, match=r"1 of 4 images cannot be read:\n.*1\.png: not an image"):
            opened(f"points:{tmp_path}")
        assert len(opened(f"points:{tmp_path}", skip_bad=True).names) == 3

    @pytest.mark.parametrize(
        ("spec", "more", "said"),
        [
            ("shape", {}, r"unknown landmark data 'shape'[\s\S]*did you mean 'shapes'"),
            ("fashion-mnist", {}, r"unknown landmark data 'fashion-mnist'[\s\S]*known: shapes, points:PATH, csv:PATH"),
            ("shapes:x", {}, "shapes takes no path"),
            ("points", {}, "names no path"),
            ("points:/nowhere/at/all", {}, "does not exist"),
            ("shapes", {"crop": 0.2}, "crop=0.2 works on picture files"),
        ],
    )
    def test_specs(self, spec, more, said):
        with pytest.raises(UserError, match=said):
            opened(spec, **more)

    def test_an_empty_folder_and_a_crop_without_size(self, tmp_path):
        with pytest.raises(UserError, match="holds no pictures"):
            opened(f"points:{tmp_path}")
        folder(tmp_path, people=1)
        with pytest.raises(UserError, match=r"crop=0.2 needs a size"):
            opened(f"points:{tmp_path}", crop=0.2)


class TestShapes:
    def test_the_same_for_everybody_and_as_promised(self):
        data = shapes()
        assert data is shapes()
        assert data.images.pixels.shape == (5000, 1, 48, 48)
        assert data.images.targets.shape == (5000, 42)
        assert (data.parts == "train").sum() == 4000
        assert np.linalg.matrix_rank(modes().reshape(8, -1)) == 8
        # nearly all points are in the picture; nothing is constant
        assert (np.abs(data.images.targets) > 0.5).mean() < 0.001
        assert data.images.pixels.std((1, 2, 3)).min() > 5

    def test_pairs_mirror_the_model(self):
        """Mean of many shapes, mirrored with the points in the pairs' order, is itself: standard error of a mean 0.06/√20 000."""
        points = sample_points(20_000, np.random.default_rng(0)).mean(0)
        order = np.arange(21)
        for a, b in FLIP_PAIRS:
            order[[a, b]] = b, a
        np.testing.assert_allclose(points[order] * (-1, 1), points, atol=0.002)

    def test_points_lie_on_the_strokes(self):
        """Brightness differs from its surroundings at eye corners far more than at random places (patches hide some)."""
        data = shapes()
        pixels = data.images.pixels[:500, 0].astype(float)
        level = np.median(pixels, axis=(1, 2))
        where = np.clip(((data.images.targets[:500].reshape(500, 21, 2) + 0.5) * 48).astype(int), 0, 47)
        n = np.arange(500)[:, None]
        at_points = np.abs(pixels[n, where[..., 1], where[..., 0]] - level[:, None]).mean()
        assert at_points > 2 * np.abs(pixels - level[:, None, None]).mean()
