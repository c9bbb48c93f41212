"""The command line as its users meet it: words, exit codes, and what is on which stream."""

import json
import os
import subprocess
import sys

import pytest

from trimtab.app import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_npz):
    """A small ResNet trained for a moment on the squares."""
    out = tmp_path_factory.mktemp("trained") / "resnet8"
    code = main(
        [
            "train",
            "resnet8",
            "--data",
            f"npz:{tiny_npz}",
            "--set",
            "epochs=6",
            "--set",
            "lr=0.1",
            "--set",
            "batch_size=40",
            "--set",
            "amp=off",
            "-o",
            str(out),
        ]
    )
    assert code == 0
    return out


def test_help_imports_neither_torch_nor_onnx():
    code = (
        "import sys; sys.argv = ['trimtab', '--help']\n"
        "from trimtab.app import main\n"
        "main(); print([m for m in ('torch', 'onnx', 'pydantic', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "compress" in done.stdout


def test_version(cli):
    from trimtab import __version__

    assert cli("--version")[1].strip() == f"trimtab {__version__}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["inspect", "nowhere"], "nowhere does not exist"),
        (["inspect", "--modle", "x"], "--modle"),
        (["frobnicate"], "frobnicate"),
        (["export", "x", "--to", "onxx", "-o", "y"], "unknown export format 'onxx'\n  → did you mean 'onnx'?"),
        (
            ["export", "x", "--to", "coreml", "--precision", "int8-activations", "-o", "y"],
            "cannot be written as int8-activations",
        ),
        (["recipes", "validate", "nope.toml"], "recipe nope.toml does not exist"),
        (["demo", "--data", "imagenet"], "the demo has no network for data 'imagenet'"),
        (["train", "resnet21", "--data", "digits", "-o", "x"], "unknown architecture 'resnet21'\n  → did you mean"),
        (["train", "resnet8", "--data", "digts", "-o", "x"], "did you mean 'digits'"),
        (["train", "resnet8", "--data", "digits", "--set", "epochs", "-o", "x"], "--set 'epochs' is not key=value"),
        (["train", "resnet8", "--data", "digits", "--set", "epocs=3", "-o", "x"], "did you mean 'epochs'"),
        (["train", "resnet8", "--data", "digits", "--set", "lr=-1", "-o", "x"], "lr = -1"),
        (["profile", "nowhere"], "nowhere"),
        (["report", "."], "run.json"),
    ],
)
def test_a_mistake_is_exit_2_with_what_to_do(cli, args, message):
    code, out, err = cli(*args)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "→" in err
    assert "Traceback" not in out + err


def test_debug_shows_the_traceback(cli):
    from trimtab.models.errors import UserError

    with pytest.raises(UserError):
        cli("inspect", "nowhere", "--debug")


def test_a_failure_of_ours_is_exit_1(cli, monkeypatch):
    import trimtab.recipes

    monkeypatch.setattr(trimtab.recipes, "recipe_path", lambda _: 1 / 0)
    code, _, err = cli("recipes", "show", "half")
    assert code == 1
    assert "internal: ZeroDivisionError" in err
    assert "--debug" in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "/x/y"), 2, "the disk is full (/x/y)"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "no permission for /x/y"),
        (KeyboardInterrupt(), 130, "interrupted; finished stages are kept"),
    ],
)
def test_what_the_machine_does_to_us_is_said_in_words(cli, monkeypatch, error, code, message):
    import trimtab.recipes

    def fail(_):
        raise error

    monkeypatch.setattr(trimtab.recipes, "recipe_path", fail)
    got, _, err = cli("recipes", "show", "half")
    assert got == code
    assert message in err


def test_recipes_are_listed_shown_written_and_validated(cli, tmp_path):
    assert "half" in cli("recipes", "ls")[1]
    assert "mac_ratio = 0.5" in cli("recipes", "show", "half")[1]
    assert cli("recipes", "new", "structured", "distill", "-o", "mine.toml")[0] == 0
    code, out, _ = cli("recipes", "validate", "mine.toml")
    assert (code, "structured → distill" in out) == (0, True)
    assert cli("recipes", "new", "structured", "-o", "mine.toml")[0] == 2
    assert 'kind = "structured"' in cli("recipes", "new", "structured")[1]


def test_json_is_one_document_on_standard_output(cli, trained):
    code, out, err = cli("inspect", trained, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["macs"] == sum(layer["macs"] for layer in data["layers"])
    assert "channel groups can be pruned" in err
    assert json.loads(cli("models", "ls", "--json")[1])[0]["name"]
    assert "onnxruntime" in json.loads(cli("--json", "devices", "ls")[1])["runtimes"]


def test_inspect_says_what_can_t_be_pruned_and_why(cli, trained):
    _, out, _ = cli("inspect", trained)
    assert "fixed: its channels are" in out.replace("\n", " ") or "fixed" in out
    assert "MACs" in out


def test_a_narrow_terminal_stays_readable(trained):
    done = subprocess.run([sys.executable, "-m", "trimtab.app"], check=False, env={**os.environ, "COLUMNS": "40"})
    assert done.returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", "from trimtab.app import main; import sys; sys.exit(main())", "recipes", "ls"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "40"},
    )
    assert max(len(line) for line in done.stdout.splitlines()) <= 40


