"""The examples of the README: commands run for real against the tests' servers, and what they printed.

The board is this machine behind a real sshd, the phone is Android's own adbd on an emulated Arm core, the browser is a headless Chromium.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import devices_nets

from trimtab.devices.browser import engines

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "devices"))
WIDTH = "118"
KERNEL = re.compile(r"(Linux \d+(?:\.\d+)+)-[\w.+-]+")
"""A kernel's own suffix is of no interest to a reader."""
Line = Callable[[str], None]


def run(
    command: str, home: Path, *, environment: Mapping[str, str] | None = None, heard: Line = lambda line: None
) -> dict[str, Any]:
    """The command with what it printed; `heard` gets every line as it comes."""
    told = {
        **os.environ,
        "COLUMNS": WIDTH,
        "XDG_CONFIG_HOME": str(home / "config"),
        "PYTHONUNBUFFERED": "1",
        **(environment or {}),
    }
    argv = [sys.executable, "-m", *shlex.split(command)]
    process = subprocess.Popen(argv, cwd=home, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout  # noqa: S101 (it was asked for)
    lines = []
    for line in process.stdout:
        lines.append(KERNEL.sub(r"\1", line.rstrip()))
        heard(line)
    print("$", command, *lines, sep="\n", flush=True)
    return {"command": command, "output": lines, "exit_code": process.wait()}


def over_ssh(home: Path) -> list[dict[str, Any]]:
    """A board, added by name."""
    import sshd_kit

    (home / "sshd").mkdir()
    server = sshd_kit.start(home / "sshd")
    try:
        settings = f"--set python={sys.executable} --set config={server.config}"
        subprocess.run(
            [sys.executable, "-m", *shlex.split(f"trimtab devices add pi5 ssh board {settings}")], check=True, env=_own(home)
        )
        profiled = run("trimtab profile artifacts/onnx-fp32 artifacts/tflite-fp32 --on pi5 --runtime onnxruntime,litert", home)
        return [profiled]
    finally:
        server.stop()


def _own(home: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CONFIG_HOME": str(home / "config")}


def in_a_browser(home: Path) -> list[dict[str, Any]]:
    """A page that is opened as soon as its address is told."""
    import browser_kit

    engines.set_up(print, wait=True)
    with ExitStack() as stack:
        browser = browser_kit.Browser(browser_kit.need_chromium())
        stack.callback(browser.close)
        opener = browser_kit.Opener(browser.open)
        done = run("trimtab profile artifacts/onnx-fp32 artifacts/tflite-fp32 --on browser", home, heard=opener)
    done["output"] = [re.sub(r"(/)[\w-]{20,}/", r"\1…/", line) for line in done["output"]]  # the token is of that run alone
    return [done]


def over_adb(home: Path) -> list[dict[str, Any]]:
    """A phone that is none."""
    import adbd_kit

    with adbd_kit.phone(home / "phone") as there:
        environment = {"PATH": f"{there.path}{os.pathsep}{os.environ['PATH']}"}
        return [
            run(
                "trimtab profile artifacts/tflite-fp32 artifacts/tflite-int8 --on adb --preset quick",
                home,
                environment=environment,
            )
        ]


def emulated(home: Path) -> list[dict[str, Any]]:
    """Counted instructions, with a budget that one artifact is over."""
    limit = 10_000_000
    return [
        run(
            f"trimtab profile artifacts/tflite-fp32 artifacts/tflite-int8 --on qemu:cortex-a76 --budget-instructions {limit}",
            home,
        )
    ]


WAYS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "browser": in_a_browser,
    "ssh": over_ssh,
    "adb": over_adb,
    "qemu": emulated,
}


def study(*, seed: int, repeats: int = 1) -> dict[str, Any]:
    """Every example's commands and outputs. Nothing here is drawn, so `seed` and `repeats` change nothing."""
    del seed, repeats
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        pairs = [("onnx", "fp32"), ("tflite", "fp32"), ("tflite", "int8")]
        made = devices_nets.artifacts("resnet20", pairs, home)
        (home / "artifacts").mkdir()
        for (kind, precision), place in made.items():
            (home / "artifacts" / f"{kind}-{precision}").symlink_to(place)
        for name, way in WAYS.items():
            found[name] = way(home)
    return {"examples": found}
