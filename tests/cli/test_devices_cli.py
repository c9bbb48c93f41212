"""`trimtab profile` and `trimtab devices` as they are typed."""

from __future__ import annotations

import csv
import json

import pytest

from trimtab.devices.known import config_path
from trimtab.devices.link import LinkLostError, ProcessLink
from trimtab.devices.measurement import ProfileResult


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small trained network of the digits as two artifacts."""
    from trimtab.app import main

    home = tmp_path_factory.mktemp("exported")
    arguments = ("--set", "epochs=1", "--set", "batch_size=64")
    assert main(["train", "resnet8", "--data", "digits", "-o", str(home / "net"), *arguments]) == 0
    assert main(["export", str(home / "net"), "--to", "onnx,tflite", "--precision", "fp32", "-o", str(home / "art")]) == 0
    return home / "art"


QUICK = ("--preset", "quick", "--budget", "1", "--runtime", "onnxruntime,litert")


def test_a_profile_with_everything(cli, exported, tmp_path):
    code, out, err = cli(
        "profile",
        *(exported / name for name in ("onnx-fp32", "tflite-fp32")),
        *QUICK,
        *("--evaluate", "40", "--data", "digits", "--sustained", "0.01", "--cpu", "0"),
        *("-o", "p.json", "--csv", "p.csv", "--report", "p.html"),
    )
    assert code == 0, err
    result = ProfileResult.read_json(tmp_path / "p.json")
    assert {m.runtime for m in result.measurements} == {"onnxruntime", "litert"}
    assert {m.conditions.affinity for m in result.measurements} == {(0,)}
    assert {e.runtime: e.samples for e in result.evaluated} == {"onnxruntime": 40, "litert": 40}
    assert len({tuple(e.metrics.items()) for e in result.evaluated}) == 1  # the same network in both
    assert {record.runtime for record in result.ops if record.ops} == {"onnxruntime", "litert"}
    assert len(result.sustained) == 2
    with (tmp_path / "p.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert (tmp_path / "p-ops.csv").stat().st_size > 100
    page = (tmp_path / "p.html").read_text()
    for word in ("onnxruntime", "litert", "Conv"):
        assert word in page
    (tmp_path / "p.csv").unlink()
    code, _, err = cli("profile", exported / "onnx-fp32", "--csv", "p.csv")
    assert (code, "p-ops.csv" in err) == (2, True)  # what lies beside it is not written over either
    assert "over 40 samples of digits" in out
    assert "operations" in out
    code, out, err = cli("report", "p.json", "-o", "again.html")
    assert code == 0, err
    assert (tmp_path / "again.html").read_text().count("litert") == page.count("litert")
    code, _, err = cli("report", "p.json", "-o", "again.html")
    assert code == 2
    assert "--force" in err


def test_a_profile_is_compared_with_itself(cli, exported, tmp_path):
    code, _, err = cli("profile", exported / "onnx-fp32", *QUICK, "-o", "p.json", "--ops", "0")
    assert code == 0, err
    code, out, err = cli("compare", "p.json", "p.json")
    assert code == 0, err
    assert "onnxruntime" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--on", "pixle"), "unknown device 'pixle'"),
        (("--on", "local:0"), "'local' takes nothing after a colon"),
        (("--evaluate", "5"), "--evaluate needs data"),
        (("--set", "precision=bf16"), "is not RUNTIME.NAME=VALUE"),
        (("--budget-instructions", "5"), "counts on emulated cores only"),
        (("--preset", "mlpref"), "unknown timing preset 'mlpref'"),
        (("--cpu", "big"), "is not a list of CPU numbers"),
    ],
)
def test_mistakes_are_told_before_anything_runs(cli, exported, arguments, said):
    code, _, err = cli("profile", exported / "onnx-fp32", *arguments)
    assert code == 2
    assert said in err


def test_a_lost_device_gives_what_was_measured_and_exit_code_1(cli, exported, tmp_path, monkeypatch):
    ask, seen = ProcessLink.ask, [0]

    def asks(self, request, **more):
        seen[0] += request["do"] == "load"
        if seen[0] == 7:
            raise LinkLostError("the cable was pulled")
        return ask(self, request, **more)

    monkeypatch.setattr(ProcessLink, "ask", asks)
    code, out, _ = cli("profile", exported / "onnx-fp32", exported / "tflite-fp32", *QUICK, "-o", "p.json")
    assert code == 1
    assert "the cable was pulled" in out
    assert "not measured" in out
    result = ProfileResult.read_json(tmp_path / "p.json")
    assert result.partial
    assert [m.partial for m in result.measurements] == [True]


def test_devices_are_added_listed_and_removed(cli):
    code, out, err = cli("devices", "add", "bench", "local", "--set", "cores=0,1")
    assert code == 0, err
    assert str(config_path()) in out
    assert "cores = [0, 1]" in config_path().read_text()
    listed = json.loads(cli("--json", "devices", "ls")[1])
    assert listed["own"] == {"bench": {"kind": "local", "cores": [0, 1]}}
    assert "bench" in cli("devices", "ls")[1]
    code, _, err = cli("devices", "add", "bench", "local")
    assert code == 2
    assert "--force" in err
    code, _, err = cli("devices", "add", "other", "local", "somewhere")
    assert code == 2
    assert "takes no 'somewhere'" in err
    assert cli("devices", "remove", "bench")[0] == 0
    assert json.loads(cli("--json", "devices", "ls")[1])["own"] == {}


def test_the_doctor_looks_at_one_device_step_by_step(cli):
    cli("devices", "add", "bench", "local", "--set", "cores=0")
    code, out, err = cli("devices", "doctor", "bench")
    assert code == 0, err
    assert "bench: onnxruntime: ONNX Runtime" in out
    assert "trimtab devices doctor bench" in cli("devices", "doctor")[1]
    code, _, err = cli("devices", "doctor", "nobody")
    assert code == 2
    assert "unknown device 'nobody'" in err


def test_what_can_be_set_up_is_listed(cli):
    code, _, err = cli("devices", "setup", "nonsense")
    assert code == 2
    assert "nothing is set up as 'nonsense'" in err
    assert cli("devices", "setup")[0] == 0