def test_names_can_be_copied_from_a_narrow_terminal(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    shown = [line.split(" ")[0] for line in cli("models", "ls")[1].splitlines()]
    assert {row["name"] for row in json.loads(cli("models", "ls", "--json")[1])} <= set(shown)
    assert max(map(len, shown)) <= 60


def test_train_compress_export_evaluate_profile(cli, trained, tmp_path):
    (tmp_path / "r.toml").write_text(
        'format = 1\n[[step]]\nkind = "structured"\nmac_ratio = 0.6\n[[step]]\n'
        'kind = "distill"\nepochs = 3\namp = "off"\ncache_teacher = true\n'
    )
    code, out, err = cli("compress", trained, "--recipe", "r.toml", "-o", "small")
    assert code == 0, err
    assert "left whole:" in out
    accuracy = json.loads(cli("evaluate", "small", "--json")[1])["accuracy"]
    assert accuracy > 0.3  # ten classes, so chance is 0.1; the squares are easy
    code, out, err = cli("export", "small", "--to", "onnx", "-o", "art")
    assert code == 0, err
    assert "onnx fp32: proven" in out
    manifest = json.loads((tmp_path / "art" / "onnx-fp32" / "artifact.json").read_text())
    assert manifest["parity"]["inputs"] == "real"
    data = json.loads((trained / "bundle.json").read_text())["task"]["options"]["data"]
    assert json.loads(cli("evaluate", "art/onnx-fp32", "--data", data, "--json")[1])["accuracy"] == pytest.approx(
        accuracy, abs=0.011
    )  # one image of 100
    code, out, err = cli("profile", "art/onnx-fp32", "--runtime", "onnxruntime", "--budget", "2", "-o", "p.json")
    assert code == 0, err
    assert json.loads((tmp_path / "p.json").read_text())["measurements"][0]["samples_ns"]
    assert cli("compress", trained, "--recipe", "r.toml", "-o", "small")[0] == 2
    assert cli("evaluate", "art/onnx-fp32")[0] == 2


def test_a_network_that_returns_a_dict_wants_its_output_named_and_then_goes_the_road(cli, tiny_npz, user_net, tmp_path):
    import torch
    from user_net import make_dict

    torch.manual_seed(0)
    torch.save(make_dict().state_dict(), tmp_path / "d.pt")
    network = ["d.pt", "--model", f"{user_net}:make_dict", "--data", f"npz:{tiny_npz}"]
    code, _, err = cli("inspect", *network)
    assert code == 2
    assert "returns a dict with 'logits' (1, 10), 'probabilities' (1, 10)" in err
    assert "--output logits" in err
    assert "no output 'logit'" in cli("inspect", *network, "--output", "logit")[2]
    (tmp_path / "r.toml").write_text('format = 1\n[[step]]\nkind = "structured"\nmac_ratio = 0.7\n')
    code, _, err = cli("compress", *network, "--output", "logits", "--recipe", "r.toml", "-o", "small")
    assert code == 0, err
    code, out, err = cli("export", "small", "--to", "onnx,tflite", "-o", "art")
    assert code == 0, err
    assert out.count("proven") == 2


def test_weights_that_do_not_fit_the_network_are_listed(cli, tiny_npz, user_net, tmp_path):
    import torch
    from user_net import make

    state = make(width=16).state_dict()
    state["extra.weight"] = state.pop("head.bias")
    torch.save(state, tmp_path / "w.pt")
    code, _, err = cli("inspect", "w.pt", "--model", f"{user_net}:make", "--data", f"npz:{tiny_npz}")
    assert code == 2
    assert "1 missing:\n    head.bias" in err
    assert "1 unexpected:\n    extra.weight" in err
    assert "entry.0.weight: the network has (32, 3, 3, 3), w.pt (16, 3, 3, 3)" in err
    assert "holds weights alone" in cli("inspect", "w.pt")[2]


def test_data_that_does_not_fit_the_network_is_named(cli, trained, tmp_path):
    import numpy as np

    np.savez(
        tmp_path / "three.npz",
        x_train=np.zeros((30, 16, 16, 3), np.uint8),
        y_train=np.arange(30) % 3,
        x_test=np.zeros((9, 16, 16, 3), np.uint8),
        y_test=np.arange(9) % 3,
    )
    code, _, err = cli("evaluate", trained, "--data", f"npz:{tmp_path}/three.npz")
    assert code == 2
    assert "the network has 10 classes" in err
    code, _, err = cli("evaluate", trained, "--data", "digits")
    assert code == 2
    assert "the network takes 3 channels" in err
