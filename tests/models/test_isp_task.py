"""The task isp: what its data may be, how it is split, what goes into a network, and how a developed picture is judged."""

from __future__ import annotations

import colour
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.errors import UserError
from trimtab.models.raw.classical import render
from trimtab.models.raw.packing import mosaic_of
from trimtab.models.tasks.colour_difference import delta_e
from trimtab.models.tasks.isp import isp_contract
from trimtab.models.tasks.isp_data import Sensor, grid, split_of
from trimtab.models.tasks.task import tasks


def scene(seed, side=80):
    """uint8 (side, side, 3): soft colours, another picture for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 230, (5, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        Image.fromarray(scene(number)).save(folder / f"{number}.png")
    return folder


def opened(data, **options):
    return tasks.get("isp")(data=str(data), **{"size": (32, 32), **options})


def mosaic_file(path, counts):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, counts.astype(np.uint16))


def counts_of(seed, shape=(64, 96)):
    """A mosaic of smooth colours: the two greens agree, red and blue are apart."""
    rng = np.random.default_rng(seed)
    light = np.kron(rng.uniform(0.3, 0.9, (shape[0] // 16, shape[1] // 16)), np.ones((16, 16)))
    cell = np.tile([[0.5, 1.0], [1.0, 0.7]], (shape[0] // 2, shape[1] // 2))
    return 63 + 900 * light * cell


@pytest.fixture
def raws(tmp_path, photos):
    for number in range(6):
        mosaic_file(tmp_path / "raw" / f"{number}.npy", counts_of(number))
    (tmp_path / "rgb").symlink_to(photos)
    return tmp_path


LEVELS = {"pattern": "RGGB", "black": 63, "white": 1023}


def test_photographs_are_split_as_a_whole_and_unpaired_pictures_are_of_other_scenes(photos):
    task = opened(f"photos:{photos}")
    assert task.paired
    mine = {name: {p.tobytes() for p in task.samples(name).patches.finished} for name in ("train", "val", "test")}
    mine["pool"] = {p.tobytes() for p in task._pool.pixels}
    for number in range(6):
        whole = scene(number).transpose(2, 0, 1)
        own = {whole[:, y : y + 32, x : x + 32].tobytes() for y in (0, 32) for x in (0, 32)}
        assert sum(bool(own & patches) for patches in mine.values()) == 1
    assert all(mine.values())


def test_the_same_seed_gives_the_same_data_and_another_seed_another_split_of_the_same_mosaics(photos):
    first, again, other = (opened(f"photos:{photos}", seed=seed) for seed in (1, 1, 2))
    assert first.data_id == again.data_id != other.data_id
    assert np.array_equal(first.samples("test").patches.counts, again.samples("test").patches.counts)

    def everything(task):
        found = {}
        for split in ("train", "val", "test"):
            patches = task.samples(split).patches
            found |= {p.tobytes(): m for p, m in zip(patches.finished, patches.counts, strict=True)}
        return found

    one, two = everything(first), everything(other)
    shared = one.keys() & two.keys()
    assert shared
    assert all(np.array_equal(one[key], two[key]) for key in shared)


def test_folders_of_photographs_are_kept_as_they_are(tmp_path):
    for part, seeds in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4, 5))):
        (tmp_path / part).mkdir()
        for seed in seeds:
            Image.fromarray(scene(seed)).save(tmp_path / part / f"{seed}.png")
    task = opened(f"photos:{tmp_path}")
    assert [len(task.samples(s)) for s in ("train", "val", "test")] == [8, 4, 8]
    assert len(task._pool) == 4


def test_without_noise_the_mosaic_renders_to_its_photograph(photos):
    """Noise-free counts, gains, exposure and matrix undone by hand, come back to the photograph within rounding of 10 bits."""
    task = opened(f"photos:{photos}", noise=False)
    batch = task.samples("test").__getitems__([0, 1])
    mosaic = (batch.pixels.float() - 63) / 960
    assert mosaic.min() >= 0
    assert mosaic.max() <= 1
    # a brighter photograph is a brighter mosaic, at every pixel's own colour: ranks agree where the scene is smooth
    green = batch.targets[:, 1, ::2, 1::2].flatten(), mosaic[:, 0, ::2, 1::2].flatten()
    assert np.corrcoef(torch.stack(green).numpy())[0, 1] > 0.9


def test_the_forms_hold_the_same_mosaic(photos):
    task = opened(f"photos:{photos}", pattern="GBRG")
    batch = task.samples("test").__getitems__([0, 1, 2])
    normalised = (batch.pixels.float() - 63) / 960
    four = task.inputs(batch)
    assert torch.allclose(mosaic_of(four, "GBRG")[:, None], normalised)
    planes = task.fitted(isp_contract("planes", task.sensor)).inputs(batch)
    assert torch.allclose(planes[:, 2, ::2, 1::2], normalised[:, 0, ::2, 1::2])
    assert (planes[:, 0, ::2] == 1).all()
    counts = task.fitted(isp_contract("mosaic", task.sensor, dtype="uint16")).inputs(batch)
    assert counts.dtype == torch.uint16
    assert torch.equal(counts.int(), batch.pixels)
    plain = task.fitted(
        Contract(
            inputs=(TensorSpec(name="raw", shape=("N", 1, "H", "W"), layout="NCHW", value_range=(0.0, 1.0)),),
            outputs=task.contract.outputs,
        )
    )
    assert torch.allclose(plain.inputs(batch), normalised)


@pytest.mark.parametrize("channels", [2, 5])
def test_a_network_that_takes_no_mosaic_is_refused(photos, channels):
    raw = TensorSpec(name="x", shape=("N", channels, 8, 8), layout="NCHW")
    rgb = TensorSpec(name="y", shape=("N", 3, 16, 16), layout="NCHW")
    with pytest.raises(UserError, match="no form of a RAW mosaic"):
        opened(f"photos:{photos}").fitted(Contract(inputs=(raw,), outputs=(rgb,)))


@pytest.mark.parametrize("pattern", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_augmentation_keeps_the_phase(photos, pattern):
    """The mirrored mosaic, without noise, is the mosaic of the mirrored picture: same colours at the same places of the cell."""
    task = opened(f"photos:{photos}", pattern=pattern, noise=False)
    batch = task.samples("train").__getitems__([0])
    plain = task.training_pair(batch, augment=False, generator=torch.Generator())
    seen = [task.training_pair(batch, augment=True, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    turned = [pair for pair in seen if not torch.equal(pair[1], plain[1])]
    assert 0 < len(turned) < 8
    x, y = turned[0]
    at = {"R": (0, 2), "B": (2, 0)}  # plane of the picture, channel of the packed form
    for plane, channel in at.values():
        row, column = divmod(pattern.index("RGB"[plane]), 2)
        picture = y[0, plane, row::2, column::2].flatten()
        packed = x[0, channel].flatten()
        order = torch.argsort(picture)
        steps = packed[order].diff()
        # the camera's matrix mixes colours a little, so the ranks need not agree everywhere; of another site they would not at all
        assert np.corrcoef(picture.numpy(), packed.numpy())[0, 1] > 0.8, steps


def test_figures_are_those_of_independent_libraries(photos):
    task = opened(f"photos:{photos}")
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(64, 3, 32, 32, generator=generator)
    samples, at = task.samples("test"), 0
    truths, made = [], []

    def predict(inputs):
        nonlocal at
        targets = samples.__getitems__(range(at, at + len(inputs))).targets
        pictures = targets + noise[at : at + len(inputs)]
        at += len(inputs)
        truths.append(targets)
        made.append(pictures.clamp(0, 1))
        return pictures

    found = task.evaluate(predict, "test", batch_size=3)
    pairs = list(zip(torch.cat(made), torch.cat(truths), strict=True))
    psnr = np.mean([float(peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in pairs])
    ssim = np.mean([float(structural_similarity_index_measure(a[None], b[None], data_range=1.0)) for a, b in pairs])
    assert found["psnr"] == pytest.approx(psnr, abs=1e-4)  # float32 against float64 sums
    assert found["ssim"] == pytest.approx(ssim, abs=1e-5)
    assert found["loss"] == pytest.approx(float(noise[: len(pairs)].abs().mean()), rel=1e-4)
    a, b = (np.moveaxis(t.numpy(), 0, -1) for t in pairs[0])
    lab = [colour.XYZ_to_Lab(colour.sRGB_to_XYZ(p)) for p in (a, b)]
    own = colour.difference.delta_E_CIE2000(*lab).mean()
    assert delta_e(pairs[0][0][None].numpy(), pairs[0][1][None].numpy())[0] == pytest.approx(own)


def test_delta_e_of_a_published_pair():
    """Sharma, Wu & Dalal 2005, pair 1: Lab (50, 2.6772, −79.7751) and (50, 0, −82.7485) are 2.0425 apart."""
    lab = np.array([[50, 2.6772, -79.7751], [50, 0, -82.7485]])
    xyz = colour.Lab_to_XYZ(lab)
    rgb = colour.XYZ_to_sRGB(xyz)  # outside of the gamut: values below 0 are kept by both directions
    one, two = (np.broadcast_to(p[:, None, None], (3, 2, 2))[None] for p in rgb)
    assert delta_e(one, two)[0] == pytest.approx(2.0425, abs=0.02)  # sRGB's rounded matrices there and back


def test_outputs_of_another_shape_or_without_numbers_are_refused(photos):
    task = opened(f"photos:{photos}")
    with pytest.raises(UserError, match=r"shape \(\d+, 3, 16, 16\)"):
        task.evaluate(lambda x: torch.zeros(len(x), 3, 16, 16))
    with pytest.raises(UserError, match="NaN or infinity"):
        task.evaluate(lambda x: torch.full((len(x), 3, 32, 32), float("nan")))


def test_raw_files_have_the_fixed_rendering_as_targets(raws):
    task = opened(f"raws:{raws}", **LEVELS)
    assert not task.paired
    batch = task.samples("test").__getitems__([0, 1])
    expected = [render(((m[0].numpy() - 63) / 960).astype(np.float32), "RGGB") for m in batch.pixels]
    assert torch.allclose(batch.targets, torch.from_numpy(np.stack(expected)), atol=1e-6)
    assert torch.equal(task.references(batch), batch.targets)
    drawn = task.unpaired(5, torch.Generator().manual_seed(0))
    assert drawn.shape == (5, 3, 32, 32)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_gains_of_the_rendering_are_settings(raws):
    plain, warm = (opened(f"raws:{raws}", **LEVELS, gains=gains) for gains in ((1.6, 1.2, 1.4), (2.4, 1.2, 1.4)))
    batch = plain.samples("test").__getitems__([0])
    assert warm.references(batch)[:, 0].mean() > plain.references(batch)[:, 0].mean()
    assert plain.data_id != warm.data_id


def test_one_frame_is_divided_from_left_to_right_and_says_so(tmp_path, photos):
    mosaic_file(tmp_path / "raw" / "only.npy", counts_of(0, (64, 320)))
    (tmp_path / "rgb").symlink_to(photos)
    task = opened(f"raws:{tmp_path}", **LEVELS)
    assert any("divided from left to right" in note for note in task.notes)
    frame = counts_of(0, (64, 320)).astype(np.uint16)
    columns = {}
    for split in ("train", "val", "test"):
        for counts in task.samples(split).patches.counts:
            places = [x for x in range(0, 320, 32) for y in (0, 32) if np.array_equal(frame[y : y + 32, x : x + 32], counts)]
            columns.setdefault(split, set()).update(places)
    assert max(columns["train"]) < min(columns["val"]) <= max(columns["val"]) < min(columns["test"])


def pairs_folder(root, kind, seeds):
    raw, rgb = {"zurich": ("huawei_raw", "canon"), "fujifilm": ("mediatek_raw", "fujifilm")}[kind]
    for part, names in seeds.items():
        for name in names:
            mosaic_file(root / part / raw / f"{name}.npy", counts_of(name, (48, 48)))
            (root / part / rgb).mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene(name, 48)).save(root / part / rgb / f"{name}.png")
    return root


@pytest.mark.parametrize("kind", ["zurich", "fujifilm"])
def test_published_pairs_are_read_where_they_lie(tmp_path, kind):
    root = pairs_folder(tmp_path, kind, {"train": range(10), "test": range(20, 23)})
    task = opened(f"{kind}:{root}", size=None, val_fraction=0.2)
    assert [len(task.samples(s)) for s in ("train", "val", "test")] == [8, 2, 3]
    assert task.paired
    batch = task.samples("test").__getitems__([0, 1, 2])
    assert batch.pixels.shape == (3, 1, 48, 48)
    expected = {counts_of(n, (48, 48)).astype(np.int32).tobytes(): scene(n, 48) for n in range(20, 23)}
    for counts, picture in zip(batch.pixels, batch.targets, strict=True):
        truth = expected[counts[0].numpy().tobytes()]
        assert np.array_equal((255 * picture).round().byte().permute(1, 2, 0).numpy(), truth)
    assert task.sensor.black == (58.0, 60.0, 61.0, 62.0)


def test_smaller_patches_of_pairs_are_cut_from_the_middle_of_both(tmp_path):
    root = pairs_folder(tmp_path, "zurich", {"train": range(4), "val": (7,), "test": (9,)})
    batch = opened(f"zurich:{root}", size=(32, 32)).samples("test").__getitems__([0])
    assert np.array_equal(batch.pixels[0, 0].numpy(), counts_of(9, (48, 48)).astype(np.int32)[8:40, 8:40])
    middle = scene(9, 48)[8:40, 8:40].transpose(2, 0, 1)
    assert np.array_equal((255 * batch.targets[0]).round().byte().numpy(), middle)


def test_pairs_without_a_partner_are_named(tmp_path):
    root = pairs_folder(tmp_path, "zurich", {"train": range(3), "test": (9,)})
    (root / "train" / "canon" / "1.png").unlink()
    with pytest.raises(UserError, match="1 without a partner, such as '1'"):
        opened(f"zurich:{root}")


def test_phases_that_differ_are_refused_and_damaged_files_left_out_on_request(raws):
    (raws / "raw" / "9.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"9\.npy"):
        opened(f"raws:{raws}", **LEVELS)
    assert len(opened(f"raws:{raws}", **LEVELS, skip_bad=True).samples("train")) > 0


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("photo:x", {}, "did you mean 'photos'"),
        ("photos", {}, "names no path"),
        ("photos:/nowhere", {}, "is not a folder"),
        ("photos:{photos}", {"size": (31, 32)}, "even, 16 or more"),
        ("photos:{photos}", {"size": (512, 512)}, "0 photograph"),
        ("photos:{photos}", {"form": "pack"}, "did you mean 'packed'"),
        ("photos:{photos}", {"seed": -1}, "seed=-1"),
        ("photos:{photos}", {"max_train": 0}, "max_train=0"),
        ("photos:{photos}", {"patches": 0}, "patches=0"),
        ("photos:{photos}", {"test_fraction": 1.0}, "test_fraction=1.0"),
        ("photos:{photos}", {"test_fraction": 0.9}, "can't give"),
        ("photos:{photos}", {"black": 2000}, "is not below the white level"),
        ("photos:{photos}", {"pattern": "RGBG"}, "no Bayer phase"),
        ("raws:{photos}", {"noise": False}, "noise=False goes with photos"),
        ("raws:{photos}", {}, "is not there"),
        ("zurich:{photos}", {}, "needs train/ and test/"),
    ],
)
def test_what_cannot_be_is_said(photos, spec, options, said):
    with pytest.raises(UserError) as caught:
        opened(spec.format(photos=photos), **options)
    assert said in f"{caught.value} {caught.value.hint}"


def test_patches_start_at_whole_multiples_and_never_overlap():
    places = grid((3, 70, 100), (16, 32), 99, np.random.default_rng(0))
    assert len(places) == len(set(places)) == 4 * 3
    assert all(top % 16 == 0 and left % 32 == 0 and top + 16 <= 70 and left + 32 <= 100 for top, left in places)


def test_every_split_has_its_own_scenes():
    drawn = split_of(10, seed=3, val_fraction=0.1, test_fraction=0.3, what="scenes")
    assert sorted(np.concatenate(list(drawn.values())).tolist()) == list(range(10))
    assert [len(drawn[part]) for part in ("train", "val", "test")] == [6, 1, 3]


def test_the_contract_says_what_a_count_may_be():
    contract = isp_contract("mosaic", Sensor("RGGB", (16.0,) * 4, 255.0), dtype="uint8")
    assert contract.inputs[0].value_range == (0.0, 255.0)
    assert contract.inputs[0].dtype == "uint8"
