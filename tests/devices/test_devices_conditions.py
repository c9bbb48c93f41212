"""Conditions read from made-up system trees, memory peaks, and the doctor."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from trimtab.devices import conditions, doctor, memory, runtimes_openvino
from trimtab.devices.device import DeviceCard, DeviceConfig, devices


def tree(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_x86_virtual_machine(tmp_path):
    info = "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\ncpu MHz\t\t: 2000.123\nflags\t\t: fpu hypervisor avx2\n"
    root = tree(tmp_path, proc__cpuinfo=info)
    assert conditions.cpu_model(root).value == "Some CPU @ 2GHz"
    assert conditions.virtualised(root).value == "yes"
    assert conditions.clock_mhz(root).value == pytest.approx(2000.123)
    assert not conditions.emulated(root)


def test_arm_board(tmp_path):
    root = tree(
        tmp_path,
        proc__cpuinfo="processor : 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n",
        **{"proc__device-tree__model": "Raspberry Pi 5 Model B\0", "sys__class__thermal__thermal_zone0__temp": "48500\n"},
        sys__class__thermal__thermal_zone1__temp="51250\n",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_governor="ondemand\n",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq="1800000\n",
    )
    assert conditions.cpu_model(root).value == "Raspberry Pi 5 Model B · Arm implementer 0x41 part 0xd0b"
    assert conditions.temperature_c(root).value == 51.25
    assert conditions.governor(root).value == "ondemand"
    assert conditions.clock_mhz(root).value == 1800.0
    assert conditions.virtualised(root).reason


def test_emulation_is_recognised(tmp_path):
    assert conditions.emulated(tree(tmp_path, proc__cpuinfo="model name : QEMU Virtual CPU version 2.5+\n"))


@pytest.mark.parametrize(
    ("files", "value"),
    [
        ({"sys__fs__cgroup__cpu.max": "150000 100000\n"}, 1.5),
        ({"sys__fs__cgroup__cpu.max": "max 100000\n"}, "none"),
        ({"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "50000", "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000"}, 0.5),
        ({"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1", "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000"}, "none"),
        ({}, None),
    ],
)
def test_container_limits(tmp_path, files, value):
    assert conditions.cpu_quota(tree(tmp_path, **files)).value == value


def test_an_empty_system_gives_reasons_and_no_values(tmp_path):
    for read in (
        conditions.cpu_model,
        conditions.governor,
        conditions.clock_mhz,
        conditions.temperature_c,
        conditions.cpu_quota,
    ):
        reading = read(tmp_path)
        assert reading.value is None
        assert len(reading.reason) > 10


def test_this_machine_answers_without_raising():
    now = conditions.snapshot()
    for reading in (now.governor, now.clock_mhz, now.temperature_c, now.load_average, conditions.power_source()):
        assert (reading.value is None) == bool(reading.reason)


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux can reset and read a process's peak memory")
def test_peak_memory_sees_what_was_freed_again():
    with memory.peak_memory() as peak:
        block = np.ones(64 << 20, dtype=np.uint8)  # touched, so resident
        del block
    if peak.reading.value is None:
        pytest.skip(peak.reading.reason)
    # the block's 64 MiB less pages the allocator held already; and no more than twice as much
    assert 60 << 20 <= peak.reading.value <= 128 << 20


def test_doctor_names_every_runtime_and_device():
    subjects = [finding.subject for finding in doctor.doctor()]
    for want in ("device local", "runtime litert", "runtime onnxruntime", "runtime openvino", "clock", "governor"):
        assert want in subjects


def test_doctor_tells_the_command_for_a_missing_or_broken_runtime(monkeypatch):
    import importlib.util

    def broken():
        raise ImportError("libsomething.so: no such file")

    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ai_edge_litert" else real(name) or True)
    monkeypatch.setattr(runtimes_openvino.OpenVino, "version", staticmethod(broken))
    found = {finding.subject: finding for finding in doctor.doctor()}
    assert (found["runtime litert"].state, found["runtime litert"].mend) == ("missing", "pip install 'trimtab[tflite]'")
    assert found["runtime openvino"].state == "broken"
    assert "libsomething.so" in found["runtime openvino"].detail
    assert "--force-reinstall" in found["runtime openvino"].mend


def test_doctor_warns_of_load_and_a_lazy_governor(monkeypatch):
    from trimtab.devices.reading import Reading

    monkeypatch.setattr(conditions, "load_average", lambda: Reading(value=99.0))
    monkeypatch.setattr(conditions, "governor", lambda: Reading(value="powersave"))
    found = {finding.subject: finding for finding in doctor.doctor()}
    assert found["load"].state == "note"
    assert "99.00" in found["load"].detail
    assert "performance" in found["governor"].mend


def test_device_card_names_missing_tools():
    card = DeviceCard(title="x", tools=("surely-no-such-program",), packages=("numpy", "no_such_package"))
    assert card.missing() == ("no_such_package", "surely-no-such-program")


def test_devices_are_registered_by_name():
    assert "local" in devices.names()
    for entry in devices:
        assert issubclass(entry.card.config, DeviceConfig)
        assert not entry.card.argument or entry.card.argument in entry.card.config.model_fields


def test_the_room_never_imports_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['executorch'] = None  # its runtime is a part of torch\n"
        "from trimtab.devices import profile, doctor; doctor.doctor(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
