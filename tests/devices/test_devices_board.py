"""Profiles over ssh on an emulated arm64 board: its own system, the real arm64 wheels, and times that are no device's latency."""

from __future__ import annotations

import board_kit
import pytest

from trimtab.devices.known import add_device
from trimtab.devices.profile import profile
from trimtab.devices.ssh import SshConfig, SshDevice
from trimtab.devices.ssh_doctor import diagnose
from trimtab.export.manifest import UserError

pytestmark = pytest.mark.slow
SLOW = {"budget_s": 6.0, "preset": "quick", "seed": 3}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if said := board_kit.obstacle():
        pytest.skip(said)
    try:
        board = board_kit.start_board(tmp_path_factory.mktemp("board"))
    except RuntimeError as error:
        pytest.skip(f"{error} (the packages and wheels are fetched through apt and pip)")
    yield board
    board.stop()


@pytest.fixture
def board(running):
    """A function that writes a device `board` into devices.toml, as `trimtab devices add` does."""

    def add(**fields) -> str:
        add_device("board", "ssh", {"host": "board", "config": str(running.config), "timeout_s": 60, **fields}, force=True)
        return "board"

    return add


def test_outputs_are_right_and_times_are_marked(board, onnx_folder, tflite_folder):
    folders = [onnx_folder("base", width=16), onnx_folder("small", width=4), tflite_folder("dense")]
    result = profile(folders, on=board(), ops=3, **SLOW)
    assert {(m.label, m.runtime) for m in result.measurements} == {
        ("base", "onnxruntime"),
        ("small", "onnxruntime"),
        ("dense", "litert"),
    }
    for measured in result.measurements:
        assert measured.outputs_ok is True
        assert measured.conditions.device == "board"
        assert measured.conditions.machine == "aarch64"
        assert measured.conditions.emulated is True
        assert "0xd0b" in str(measured.conditions.cpu_model.value)  # a Cortex-A76
    for record in result.ops:
        assert record.emulated is True


def test_every_sign_of_emulation_is_there(running):
    """The runner looks for three. Each is enough by itself, as no one of them is there on every system."""
    device = SshDevice("board", SshConfig(host="board", config=str(running.config), timeout_s=60))
    code = "import os; print(os.readlink(f'/proc/self/task/{os.getpid()}/exe')); print(open('/proc/sys/kernel/arch').read())"
    try:
        device.reach()
        assert device.hello().machine.emulated
        thread, kernel = device.shell.run(f'python3 -c "{code}"').split()
    finally:
        device.close()
    assert "qemu-aarch64" in thread
    assert kernel != "aarch64"


def test_wrong_outputs_are_found_there(board, onnx_folder):
    result = profile([onnx_folder("good"), onnx_folder("bad", golden_error=0.5)], on=board(), runtimes=["onnxruntime"], **SLOW)
    assert [m.label for m in result.measurements] == ["good"]
    assert [(entry.label, entry.kind) for entry in result.skipped] == [("bad", "wrong outputs")]


def test_a_disk_that_is_full(board, onnx_folder):
    with pytest.raises(UserError, match="the disk of board is full"):
        profile([onnx_folder(width=4096)], on=board(folder="/small"), **SLOW)


def test_the_doctor_tells_what_is_there_and_how_to_get_the_rest(running):
    found = {
        finding.subject: finding for finding in diagnose(SshConfig(host="board", config=str(running.config), timeout_s=60))
    }
    for subject in ("connection", "python", "numpy", "runtime onnxruntime", "runtime litert"):
        assert found[subject].state == "ok", found[subject]
    assert found["runtime ncnn"].state == "missing"
    assert found["runtime ncnn"].mend == "ssh board python3 -m pip install ncnn"
    assert found["emulation"].state == "note"
