import io
import os
import zipfile

import numpy as np
import pytest

from trimtab.models import files
from trimtab.models.errors import UserError


def test_a_write_is_whole_and_leaves_no_temp_file(tmp_path):
    files.write_text(tmp_path / "a" / "b.txt", "héllo")
    assert (tmp_path / "a" / "b.txt").read_text() == "héllo"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "kept.txt", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.txt"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "out") as temp:
        (temp / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with files.new_folder(tmp_path / "out") as temp:
        (temp / "whole").write_text("x")
    assert os.listdir(tmp_path / "out") == ["whole"]


def test_a_folder_in_use_is_refused_and_force_replaces_it(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with (
        pytest.raises(UserError, match=r"exists and is not empty\n  → give another -o, or --force"),
        files.new_folder(tmp_path / "out"),
    ):
        pass
    with files.new_folder(tmp_path / "out", force=True) as temp:
        (temp / "new").write_text("y")
    assert os.listdir(tmp_path / "out") == ["new"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../evil"])
def test_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="points outside its folder"):
        files.confined(tmp_path, name)


def test_the_hash_of_a_folder_sees_names_and_contents(tmp_path):
    for name, text in (("a", "1"), ("b", "2")):
        files.write_text(tmp_path / "x" / name, text)
    before = files.sha256(tmp_path / "x")
    (tmp_path / "x" / "a").rename(tmp_path / "x" / "c")
    assert files.sha256(tmp_path / "x") != before
    assert files.size_bytes(tmp_path / "x") == 2


def test_deflated_bytes_are_what_a_zip_of_the_files_holds(tmp_path):
    rng = np.random.default_rng(0)
    sparse = rng.normal(size=700_000).astype(np.float32) * (rng.random(700_000) < 0.1)  # more than one block of reading
    files.write_bytes(tmp_path / "x" / "weights.bin", sparse.tobytes())
    files.write_text(tmp_path / "x" / "deep" / "net.xml", "<net/>" * 100)
    stored = 0
    with zipfile.ZipFile(io.BytesIO(), "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in ("weights.bin", "deep/net.xml"):
            archive.write(tmp_path / "x" / name, name)
            stored += archive.getinfo(name).compress_size
    # a zip's stream lacks zlib's header and checksum: 6 bytes a file; the pieces it is fed in may move a block's end
    assert abs(files.deflated_bytes(tmp_path / "x") - stored) <= 12 + 0.001 * stored
    assert files.deflated_bytes(tmp_path / "x" / "weights.bin") < 0.25 * files.size_bytes(tmp_path / "x" / "weights.bin")


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="does not exist"):
        files.read_json(tmp_path / "y.json")
