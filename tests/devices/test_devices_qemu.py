"""Instructions counted on emulated Arm cores: exact, per operation, never a time; what is refused, and what is missing, in words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import metric_kit
import numpy as np
import pytest
from native_kit import OPEN, asked, make_nets, need_emulator, staged

from trimtab.devices import native_build, qemu, qemu_doctor, qemu_emulator
from trimtab.devices.device import Item, Job, devices
from trimtab.devices.known import open_device
from trimtab.devices.link import ProcessLink
from trimtab.devices.profile import profile
from trimtab.devices.qemu import QemuConfig, QemuDevice
from trimtab.devices.records import over_budget
from trimtab.export.manifest import LogProgress, UserError

CORES = ("cortex-a53", "cortex-a72", "cortex-a76")


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    need_emulator()
    return make_nets(tmp_path_factory.mktemp("nets"))


@pytest.fixture(scope="module")
def counted(nets):
    """fp32 and int8 on the three cores, twice: by kinds with an argument, in short and in full."""
    folders = [nets["fp32"], nets["int8"]]
    names = ("qemu:a53", "qemu:cortex-a72", "qemu:A76")
    return [profile(folders, on=names, ops=1), profile(folders, on=names)]


def counts_of(result):
    return {(count.core, count.precision): count.repeats for count in result.counts}


def test_counts_are_the_same_in_every_inference_and_every_process(counted):
    first, second = counts_of(counted[0]), counts_of(counted[1])
    assert first == second
    assert set(first) == {(core, precision) for core in CORES for precision in ("fp32", "int8")}
    for count in counted[0].counts:
        assert len(count.repeats) >= 5
        assert count.stable
        assert count.outputs_ok
        assert count.emulated
        assert "QEMU" in count.emulator
    # 24·24·(8·27 + 32·72) = 1.45 M multiplications, of which one vector instruction does four (fp32) or at most sixteen (int8)
    assert all(90_000 < repeats[0] < 15_000_000 for repeats in first.values())


def test_cores_differ_as_their_instruction_sets_do(counted):
    found = {key: repeats[0] for key, repeats in counts_of(counted[0]).items()}
    gain = {core: found[core, "fp32"] / found[core, "int8"] for core in CORES}
    assert found["cortex-a53", "fp32"] != found["cortex-a76", "fp32"]
    assert gain["cortex-a76"] > 1.3 * gain["cortex-a72"]  # it alone has the dot product of 8-bit numbers


def test_nothing_emulated_is_a_time(counted):
    for result in counted:
        assert result.measurements == ()
        assert result.comparisons == ()
        assert result.skipped == ()
    for record in counted[0].ops:
        assert (record.unit, record.emulated, record.reason) == ("instructions", True, "")


def test_operations_add_up_to_the_inference(counted):
    totals = {(count.device, count.label): count.instructions for count in counted[0].counts}
    assert len(counted[0].ops) == len(totals)
    for record in counted[0].ops:
        kinds = " ".join(op.kind for op in record.ops)
        assert kinds.count("Convolution") == 2
        whole = totals[record.device, record.label]
        # about 6,000 instructions of the runtime lie outside of operations; each look at the count takes some tens
        assert abs(record.total - whole) < 10_000


def test_the_count_in_the_clocks_place_costs_an_inference_nothing(nets, tmp_path):
    built, loaded, found = native_build.counting(), staged(nets["int8"], tmp_path / "staged"), []
    device = QemuDevice("qemu", QemuConfig(core="cortex-a76"))
    device.prepare(lambda line: None)
    try:
        for more in ((), ("-DPLAIN_CLOCK",)):
            runner = native_build.compile_runner(
                tmp_path / "runner", compiler=native_build.ARM_GCC, more=("-DCOUNT_INSTRUCTIONS", "-rdynamic", *more)
            )
            prefix = Path(device._work.name) / "prefix"
            argv = [
                shutil.which("qemu-aarch64"),
                "-seed",
                "1",
                "-cpu",
                "cortex-a76",
                "-L",
                str(prefix),
                "-plugin",
                str(built.plugin),
            ]
            time = {"do": "time", "order": [0] * 8, "blocks": [1] * 8, "warm": [0] * 8}
            answers = asked([*argv, str(runner), str(built.library)], [OPEN, loaded.load, time], env=dict(qemu.ENVIRONMENT))
            found.append(answers[-1]["ns"][3:])
    finally:
        device.close()
    assert found[0] == found[1]
    assert len(set(found[0])) == 1


def test_a_budget_names_what_exceeds_it(counted):
    counts = counted[0].counts
    most = max(counts, key=lambda count: count.instructions)
    assert over_budget(counts, most.instructions) == []
    assert over_budget(counts, most.instructions - 1) == [most]
    assert len(over_budget(counts, 1)) == len(counts)


def test_metrics_are_taken_on_the_emulated_core(nets):
    result = profile([nets["fp32"]], on="qemu:a76", evaluation=metric_kit.evaluation(nets["fp32"]))
    (found,) = result.evaluated
    assert found.emulated
    metric_kit.check(found)


def test_wrong_outputs_are_not_counted(nets, tflite_folder):
    folder = tflite_folder("wrong")
    golden = dict(np.load(folder / "golden.npz"))
    np.savez(folder / "golden.npz", **{**golden, "output:scores": golden["output:scores"] * 1.1})
    result = profile([folder], on="qemu:a53")
    assert result.counts == ()
    (skipped,) = result.skipped
    assert (skipped.kind, skipped.device) == ("wrong outputs", "qemu:a53")
    assert skipped.sqnr_db < 30
    forced = profile([folder], on="qemu:a53", force=True)
    assert forced.counts[0].outputs_ok is False


def test_a_file_that_litert_rejects_is_said(nets, tflite_folder, rewrite):
    folder = tflite_folder("junk")
    (folder / "model.tflite").write_bytes(b"no model at all" * 50)
    rewrite(folder)
    (skipped,) = profile([folder], on="qemu:a72").skipped
    assert skipped.kind == "rejected"
    assert "model.tflite" in skipped.reason


def test_an_instruction_that_the_core_lacks_is_told_in_words(nets, monkeypatch, tmp_path):
    """The program is told that it runs on a Cortex-A76, whose dot product the emulated A53 does not have."""
    later = qemu_emulator.CORES["cortex-a76"]
    monkeypatch.setattr(qemu, "CORES", {**qemu_emulator.CORES, "cortex-a53": later})
    (skipped,) = profile([nets["int8"]], on="qemu:a53").skipped
    assert skipped.kind == "rejected"
    assert "an instruction that the emulated cortex-a53 does not have" in skipped.reason


def test_an_interruption_keeps_what_was_counted(nets, tmp_path, monkeypatch):
    device = QemuDevice("qemu", QemuConfig())
    device.prepare(lambda line: None)
    try:
        items = []
        for k, name in enumerate(("fp32", "int8")):
            staged(nets[name], tmp_path / f"a{k}")
            items.append(
                Item(folder=str(tmp_path / f"a{k}"), place=device.put(tmp_path / f"a{k}", f"a{k}"), label=name, dims={"N": 1})
            )
        inner, calls = device._item, []

        def interrupted(item, job, said):
            calls.append(item.label)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return inner(item, job, said)

        monkeypatch.setattr(device, "_item", interrupted)
        result = device.run(Job(runtime="litert", items=tuple(items)), LogProgress())
        assert [count.label for count in result.counts] == ["fp32"]
        assert [(entry.label, entry.kind) for entry in result.skipped] == [("int8", "interrupted")]
        assert result.interrupted
        with pytest.raises(UserError, match="threads=2"):
            device.run(Job(runtime="litert", items=tuple(items), threads=2), LogProgress())
    finally:
        device.close()


def test_counts_that_cannot_be_told_end_the_program(nets, tmp_path):
    """QEMU is made to map the program elsewhere, so that its addresses mean something else here."""
    built, loaded = native_build.counting(), staged(nets["fp32"], tmp_path / "staged")
    asking = "".join(json.dumps(request) + "\n" for request in (OPEN, loaded.load))
    device = QemuDevice("qemu", QemuConfig())
    device.prepare(lambda line: None)
    argv = [shutil.which("qemu-aarch64"), "-B", "0x100000000", "-cpu", "cortex-a76", "-L", f"{device._work.name}/prefix"]
    try:
        for more, code, said in (
            (("-plugin", str(built.plugin)), 97, "counts can't be told"),
            ((), 5, "nothing counts instructions"),
        ):
            command = [*argv, *more, str(built.runner), str(built.library)]
            done = subprocess.run(command, input=asking, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == code
            assert said in done.stderr
    finally:
        device.close()


def test_the_doctor_goes_step_by_step(nets):
    findings = qemu_doctor.diagnose(QemuConfig(core="a72"))
    assert [finding.state for finding in findings] == ["ok"] * 4
    assert findings[-1].subject == "cortex-a72"


@pytest.mark.parametrize("name", ["a53", "A72", "cortex-a76", "Cortex-A53"])
def test_cores_have_short_names(name):
    assert QemuConfig(core=name).core in CORES


def test_an_unknown_core_is_answered_with_a_near_one():
    with pytest.raises(UserError, match="cortex-a77") as caught:
        open_device("qemu:cortex-a77")
    assert "cortex-a76" in caught.value.what


def fake_emulator(folder: Path, help_text: str) -> None:
    path = folder / "qemu-aarch64"
    path.write_text(
        f'#!/bin/sh\ncase "$1" in -version) echo "qemu-aarch64 version 10.0.2 (Debian)";; *) echo "{help_text}";; esac\n'
    )
    path.chmod(0o755)


def test_missing_tools_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no qemu-aarch64") as caught:
        open_device("qemu:a53").prepare(pytest.fail)
    assert caught.value.hint.endswith("apt-get install qemu-user")
    assert "qemu-aarch64" in devices.entry("qemu").card.missing()
    findings = qemu_doctor.diagnose(QemuConfig(core="a53"))
    assert [(finding.subject, finding.state) for finding in findings][:2] == [("emulator", "missing"), ("compilers", "missing")]
    static = tmp_path / "qemu-aarch64-static"
    static.write_text("#!/bin/sh\n")
    static.chmod(0o755)
    with pytest.raises(UserError, match="qemu-aarch64-static can't load plugins"):
        open_device("qemu:a53").prepare(pytest.fail)


def test_an_emulator_without_plugins_is_refused_with_its_version(tmp_path, monkeypatch):
    fake_emulator(tmp_path, "-cpu model")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    with pytest.raises(UserError, match=r"version 10\.0\.2.* without plugins") as caught:
        open_device("qemu:a53").prepare(pytest.fail)
    assert "QEMU 7.2" in caught.value.hint


def test_without_setup_the_command_for_it_is_said(tmp_path, monkeypatch):
    fake_emulator(tmp_path, "-plugin [file=]<file>")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="not set up") as caught:
        open_device("qemu:a53").prepare(pytest.fail)
    assert caught.value.hint == "trimtab devices setup arm64"


def test_the_arm_bundle_brings_its_own_libraries(nets):
    bundle = native_build.arm64_bundle()
    assert {path.name for path in bundle.folder.iterdir()} >= {"runner", "libLiteRt.so", "ld-linux-aarch64.so.1", "libc.so.6"}
    link = ProcessLink([shutil.which("qemu-aarch64"), *bundle.argv], where="bundle", cwd=bundle.folder)
    try:
        hello = link.ask({"do": "hello"})
    finally:
        link.close()
    assert hello["machine"]["machine"] == "aarch64"
    assert hello["runtimes"]["litert"]["missing"] == []
