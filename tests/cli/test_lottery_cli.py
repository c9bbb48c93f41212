"""A lottery from the command line: its rounds on the terminal, beside the Bundle, and in the report."""

from __future__ import annotations

import json

import pytest

from trimtab.models.bundle import MASKS, load_bundle
from trimtab.models.masks import density, masks_of

TRAIN = ("--set", "epochs=1", "--set", "batch_size=40", "--set", "amp=off", "--set", "augment=false", "--device", "cpu")
RECIPE = """
format = 1
[[step]]
kind = "lottery"
density = 0.2
epochs = 1
batch_size = 40
amp = "off"
augment = false
{more}
"""


@pytest.fixture(scope="module")
def dense(tiny_npz, tmp_path_factory):
    from trimtab.app import main

    folder = tmp_path_factory.mktemp("lottery") / "dense.bundle"
    assert main(["train", "resnet8", "--data", f"npz:{tiny_npz}", "-o", str(folder), *TRAIN]) == 0
    return folder


def recipe(tmp_path, more=""):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(more=more))
    return path


def test_plain_rounds_on_the_terminal_and_beside_the_bundle(cli, dense, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli("compress", dense, "--recipe", recipe(tmp_path), "-o", "sparse", "--device", "cpu")
    assert code == 0
    assert "rounds (validation)" in out
    assert [line.split()[:2] for line in out.splitlines() if line[:1].isdigit() and "%" in line and "." not in line.split()[0]] == [
        ["0", "100.00%"], ["1", "50.00%"], ["2", "25.00%"], ["3*", "20.00%"]]  # fmt: skip
    assert max(map(len, out.splitlines())) <= 200
    assert (tmp_path / "sparse" / MASKS).is_file()
    rounds = sorted((tmp_path / "sparse" / "01-lottery" / "rounds").iterdir())
    shares = [density(masks_of(load_bundle(folder / "bundle").module())) for folder in rounds]
    assert shares == pytest.approx([1, 0.5, 0.25, 0.2], abs=0.01)
    assert not (tmp_path / "sparse" / ".work").exists()


def test_a_sparse_bundle_exports_with_its_zeros(cli, dense, tmp_path):
    cli("compress", dense, "--recipe", recipe(tmp_path), "-o", "sparse", "--device", "cpu")
    code, out, _ = cli("--json", "export", "sparse", "--to", "onnx", "-o", "art")
    assert code == 0
    assert json.loads(out)[0]["parity"]["ok"]
    import onnx

    path = next((tmp_path / "art" / "onnx-fp32").glob("*.onnx"))
    tensors = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    zeros = sum(int((t == 0).sum()) for t in tensors if t.ndim == 4)
    assert zeros == pytest.approx(0.8 * sum(t.size for t in tensors if t.ndim == 4), rel=0.02)


def test_a_critical_lottery_in_the_report(cli, dense, tiny_npz, tmp_path):
    more = 'critical = ["3", "7"]'
    data = ("--data", f"npz:{tiny_npz}", "--data-arg", "val_fraction=0.3")
    code, out, _ = cli("run", dense, *data, "--recipe", recipe(tmp_path, more), "--to", "onnx", "-o", "job")
    assert code == 0
    assert "rounds (test), 3, 7 critical" in out
    assert "Against the control, plain lottery pruning with its threshold moved: AUC" in out
    page = (tmp_path / "job" / "report.html").read_text()
    for text in ("Rounds", "Control missed", "(the Bundle)", "positives missed by share of weights left"):
        assert text in page
    record = json.loads((tmp_path / "job" / "run.json").read_text())
    rounds = record["steps"][0]["figures"]["rounds"]
    assert page.count("of 20 (") == len(rounds) == 4


def test_a_budget_without_a_class_is_refused_before_training(cli, dense, tmp_path):
    code, _, err = cli("compress", dense, "--recipe", recipe(tmp_path, "max_fnr_increase = 0.0"), "-o", "sparse")
    assert code == 2
    assert "is a budget of missed positives, and no class is critical" in err
    assert 'critical = ["defective"]' in err
