"""`trimtab aspects` from images to a run, and `trimtab export --keep-features`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from trimtab.app import main
from trimtab.export.artifact import load_artifact
from trimtab.export.exporter import exporters
from trimtab.loading import open_task
from trimtab.models.bundle import load_bundle

QUICK = 'epochs = 0.2\nbatch_size = 40\namp = "off"\naugment = false\n'


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_npz):
    """A small ResNet trained for a moment on the squares."""
    out = tmp_path_factory.mktemp("trained") / "resnet8"
    settings = [part for pair in ("epochs=4", "lr=0.1", "batch_size=40", "amp=off") for part in ("--set", pair)]
    assert main(["train", "resnet8", "--data", f"npz:{tiny_npz}", *settings, "-o", str(out)]) == 0
    return out


# ---------------------------------------------------------------- aspects


@pytest.fixture
def asked(cli, tiny_npz, tmp_path):
    """The images' folder, its three questions filled in."""
    code, out, err = cli("aspects", "images", "--data", f"npz:{tiny_npz}", "-o", "images")
    assert code == 0, err
    assert "360 images: images" in out
    index = json.loads((tmp_path / "images" / "aspects.json").read_text())
    index["questions"] = ["Is it red?", "Is it high up, or low?", "Größer?"]
    (tmp_path / "images" / "aspects.json").write_text(json.dumps(index))
    return tmp_path / "images"


