"""Small networks as TFLite files, and the C runner: built for this machine, with and without sanitizers, or for an emulated core."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from trimtab.devices import native_build
from trimtab.devices.native_wheel import host_library
from trimtab.devices.qemu_emulator import find_emulator
from trimtab.devices.staging import Staged, stage
from trimtab.export.manifest import Contract, TensorSpec, UserError, load_artifact

MARK = "@trimtab "
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-Wno-error=format-truncation")


def image(name: str, channels: int) -> TensorSpec:
    return TensorSpec(name=name, shape=("N", channels, 24, 24), layout="NCHW", value_range=(0.0, 1.0))


def make_nets(folder: Path) -> dict[str, Path]:
    """Convolutions in fp32 and int8, and a network of two inputs, each in a folder of its own."""
    import torch
    from torch import nn

    from trimtab.export.convert import convert, module_source

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = (
                nn.Conv2d(3, 8, 3, padding=1),
                nn.Conv2d(8, 32, 3, padding=1),
                nn.Linear(32, 10),
            )

        def forward(self, image):
            return self.head(torch.relu(self.second(torch.relu(self.first(image)))).mean((2, 3)))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 10)

        def forward(self, image, mask):
            return self.head(torch.relu(self.left(image) + self.right(mask)).mean((2, 3)))

    torch.manual_seed(0)
    out, rng = (TensorSpec(name="logits", shape=("N", 10), layout="NC"),), np.random.default_rng(0)
    net = module_source(Net().eval(), Contract(inputs=(image("image", 3),), outputs=out), label="net")
    two = module_source(Two().eval(), Contract(inputs=(image("image", 3), image("mask", 1)), outputs=out), label="two")
    real = rng.uniform(size=(16, 3, 24, 24)).astype(np.float32)
    done = [*convert(net, [("tflite", "fp32"), ("tflite", "int8")], folder / "net", calibration=real, real=real)]
    done += convert(two, [("tflite", "fp32")], folder / "two")
    assert all(entry.ok for entry in done)
    return {"fp32": folder / "net/tflite-fp32", "int8": folder / "net/tflite-int8", "two": folder / "two/tflite-fp32"}


@dataclass(frozen=True)
class Loaded:
    """A staged artifact, and the requests that load and check it."""

    folder: Path
    staged: Staged

    @property
    def load(self) -> dict:
        feed = {name: {**told, "file": f"{self.folder}/{told['file']}"} for name, told in (self.staged.golden or {}).items()}
        ports = {"inputs": self.staged.inputs, "outputs": self.staged.outputs}
        return {
            "do": "load",
            "slot": 0,
            "file": f"{self.folder}/{self.staged.file}",
            "feeds": [feed],
            "gaps": [100, 4000],
            **ports,
        }

    @property
    def check(self) -> dict:
        expect = [{**row, "file": f"{self.folder}/{row['file']}"} for row in self.staged.expected]
        return {"do": "check", "slot": 0, "expect": expect}


def staged(source: Path, into: Path) -> Loaded:
    return Loaded(into, stage(source, load_artifact(source), into, dims={"N": 1}, seed=0))


OPEN = {"do": "open", "runtime": "litert", "threads": 1, "options": {}, "affinity": None}


def asked(argv, requests, *, cwd=None, env=None) -> list[dict]:
    """The answers to requests (objects, or lines as they are). The runner must end well, and answer every one."""
    lines = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in requests)
    done = subprocess.run(
        argv, input=lines, capture_output=True, text=True, errors="replace", cwd=cwd, env=env, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert len(answers) == len(requests)
    return answers


def host_argv(folder: Path, *more: str) -> list[str]:
    """A runner for this machine, compiled into a folder, and its library."""
    if gone := native_build.missing_for_host():
        pytest.skip(f"the C runner can't be built here: {native_build.install_hint(gone)}")
    return [str(native_build.compile_runner(folder / "runner", compiler=native_build.GCC, more=more)), str(host_library())]


def need_emulator() -> None:
    """Skips, with the command that mends it, where instructions can't be counted; downloads and builds what is not yet there."""
    try:
        find_emulator()
        if gone := (*native_build.missing_for_arm(), *native_build.missing_for_host()):
            pytest.skip(f"64-bit Arm programs can't be built here: {native_build.install_hint(gone)}")
        native_build.set_up(lambda line: None)
    except UserError as error:
        pytest.skip(f"instructions can't be counted here: {error.what}: {error.hint}")
