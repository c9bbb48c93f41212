"""Profiles over ssh, against a real sshd on the loopback address, and everything that can go wrong on the way."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time

import metric_kit
import pytest
import sshd_kit

from trimtab.devices.known import add_device, open_device
from trimtab.devices.link import LinkLostError
from trimtab.devices.profile import profile
from trimtab.devices.ssh import SshConfig, SshDevice
from trimtab.devices.ssh_doctor import diagnose
from trimtab.export.manifest import UserError

FAST = {"budget_s": 0.2, "preset": "quick", "seed": 3}


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if sshd_kit.SSHD is None or shutil.which("ssh") is None:
        pytest.skip(sshd_kit.NEEDS)
    running = sshd_kit.start(tmp_path_factory.mktemp("sshd"))
    yield running
    running.stop()


@pytest.fixture
def board(server):
    """A function that writes a device `board` into devices.toml, as `trimtab devices add` does."""

    def add(**fields) -> str:
        usual = {"host": "board", "config": str(server.config), "python": sys.executable}
        add_device("board", "ssh", {**usual, **fields}, force=True)
        return "board"

    return add


@pytest.fixture
def wrapped(tmp_path):
    """A function that makes a program which runs the runner and does `deed` at a request `at`, once there were so many `drops`."""

    def make(at: str, deed: str, *, drops: int = 0) -> str:
        path = tmp_path / "python-that-fails"
        path.write_text(WRAPPER.format(python=sys.executable, at=f'"do": "{at}"', drops=drops, deed=deed))
        path.chmod(0o755)
        return str(path)

    return make


WRAPPER = """#!{python}
import os, signal, subprocess, sys

