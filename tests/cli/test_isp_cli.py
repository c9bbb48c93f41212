"""`trimtab isp develop`: files in, pictures out, by Bundles, artifacts and the fixed rendering; and the report's pictures."""

import base64
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from isp_kit import frame_of, isp_bundle, save_mosaic
from PIL import Image

from trimtab.app import main
from trimtab.develop import classical, develop
from trimtab.develop_files import png16, strip
from trimtab.develop_network import bundle_isp
from trimtab.models.errors import UserError
from trimtab.models.raw.classical import render
from trimtab.models.tasks.task import RawBatch
from trimtab.report_pictures import anomaly_pictures, isp_pictures, psnr, telling

TOLD = ("--pattern", "GRBG", "--black", 25, "--white", 1023)
SIZE = (118, 150)


@pytest.fixture
def mosaic(tmp_path):
    """A Bayer picture on the disk, and its frame."""
    frame = frame_of(*SIZE)
    return save_mosaic(tmp_path / "photo.png", frame), frame


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


# ---------------------------------------------------------------- who develops


def test_a_bundle_develops_a_picture_file(cli, mosaic, tmp_path):
    photo, frame = mosaic
    bundle = isp_bundle(tmp_path / "net", gain=1.5)
    code, out, err = cli("--json", "isp", "develop", photo, "-o", "out.png", "--model", "net", "--tile", 64, *TOLD)
    assert code == 0, err
    said = json.loads(out)["pictures"][0]
    assert (said["width"], said["height"], said["pattern"]) == (SIZE[1], SIZE[0], "GRBG")
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), develop(frame, bundle_isp(bundle), tile=64))


def test_the_fixed_rendering_is_the_library_s(cli, mosaic, tmp_path):
    photo, frame = mosaic
    code, _, err = cli("isp", "develop", photo, "-o", "out.png", "--classical", "--gains", "2,1,1.5", *TOLD)
    assert code == 0, err
    expected = render(frame.normalised(), "GRBG", gains=(2.0, 1.0, 1.5)).transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), np.rint(expected * 255))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """A network's artifacts, of free and of fixed size, and its Bundle."""
    folder = tmp_path_factory.mktemp("artifacts")
    isp_bundle(folder / "net", gain=1.5)
    assert main(["export", str(folder / "net"), "--to", "onnx,tflite", "--precision", "fp32", "-o", str(folder / "free")]) == 0
    sizes = ["--fix", "h=32", "--fix", "w=40", "--fix", "N=1"]
    assert main(["export", str(folder / "net"), "--to", "onnx", *sizes, "-o", str(folder / "fixed")]) == 0
    return folder


@pytest.mark.parametrize("name", ["free/onnx-fp32", "free/tflite-fp32", "fixed/onnx-fp32"])
def test_an_artifact_in_its_own_runtime_gives_the_bundle_s_picture(cli, mosaic, artifacts, tmp_path, name):
    photo, _ = mosaic
    for target, model in (("a.png", artifacts / name), ("b.png", artifacts / "net")):
        code, _, err = cli("isp", "develop", photo, "-o", target, "--model", model, "--tile", 64, *TOLD)
        assert code == 0, err
    apart = pixels(tmp_path / "a.png").astype(int) - pixels(tmp_path / "b.png")
    assert np.abs(apart).max() <= 1  # 1e-6 may move a number across a rounding edge
    assert np.count_nonzero(apart) <= 5


def test_a_picture_smaller_than_a_fixed_artifact_is_refused(cli, artifacts, tmp_path):
    photo = save_mosaic(tmp_path / "small.npy", frame_of(60, 150))
    code, _, err = cli("isp", "develop", photo, "-o", "a.png", "--model", artifacts / "fixed" / "onnx-fp32", *TOLD)
    assert code == 2
    assert "a side of 60 pixels, the network takes 64 and no less" in err
    assert "--free size" in err


# ---------------------------------------------------------------- what is written


