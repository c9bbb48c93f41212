"""Critical classes on the command line: evaluate, a recipe with the step "threshold", and the exported artifact."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trimtab.critical_text import Recorded
from trimtab.loading import open_task

TRAIN = ("--set", "epochs=1", "--set", "batch_size=40", "--set", "amp=off", "--set", "augment=false", "--device", "cpu")


@pytest.fixture(scope="module")
def dense(tiny_npz, tmp_path_factory):
    """A network trained a little, its Bundle with critical classes."""
    from trimtab.app import main

    folder = tmp_path_factory.mktemp("critical") / "dense.bundle"
    args = ["train", "resnet8", "--data", f"npz:{tiny_npz}", "--data-arg", "critical=3,7", "-o", str(folder), *TRAIN]
    assert main(args) == 0
    return folder


def evaluate(cli, *args):
    code, out, _ = cli("--json", "evaluate", *args)
    assert code == 0
    return json.loads(out)


def test_a_bundle_remembers_its_critical_classes(cli, dense):
    code, out, _ = cli("evaluate", dense)
    assert code == 0
    assert "95 % interval" in out
    assert "critical '3', '7': " in out
    found = evaluate(cli, dense)
    critical = found["critical"]
    assert critical["classes"] == ["3", "7"]
    assert (critical["positives"], critical["negatives"]) == (20, 80)
    assert found["fnr"] == critical["missed"] / 20
    assert found["fpr"] == critical["false_alarms"] / 80
    for name in ("fnr", "fpr", "auc"):
        low, high = critical["interval"][name]
        assert low <= found[name] <= high


def test_without_critical_classes_nothing_is_added(cli, dense, tiny_npz):
    assert set(evaluate(cli, dense, "--data", f"npz:{tiny_npz}")) == {"accuracy", "loss", "macro_f1"}


def test_wrong_and_absent_classes(cli, dense, tiny_npz):
    code, _, err = cli("evaluate", dense, "--data", f"npz:{tiny_npz}", "--data-arg", "critical=33")
    assert code == 2
    assert "'33' is not one of this data's classes" in err
    assert "did you mean '3'" in err
    code, _, err = cli("evaluate", dense, "--data", f"npz:{tiny_npz}", "--data-arg", "critical=3", "--limit", "1")
    assert code == 2
    assert "class '3' is absent from the 1 test samples" in err


def test_from_a_recipe_to_an_artifact_that_decides_there(cli, dense, tiny_npz, tmp_path):
    """A threshold below all scores is the plainest to see: everything is critical, in the Bundle and in ONNX."""
    recipe = tmp_path / "all.toml"
    recipe.write_text('format = 1\n[[step]]\nkind = "threshold"\nmax_fpr = 1.0\n')
    code, out, _ = cli("compress", dense, "--recipe", recipe, "-o", "all.bundle", "--device", "cpu")
    assert code == 0
    assert "decides for '3', '7' from a score of -" in out
    assert "on validation FNR" in out
    found = evaluate(cli, "all.bundle")
    assert (found["fnr"], found["fpr"]) == (0.0, 1.0)
    code, out, _ = cli("evaluate", "all.bundle")
    assert "no miss among 20 still allows an FNR of up to" in out
    assert cli("export", "all.bundle", "--to", "onnx", "-o", "art", "--no-isolation")[0] == 0
    through = evaluate(cli, "art/onnx-fp32", "--data", f"npz:{tiny_npz}", "--data-arg", "critical=3,7")
    assert (through["fnr"], through["fpr"]) == (0.0, 1.0)
    assert through["critical"]["positives"] == 20
    assert through["auc"] == pytest.approx(
        found["auc"], abs=0.005
    )  # 8 of 1 600 pairs: near-ties that another runtime orders otherwise


def test_other_critical_classes_make_the_step_again(cli, dense, tiny_npz, tmp_path):
    """`data_id` is the same, yet a finished step is not taken over."""
    recipe = tmp_path / "low.toml"
    recipe.write_text('format = 1\n[[step]]\nkind = "threshold"\nmax_fnr = 0.1\n')
    args = (
        "compress",
        dense,
        "--recipe",
        recipe,
        "-o",
        "low.bundle",
        "--device",
        "cpu",
        "--data",
        f"npz:{tiny_npz}",
        "--force",
    )
    for name in ("3", "7"):
        code, out, _ = cli(*args, "--data-arg", f"critical={name}")
        assert code == 0
        assert f"decides for '{name}' from" in out
        assert "as before" not in out


def test_no_critical_class_is_named(cli, dense, tiny_npz, tmp_path):
    recipe = tmp_path / "low.toml"
    recipe.write_text('format = 1\n[[step]]\nkind = "threshold"\n')
    code, _, err = cli("compress", dense, "--recipe", recipe, "-o", "x.bundle", "--data", f"npz:{tiny_npz}")
    assert code == 2
    assert "none is named" in err
    assert "--data-arg critical=" in err


def test_recording_is_the_task_itself(tiny_npz):
    task = open_task("classification", {"data": f"npz:{tiny_npz}", "critical": "3"})
    recorded = Recorded(task)
    assert recorded.data_id == task.data_id

    def predict(inputs):
        return inputs.flatten(1)[:, :10]

    assert recorded.evaluate(predict, "test") == task.evaluate(predict, "test")
    batch = task.samples("test").__getitems__(range(100))
    np.testing.assert_array_equal(recorded.logits, predict(task.inputs(batch)).numpy())


def test_an_option_of_the_data_is_not_lost(cli, dense, tiny_npz):
    """Without --data nothing would read it; said twice, one of the two would be forgotten."""
    code, _, err = cli("evaluate", dense, "--data-arg", "critical=3")
    assert code == 2
    assert "--data-arg critical=3 goes with --data, and there is none" in err
    code, _, err = cli("evaluate", dense, "--data", f"npz:{tiny_npz}", "--data-arg", "critical=3", "--data-arg", "critical=7")
    assert code == 2
    assert "--data-arg says 'critical' twice" in err
    assert "critical=a,b" in err
