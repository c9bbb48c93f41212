"""What travels to a board needs little, tells when its processor is imitated, and has its troubles documented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sshd_kit import bare_site

from trimtab.devices import conditions, ssh_troubles
from trimtab.devices.pack import pack
from trimtab.export.manifest import load_artifact


def test_the_runner_needs_numpy_and_the_runtime_and_nothing_else(onnx_folder, tmp_path):
    """No trimtab, nor any of its dependencies: with site-packages left out, two packages are put in reach."""
    site = bare_site(tmp_path / "site", "numpy", "onnxruntime")
    archive, folder = pack(tmp_path / "runner.pyz"), onnx_folder()
    contract = load_artifact(folder).contract
    np.zeros((1, 3, 16, 16), np.float32).tofile(tmp_path / "in.bin")
    ports = [
        [{"name": p.name, "shape": list(p.shape), "dtype": p.dtype} for p in side]
        for side in (contract.inputs, contract.outputs)
    ]
    feed = {"image": {"file": str(tmp_path / "in.bin"), "shape": [1, 3, 16, 16], "dtype": "float32"}}
    requests = [
        {"do": "hello"},
        {"do": "open", "runtime": "onnxruntime", "threads": 1, "options": {}, "affinity": None},
        {
            "do": "load",
            "slot": 0,
            "file": str(folder / "model.onnx"),
            "inputs": ports[0],
            "outputs": ports[1],
            "feeds": [feed],
            "gaps": [],
        },
        {"do": "time", "order": [0], "blocks": [2], "warm": [1]},
    ]
    code = (
        f"import runpy, sys; sys.path.append({str(site)!r}); runpy.run_path({str(archive)!r}, run_name='__main__');"
        "print([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'trimtab'], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line.removeprefix("@trimtab ")) for line in done.stdout.splitlines() if line.startswith("@trimtab ")]
    assert len(answers) == len(requests)
    assert not [answer["error"] for answer in answers if "error" in answer]
    assert answers[3]["ns"][0] > 0
    files = eval(done.stderr.splitlines()[-1])  # noqa: S307  (printed by the line above)
    assert files
    assert all(str(file).startswith(str(archive)) for file in files)


@pytest.mark.parametrize(
    ("kernel", "machine", "emulated"),
    [
        ("x86_64", "aarch64", True),
        ("aarch64", "x86_64", True),
        ("x86_64", "x86_64", False),
        ("x86_64", "i686", False),  # 32-bit programs that the CPU runs itself
        ("aarch64", "armv7l", False),
        ("armv7l", "armv6l", False),
        ("x86_64", "riscv64", True),
    ],
)
def test_a_kernel_for_another_cpu_tells_of_emulation(tmp_path, kernel, machine, emulated):
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/arch").write_text(f"{kernel}\n")
    assert conditions.emulated(tmp_path, machine=machine) is emulated


def test_a_thread_that_is_an_emulators_tells_of_emulation(tmp_path):
    (tmp_path / "proc/self/task/7").mkdir(parents=True)
    program = tmp_path / "proc/self/task/7/exe"
    program.symlink_to("/usr/bin/python3.11")
    assert not conditions.emulated(tmp_path, machine="aarch64")
    program.unlink()
    program.symlink_to("/usr/bin/qemu-aarch64-static")
    assert conditions.emulated(tmp_path, machine="aarch64")


def test_an_interpreter_for_this_very_cpu_tells_of_emulation(tmp_path):
    """A PC with emulators installed has one for every CPU but its own."""
    (tmp_path / "proc/sys/fs/binfmt_misc").mkdir(parents=True)
    (tmp_path / "proc/sys/fs/binfmt_misc/qemu-aarch64").write_text("enabled\ninterpreter /usr/bin/qemu-aarch64-static\n")
    assert conditions.emulated(tmp_path, machine="aarch64")
    assert not conditions.emulated(tmp_path, machine="x86_64")


def test_the_documentation_has_every_trouble():
    page = Path(__file__).parents[2] / "docs" / "devices-ssh.md"
    assert ssh_troubles.table() in page.read_text()