def test_formats_depth_and_turn(cli, mosaic, tmp_path):
    photo, _ = mosaic
    isp_bundle(tmp_path / "net", gain=1.5)
    for name, more in (
        ("a.png", ()),
        ("a.tif", ()),
        ("a.jpg", ()),
        ("deep.png", ("--16bit",)),
        ("turned.png", ("--rotate", 90)),
    ):
        code, _, err = cli("isp", "develop", photo, "-o", name, "--model", "net", *TOLD, *more)
        assert code == 0, err
    plain = pixels(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), plain)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(float) - plain).mean() < 6  # noise is what JPEG is worst at
    np.testing.assert_array_equal(
        pixels(tmp_path / "turned.png")[0], plain[::-1, 0]
    )  # clockwise: the left column becomes the top row
    deep = decoded16((tmp_path / "deep.png").read_bytes())
    assert np.abs(deep / 257 - plain).max() <= 0.5 + 1e-9  # the 8-bit picture is the rounded one


def decoded16(data):
    """uint16 (H, W, 3) of a PNG by the standard's own words: filters 0 and 2 undone, big-endian."""
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert (depth, kind) == (16, 2)
    at, body = 8, b""
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(name + content)
        body += content if name == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + 6 * width)
    assert (rows[:, 0] == 2).all()
    return np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8).view(">u2").reshape(height, width, 3)


def test_sixteen_bits_survive_the_writer_and_pillow_reads_its_file():
    picture = np.random.default_rng(0).integers(0, 65536, (7, 5, 3)).astype(np.uint16)
    data = png16(picture)
    np.testing.assert_array_equal(decoded16(data), picture)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (5, 7)
        np.testing.assert_allclose(np.asarray(image), picture / 257, atol=1)  # Pillow keeps the upper 8 bits


def test_several_files_go_into_a_folder_and_strips_lie_beside(cli, tmp_path):
    isp_bundle(tmp_path / "one")
    isp_bundle(tmp_path / "two", "robust_isp")
    photos = [save_mosaic(tmp_path / name, frame_of(64, 80, seed=i)) for i, name in enumerate(("a.png", "b.npy"))]
    more = ("--strip", "--against", "two", "--rotate", 270)
    code, out, err = cli("isp", "develop", *photos, "-o", "made", "--model", "one", *more, *TOLD)
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["a-strip.png", "a.png", "b-strip.png", "b.png"]
    sheet = pixels(tmp_path / "made" / "a-strip.png")
    assert sheet.shape[1] > 3 * 64  # three pictures of 64 columns once turned
    assert "side by side" in out


def test_one_broken_file_of_several_does_not_cost_the_others(cli, tmp_path):
    photos = [save_mosaic(tmp_path / name, frame_of(64, 80, seed=i)) for i, name in enumerate(("a.npy", "b.npy", "c.npy"))]
    photos[1].write_bytes(photos[1].read_bytes()[:200])
    code, out, err = cli("--json", "isp", "develop", *photos, "-o", "made", "--classical", *TOLD)
    assert code == 2
    assert "b.npy can't be read" in err
    assert "1 of 3 files were not developed" in err
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["a.png", "c.png"]
    told = json.loads(out)["pictures"]
    assert ["error" in one for one in told] == [False, True, False]


def test_a_strip_holds_its_pictures_unchanged_where_they_are_small():
    first, second = (np.full((30, 40, 3), shade, np.uint8) for shade in (10, 200))
    sheet = np.asarray(strip([first, second], ["one", "a very long caption that does not fit below it at all"]))
    for shade in (10, 200):
        assert np.count_nonzero((sheet == shade).all(2)) >= 30 * 40
    assert (sheet[40:] < 100).any()  # words


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "say who develops"),
        (("--model", "net", "--classical"), "say who develops"),
        (("--model", "net", "--gains", "1,1,1"), "belong to the fixed rendering, and none is asked for"),
        (("--classical", "--gains", "1,1"), "--gains '1,1' is not 3 comma-separated numbers"),
        (("--classical", "--black", "a"), "--black 'a' is not 1 or 4 comma-separated numbers"),
        (("--classical", "--strip"), "--strip shows a network"),
        (("--classical", "--against", "net"), "is for the strip"),
        (("--classical", "--rotate", "45"), "--rotate 45: pictures turn by quarters"),
        (("--classical", "-o", "out.webp"), "no picture format '.webp'"),
        (("--classical", "-o", "out.jpg", "--16bit"), "16 bits a channel are not written as JPEG"),
        (("--classical", "-o", "photo.png", "--force"), "would replace the RAW file"),
        (("--model", "nothing"), "nothing is not a Bundle"),
    ],
)
def test_what_can_not_be_done_is_said(cli, mosaic, tmp_path, args, words):
    photo, _ = mosaic
    isp_bundle(tmp_path / "net")
    before = photo.read_bytes()
    own = () if "-o" in args else ("-o", "out.png")
    levels = TOLD[:2] + TOLD[4:] if "--black" in args else TOLD
    code, _, err = cli("isp", "develop", photo, *own, *levels, *args)
    assert code == 2
    assert words in err
    assert photo.read_bytes() == before
    assert not (tmp_path / "out.png").exists()


