"""The whole way to a phone and back over Debian's real adbd: the Arm runner under emulation, a Python runner, and every way to lose it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import adbd_kit
import pytest
from adb_kit import TOOL, Unplugging, add

from trimtab.devices.adb import AdbConfig, AdbDevice, reached
from trimtab.devices.doctor import examine
from trimtab.devices.link import LinkLostError
from trimtab.devices.native_build import arm64_bundle
from trimtab.devices.profile import profile
from trimtab.export.manifest import UserError

pytestmark = pytest.mark.slow
FAST = {"budget_s": 1.0, "preset": "quick", "seed": 3}


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """Starts a phone whose adb comes first on the PATH."""
    running = []

    def start(**more):
        try:
            manager = adbd_kit.phone(tmp_path / "phone", **more)
            there = manager.__enter__()
        except adbd_kit.KitError as error:
            pytest.skip(str(error))
        running.append(manager)
        monkeypatch.setenv("PATH", f"{there.path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("ANDROID_SERIAL", raising=False)
        return there

    yield start
    for manager in running:
        manager.__exit__(None, None, None)


@pytest.fixture
def needs_runner():
    try:
        arm64_bundle()
    except UserError as error:
        pytest.skip(f"{error.what}: {error.hint}")


def on_phone(there) -> list[str]:
    """What trimtab left there; runtimes may leave files of their own beside it."""
    return [line for line in there.adb("-s", there.serial, "shell", "find /data").stdout.split() if "trimtab" in line]


def test_profile_by_the_arm_runner(phone, needs_runner, tflite_folder):
    there = phone()
    result = profile([tflite_folder("small"), tflite_folder("large", features=512)], on=f"adb:{there.serial}", ops=20, **FAST)
    small, large = result.measurements
    assert [(m.runtime, m.outputs_ok) for m in result.measurements] == [("litert", True)] * 2
    assert large.max_abs_error < 1e-4
    where = small.conditions
    assert where.emulated
    assert (where.machine, where.affinity) == ("aarch64", (max(os.sched_getaffinity(0)),))
    assert where.os.startswith("Android 14 (API 34), Linux")
    assert where.cpu_model.value == "Test Phone (QEMU), Arm implementer 0x41 part 0xd0b"
    assert (where.before.governor.value, where.before.clock_mhz.value) == ("schedutil", 2400.0)
    assert where.before.temperature_c.value == 43.5
    assert where.power_source.value == "mains"
    assert len(result.aa) == len(result.comparisons) == 1
    assert result.ops[0].emulated
    assert {op.where for op in result.ops[0].ops} == {"XNNPACK"}
    assert any("no phone's latency" in warning for warning in result.warnings)
    assert on_phone(there) == []


def test_exit_codes_streams_and_files(phone, tmp_path):
    there = phone(arm=False)
    adb = reached(AdbConfig(), "phone")
    assert adb.attempt("echo out; echo err >&2; exit 7") == (7, "out\nerr\n")
    data = os.urandom(3_000_000)
    (tmp_path / "sent file").write_bytes(data)
    adb.push(tmp_path / "sent file", "/data/local/tmp/a file")
    adb.pull("/data/local/tmp/a file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    with pytest.raises(UserError, match="adb pull failed"):
        adb.pull("/data/local/tmp/none", tmp_path / "none")
    with pytest.raises(LinkLostError, match="no answer within 1 s"):
        adb.attempt("exec sleep 60", timeout_s=1)
    there.unplug()
    with pytest.raises(LinkLostError, match="phone"):
        adb.attempt("true")


def test_adbd_dies_while_measuring(phone, needs_runner, tflite_folder):
    there = phone()
    result = profile(
        [tflite_folder("net")], on=f"adb:{there.serial}", progress=Unplugging(there.unplug, after=6), **FAST | {"budget_s": 60}
    )
    (measured,) = result.measurements
    assert result.partial
    assert measured.partial
    assert measured.stopped_because == "lost"
    assert measured.rounds > 0
    assert any("the phone" in warning and "sittings were finished" in warning for warning in result.warnings)


def test_a_phone_without_room(phone, needs_runner, tflite_folder, tmp_path):
    there = phone(data_mb=48)
    there.adb("-s", there.serial, "shell", "dd if=/dev/zero of=/data/fill bs=1M count=20")
    with pytest.raises(UserError, match=r"MB are free on the phone, .* MB are needed"):
        profile([tflite_folder("net")], on=f"adb:{there.serial}", **FAST)
    there.adb("-s", there.serial, "shell", "rm /data/fill")
    device = AdbDevice("phone", AdbConfig(serial=there.serial))
    device.prepare(lambda _: None)
    (tmp_path / "big").write_bytes(os.urandom(60 << 20))
    with pytest.raises(UserError, match="the phone is full") as raised:
        device.put(tmp_path / "big", "big")
    assert raised.value.hint
    device.close()
    assert on_phone(there) == []


def test_a_python_on_the_phone(phone, onnx_folder):
    home = Path(sys.prefix)
    there = phone(arm=False, more=adbd_kit.python_folders())
    add("pixel", serial=there.serial, python=str(home / "bin/python"), cores="little")
    result = profile([onnx_folder("net")], on="pixel", runtimes=["onnxruntime"], **FAST)
    (measured,) = result.measurements
    assert measured.outputs_ok is True
    assert measured.conditions.affinity == tuple(sorted(os.sched_getaffinity(0))[:-1])
    assert on_phone(there) == []


def test_benchmark_model_on_the_phone(phone, tflite_folder, tmp_path):
    there = phone(arm=False)
    (tmp_path / "tool").write_text(TOOL)
    add("pixel", serial=there.serial, benchmark_model=str(tmp_path / "tool"))
    result = profile([tflite_folder("net")], on="pixel", options={"benchmark_model": {"delegate": "gpu"}}, **FAST)
    (measured,) = result.measurements
    assert measured.runtime == "benchmark_model"
    assert measured.conditions.provider == "GPU by OpenCL (1 of 1 operations)"
    assert [(entry.runtime, entry.kind) for entry in result.skipped] == [("litert", "missing package")]
    assert "x86_64 programs, the C runner is for arm64-v8a" in result.skipped[0].reason


def test_the_wrong_architecture_and_the_wrong_serial(phone, tflite_folder):
    there = phone(arm=False)
    with pytest.raises(UserError, match="runs x86_64 programs"):
        profile([tflite_folder("net")], on="adb", **FAST)
    with pytest.raises(UserError, match="no phone 'R5CT' is connected") as raised:
        profile([tflite_folder("net2")], on="adb:R5CT", **FAST)
    assert there.serial in raised.value.hint


def test_doctor(phone, needs_runner):
    there = phone()
    found = examine(f"adb:{there.serial}")
    assert {finding.subject: finding.state for finding in found} == {
        "adb": "ok",
        "phone": "ok",
        "cores": "ok",
        "state": "note",
        "temperature": "ok",
        "work folder": "ok",
        "runner": "ok",
    }
    assert on_phone(there) == []
    there.unplug()
    assert examine(f"adb:{there.serial}")[-1].state in ("missing", "broken")
