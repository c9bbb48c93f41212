"""`trimtab analyze` on the command line: Bundles to a record and a page, the page made anew, names, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import numpy as np
import pytest

from trimtab.compress.analyse.analysis_record import JSON, NPZ, AnalysisRecord

TRAIN = ("--set", "epochs=1", "--set", "batch_size=40", "--set", "amp=off", "--set", "augment=false", "--device", "cpu")
QUICK = ("--corruptions", "gaussian_noise,rotate", "--severities", "1,3", "--device", "cpu")
PAGE = "analysis.html"


@pytest.fixture(scope="module")
def bundles(tiny_npz, tmp_path_factory):
    """(a network trained a little, another seed's)."""
    from trimtab.app import main

    folder = tmp_path_factory.mktemp("analyze")
    made = folder / "dense.bundle", folder / "other.bundle"
    for seed, path in enumerate(made):
        args = ["train", "resnet8", "--data", f"npz:{tiny_npz}", "--seed", str(seed), "-o", str(path), *TRAIN]
        assert main(args) == 0
    return made


@pytest.fixture(scope="module")
def analysis(bundles, tmp_path_factory):
    """The folder of an analysis of both."""
    from trimtab.app import main

    folder = tmp_path_factory.mktemp("done") / "analysis"
    assert main(["analyze", *map(str, bundles), *QUICK, "-o", str(folder)]) == 0
    return folder


def names_of(out):
    return [row["name"] for row in json.loads(out)["models"]]


def test_bundles_become_a_record_and_a_page(analysis, bundles):
    assert sorted(path.name for path in analysis.iterdir()) == [PAGE, JSON, NPZ]
    record = AnalysisRecord.load(analysis)
    info = record.info
    assert [row["name"] for row in info["models"]] == [path.name for path in bundles]
    assert [row["name"] for row in info["corruptions"]] == ["gaussian_noise", "rotate"]
    assert info["severities"] == [1, 3]
    assert info["samples"] == 100  # the task is the first Bundle's own
    page = (analysis / PAGE).read_text(encoding="utf-8")
    assert "dense.bundle" in page
    assert not re.search(r"""(?:src|href)=["']?https?:""", page)


def test_the_clean_accuracy_is_that_of_evaluate(cli, analysis, bundles):
    info = AnalysisRecord.load(analysis).info
    for path, accuracy in zip(bundles, info["clean_accuracy"], strict=True):
        code, out, _ = cli("--json", "evaluate", path)
        assert code == 0
        assert json.loads(out)["accuracy"] == pytest.approx(accuracy, abs=1e-9)  # shares of the same 100 hits


def test_words_and_json(cli, bundles, monkeypatch, tmp_path):
    typed = ["--json", "analyze", *bundles, *QUICK, "--limit", "40", "-o", "analysis"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/trimtab", *map(str, typed)])
    code, out, err = cli(*typed)
    assert code == 0
    found = json.loads(out)
    assert found["samples"] == 40
    assert found["page_bytes"] == (tmp_path / "analysis" / PAGE).stat().st_size
    assert AnalysisRecord.load(tmp_path / "analysis").info["command"] == shlex.join(["trimtab", *map(str, typed)])
    assert names_of(out) == ["dense.bundle", "other.bundle"]
    accuracy = np.array(found["accuracy"])
    assert accuracy.shape == (2, 2, 2)
    assert [row["corrupted"] for row in found["models"]] == pytest.approx(accuracy.mean((1, 2)).tolist())
    assert "worst corruption" in err
    assert "classes hit hardest" in err or "no class lost accuracy" in err


def open_page(folder):
    return (folder / PAGE).read_text(encoding="utf-8")


def test_the_words_fit_80_columns(cli, analysis, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli("analyze", analysis)
    assert code == 0
    lines = [line for line in out.splitlines() if "page (" not in line]  # a path is not broken, so that it can be copied
    assert max(map(len, lines)) <= 80
    assert "dense.bundle" in out
    assert "AUC" in out


def test_the_page_is_made_anew_from_the_record(cli, analysis, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(analysis, folder)
    before = open_page(folder)
    (folder / PAGE).unlink()
    for target in (folder, folder / JSON):
        code, out, _ = cli("analyze", target)
        assert code == 0
        assert PAGE in out
        assert open_page(folder) == before
    code, _, _ = cli("analyze", folder, "-o", "elsewhere.html")
    assert code == 0
    assert (tmp_path / "elsewhere.html").read_text(encoding="utf-8") == before
    code, _, err = cli("analyze", folder, "-o", "elsewhere.html")
    assert code == 2
    assert "--force" in err


def test_one_model_alone(cli, bundles, tmp_path):
    code, out, _ = cli("analyze", bundles[0], *QUICK, "-o", "alone")
    assert code == 0
    assert "against clean" in out or "no class lost accuracy" in out
    assert len(AnalysisRecord.load(tmp_path / "alone").info["models"]) == 1


def test_names_are_told_apart(cli, bundles, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(bundles[0], tmp_path / place / "net.bundle")
    code, out, _ = cli("--json", "analyze", "a/net.bundle", "b/net.bundle", f"small={bundles[1]}", *QUICK, "-o", "x")
    assert code == 0
    assert names_of(out) == ["a/net.bundle", "b/net.bundle", "small"]
    code, out, _ = cli("--json", "analyze", "a/net.bundle", "a/net.bundle", *QUICK, "-o", "y")
    assert code == 0
    first, second = names_of(out)
    assert first != second


def test_nothing_is_overwritten_without_force(cli, bundles, analysis):
    before = (analysis / JSON).read_bytes()
    code, _, err = cli("analyze", *bundles, *QUICK, "-o", analysis)
    assert code == 2
    assert "--force" in err
    assert (analysis / JSON).read_bytes() == before


def test_force_replaces(cli, bundles, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").write_text("old")
    code, _, _ = cli("analyze", bundles[0], *QUICK, "--limit", "20", "-o", "x", "--force")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [PAGE, JSON, NPZ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--corruptions", "gausian_noise"), "did you mean 'gaussian_noise'"),
        (("--severities", "0,6"), "1…5"),
        (("--severities", "one"), "'one'"),
        (("--severities", ","), "no severity"),
    ],
)
def test_wrong_options(cli, bundles, more, said, tmp_path):
    code, _, err = cli("analyze", bundles[0], *more, "-o", "x")
    assert code == 2
    assert said in err
    assert not (tmp_path / "x").exists()


def test_wrong_targets(cli, bundles, analysis):
    code, _, err = cli("analyze", bundles[0], "nowhere.bundle", *QUICK, "-o", "x")
    assert code == 2
    assert "nowhere.bundle" in err
    code, _, err = cli("analyze", analysis, bundles[0], "-o", "x")
    assert code == 2
    assert "is a finished analysis" in err
    code, _, err = cli("analyze", bundles[0], *QUICK)
    assert code == 2
    assert "-o analysis" in err


def test_a_damaged_record_is_refused(cli, analysis, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(analysis, folder)
    found = json.loads((folder / JSON).read_text())
    found["samples"] = 7
    (folder / JSON).write_text(json.dumps(found))
    code, _, err = cli("analyze", folder)
    assert code == 2
    assert "run `trimtab analyze` again" in err