def test_a_picture_is_not_replaced_without_force(cli, mosaic, tmp_path):
    photo, _ = mosaic
    (tmp_path / "out.png").write_text("mine")
    code, _, err = cli("isp", "develop", photo, "-o", "out.png", "--classical", *TOLD)
    assert code == 2
    assert "out.png exists" in err
    assert (tmp_path / "out.png").read_text() == "mine"
    assert cli("isp", "develop", photo, "-o", "out.png", "--classical", "--force", *TOLD)[0] == 0


def test_two_photos_of_one_name_are_told_apart_or_refused(cli, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        save_mosaic(tmp_path / folder / "photo.png", frame_of(64, 64))
    code, _, err = cli("isp", "develop", "x/photo.png", "y/photo.png", "-o", "made", "--classical", *TOLD)
    assert code == 2
    assert "would both become" in err


def test_a_wrong_phase_is_warned_of_on_the_way(cli, tmp_path):
    height, width = 256, 320
    rng = np.random.default_rng(0)
    mosaic = rng.integers(380, 420, (height, width))
    mosaic[0::2, 0::2] //= 2  # GRBG: the red site is at (0, 1); here the dark ones stand where a green is claimed
    photo = tmp_path / "wrong.npy"
    np.save(photo, mosaic.astype(np.uint16))
    code, out, err = cli("isp", "develop", photo, "-o", "out.png", "--classical", *TOLD)
    assert code == 0, err
    assert "warning:" in out
    assert "the pattern GRBG looks wrong" in out


def test_an_artifact_without_its_levels_is_warned_of(cli, mosaic, tmp_path):
    photo, _ = mosaic
    isp_bundle(tmp_path / "net", packing="inside", pattern="GRBG", black=25.0, white=1023.0)
    assert cli("export", "net", "--to", "onnx", "-o", "art")[0] == 0
    manifest = tmp_path / "art" / "onnx-fp32" / "artifact.json"
    data = json.loads(manifest.read_text())
    for sensor, words, expected in ((None, "does not say which", 0), ("RGGB 63 1023", "was made for RGGB, black 63", 2)):
        data["source"].pop("sensor", None)
        data["source"] |= {"sensor": sensor} if sensor else {}
        manifest.write_text(json.dumps(data))
        code, out, err = cli("isp", "develop", photo, "-o", "out.png", "--force", "--model", "art/onnx-fp32", *TOLD)
        assert code == expected, err
        assert words in out + err


# ---------------------------------------------------------------- memory

TWELVE = """
import numpy as np, resource, sys
sys.path.insert(0, {kit!r})
from isp_kit import frame_of
from trimtab.develop import classical, develop
from trimtab.develop_network import open_isp
from trimtab.models.raw.frame import RawFrame
from pathlib import Path
rng = np.random.default_rng(0)
frame = RawFrame(rng.integers(25, 1024, (3000, 4000), dtype=np.uint16), "GRBG", (25.0,) * 4, 1023.0)
picture = develop(frame, open_isp(Path({net!r})))
assert picture.shape == (3000, 4000, 3)
status = Path("/proc/self/status")  # its figure, unlike getrusage's, does not count the parent's memory from before the start
peak = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
print(int(peak[0]) * 1024 if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def test_twelve_megapixels_stay_below_one_and_a_half_gib(tmp_path):
    isp_bundle(tmp_path / "net")
    code = TWELVE.format(kit=str(Path(__file__).parent), net=str(tmp_path / "net"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) <= 1.5 * 2**30


# ---------------------------------------------------------------- the report's pictures


class Samples:
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch.pixels)

    def __getitems__(self, indices):
        at = torch.as_tensor(list(indices))
        return RawBatch(self.batch.pixels[at], self.batch.targets[at], at)


class Network:
    """Stands for a Bundle: its module is `function`."""

    def __init__(self, function):
        self.function = function

    def module(self):
        made = torch.nn.Module()
        made.forward = self.function
        return made


def opened(record):
    with Image.open(io.BytesIO(base64.b64decode(record.data.partition(",")[2]))) as image:
        assert image.size == (record.width, record.height)
        return np.asarray(image)


class IspTask:
    name, paired = "isp", True

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        target = torch.rand(3, 3, 64, 64, generator=rng) * 0.5
        self.data = Samples(RawBatch(torch.zeros(3, 1, 64, 64, dtype=torch.int32), target, torch.arange(3)))

    def samples(self, split):
        assert split == "test"
        return self.data

    def inputs(self, batch):
        return batch.targets

    def references(self, batch):
        return batch.targets + 0.1


def test_isp_pictures_name_their_psnr():
    records = isp_pictures(Network(lambda x: x + 0.01), IspTask(), 2)
    assert [r.title for r in records] == ["test patch 0", "test patch 1"]
    # a constant difference d has a PSNR of −20·log10(d)
    assert records[0].caption == "fixed rendering, 20.0 dB, network, 40.0 dB, target"
    assert opened(records[0]).shape[1] > 3 * 256
    assert psnr(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)) == 100


class AnomalyTask:
    name, fpr = "anomaly", 0.1

    def __init__(self):
        pixels = torch.full((12, 1, 32, 32), 100, dtype=torch.uint8)
        self.marks = np.zeros((12, 32, 32), np.uint8)
        for i in range(12):
            pixels[i, :, 4, 4] += i
        for i in range(6):
            self.marks[i, 8:16, 8:16] = 1
            pixels[i, :, 8:16, 8:16] = 250 - 35 * i
        targets = torch.tensor([1] * 6 + [0] * 6)
        self.parts = {"test": Samples(RawBatch(pixels, targets, torch.arange(12)))}
        self.parts["val"] = Samples(RawBatch(pixels[6:11] // 2, targets[6:11], torch.arange(5)))

    def samples(self, split):
        return self.parts[split]

    def masks(self, split):
        return self.marks

    def kinds(self, split):
        return ("scratch",) * 6 + ("good",) * 6

    def inputs(self, batch):
        return batch.pixels.float()


def test_anomaly_pictures_show_the_most_telling_samples_and_their_masks():
    records = anomaly_pictures(Network(lambda x: (x, x.amax((2, 3)))), AnomalyTask(), 4)
    # a normal picture's largest value is 100 + its number, a scratch's 250 − 35 · its number, the threshold 58
    assert [r.title for r in records] == ["most anomalous", "most anomalous", "false alarm", "false alarm"]
    first = records[0]
    assert first.caption.startswith("scratch, score 250")
    assert "white line: the true region" in first.caption
    assert opened(first).shape == (256, 256 + 8 + 256 + 4 + 12, 3)


def test_groups_take_turns_when_few_pictures_are_wanted():
    scores = np.array([9.0, 8.0, 7.0, 1.0, 0.5, 6.0, 2.0])
    odd = np.array([True, True, True, False, False, False, True])
    found = telling(scores, odd, 5.0, 5)
    assert found == [("most anomalous", 0), ("most anomalous", 1), ("most normal", 4), ("false alarm", 5), ("missed", 6)]
    assert telling(scores, odd, 5.0, 2) == [("most anomalous", 0), ("most normal", 4)]


def test_pictures_of_another_task_are_refused():
    with pytest.raises(UserError, match="makes no such pictures"):
        isp_pictures(Network(lambda x: x), AnomalyTask())


def test_a_deep_fixed_rendering_is_the_shallow_one_with_more_steps():
    frame = frame_of(64, 80)
    deep, plain = classical(frame, bits=16), classical(frame)
    assert np.abs(deep / 257 - plain).max() <= 0.5 + 1e-9
