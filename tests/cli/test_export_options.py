"""The export verb's own options: settings of formats, free and fixed dimensions, explanations, failures and what is written beside them."""

import json
import subprocess
import sys

import pytest
import torch

from trimtab.export.artifact import load_artifact

ODD_NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        x = torch.asinh(self.body(image))
        return self.head(x.mean((2, 3)))

def make():
    torch.manual_seed(0)
    return Net()

class Plain(Net):
    def forward(self, image):
        return self.head(self.body(image).mean((2, 3)))

def make_plain():
    return Plain()

class Deciding(Net):
    def forward(self, image):
        x = self.body(image)
        if x.sum() > 0:
            x = x * 2
        return self.head(x.mean((2, 3)))

def make_deciding():
    return Deciding()
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's own network: its code and a checkpoint, as arguments."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "odd_net.py").write_text(ODD_NET)
    sys.path.insert(0, str(folder))
    try:
        import odd_net
    finally:
        sys.path.remove(str(folder))
    torch.save(odd_net.make().state_dict(), folder / "odd.pt")

    def arguments(factory):
        return [folder / "odd.pt", "--model", f"{folder / 'odd_net.py'}:{factory}", "--size", "3x16x16"]

    return arguments


def test_formats_are_listed_with_what_they_hold(cli):
    code, out, _ = cli("formats", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0
    assert {"onnx", "tflite", "coreml", "openvino", "executorch", "ncnn", "mnn"} <= set(listed)
    for entry in listed.values():
        assert entry["defaults"]
        assert all(not entry["precisions"][p] for p in entry["defaults"])
        assert set(entry["free"]) == {"batch", "size"}
        assert entry["extra"]
        assert all(option["help"] for option in entry["options"].values())
    code, out, _ = cli("formats", "tflite")
    assert "--set tflite.layout=NHWC" in out
    code, out, _ = cli("formats", "coreml")
    assert "int8-activations no: " in " ".join(out.split())
    assert cli("formats", "onx")[0] == 2


def test_a_formats_own_settings_reach_it(cli, mine, tmp_path):
    code, out, err = cli("export", *mine("make_plain"), "--to", "tflite", "--set", "tflite.layout=NCHW", "-o", "a")
    assert code == 0, err
    artifact = load_artifact(tmp_path / "a" / "tflite-fp32")
    assert artifact.contract.inputs[0].shape == ("N", 3, 16, 16)
    assert artifact.options == {"layout": "NCHW"}
    assert "own writer: auto, it holds every operator" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "tflite.layuot=NCHW"], "TFLite has no option 'layuot'\n  → did you mean 'layout'"),
        (["--set", "tflite.layout=CHWN"], "layout = 'CHWN'"),
        (["--set", "layout=NCHW"], "--set 'layout=NCHW' is not FORMAT.NAME=VALUE"),
        (["--set", "onnx.layout=NCHW"], "'onnx' is not among the formats asked for"),
        (["--route", "onnx2tf"], "route = 'onnx2tf'"),
        (["--free", "depth"], "--free depth: no such dimensions"),
        (["--fix", "M=1"], "the network has no free dimension 'M'\n  → known: N"),
        (["--fix", "N=0"], "a size is a whole number from 1 on"),
        (["--max-drop", "0.5"], "--max-drop is for integer artifacts"),
        (["--precision", "int8", "--max-drop", "-1"], "is not a loss"),
        (["--precision", "int8"], "takes its ranges from real inputs, and there are none"),
        (["--precision", "int4"], "TFLite has no precision 'int4'"),
        (["--jobs", "0"], "'--jobs': Input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_said(cli, mine, options, message):
    code, _, err = cli("export", *mine("make_plain"), "--to", "tflite", "-o", "a", *options)
    assert code == 2
    assert message in err


def test_nothing_to_export_and_an_unknown_environment(cli):
    assert "there is nothing to export" in cli("export")[2]
    code, _, err = cli("export", "--setup", "litert")
    assert code == 2
    assert "litert-torch" in err


def test_free_sizes_are_proven_at_three_of_them(cli, mine, tmp_path):
    code, _, err = cli("export", *mine("make_plain"), "--to", "onnx,tflite", "--free", "size", "--fix", "N=1", "-o", "a")
    assert code == 0, err
    for name in ("onnx", "tflite"):
        artifact = load_artifact(tmp_path / "a" / f"{name}-fp32")
        assert artifact.contract.symbols == ("H", "W")
        assert len({tuple(case.dims.items()) for case in artifact.parity.cases}) == 3


def test_explain_walks_and_leaves_a_table_and_a_picture(cli, mine, tmp_path):
    code, out, err = cli("export", *mine("make_plain"), "--to", "onnx", "--explain", "-o", "a")
    assert code == 0, err
    assert "onnx fp32, layer by layer:" in out
    assert "no layer departs" in out
    rows = json.loads((tmp_path / "a" / "onnx-fp32" / "explain.json").read_text())["rows"]
    assert {"body.0", "body.2", "head"} <= {row["module"] for row in rows}
    assert (tmp_path / "a" / "onnx-fp32" / "explain.png").stat().st_size > 5000


def test_a_failed_conversion_leaves_the_smallest_script_that_shows_it(cli, mine, tmp_path):
    code, out, err = cli("export", *mine("make"), "--to", "coreml,tflite,executorch", "--precision", "fp32", "-o", "a")
    assert code == 2
    assert "2 of 3 artifacts could not be written" in err
    assert "executorch fp32: proven" in out  # the others go on
    assert "smallest piece that fails: " in out
    assert "asinh" in out
    script = tmp_path / "a" / "coreml-fp32.failed" / "repro.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "import coremltools" in script.read_text()


def test_a_network_that_decides_in_python_is_refused_with_its_line(cli, mine):
    code, _, err = cli("export", *mine("make_deciding"), "--to", "onnx", "-o", "a")
    assert code == 2
    assert "decides on the values of its input in its own forward" in err
    assert "if x.sum() > 0" in err


def test_an_onnx_file_is_calibrated_on_the_data_named_beside_it(cli, tiny_npz, tmp_path):
    code, _, err = cli("train", "resnet8", "--data", f"npz:{tiny_npz}", "--set", "epochs=2", "--set", "amp=off", "-o", "net")
    assert code == 0, err
    assert cli("export", "net", "--to", "onnx", "-o", "a")[0] == 0
    file = "a/onnx-fp32/model.onnx"
    code, out, err = cli(
        "export", file, "--to", "onnx", "--precision", "int8", "--data", f"npz:{tiny_npz}", "-o", "b", "--no-isolation"
    )
    assert code in (0, 1), err
    assert "onnx int8: " in out
    assert load_artifact(next((tmp_path / "b").iterdir())).parity.inputs == "real"
    assert "--free wants a Bundle's network" in cli("export", file, "--to", "onnx", "--free", "size", "-o", "c")[2]


def test_a_users_network_goes_to_every_format_with_a_verdict(cli, mine, tmp_path):
    code, out, err = cli(
        "export",
        *mine("make_plain"),
        "--to",
        "onnx,tflite,coreml,openvino,executorch,ncnn,mnn",
        "--precision",
        "fp32,fp16",
        "-o",
        "a",
    )
    assert code == 0, out + err
    assert out.count(": proven") == 14
    for folder in (tmp_path / "a").iterdir():
        artifact = load_artifact(folder)
        assert artifact.parity.ok
        assert artifact.audit is not None
