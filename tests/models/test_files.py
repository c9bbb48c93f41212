import os

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


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="does not exist"):
        files.read_json(tmp_path / "y.json")