def parents(pid):
    while pid > 1:
        said = subprocess.run(["ps", "-o", "ppid=,comm=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout.split()
        yield pid, said[1]
        pid = int(said[0])

runner = subprocess.Popen([{python!r}, *sys.argv[1:]], stdin=subprocess.PIPE)
drops = 0
for line in iter(sys.stdin.buffer.readline, b""):
    drops += b'"do": "drop"' in line
    if drops >= {drops} and {at!r}.encode() in line:
        {deed}
    runner.stdin.write(line)
    runner.stdin.flush()
runner.stdin.close()
sys.exit(runner.wait())
"""
KILLED = (
    "print('plugin.so: not found, Connection refused', file=sys.stderr, flush=True);"  # what natives warn of is not what killed it
    "runner.kill(); runner.wait(); os.kill(os.getpid(), signal.SIGKILL)"
)
NO_SERVER = "os.kill(next(pid for pid, name in parents(os.getpid()) if name.startswith('sshd')), signal.SIGKILL)"


def skipped(result):
    return {(entry.label, entry.kind) for entry in result.skipped}


def test_two_formats_are_measured_over_ssh(board, onnx_folder, tflite_folder, tmp_path):
    folders = [onnx_folder("base", width=16), onnx_folder("small", width=4), tflite_folder("dense")]
    work = tmp_path / "a folder there"
    work.mkdir()
    said: list[str] = []
    result = profile(folders, on=board(folder=str(work)), runtimes=["onnxruntime", "litert"], ops=5, say=said.append, **FAST)
    assert [(m.label, m.runtime) for m in result.measurements] == [
        ("base", "onnxruntime"),
        ("small", "onnxruntime"),
        ("dense", "litert"),
    ]
    for measured in result.measurements:
        assert measured.outputs_ok is True
        assert measured.conditions.device == "board"
        assert measured.conditions.emulated is False
        assert not measured.partial
    assert [(c.a, c.b) for c in result.comparisons] == [("base", "small")]
    assert result.ops
    assert {record.label for record in result.ops} == {"base", "small", "dense"}
    assert any("onnxruntime" in line for line in said)
    assert list(work.iterdir()) == []  # the folder made there is gone again


def test_the_short_form_names_a_host(monkeypatch):
    device = open_device("ssh:pi@raspberrypi.local")
    assert isinstance(device, SshDevice)
    assert (device.name, device.config.host) == ("ssh:pi@raspberrypi.local", "pi@raspberrypi.local")
    for bad in ("-oProxyCommand=touch x", "", "a b"):
        with pytest.raises(UserError, match=r"host"):
            open_device(f"ssh:{bad}")


@pytest.mark.parametrize("field", [{"timeout_s": 0.1}, {"port": 0}, {"folder": 'a "b'}, {"python": "-m"}, {"hots": "x"}])
def test_a_wrong_setting_is_named(field):
    with pytest.raises(UserError, match=next(iter(field))):
        add_device("board", "ssh", {"host": "board", **field})


def test_cores_of_the_config_are_pinned_to(board, onnx_folder):
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no CPU affinity; Linux has")
    core = max(os.sched_getaffinity(0))
    result = profile([onnx_folder()], on=board(cores=[core]), runtimes=["onnxruntime"], **FAST)
    assert result.measurements[0].conditions.affinity == (core,)


def test_a_board_called_emulated_is_recorded_as_such(board, onnx_folder):
    result = profile([onnx_folder()], on=board(emulated=True), runtimes=["onnxruntime"], **FAST)
    assert result.measurements[0].conditions.emulated is True


def test_wrong_outputs_are_reported_and_not_timed(board, onnx_folder):
    result = profile([onnx_folder("good"), onnx_folder("bad", golden_error=0.5)], on=board(), runtimes=["onnxruntime"], **FAST)
    assert [m.label for m in result.measurements] == ["good"]
    assert skipped(result) == {("bad", "wrong outputs")}


def test_files_come_back_as_they_were_put(server, tmp_path):
    device = SshDevice("board", SshConfig(host="board", config=str(server.config), python=sys.executable))
    source = tmp_path / "put"
    (source / "in ner").mkdir(parents=True)
    content = bytes(range(256)) * 5000
    (source / "in ner" / "it's.bin").write_bytes(content)
    os.link(source / "in ner" / "it's.bin", source / "linked.bin")
    try:
        device.reach()
        place = device.put(source, "a0")
        for name in ("in ner/it's.bin", "linked.bin"):
            assert device.collect(f"{place}/{name}", tmp_path / "back").read_bytes() == content
        with pytest.raises(UserError, match="not on board"):
            device.collect(f"{place}/absent", tmp_path / "absent")
        assert not (tmp_path / "absent").exists()
    finally:
        device.close()


def test_the_work_folder_goes_when_the_connection_does(server, tmp_path):
    device = SshDevice("board", SshConfig(host="board", config=str(server.config), folder=str(tmp_path / "work")))
    device.reach()
    assert (tmp_path / "work").exists()
    assert list((tmp_path / "work").iterdir())
    assert device.keeper
    device.keeper.process.kill()
    until = time.monotonic() + 30
    while list((tmp_path / "work").iterdir()) and time.monotonic() < until:
        time.sleep(0.02)
    assert list((tmp_path / "work").iterdir()) == []
    device.close()


def test_a_master_connection_of_the_users_own_is_used(server, tmp_path):
    """It may be the only way in: here its key is the wrong one."""
    folder = tmp_path / "theirs"
    config = server.another(folder, key=sshd_kit.new_key(tmp_path / "other_key"))
    socket_path = tmp_path / "m"
    if len(str(socket_path)) > 80:
        pytest.skip(f"{socket_path} is too long for a socket: set TMPDIR to a shorter path")
    config.write_text(config.read_text() + f"  ControlPath {socket_path}\n")
    with subprocess.Popen(
        [
            "ssh",
            "-F",
            str(server.config),
            "-o",
            f"ControlPath={socket_path}",
            "-o",
            "ControlMaster=yes",
            "board",
            "echo up; cat",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as master:
        assert master.stdout
        assert master.stdin
        assert b"up\n" in iter(master.stdout.readline, b"")
        device = SshDevice("board", SshConfig(host="board", config=str(config)))
        device.reach()
        device.close()
        master.stdin.close()
    device = SshDevice("board", SshConfig(host="board", config=str(config)))
    with pytest.raises(UserError, match="without a password"):
        device.reach()
    device.close()


def test_one_session_a_connection_is_enough(tmp_path_factory, tmp_path):
    """Then ssh makes a connection for every command."""
    if sshd_kit.SSHD is None:
        pytest.skip(sshd_kit.NEEDS)
    strict = sshd_kit.start(tmp_path_factory.mktemp("strict"), more="MaxSessions 1\n")
    device = SshDevice("board", SshConfig(host="board", config=str(strict.config), python=sys.executable))
    try:
        device.prepare(lambda _: None)
    finally:
        device.close()
        strict.stop()


def test_metrics_are_taken_on_the_board(board, onnx_folder):
    folder = onnx_folder()
    (found,) = profile(
        [folder], on=board(), runtimes=["onnxruntime"], evaluation=metric_kit.evaluation(folder), **FAST
    ).evaluated
    assert (found.device, found.runtime) == ("board", "onnxruntime")
    metric_kit.check(found)


@pytest.fixture
def reason(board, onnx_folder):
    """A function that gives what a profile says which can't be made."""
    folder = onnx_folder()

    def told(**fields) -> str:
        with pytest.raises(UserError) as failed:
            profile([folder], on=board(**fields), **FAST)
        assert failed.value.hint
        return str(failed.value)

    return told


def test_a_port_that_refuses(server, reason, tmp_path):
    config = server.another(tmp_path / "c", port=sshd_kit.free_port())
    said = reason(config=str(config))
    assert "no ssh server answers" in said
    assert "Connection refused" in said


def test_a_host_nobody_knows(reason):
    said = reason(host="no-such-board.invalid")
    assert "no machine is known by the name of no-such-board.invalid" in said


def test_a_host_that_never_answers(server, reason, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = server.another(tmp_path / "c", port=silent.getsockname()[1])
        assert "can't be reached" in reason(config=str(config), timeout_s=1)


def test_a_key_that_does_not_fit(server, reason, tmp_path):
    config = server.another(tmp_path / "c", key=sshd_kit.new_key(tmp_path / "other_key"))
    assert "ssh-copy-id board" in reason(config=str(config))


def test_a_host_key_that_was_never_seen(server, reason, tmp_path):
    config = server.another(tmp_path / "c", known="")
    assert "has not seen yet" in reason(config=str(config))


def test_a_host_key_that_changed(server, reason, tmp_path):
    other = sshd_kit.known_host(server.port, sshd_kit.new_key(tmp_path / "other_host_key"))
    said = reason(config=str(server.another(tmp_path / "c", known=other)))
    assert "another host key than the one it had before" in said
    assert "ssh-keygen -R" in said


def test_a_key_file_that_others_can_read(server, reason, tmp_path):
    key = tmp_path / "open_key"
    for suffix in ("", ".pub"):
        shutil.copy(server.folder / f"user_key{suffix}", f"{key}{suffix}")
    key.chmod(0o644)
    assert "others can read" in reason(config=str(server.another(tmp_path / "c", key=key)))


def test_a_configuration_that_ssh_cannot_read(reason, tmp_path):
    bad = tmp_path / "ssh_config"
    bad.write_text("Hots board\n")
    assert "can't read its configuration" in reason(config=str(bad))
    assert "can't read its configuration" in reason(config=str(tmp_path / "absent"))


def test_no_such_python(reason):
    said = reason(python="/nowhere/python3")
    assert "not on board" in said
    assert "/nowhere/python3" in said


def test_a_python_that_is_none(reason, tmp_path):
    (tmp_path / "python").write_bytes(b"\x7fELF" + bytes(100))
    assert "does not allow it" in reason(python=str(tmp_path / "python"))
    (tmp_path / "python").chmod(0o755)
    assert "another kind of CPU" in reason(python=str(tmp_path / "python"))


def test_a_python_without_numpy(reason, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    said = reason(python=str(tmp_path / "bare" / "bin" / "python"))
    assert "has no numpy" in said
    assert "pip install onnxruntime" in said


def test_a_python_that_is_too_old(reason, tmp_path):
    old = tmp_path / "python3.8"
    code = "import runpy, sys; sys.version_info = (3, 8, 1); runpy.run_path('runner.pyz', run_name='__main__')"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    old.chmod(0o755)
    assert "needs Python 3.10 or newer, this is 3.8" in reason(python=str(old))


def test_a_machine_without_any_runtime(reason, tmp_path):
    site = sshd_kit.bare_site(tmp_path / "site", "numpy")
    python = tmp_path / "python-with-numpy"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    said = reason(python=str(python))
    assert "board has no runtime" in said
    assert f"ssh board {python} -m pip install onnxruntime ai-edge-litert" in said


def test_a_runtime_that_is_missing_says_what_to_install(board, onnx_folder, tflite_folder, tmp_path):
    site = sshd_kit.bare_site(tmp_path / "site", "numpy", "onnxruntime")
    python = tmp_path / "python-with-onnxruntime"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    result = profile([onnx_folder(), tflite_folder()], on=board(python=str(python)), **FAST)
    assert [m.runtime for m in result.measurements] == ["onnxruntime"]
    missing = {entry.runtime: entry.reason for entry in result.skipped if entry.kind == "missing package"}
    assert f"ssh board {python} -m pip install ai-edge-litert" in missing["litert"]


def test_a_wheel_for_another_architecture(board, onnx_folder, tmp_path):
    site = sshd_kit.bare_site(tmp_path / "site", "numpy")
    (site / "onnxruntime").mkdir()
    (site / "onnxruntime" / "__init__.py").write_text("raise ImportError('state.so: wrong ELF class: ELFCLASS32')")
    python = tmp_path / "python-with-another-wheel"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(UserError, match="wrong ELF class") as failed:
        profile([onnx_folder()], on=board(python=str(python)), runtimes=["onnxruntime"], **FAST)
    assert "another architecture" in failed.value.hint


def test_a_server_that_dies_while_timing_leaves_what_was_measured(board, wrapped, onnx_folder):
    python = wrapped("time", NO_SERVER, drops=3)  # one when all is ready, then one a sitting
    result = profile([onnx_folder()], on=board(python=python), runtimes=["onnxruntime"], budget_s=60, preset="quick", seed=3)
    (measured,) = result.measurements
    assert measured.partial
    assert result.partial
    assert len(measured.samples_ns) >= 1
    assert any("board ended the connection" in line or "stopped answering" in line for line in result.warnings)


def test_a_server_that_dies_before_anything_was_timed(board, wrapped, onnx_folder):
    result = profile([onnx_folder()], on=board(python=wrapped("time", NO_SERVER)), runtimes=["onnxruntime"], **FAST)
    assert not result.measurements
    assert skipped(result) == {("net", "lost")}


def test_a_runner_that_is_killed_is_told_from_a_lost_connection(board, wrapped, onnx_folder):
    result = profile([onnx_folder()], on=board(python=wrapped("load", KILLED)), runtimes=["onnxruntime"], **FAST)
    assert not result.measurements
    (entry,) = result.skipped
    assert "killed, as the kernel does when memory runs out" in entry.reason


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a folder on a disk of its own with so many bytes."""
    if os.getuid() != 0 or shutil.which("mount") is None or sys.platform != "linux":
        pytest.skip("a disk that is full needs root on Linux, to mount a small one: run as root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = []

    def make(size: int):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
        mounted.append(folder)
        return folder

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", [16 << 10, 400 << 10])
def test_a_disk_that_is_full(board, onnx_folder, small_disk, size):
    """Full with the runner, and full with the artifact of 700 kB."""
    folder = small_disk(size)
    with pytest.raises(UserError, match="the disk of board is full") as failed:
        profile([onnx_folder(width=4096)], on=board(folder=str(folder)), **FAST)
    assert "df -h" in failed.value.hint
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made(reason, tmp_path):
    (tmp_path / "file").write_text("")
    assert "no work folder can be made" in reason(folder=str(tmp_path / "file" / "work"))


def test_a_link_to_a_runner_that_is_gone_says_so(board):
    device = open_device(board())
    try:
        device.prepare(lambda _: None)
        link = device.link()
        link.process.kill()
        with pytest.raises(LinkLostError, match="board"):
            link.ask({"do": "hello"})
        link.close()
    finally:
        device.close()


def states(findings):
    return {finding.subject: finding.state for finding in findings}


def test_the_doctor_of_a_board(server):
    found = diagnose(SshConfig(host="board", config=str(server.config), python=sys.executable))
    told = states(found)
    for subject in ("ssh", "name", "connection", "python", "numpy", "runtime onnxruntime", "disk"):
        assert told[subject] in {"ok", "note"}, found
    assert {"governor", "temperature"} <= set(told)


def test_the_doctor_names_the_step_that_fails(server, tmp_path):
    nobody = diagnose(SshConfig(host="board", config=str(server.another(tmp_path / "c", key=sshd_kit.new_key(tmp_path / "k")))))
    assert nobody[-1].subject == "connection"
    assert nobody[-1].state == "broken"
    assert "ssh-copy-id" in nobody[-1].mend
    absent = {f.subject: f for f in diagnose(SshConfig(host="board", config=str(server.config), python="/nowhere/python3"))}
    assert absent["python"].state == "missing"
    assert absent["runner"].state == "broken"
    unknown = states(diagnose(SshConfig(host="no-such-board.invalid", config=str(server.config))))
    assert unknown["name"] == unknown["connection"] == "broken"
    bad = tmp_path / "bad_config"
    bad.write_text("Hots board\n")
    assert states(diagnose(SshConfig(host="board", config=str(bad)))) == {"ssh": "broken"}