def table(path, rows, header="position,yes_1,no_1,yes_2,no_2,yes_3,no_3"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def logit_rows(count=360, seed=0):
    values = np.random.default_rng(seed).normal(10, 4, (count, 6)).round(3)
    return values, [",".join([f"{i:05d}.png" if i % 2 else str(i), *map(str, v)]) for i, v in enumerate(values)]


def test_images_are_the_training_split_s_by_position(asked, tiny_npz):
    task = open_task("classification", {"data": f"npz:{tiny_npz}"})
    raw = task.samples("train").__getitems__(range(360))
    assert sorted(p.name for p in asked.glob("*.png")) == [f"{i:05d}.png" for i in range(360)]
    for i in (0, 7, 359):
        with Image.open(asked / f"{i:05d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), raw.pixels[i].numpy())
    index = json.loads((asked / "aspects.json").read_text())
    assert (index["data_id"], index["images"]) == (task.data_id, 360)
    assert index["classes"] == list(task.contract.classes)


def test_grey_images_are_written_grey(cli, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "grey.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert cli("aspects", "images", "--data", "npz:grey.npz", "-o", "grey")[0] == 0
    with Image.open(tmp_path / "grey" / "00000.png") as image:
        assert (image.mode, image.size) == ("L", (8, 8))


def test_packed_answers_are_what_the_term_learns(cli, asked, trained, tmp_path):
    """The .npz holds the table's numbers in the images' order, and a run takes it."""
    values, rows = logit_rows()
    table(tmp_path / "answers.csv", rows[::-1])  # any order
    code, out, err = cli("aspects", "pack", "answers.csv", "--images", asked, "-o", "aspects.npz")
    assert code == 0, err
    assert "360 images × 3 questions: aspects.npz" in out
    with np.load(tmp_path / "aspects.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["logits"], values.reshape(360, 3, 2))
        assert file["questions"].tolist() == ["Is it red?", "Is it high up, or low?", "Größer?"]
    mean = expit(values[:, 0] - values[:, 1]).mean()
    assert f"{mean:.3f}" in out
    assert cli("aspects", "pack", "answers.csv", "--images", asked, "-o", "aspects.npz")[0] == 2
    (tmp_path / "r.toml").write_text(
        f'format = 1\n[[step]]\nkind = "distill"\nobjectives = [{{kind = "aspects", source = "aspects.npz"}}]\n{QUICK}'
    )
    code, _, err = cli("compress", trained, "--recipe", "r.toml", "-o", "student")
    assert code == 0, err
    before, after = (load_bundle(folder).module().state_dict() for folder in (trained, tmp_path / "student"))
    assert list(before) == list(after)
    code, _, err = cli("compress", trained, "--recipe", "r.toml", "--data", "digits", "-o", "other")
    assert code == 2


def test_answers_for_another_seed_are_refused(cli, asked, trained, tiny_npz, tmp_path):
    table(tmp_path / "answers.csv", logit_rows()[1])
    assert cli("aspects", "pack", "answers.csv", "--images", asked, "-o", "aspects.npz")[0] == 0
    (tmp_path / "r.toml").write_text(
        f'format = 1\n[[step]]\nkind = "distill"\nobjectives = [{{kind = "aspects", source = "aspects.npz"}}]\n{QUICK}'
    )
    code, _, err = cli("compress", trained, "--recipe", "r.toml", "--data", f"npz:{tiny_npz}", "--seed", "3", "-o", "other")
    assert code == 2
    assert "belong to data_id" in err
    assert "open the task with the options of `trimtab aspects images`" in err


def test_probabilities_and_constant_questions(cli, asked, tmp_path):
    p = np.random.default_rng(0).uniform(0, 1, (360, 3)).round(4)
    p[:, 2] = 0.25
    rows = [",".join([str(i), *map(str, v)]) for i, v in enumerate(p)]
    table(tmp_path / "answers.csv", rows, header="position,p_1,p_2,p_3")
    code, out, err = cli("aspects", "pack", "answers.csv", "--images", asked, "-o", "a.npz", "--json")
    assert code == 0, err
    assert json.loads(out)["mean"] == pytest.approx(p.mean(0).tolist(), abs=1e-6)  # float32
    assert "warning: the answer to 'Größer?' is the same for all images" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-3], "has no answers for 3 of 360 images: 357, 358, 359"),
        (lambda rows: rows[1:8] + rows[9:], "has no answers for 2 of 360 images: 0, 8"),
        (lambda rows: [*rows, rows[4]], "line 362: position 4 was answered in line 6 already"),
        (lambda rows: [*rows[:-1], rows[-1].replace("00359.png", "360")], "line 361: position 360 is outside 0…359"),
        (lambda rows: ["-1" + rows[0][1:], *rows[1:]], "line 2: '-1' is not a position"),
        (lambda rows: [rows[0].rsplit(",", 1)[0] + ",Yes", *rows[1:]], "line 2: no_3 is 'Yes', not a number"),
        (lambda rows: [rows[0].rsplit(",", 1)[0], *rows[1:]], "line 2: no_3 is '', not a number"),
        (
            lambda rows: [rows[0].rsplit(",", 1)[0] + ",nan", *rows[1:]],
            "are NaN or infinite; the first is at position 0, question 3",
        ),
        (lambda rows: [f"{i},0.1,0.2,0.3,0.4,0.5,0.6" for i in range(360)], "they look like probabilities"),
    ],
)
def test_a_table_that_can_t_be_right_is_refused_with_its_line(cli, asked, tmp_path, change, said):
    table(tmp_path / "answers.csv", change(logit_rows()[1]))
    code, _, err = cli("aspects", "pack", "answers.csv", "--images", asked, "-o", "aspects.npz")
    assert code == 2
    assert said in err
    assert "→" in err
    assert not (tmp_path / "aspects.npz").exists()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("position,yes_1,no_1,yes_2,no_2", "lacks yes_3, no_3"),
        ("position,yes_1,no_1,yes_2,no_2,yes_3,no_3,colour", "has colour beside them"),
        ("yes_1,no_1,yes_2,no_2,yes_3,no_3", "lacks position"),
        ("position,p_1,p_2", "lacks p_3"),
        ("", "lacks position"),
    ],
)
def test_a_table_s_first_line_must_fit_the_questions(cli, asked, tmp_path, header, said):
    table(tmp_path / "answers.csv", [], header=header)
    code, _, err = cli("aspects", "pack", "answers.csv", "--images", asked, "-o", "aspects.npz")
    assert code == 2
    assert said in err
    assert "3 questions are in aspects.json" in err


def test_questions_must_have_been_written(cli, asked, tmp_path):
    index = json.loads((asked / "aspects.json").read_text())
    table(tmp_path / "answers.csv", logit_rows()[1])
    pack = ["aspects", "pack", "answers.csv", "--images", asked, "-o", "aspects.npz"]
    for change, said in (
        ({"questions": []}, 'names no questions ("questions": [])'),
        ({"questions": [1]}, "names no questions"),
        ({"format": 2}, "format is 2, 1 is read here"),
        ({"data_id": None}, "has no 'data_id' of the right kind"),
    ):
        (asked / "aspects.json").write_text(json.dumps(index | change))
        code, _, err = cli(*pack)
        assert (code, said in err) == (2, True), err
    assert "is not an .npz" in cli(*pack[:-1], "aspects.csv")[2]
    (asked / "aspects.json").write_text(json.dumps(index))
    assert "answers2.csv does not exist" in cli("aspects", "pack", "answers2.csv", *pack[3:])[2]
    (asked / "aspects.json").unlink()
    assert "does not exist" in cli(*pack)[2]


