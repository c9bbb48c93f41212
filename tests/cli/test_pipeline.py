import json
import os
import signal
import subprocess
import sys
import time

import pytest

from trimtab.models.errors import UserError
from trimtab.pipeline import Run


def test_a_finished_stage_is_reused_until_its_inputs_change(tmp_path):
    calls = []

    def work(folder):
        calls.append(folder.name)
        return {"answer": 42}

    for inputs in (1, 1, 2):
        assert Run(tmp_path).stage("think", inputs, work) == {"answer": 42}
    assert calls == ["think", "think"]


def test_a_stage_that_fails_leaves_no_record_and_keeps_its_work(tmp_path):
    def work(folder):
        (folder / "half").write_text("x")
        raise UserError("no")

    with pytest.raises(UserError):
        Run(tmp_path).stage("try", 1, work)
    assert sorted(os.listdir(tmp_path / "try")) == ["half"]
    seen = []
    Run(tmp_path).stage("try", 1, lambda folder: {"was": seen.append((folder / "half").read_text())})
    assert seen == ["x"]


def test_a_stage_whose_files_are_gone_or_whose_record_is_damaged_runs_again(tmp_path):
    def work(folder):
        (folder / "out").write_text("x")
        return {"files": ["out"]}

    Run(tmp_path).stage("a", 1, work)
    (tmp_path / "a" / "out").unlink()
    run = Run(tmp_path)
    run.stage("a", 1, work)
    assert not run.stages[0]["reused"]
    (tmp_path / "a" / "stage.json").write_text('{"key"')
    run = Run(tmp_path)
    run.stage("a", 1, work)
    assert not run.stages[0]["reused"]


RUN = [sys.executable, "-c", "import sys; from trimtab.app import main; sys.exit(main())", "run"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, user_net_path):
    """The user's own state dict, as torch.save wrote it."""
    import torch
    from user_net import make

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("user") / "mine.pt"
    torch.save(make(width=16).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def user_net_path():
    import user_net

    return user_net.__file__


def command(checkpoint, user_net_path, npz, folder, recipe):
    return [
        *RUN,
        str(checkpoint),
        "--model",
        f"{user_net_path}:make",
        "--model-arg",
        "width=16",
        "--data",
        f"npz:{npz}",
        "--recipe",
        str(recipe),
        "--to",
        "onnx,tflite,coreml",
        "--precision",
        "fp32",
        "--budget",
        "3",
        "-o",
        str(folder),
    ]


RECIPE = """
format = 1
[[step]]
kind = "structured"
mac_ratio = 0.6
[[step]]
kind = "finetune"
epochs = {epochs}
batch_size = 40
amp = "off"
checkpoint_s = 0
"""


def environment(tmp_path):
    return {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "OMP_NUM_THREADS": "1"}


def test_a_users_network_goes_the_whole_road_through_kills(checkpoint, user_net_path, tiny_npz, tmp_path):
    """kill -9 in the middle of training and in later stages; the same command goes on, and ends where an unbroken run ends."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(epochs=8))
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    env = environment(tmp_path)
    args = command(checkpoint, user_net_path, tiny_npz, broken, recipe)
    for landmark in ("compress/02-finetune/work/*.safetensors", "evaluate-parent/stage.json", "export-parent/.tflite-fp32.*"):
        process = subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while process.poll() is None and not list(broken.glob(landmark)) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for folder in (broken, whole):
        done = subprocess.run(
            command(checkpoint, user_net_path, tiny_npz, folder, recipe), env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    weights = [(folder / "compress" / "bundle" / "weights.safetensors").read_bytes() for folder in (broken, whole)]
    assert weights[0] == weights[1]
    record = json.loads((broken / "run.json").read_text())
    assert [a["status"] for a in record["artifacts"]] == ["accepted"] * 6
    assert {a["artifact"]["parity"]["inputs"] for a in record["artifacts"]} == {"real"}
    assert record["models"][1]["macs"] <= 0.6 * record["models"][0]["macs"]
    assert (broken / "report.html").stat().st_size > 10_000
    (tmp_path / "more.toml").write_text('format = 1\n[[step]]\nkind = "finetune"\nepochs = 2\nbatch_size = 40\namp = "off"\n')
    onward = [
        *RUN[:-1],
        "compress",
        str(broken / "compress" / "bundle"),
        "--recipe",
        str(tmp_path / "more.toml"),
        "-o",
        str(tmp_path / "onward"),
    ]
    done = subprocess.run(onward, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # the cut network reloads in another process and goes on training
    assert [s["step"] for s in json.loads((tmp_path / "onward" / "bundle.json").read_text())["lineage"]] == [
        "structured",
        "finetune",
        "finetune",
    ]
    assert not [p for p in broken.rglob(".*") if p.is_dir() and "tflite" in p.name]


def test_a_second_run_reuses_every_stage(checkpoint, user_net_path, tiny_npz, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(epochs=1))
    args = [
        a if a != "onnx,tflite,coreml" else "onnx"
        for a in command(checkpoint, user_net_path, tiny_npz, tmp_path / "run", recipe)
    ]
    for _ in range(2):
        done = subprocess.run(args, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout.count("(as before)") == 6
    assert all(stage["reused"] for stage in json.loads((tmp_path / "run" / "run.json").read_text())["stages"])


def test_ctrl_c_saves_the_state_and_exits_130(checkpoint, user_net_path, tiny_npz, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(epochs=500).replace("checkpoint_s = 0", "checkpoint_s = 1000"))
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(checkpoint, user_net_path, tiny_npz, folder, recipe),
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "compress" / "01-structured" / "stage.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    while not (folder / "compress" / "02-finetune" / "work").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3)  # into the training loop: 500 epochs take minutes
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; finished stages are kept" in said
    assert list((folder / "compress" / "02-finetune" / "work").glob("*.safetensors"))
