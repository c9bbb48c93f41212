"""The anomaly task: layouts of folders, what is refused, splits, and the drawn scenes."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trimtab.models.errors import UserError
from trimtab.models.tasks import sources_anomaly_folder
from trimtab.models.tasks.anomaly import anomaly, anomaly_contract
from trimtab.models.tasks.anomaly_scenes import KINDS
from trimtab.models.tasks.sources_anomaly_masks import shrunk

RNG = np.random.default_rng(0)
SIDE = 16


def save(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noise(*size):
    return RNG.integers(0, 256, (*(size or (SIDE, SIDE)), 3), dtype=np.uint8)


def mask(size=(SIDE, SIDE), box=(2, 6)):
    pixels = np.zeros(size, np.uint8)
    pixels[box[0] : box[1], box[0] : box[1]] = 255
    return pixels


def write_mvtec(root: Path, *, style="mvtec", masks=True) -> Path:
    """8 training normals, 3 test normals, 2 scratched and 2 dented pictures with masks, as this data set names them."""
    for i in range(8):
        save(root / f"train/good/{i:03}.png", noise())
    for i in range(3):
        save(root / f"test/good/{i:03}.png", noise())
    kinds = {"loco": ("logical_anomalies", "structural_anomalies")}.get(style, ("dent", "scratch"))
    name = {"mvtec": "{0:03}_mask.png", "visa": "{0:03}.png", "loco": "{0:03}/000.png"}[style]
    for kind in kinds:
        for i in range(2):
            save(root / f"test/{kind}/{i:03}.png", noise())
            if masks:
                save(root / f"ground_truth/{kind}" / name.format(i), mask(box=(2 + i, 6)))
    if style == "loco":
        save(root / "ground_truth/logical_anomalies/000/001.png", mask(box=(10, 12)))
        for i in range(3):
            save(root / f"validation/good/{i:03}.png", noise())
    return root


@pytest.fixture
def root(tmp_path):
    return write_mvtec(tmp_path / "cat")


def refusal(data, **options) -> str:
    with pytest.raises(UserError) as caught:
        anomaly(data=data, **options)
    return str(caught.value)


class TestLayouts:
    def test_mvtec(self, root):
        task = anomaly(data=f"mvtec:{root}", val_fraction=0.25)
        assert [len(task.samples(split)) for split in ("train", "val", "test")] == [6, 2, 7]
        assert sorted(task.kinds("test")) == ["dent"] * 2 + ["good"] * 3 + ["scratch"] * 2
        assert set(task.kinds("train") + task.kinds("val")) == {"good"}
        assert task.masks("train") is None
        for kind, truth, target in zip(task.kinds("test"), task.masks("test"), task.samples("test").targets, strict=True):
            assert bool(truth.any()) == (kind != "good") == bool(target)
        assert {int(m.sum()) for m in task.masks("test")} == {0, 16, 9}
        batch = task.samples("train").__getitems__([0])
        inputs = task.inputs(batch)
        assert torch.equal(inputs, batch.pixels / 255)
        assert torch.equal(inputs, task.inputs(batch, augment=True))  # nothing is moved: see its docstring

    def test_loco_has_its_own_validation_and_unites_masks(self, tmp_path):
        task = anomaly(data=f"loco:{write_mvtec(tmp_path, style='loco')}")
        assert [len(task.samples(split)) for split in ("train", "val", "test")] == [8, 3, 7]
        assert set(task.kinds("test")) == {"good", "logical", "structural"}
        assert {int(m.sum()) for m, k in zip(task.masks("test"), task.kinds("test"), strict=True) if k == "logical"} == {20, 9}

    def test_visa_prepared_and_folder_without_masks(self, tmp_path):
        task = anomaly(data=f"visa:{write_mvtec(tmp_path / 'a', style='visa')}")
        assert task.masks("test").any()
        plain = anomaly(data=f"folder:{write_mvtec(tmp_path / 'b', masks=False)}")
        assert plain.masks("test") is None
        assert any("no masks" in note for note in plain.notes)

    def test_visa_as_published(self, tmp_path):
        rows = []
        for split, label, count in (("train", "normal", 4), ("test", "normal", 2), ("test", "anomaly", 2)):
            for i in range(count):
                name = f"candle/Data/Images/{label}/{split}{i}.JPG"
                save(tmp_path / name, noise())
                truth = f"candle/Data/Masks/{i}.png" if label == "anomaly" else ""
                if truth:
                    save(tmp_path / truth, mask() // 255)  # VisA's masks hold small numbers, not 255
                rows.append(["candle", split, label, name, truth])
        rows.append(["pcb1", "train", "normal", "pcb1/absent.JPG", ""])
        table = tmp_path / "split_csv/1cls.csv"
        table.parent.mkdir()
        header = ["object", "split", "label", "image", "mask"]

        def write(lines):
            with table.open("w", newline="") as file:
                csv.writer(file).writerows([header, *lines])

        write(rows)
        task = anomaly(data=f"visa:{tmp_path / 'candle'}", val_fraction=0.25)
        assert [len(task.samples(split)) for split in ("train", "val", "test")] == [3, 1, 4]
        assert sorted(int(m.sum()) for m in task.masks("test")) == [0, 0, 16, 16]
        write([*rows, ["candle", "train", "anomaly", rows[-2][3], ""]])
        assert "1 training picture(s) of candle are anomalous" in refusal(f"visa:{tmp_path / 'candle'}")
        write([*rows, ["candle", "train", "normal", "candle/gone.JPG", ""]])
        assert "missing" in refusal(f"visa:{tmp_path / 'candle'}")
        write([["candle", "dev", "normal", "x", ""]])
        assert "line 2: split 'dev'" in refusal(f"visa:{tmp_path / 'candle'}")
        write(rows[-1:])
        assert "no row of 'candle'" in refusal(f"visa:{tmp_path / 'candle'}")
        table.unlink()
        assert "1cls.csv" in refusal(f"visa:{tmp_path / 'candle'}")

    def test_pictures_are_stretched_not_cropped(self, root):
        """A defect at the edge of a wide picture stays in it."""
        wide = np.zeros((10, 40, 3), np.uint8)
        wide[:, :10] = 255
        save(root / "test/dent/000.png", wide)
        save(root / "ground_truth/dent/000_mask.png", wide[..., 0])
        task = anomaly(data=f"mvtec:{root}", size=(8, 8))
        i = next(i for i, m in enumerate(task.masks("test")) if m.sum() == 16)
        assert np.array_equal(task.masks("test")[i][:, :2], np.ones((8, 2)))
        assert task.samples("test").images.read([i])[0, :, :, 0].min() > 240

    def test_large_splits_stay_on_disk_and_read_the_same(self, root, monkeypatch):
        held = anomaly(data=f"mvtec:{root}", size=(8, 12))
        monkeypatch.setattr(sources_anomaly_folder, "MEMORY_BYTES", 0)
        lazy = anomaly(data=f"mvtec:{root}", size=(8, 12))
        for split in ("train", "val", "test"):
            where = list(range(len(held.samples(split))))
            pair = [task.samples(split).__getitems__(where).pixels for task in (held, lazy)]
            assert torch.equal(*pair)
        assert held.data_id == lazy.data_id


class TestSplits:
    def test_the_seed_moves_validation_and_not_the_test(self, root):
        a, b = (anomaly(data=f"mvtec:{root}", seed=seed, val_fraction=0.25) for seed in (0, 1))
        assert torch.equal(*(t.samples("test").__getitems__(range(7)).pixels for t in (a, b)))
        assert not torch.equal(*(t.samples("val").__getitems__(range(2)).pixels for t in (a, b)))
        assert a.data_id != b.data_id
        assert a.data_id == anomaly(data=f"mvtec:{root}", val_fraction=0.25, fpr=0.2).data_id

    def test_no_normal_is_in_two_splits(self, root):
        task = anomaly(data=f"mvtec:{root}", val_fraction=0.3)
        rows = [
            {p.numpy().tobytes() for p in task.samples(s).__getitems__(range(len(task.samples(s)))).pixels}
            for s in ("train", "val")
        ]
        assert not rows[0] & rows[1]
        assert len(rows[0] | rows[1]) == 8

    def test_max_train_and_options(self, root):
        task = anomaly(data=f"mvtec:{root}", max_train=3, size=(8, 8))
        assert len(task.samples("train")) == 3
        assert task.options == {"data": f"mvtec:{root}", "max_train": 3, "size": (8, 8)}
        assert anomaly(**task.options).data_id == task.data_id

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"val_fraction": 0}, "val_fraction=0 must lie between"),
            ({"val_fraction": 0.99}, "8 normal training picture"),
            ({"seed": -1}, "seed=-1"),
            ({"max_train": 0}, "max_train=0"),
            ({"fpr": 1.0}, "fpr=1.0"),
            ({"size": (0, 4)}, "size="),
            ({"cells": "mono"}, "cells='mono' goes with elpv"),
            ({"counts": (1, 1, 1)}, "goes with scenes"),
        ],
    )
    def test_values_out_of_range(self, root, options, said):
        assert said in refusal(f"mvtec:{root}", **options)


class TestBadData:
    def test_anomalies_in_train_are_named(self, root):
        shutil.copytree(root / "test/dent", root / "train/dent")
        assert "train holds dent beside good" in refusal(f"mvtec:{root}")

    def test_a_test_anomaly_copied_into_train_is_found(self, root):
        shutil.copy(root / "test/dent/001.png", root / "train/good/new.png")
        said = refusal(f"mvtec:{root}")
        assert "1 anomalous test picture(s) lie among the normal ones" in said
        assert "new.png" in said

    def test_masks_for_normals_are_refused_unless_they_mark_nothing(self, root):
        save(root / "ground_truth/good/000_mask.png", np.zeros((SIDE, SIDE), np.uint8))
        anomaly(data=f"mvtec:{root}")
        save(root / "ground_truth/good/001_mask.png", mask())
        assert "masks for normal pictures: 001" in refusal(f"mvtec:{root}")

    def test_a_normal_that_is_in_train_and_test_is_a_warning(self, root, caplog):
        shutil.copy(root / "test/good/001.png", root / "train/good/new.png")
        with caplog.at_level(logging.WARNING):
            anomaly(data=f"mvtec:{root}")
        assert "1 normal test picture(s) also train" in caplog.text

    def test_constant_pictures_are_named(self, root, caplog):
        save(root / "train/good/003.png", np.full((SIDE, SIDE, 3), 7, np.uint8))
        task = anomaly(data=f"mvtec:{root}")
        assert any("1 of 8 pictures" in note and "003.png" in note for note in task.notes)
        for path in (root / "train/good").iterdir():
            save(path, np.full((SIDE, SIDE, 3), 7, np.uint8))
        assert "all 8 pictures" in refusal(f"mvtec:{root}")

    def test_smaller_than_asked_is_a_note(self, root):
        assert any("are smaller than 20×20" in note for note in anomaly(data=f"mvtec:{root}", size=(20, 20)).notes)

    @pytest.mark.parametrize("gone", ["train", "test", "train/good"])
    def test_missing_folders(self, root, gone):
        shutil.rmtree(root / gone)
        assert f"has no folder {gone.split('/')[-1]}/" in refusal(f"mvtec:{root}")

    def test_what_looks_like_elpv_is_told_so(self, root):
        shutil.rmtree(root / "train")
        (root / "labels.csv").write_text("x")
        assert "elpv:DIR" in refusal(f"folder:{root}")

    def test_loco_without_its_validation(self, root):
        assert "has no folder validation/" in refusal(f"loco:{root}")

    def test_a_test_of_one_side(self, root):
        shutil.rmtree(root / "ground_truth")
        shutil.move(root / "test/good", root / "elsewhere")
        assert "none of them normal" in refusal(f"mvtec:{root}")
        for kind in ("dent", "scratch"):
            shutil.rmtree(root / "test" / kind)
        shutil.move(root / "elsewhere", root / "test/good")
        assert "none of them anomalous" in refusal(f"mvtec:{root}")

    def test_masks_of_another_size_or_without_a_partner(self, root):
        path = root / "ground_truth/dent/000_mask.png"
        save(path, mask((8, 8)))
        assert "has size 8×8, its picture" in refusal(f"mvtec:{root}")
        path.unlink()
        assert "1 anomalous picture(s) have no mask" in refusal(f"mvtec:{root}")
        save(path, mask())
        save(root / "ground_truth/dent/009_mask.png", mask())
        assert "1 mask(s) have no picture" in refusal(f"mvtec:{root}")
        (root / "ground_truth/dent/009_mask.png").write_bytes(b"no picture")
        (root / "test/dent/009.png").write_bytes((root / "test/dent/000.png").read_bytes())
        assert "the mask" in refusal(f"mvtec:{root}")

    def test_an_empty_mask_is_a_note(self, root):
        save(root / "ground_truth/dent/000_mask.png", np.zeros((SIDE, SIDE), np.uint8))
        assert any("mark nothing" in note for note in anomaly(data=f"mvtec:{root}").notes)

    def test_broken_pictures_are_named_or_left_out(self, root):
        (root / "train/good/002.png").write_bytes(b"\x89PNG")
        assert "002.png" in refusal(f"mvtec:{root}")
        task = anomaly(data=f"mvtec:{root}", skip_bad=True)
        assert len(task.samples("train")) + len(task.samples("val")) == 7

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ("mvtek:x", "unknown data"),
            ("scenes:x", "scenes takes no path"),
            ("mvtec", "names no path"),
            ("mvtec:/no/such", "is not a folder"),
        ],
    )
    def test_specs(self, data, said):
        assert said in refusal(data)


class TestMasksShrink:
    def test_half_of_a_pixel_counts_and_a_small_defect_does_not_vanish(self):
        large = np.zeros((8, 8), bool)
        large[:4, :2] = True  # one pixel of four by four half covered
        assert shrunk(large, (2, 2)).tolist() == [[1, 0], [0, 0]]
        dot = np.zeros((8, 8), bool)
        dot[7, 0] = True
        assert shrunk(dot, (2, 2)).tolist() == [[0, 0], [1, 0]]
        assert not shrunk(np.zeros((8, 8), bool), (2, 2)).any()


class TestElpv:
    @pytest.fixture
    def cells(self, tmp_path):
        lines = []
        (tmp_path / "images").mkdir()
        for kind, functional in (("mono", 10), ("poly", 20)):
            for level, count in ((0.0, functional), (1 / 3, 2), (2 / 3, 2), (1.0, 4)):
                for _ in range(count):
                    name = f"images/{len(lines)}.png"
                    Image.fromarray(noise()[..., 0]).save(tmp_path / name)
                    lines.append(f"{name} {level} {kind}")
        (tmp_path / "labels.csv").write_text("\n".join(lines))
        return tmp_path

    def test_the_protocol(self, cells):
        """70 % of the functional train, the rest is tested with the surely defective; unsure ones are left out."""
        task = anomaly(data=f"elpv:{cells}", cells="mono", val_fraction=0.3)
        assert [len(task.samples(s)) for s in ("train", "val", "test")] == [5, 2, 3 + 4]
        assert sorted(task.kinds("test")) == ["defective"] * 4 + ["good"] * 3
        every = anomaly(data=f"elpv:{cells}")
        assert len(every.samples("train")) + len(every.samples("val")) == 7 + 14
        assert set(every.kinds("test")) == {"good", "defective-mono", "defective-poly"}
        assert task.masks("test") is None

    def test_grey_becomes_colour_at_the_input(self, cells):
        task = anomaly(data=f"elpv:{cells}", size=(8, 8))
        batch = task.samples("train").__getitems__([0, 1])
        assert batch.pixels.shape == (2, 1, 8, 8)
        inputs = task.inputs(batch)
        assert inputs.shape == (2, 3, 8, 8)
        assert torch.equal(inputs[:, 0], inputs[:, 2])

    def test_refusals(self, cells):
        assert "cells='silicon'" in refusal(f"elpv:{cells}", cells="silicon")
        lines = (cells / "labels.csv").read_text().splitlines()
        (cells / "labels.csv").write_text("\n".join(line for line in lines if " 1.0 " not in line))
        assert "no defective cell" in refusal(f"elpv:{cells}")


class TestScenes:
    def test_counts_kinds_and_masks(self):
        task = anomaly(data="scenes", counts=(20, 5, 12), size=(32, 48))
        assert [len(task.samples(s)) for s in ("train", "val", "test")] == [18, 2, 17]
        assert sorted(set(task.kinds("test"))) == sorted({"good", *KINDS})
        assert task.contract == anomaly_contract(32, 48)
        for kind, truth in zip(task.kinds("test"), task.masks("test"), strict=True):
            assert truth.any() == (kind != "good")
            assert truth.mean() < 0.5

    def test_deterministic(self):
        a, b = (anomaly(data="scenes", counts=(6, 2, 6)) for _ in range(2))
        assert a.data_id == b.data_id
        assert torch.equal(*(t.samples("test").__getitems__(range(8)).pixels for t in (a, b)))

    def test_the_anomaly_lies_where_the_mask_says(self):
        """The same random numbers with and without damage: pictures differ inside the mask more than outside."""
        from trimtab.models.tasks.anomaly_scenes import _glyphs, draw

        glyphs, _ = _glyphs()
        for kind in ("scratch", "blob", "stain"):
            normal, _ = draw("good", glyphs, (64, 64), np.random.default_rng(5))
            odd, truth = draw(kind, glyphs, (64, 64), np.random.default_rng(5))
            change = np.abs(odd - normal).max(-1)
            assert change[truth].mean() > 10 * change[~truth].mean()

    @pytest.mark.parametrize(("options", "said"), [({"size": (16, 64)}, "32×32"), ({"counts": (6, 1, 5)}, "counts=")])
    def test_refusals(self, options, said):
        assert said in refusal("scenes", **options)


class TestEvaluate:
    @pytest.fixture(scope="class")
    def task(self):
        return anomaly(data="scenes", counts=(20, 6, 12), size=(32, 32))

    def test_a_map_that_knows(self, task):
        """Maps made from the masks: everything is found; the validation's maps are 0, and so is the threshold."""
        truth = torch.from_numpy(task.masks("test")).float()[:, None]
        place = iter(truth.split(5))
        found = task.evaluate(lambda x: next(place, torch.zeros(len(x), 1, 32, 32)), batch_size=5)
        assert found["auroc"] == found["ap"] == found["tpr"] == 1.0
        assert [found["pixel_auroc"], found["au_pro"]] == pytest.approx([1, 1], abs=1e-12)  # sums of 17 000 shares
        assert found["auroc_logical"] == found["auroc_stain"] == 1.0
        assert (found["threshold"], found["fpr"]) == (0.0, 0.0)

    def test_one_number_a_picture_has_no_pixel_figures(self, task):
        found = task.evaluate(lambda x: x.mean((1, 2, 3), keepdim=True))
        assert 0 <= found["auroc"] <= 1
        assert not {"pixel_auroc", "au_pro"} & set(found)

    def test_normals_alone_give_a_threshold(self, task):
        found = task.evaluate(lambda x: x.amax((1, 2, 3), keepdim=True), "val")
        assert set(found) == {"score", "threshold"}

    def test_refusals(self, task):
        with pytest.raises(UserError, match=r"anomaly map has \(N, 1, h, w\)"):
            task.evaluate(lambda x: x)
        with pytest.raises(UserError, match="NaN"):
            task.evaluate(lambda x: x[:, :1] * float("nan"))
        with pytest.raises(UserError, match="all 1 pictures are"):
            task.evaluate(lambda x: x[:, :1], limit=1)
        with pytest.raises(UserError, match="limit=0"):
            task.evaluate(lambda x: x[:, :1], limit=0)
        with pytest.raises(UserError, match="anomaly-fit"):
            task.loss(torch.zeros(1), torch.zeros(1))

    def test_a_network_with_another_normalisation(self, task):
        twin = task.normalised_by((0.5,) * 3, (0.25,) * 3)
        batch = task.samples("val").__getitems__([0])
        torch.testing.assert_close(twin.inputs(batch), (task.inputs(batch) - 0.5) / 0.25)
        assert twin.data_id == task.data_id