# ---------------------------------------------------------------- export --keep-features


def formats():
    return [name for name in ("onnx", "tflite", "coreml") if not exporters.entry(name).card.missing()]


@pytest.mark.parametrize("model", ["resnet8", "resnet14"])
def test_a_shortened_network_is_exported_and_proven_in_every_format(cli, trained, tiny_npz, tmp_path, model):
    """resnet8's makers are cut with the classifier; resnet14's can't be, so its artifacts hold a slice. fp32: the 90 dB gate."""
    bundle = trained
    if model != "resnet8":
        bundle = tmp_path / model
        settings = ["--set", "epochs=0.2", "--set", "batch_size=40", "--set", "amp=off"]
        assert cli("train", model, "--data", f"npz:{tiny_npz}", *settings, "-o", bundle)[0] == 0
    names = formats()
    code, out, err = cli(
        "export", bundle, "--to", ",".join(names), "--precision", "fp32", "--keep-features", "20", "-o", "art", "--json"
    )
    assert code == 0, err
    assert "20 of 64 features kept, validation accuracy" in err
    assert ("layers that made the other features were cut" in err) == (model == "resnet8")
    assert ("fc reads its first 20 inputs" in err) == (model == "resnet14")
    assert err.count("proven") == len(names)
    assert len(json.loads(out)) == len(names)
    if len(names) < 3:
        pytest.skip("only " + ", ".join(names) + " can be written here: the other formats' packages are not installed")


def test_the_artifact_is_the_shortened_network_s(cli, trained, tmp_path):
    """Its logits are those of the Bundle's network with features 20 … 63 set to 0 by hand; and smaller than the whole one's file."""
    import torch

    assert cli("export", trained, "--to", "onnx", "-o", "whole")[0] == 0
    assert cli("export", trained, "--to", "onnx", "--keep-features", "20", "-o", "short")[0] == 0
    folders = [tmp_path / name / "onnx-fp32" for name in ("whole", "short")]
    whole, short = (load_artifact(folder) for folder in folders)
    module = load_bundle(trained).module().eval()
    module.fc.weight.data[:, 20:] = 0
    x = np.random.default_rng(0).normal(0, 1, (5, 3, 16, 16)).astype(np.float32)
    got = exporters.get("onnx").runner(short.path(folders[1]), short.contract)({short.contract.inputs[0].name: x})
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got[short.contract.outputs[0].name], expected, atol=1e-4, rtol=1e-4)  # two runtimes, fp32
    assert short.size_bytes < whole.size_bytes
    manifest = json.loads((folders[1] / "artifact.json").read_text())
    assert manifest["source"]["keep_features"] == "20"
    assert manifest["source"]["parent_hash"] == load_bundle(trained).hash != manifest["source"]["bundle_hash"]


def test_zero_chooses_by_validation_accuracy(cli, trained, tmp_path):
    code, out, err = cli("export", trained, "--to", "onnx", "--keep-features", "0", "-o", "art")
    assert code == 0, err
    manifest = json.loads((tmp_path / "art" / "onnx-fp32" / "artifact.json").read_text())
    assert f"{manifest['source']['keep_features']} of 64 features kept" in out


def test_the_step_in_a_recipe_makes_a_bundle_that_reloads(cli, trained, tmp_path):
    (tmp_path / "r.toml").write_text(
        'format = 1\n[[step]]\nkind = "distill"\nobjective = "nested-dropout"\n'
        f'{QUICK}[[step]]\nkind = "keep-features"\nk = 12\n[[step]]\nkind = "finetune"\n{QUICK}'
    )
    code, _, err = cli("compress", trained, "--recipe", "r.toml", "-o", "small")
    assert code == 0, err
    assert load_bundle(tmp_path / "small").module().fc.in_features == 12
    assert cli("evaluate", "small")[0] == 0


def test_mistakes(cli, trained, tmp_path):
    code, _, err = cli("export", trained, "--to", "onnx", "--keep-features", "65", "-o", "art")
    assert (code, "k = 65 must be at most 64, the inputs of 'fc'" in err) == (2, True)
    (tmp_path / "x.onnx").write_bytes(b"")
    code, _, err = cli("export", "x.onnx", "--to", "onnx", "--keep-features", "5", "-o", "art")
    assert (code, "--keep-features wants a Bundle's network" in err) == (2, True)
    assert cli("export", trained, "--to", "onnx", "--keep-features", "-1", "-o", "art")[0] == 2
