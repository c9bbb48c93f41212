"""Phones over adb, with a program in adb's place: what it lists, what it says when things go wrong, and whole profiles by it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from adb_kit import PROPS, Unplugging, add, fake_adb, settings

from trimtab.devices import adb as adb_device
from trimtab.devices import adb_phone
from trimtab.devices.adb import AdbConfig, AdbDevice
from trimtab.devices.adb_client import choose, find_adb, listed
from trimtab.devices.adb_doctor import diagnose
from trimtab.devices.known import check_config, open_device
from trimtab.devices.link import LinkLostError
from trimtab.devices.profile import profile
from trimtab.export.manifest import UserError

CPU = "/sys/devices/system/cpu"
CORES = [(range(4), 1704000, 180), (range(4, 8), 2367000, 600), (range(8, 9), 2914000, 1024)]
LOOKED = (
    f"@@props\n{PROPS}@@kernel\n5.15.110-android14\naarch64\n@@cpus\n{CPU}/online:0-8\n"
    + "".join(
        f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq:{khz}\n{CPU}/cpu{cpu}/cpu_capacity:{capacity}\n"
        for cpus, khz, capacity in CORES
        for cpu in cpus
    )
    + "@@zones\n/sys/class/thermal/thermal_zone0/type:BIG\n/sys/class/thermal/thermal_zone1/type:LITTLE\n"
    "/sys/class/thermal/thermal_zone2/type:battery\ngrep: /sys/class/thermal/thermal_zone3/type: Permission denied\n@@saver\n0\n"
)
FAST = {"budget_s": 0.2, "preset": "quick", "seed": 3}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return fake_adb(tmp_path, monkeypatch)


@pytest.fixture
def config(tmp_path):
    return settings(tmp_path)


@pytest.fixture
def added(config):
    """Writes devices.toml with a device `pixel`."""
    return lambda **more: add("pixel", **{**config, **more})


def test_what_adb_lists():
    text = (
        "* daemon not running; starting now at tcp:5037\n* daemon started successfully\nList of devices attached\n"
        "R5CT1234567            device usb:1-1 product:shiba model:Pixel_8 device:shiba transport_id:3\n"
        "0123456789ABCDEF       unauthorized usb:1-4 transport_id:1\n"
        "????????????           no permissions (user in plugdev group; are your udev rules wrong?); see [http://d.a.c/x.html] usb:1-2\n"
        "192.168.1.7:5555       offline transport_id:4\n\n"
    )
    phones = listed(text)
    assert [(phone.serial, phone.state) for phone in phones] == [
        ("R5CT1234567", "device"),
        ("0123456789ABCDEF", "unauthorized"),
        ("????????????", "no permissions"),
        ("192.168.1.7:5555", "offline"),
    ]
    assert str(phones[0]) == "R5CT1234567 (Pixel 8)"
    assert str(phones[1]) == "0123456789ABCDEF (unauthorized)"
    assert choose(phones, "R5CT1234567") is phones[0]


@pytest.mark.parametrize(
    ("lines", "serial", "what", "hint"),
    [
        ("", "", "no phone is connected", "USB debugging"),
        ("A device", "B", "no phone 'B' is connected", "connected: A"),
        ("", "10.0.0.7:5555", "no phone '10.0.0.7:5555' is connected", "adb connect 10.0.0.7:5555"),
        ("A device model:X\nB device", "", r"2 phones are connected: A \(X\), B", "--on adb:A"),
        ("A device\nB unauthorized", "", "2 phones are connected", "--on adb:A"),
        ("A unauthorized", "", "phone A has not allowed this computer", "accept the dialog"),
        ("A offline", "A", "phone A does not answer", "pull the cable"),
        ("A no permissions (x); see [y]", "", "phone A may not be opened by this user", "udev"),
        ("A recovery", "", "recovery", "start Android"),
        ("A dancing", "", "in the state 'dancing'", "start Android"),
    ],
)
def test_phones_that_can_not_be_used(lines, serial, what, hint):
    with pytest.raises(UserError, match=what) as raised:
        choose(listed(f"List of devices attached\n{lines}\n"), serial)
    assert hint in raised.value.hint


def test_no_adb_at_all(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "adbutils", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="adb was not found") as raised:
        find_adb()
    assert "adbutils" in raised.value.hint


def test_adb_of_the_wheel(monkeypatch, tmp_path):
    package = tmp_path / "site/adbutils"
    (package / "binaries").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it is only looked for')")
    (package / "binaries/adb").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_adb() == package / "binaries/adb"


def test_a_phone_and_its_clusters():
    phone = adb_phone.phone_of(LOOKED)
    assert str(phone) == "Google Pixel 8 (Google Tensor G3), Android 14 (API 34), Linux 5.15.110-android14"
    assert [cluster.cpus for cluster in phone.clusters] == [(8,), (4, 5, 6, 7), (0, 1, 2, 3)]
    assert phone.zones == {"/sys/class/thermal/thermal_zone0": "BIG", "/sys/class/thermal/thermal_zone1": "LITTLE"}
    assert not phone.emulator
    assert adb_phone.cores_for(phone, "", threads=1) == (8,)
    assert adb_phone.cores_for(phone, "", threads=2) == (4, 5, 6, 7, 8)
    assert adb_phone.cores_for(phone, "", threads=6) == tuple(range(9))
    assert adb_phone.cores_for(phone, "big", threads=4) == (8,)
    assert adb_phone.cores_for(phone, "little", threads=1) == (0, 1, 2, 3)
    assert adb_phone.cores_for(phone, "all", threads=1) == tuple(range(9))
    assert adb_phone.cores_for(phone, (5, 7), threads=1) == (5, 7)
    assert adb_phone.said_cores(phone, (4, 5, 6, 7, 8)) == "CPU 8 (up to 2914 MHz), 4–7 (up to 2367 MHz)"
    with pytest.raises(UserError, match="cores names 9, 11"):
        adb_phone.cores_for(phone, (8, 9, 11), threads=1)


def test_cores_of_equal_clock_are_told_apart_by_capacity_and_without_both_by_nothing():
    rows = "".join(
        f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq:2000000\n{CPU}/cpu{cpu}/cpu_capacity:{400 if cpu < 4 else 1024}\n"
        for cpu in range(8)
    )
    phone = adb_phone.phone_of(f"@@props\n@@cpus\n{CPU}/online:0-6\n{rows}")
    assert [cluster.cpus for cluster in phone.clusters] == [(4, 5, 6), (0, 1, 2, 3)]
    blind = adb_phone.phone_of(f"@@props\n@@cpus\n{CPU}/online:0-3\n")
    assert adb_phone.cores_for(blind, "", threads=1) is None
    with pytest.raises(UserError, match="does not tell which cores"):
        adb_phone.cores_for(blind, "big", threads=1)


def test_a_phone_that_tells_nothing():
    phone = adb_phone.phone_of("sh: getprop: not found\n")
    assert phone.abi == ""
    now = adb_phone.parsed_snapshot(phone, "", 0)
    assert all(reading.value is None and reading.reason for reading in vars(now).values())
    assert adb_phone.parsed_battery("Can't find service: battery\n") == adb_phone.Battery()
    assert adb_phone.machine_of(phone, adb_phone.Battery()).power_source.reason


def test_snapshots_are_of_the_core_that_is_measured_on():
    phone = adb_phone.phone_of(LOOKED)
    script = adb_phone.snapshot_script(phone, 8)
    assert f"{CPU}/cpu8/cpufreq/scaling_cur_freq" in script
    text = (
        f"{CPU}/cpu8/cpufreq/scaling_governor:sched_pixel\n{CPU}/cpu8/cpufreq/scaling_cur_freq:1328000\n"
        "/proc/loadavg:3.42 3.1 2.9 2/3456 12345\n"
        "/sys/class/thermal/thermal_zone0/temp:41250\n/sys/class/thermal/thermal_zone1/temp:2147483647\n"
    )
    now = adb_phone.parsed_snapshot(phone, text, 8)
    assert (now.governor.value, now.clock_mhz.value, now.load_average.value) == ("sched_pixel", 1328.0, 3.42)
    assert (now.temperature_c.value, now.temperature_c.unit) == (41.25, "°C, the hottest of BIG, LITTLE")


def test_settings(tmp_path):
    assert check_config("adb", {"cores": "4,5, 6"}).cores == (4, 5, 6)
    assert check_config("adb", {"cores": [0, 1]}).cores == (0, 1)
    for wrong in (
        {"cores": "huge"},
        {"cores": [-1]},
        {"cores": []},
        {"folder": "/sdcard/x"},
        {"folder": "/data/local/tmp/../../x"},
    ):
        with pytest.raises(UserError):
            check_config("adb", wrong)
    assert check_config("adb", {"folder": "/sdcard/x", "anywhere": True}).folder == "/sdcard/x"
    device = open_device("adb:192.168.1.7:5555")
    assert isinstance(device, AdbDevice)
    assert device.config.serial == "192.168.1.7:5555"


def test_a_whole_profile(fake, added, onnx_folder, tmp_path):
    added(cores="all")
    said: list[str] = []
    result = profile(
        [onnx_folder("a"), onnx_folder("b", width=4)], on="pixel", runtimes=["onnxruntime"], say=said.append, **FAST
    )
    first = result.measurements[0]
    assert [m.label for m in result.measurements] == ["a", "b"]
    assert first.outputs_ok is True
    assert first.max_abs_error < 1e-4
    there = first.conditions
    assert there.device == "pixel"
    assert str(there.cpu_model.value).startswith("Google Pixel 8 (Google Tensor G3)")
    assert there.os.startswith("Android 14 (API 34)")
    assert there.power_source.value == "battery"
    assert len(result.aa) == 1
    assert any("battery is at 12 %" in warning for warning in result.warnings)
    assert any("battery saver is on" in warning for warning in result.warnings)
    assert any("Google Pixel 8" in line for line in said)
    assert not (tmp_path / "on phone/trimtab").exists(), "the work folder stays"


def test_temperature_of_the_battery_where_no_zone_can_be_read(fake, config, monkeypatch):
    device = AdbDevice("pixel", AdbConfig(**config))
    device.adb = adb_device.reached(device.config, "pixel")
    phone = adb_phone.phone_of("@@props\n")
    heat = adb_phone.snapshot_of(phone, device.adb, None).temperature_c
    assert (heat.value, heat.unit) == (29.1, "°C, of the battery")


def test_unplugged_while_measuring(fake, added, onnx_folder):
    added()
    pull = (fake / "devices.txt").write_text
    result = profile(
        [onnx_folder("a")],
        on="pixel",
        runtimes=["onnxruntime"],
        progress=Unplugging(lambda: pull(""), after=4),
        **FAST | {"budget_s": 20},
    )
    (measured,) = result.measurements
    assert result.partial
    assert measured.partial
    assert measured.stopped_because == "lost"
    assert any("the phone is no longer connected (unplugged" in warning for warning in result.warnings)


def test_unplugged_before_anything_was_measured(fake, added, onnx_folder):
    added()
    (fake / "push.fails").write_text("adb: error: failed to read copy response: EOF\n")
    with pytest.raises(LinkLostError, match="went away for a moment"):
        profile([onnx_folder("a")], on="pixel", **FAST)


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("push.fails", "adb: error: failed to copy 'x' to 'y': remote No space left on device\n", "the phone is full"),
        (
            "push.fails",
            "adb: error: failed to copy 'x' to 'y': remote couldn't create file: Permission denied\n",
            "adb push failed",
        ),
        ("features.txt", "cmd\n", "no shell_v2"),
        ("devices.txt", "R5CT1234567\tunauthorized usb:1-1\n", "has not allowed this computer"),
        ("devices.txt", "R5CT1234567\toffline usb:1-1\n", "does not answer"),
        ("devices.txt", "", "no phone is connected"),
    ],
)
def test_troubles_in_words(fake, added, onnx_folder, file, text, what):
    added()
    (fake / file).write_text(text)
    with pytest.raises(UserError, match=what) as raised:
        profile([onnx_folder("a")], on="pixel", **FAST)
    assert raised.value.hint


def test_too_little_space(fake, config, monkeypatch):
    monkeypatch.setattr(adb_device, "SPARE_BYTES", 1 << 60)
    device = AdbDevice("pixel", AdbConfig(**config))
    with pytest.raises(UserError, match="MB are free on the phone"):
        device.prepare(lambda _: None)
    device.close()


def test_a_python_that_can_not_be_started(fake, added, onnx_folder):
    added(python="/data/data/com.termux/files/usr/bin/python")
    with pytest.raises(UserError, match="can't be started there") as raised:
        profile([onnx_folder("a")], on="pixel", **FAST)
    assert "Termux" in raised.value.hint


def test_wrong_architecture(fake, added, tmp_path, tflite_folder):
    added(python="")
    text = (tmp_path / "programs/getprop").read_text().replace("arm64-v8a", "armeabi-v7a")
    (tmp_path / "programs/getprop").write_text(text)
    with pytest.raises(UserError, match="runs armeabi-v7a programs, the C runner is for arm64-v8a"):
        profile([tflite_folder("t")], on="pixel", **FAST)


def test_put_collect_and_close(fake, config, tmp_path):
    device = AdbDevice("pixel", AdbConfig(**config))
    device.prepare(lambda _: None)
    source = tmp_path / "some file"
    source.write_bytes(bytes(range(256)) * 40)
    place = device.put(source, "a file")
    assert device.collect("a file", tmp_path / "back").read_bytes() == source.read_bytes()
    assert Path(place).exists()
    (fake / "devices.txt").write_text("")
    device.close()  # of a phone that is gone: nothing to be done, and no error
    (fake / "devices.txt").write_text("R5CT1234567\tdevice\n")
    device.close()
    assert not Path(place).exists()


def test_old_work_folders_are_removed(fake, config):
    old, other = Path(config["folder"]) / "run-0123", Path(config["folder"]) / "mine"
    for folder in (old, other):
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    device = AdbDevice("pixel", AdbConfig(**config))
    device.prepare(lambda _: None)
    device.close()
    assert not old.exists()
    assert other.exists()


def test_doctor(fake, config, tmp_path):
    found = {finding.subject: finding for finding in diagnose(AdbConfig(**config))}
    assert found["phone"].state == "ok"
    assert "Google Pixel 8" in found["phone"].detail
    assert found["work folder"].state == "ok"
    assert found["state"].state == "note"
    (fake / "devices.txt").write_text("R5CT1234567\tunauthorized usb:1-1\n")
    last = diagnose(AdbConfig(**config))[-1]
    assert last.state == "missing"
    assert "accept the dialog" in last.mend
    (tmp_path / "programs/adb").unlink()
    assert not list(Path(config["folder"]).parent.glob("trimtab/run-*"))
