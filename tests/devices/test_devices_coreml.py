"""Core ML without a Mac: where it is offered, and its sessions and plans against a stand-in for Apple's runtime.

The stand-in has the names and the shapes of coremltools' own classes, which a test compares; what Core ML itself does, only a Mac tells.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trimtab.devices.greeting import RuntimeThere
from trimtab.devices.linked import offers_of
from trimtab.devices.local import LocalConfig, LocalDevice
from trimtab.devices.runner import Runner
from trimtab.devices.runtime import RejectedError, fitting, require, runtimes, why_none
from trimtab.export.manifest import UserError, load_artifact

CARD = runtimes.entry("coreml").card
elsewhere = pytest.mark.skipif(platform.system() == "Darwin", reason="it is about systems other than macOS")

STAND_IN = {
    "__init__.py": """
import enum
__version__ = "9.0"
class ComputeUnit(enum.Enum):
    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4
from . import models
""",
    "models/__init__.py": """
import os, pathlib
import numpy as np
from types import SimpleNamespace as N
KIND = os.environ.get("KIND", "multiArrayType")
def feature(name):
    return N(name=name, type=N(WhichOneof=lambda _: KIND))
class MLModel:
    def __init__(self, model, compute_units):
        if not pathlib.Path(model).is_dir():
            raise Exception(f"cannot read {model}")
        self.units, self.calls = compute_units, 0
    def get_spec(self):
        return N(description=N(input=[feature("image")], output=[feature("logits"), feature("classLabel")]))
    def predict(self, data):
        self.calls += 1
        x = data["image"]
        assert x.dtype == np.float32 and x.flags.c_contiguous
        if x.shape[0] > 64:
            raise Exception("MultiArray shape is not in the enumerated set of allowed shapes")
        data["image"] = None  # as the real one may
        return {"logits": x.mean((2, 3)).astype(np.float32), "classLabel": "cat"}
    def get_compiled_model_path(self):
        return "/compiled/model.mlmodelc"
""",
    "models/compute_device.py": """
class MLCPUComputeDevice: pass
class MLGPUComputeDevice: pass
class MLNeuralEngineComputeDevice: pass
""",
    "models/compute_plan.py": """
import os
from types import SimpleNamespace as N
from .compute_device import MLCPUComputeDevice, MLGPUComputeDevice, MLNeuralEngineComputeDevice
PLAN = os.environ.get("PLAN", "")
def op(name, outputs, blocks=()):
    return N(operator_name=name, outputs=[N(name=o) for o in outputs], blocks=[N(operations=b) for b in blocks])
OPS = [op("const", ["w"]), op("ios17.conv", ["c1"]), op("cond", ["y"], [[op("ios17.relu", ["r"])], []]), op("ios17.linear", ["logits"])]
TOLD = {
    "c1": (MLNeuralEngineComputeDevice, 0.6),
    "y": (MLCPUComputeDevice, 0.0),
    "r": (MLGPUComputeDevice, 0.1),
    "logits": (MLCPUComputeDevice, 0.1),
}
class MLComputePlan:
    @classmethod
    def load_from_path(cls, path, compute_units):
        assert path == "/compiled/model.mlmodelc"
        made = cls()
        block = N(operations=OPS)
        program = None if PLAN == "network" else N(functions={"main": N(block=block)})
        made.model_structure = N(program=program)
        made.only_cpu = compute_units.name == "CPU_ONLY"
        return made
    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        told = TOLD.get(operation.outputs[0].name)
        return told and N(preferred_compute_device=(MLCPUComputeDevice if self.only_cpu else told[0])())
    def get_estimated_cost_for_mlprogram_operation(self, operation):
        told = TOLD.get(operation.outputs[0].name)
        return told and N(weight=0.0 if PLAN == "free" else told[1])
""",
}
ASK = """
import json, platform, sys
platform.system = lambda: "Darwin"
from trimtab.devices.runner import Runner
from trimtab.devices.runtime import RejectedError
runner = Runner()
for line in sys.stdin:
    try:
        print("ANSWER", json.dumps(runner.answer(json.loads(line))))
    except RejectedError as error:
        print("ANSWER", json.dumps({"rejected": error.what}))
"""


@pytest.fixture
def on_a_mac(tmp_path):
    """Requests → answers of a runner that believes to be on a Mac, with the stand-in in place of coremltools."""
    home = tmp_path / "packages"
    for name, text in STAND_IN.items():
        (home / "coremltools" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "coremltools" / name).write_text(text)
    (home / "coremltools-9.0.dist-info").mkdir()
    (home / "coremltools-9.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: coremltools\nVersion: 9.0\n")

    def ask(*requests, **environment):
        path = os.pathsep.join([str(home), *(p for p in sys.path if p)])
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            input="\n".join(json.dumps(request) for request in requests),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]

    return ask


@pytest.fixture
def package(tmp_path):
    """Requests that open Core ML and load a package with a free batch for two images."""
    folder = tmp_path / "model.mlpackage"
    folder.mkdir()
    image = np.random.default_rng(0).uniform(size=(2, 3, 4, 4)).astype(np.float32)
    image.tofile(tmp_path / "image.bin")
    image.mean((2, 3)).tofile(tmp_path / "logits.bin")

    def requests(*more, file=folder, units="all", shape=(2, 3, 4, 4), output="logits"):
        load = {
            "do": "load",
            "slot": 0,
            "file": str(file),
            "inputs": [{"name": "image", "shape": ["N", 3, 4, 4], "dtype": "float32"}],
            "outputs": [{"name": output, "shape": ["N", 3], "dtype": "float32"}],
            "feeds": [{"image": {"file": str(tmp_path / "image.bin"), "shape": list(shape), "dtype": "float32"}}],
            "gaps": [],
        }
        start = {"do": "open", "runtime": "coreml", "threads": 1, "options": {"compute_units": units}, "affinity": None}
        return start, load, *more

    return requests


def test_a_mac_offers_it_and_this_side_takes_the_offer(on_a_mac):
    (hello,) = on_a_mac({"do": "hello"})
    assert hello["runtimes"]["coreml"] == {"missing": [], "version": "9.0"}
    offer = offers_of({name: RuntimeThere(**told) for name, told in hello["runtimes"].items()})["coreml"]
    assert (offer.title, offer.formats, offer.missing) == ("Core ML", ("coreml",), "")
    assert offer.options["compute_units"][0] == "all"


@elsewhere
def test_other_systems_do_not_offer_it():
    assert not CARD.at_home
    assert CARD.missing() == ("macOS",)
    assert "coreml" not in LocalDevice("local", LocalConfig()).offers()
    assert "coreml" not in Runner().answer({"do": "hello"})["runtimes"]
    assert fitting("coreml") == []
    assert "Apple" in why_none("coreml")
    with pytest.raises(UserError, match="Core ML needs macOS") as caught:
        require("coreml")
    assert caught.value.hint == "measure on a machine with macOS, over ssh"


def test_a_session_computes_and_tells_what_it_may_run_on(on_a_mac, package, tmp_path):
    expect = [{"name": "logits", "file": str(tmp_path / "logits.bin"), "shape": [2, 3], "dtype": "float32"}]
    requests = package(
        {"do": "check", "slot": 0, "expect": expect},
        {"do": "time", "order": [0, 0], "blocks": [3, 3], "warm": [1, 1]},
        units="cpu_and_ne",
    )
    opened, loaded, checked, timed = on_a_mac(*requests)
    assert opened["version"].startswith("9.0 on macOS")
    assert loaded["facts"]["provider"] == "CPU and Neural Engine as Core ML chooses"
    assert loaded["facts"]["hints"] == {"compute_units": "cpu_and_ne", "threads": "as Core ML likes: it cannot be told"}
    assert checked["outputs"][0]["max_abs_error"] == 0.0
    assert len(timed["ns"]) == 2


def test_the_plan_shares_out_a_measured_latency(on_a_mac, package):
    found = on_a_mac(*package({"do": "ops", "slot": 0, "file": package()[1]["file"], "runs": 7}))[-1]
    assert (found["runs"], found["reason"]) == (7, "")
    assert [(op["name"], op["kind"], op["where"]) for op in found["ops"]] == [
        ("c1", "ios17.conv", "Neural Engine"),
        ("y", "cond", "CPU"),
        ("r", "ios17.relu", "GPU"),
        ("logits", "ios17.linear", "CPU"),
    ]
    total = sum(op["ns"] for op in found["ops"])
    # the plan's weights: they sum to 0.8, and shares are of what is planned
    assert [op["ns"] / total for op in found["ops"]] == pytest.approx([0.75, 0.0, 0.125, 0.125])
    assert found["note"].startswith("not times of operations: the median latency of")
    assert f"{total / 1e6:.3f} ms over 7 inferences" in found["note"]


def test_compute_units_reach_the_plan(on_a_mac, package):
    found = on_a_mac(*package({"do": "ops", "slot": 0, "file": package()[1]["file"], "runs": 1}, units="cpu_only"))[-1]
    assert {op["where"] for op in found["ops"]} == {"CPU"}


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("network", "this Core ML model is no ML program, and only those are profiled"),
        ("free", "Core ML's plan holds no estimate of what an operation costs"),
    ],
)
def test_plans_that_tell_nothing(on_a_mac, package, plan, reason):
    found = on_a_mac(*package({"do": "ops", "slot": 0, "file": package()[1]["file"], "runs": 1}), PLAN=plan)[-1]
    assert (found["ops"], found["reason"]) == ([], reason)


def test_what_core_ml_rejects(on_a_mac, package, tmp_path):
    _, absent = on_a_mac(*package(file=tmp_path / "gone.mlpackage"))
    assert absent["rejected"] == "coreml rejects gone.mlpackage: cannot read gone.mlpackage"
    _, other = on_a_mac(*package(output="scores"))
    assert other["rejected"] == "coreml rejects model.mlpackage: it has no output scores; it has logits, classLabel"
    _, image = on_a_mac(*package(), KIND="imageType")
    assert "input 'image' is an image of 8-bit pixels" in image["rejected"]
    np.zeros((65, 3, 4, 4), np.float32).tofile(tmp_path / "image.bin")
    _, large = on_a_mac(*package(shape=(65, 3, 4, 4)))
    assert large["rejected"].endswith("MultiArray shape is not in the enumerated set of allowed shapes")


def test_the_stand_in_has_the_names_of_the_real_package():
    """What the session and the profile call is there, takes what they give, and returns what they read."""
    pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'trimtab[coreml]'")
    import coremltools
    from coremltools.models import MLModel, compute_device, compute_plan

    assert {"ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"} == {unit.name for unit in coremltools.ComputeUnit}
    assert {"model", "compute_units"} <= set(inspect.signature(MLModel.__init__).parameters)
    assert {"get_spec", "predict", "get_compiled_model_path"} <= set(dir(MLModel))
    plan = compute_plan.MLComputePlan
    assert list(inspect.signature(plan.load_from_path).parameters) == ["path", "compute_units"]
    assert {
        "model_structure",
        "get_compute_device_usage_for_mlprogram_operation",
        "get_estimated_cost_for_mlprogram_operation",
    } <= set(dir(plan))
    fields = {
        "MLModelStructureProgramOperation": {"operator_name", "outputs", "blocks"},
        "MLModelStructureProgramBlock": {"operations"},
        "MLModelStructureProgramFunction": {"block"},
        "MLModelStructureProgram": {"functions"},
        "MLModelStructure": {"program"},
        "MLComputePlanDeviceUsage": {"preferred_compute_device"},
        "MLComputePlanCost": {"weight"},
    }
    for name, wanted in fields.items():
        assert wanted <= set(getattr(compute_plan, name).__dataclass_fields__), name
    from trimtab.devices.ops_coreml import _PLACES

    assert set(_PLACES) <= set(dir(compute_device))


@elsewhere
def test_a_real_package_is_read_here_and_refused_when_it_is_to_run(exported_folder):
    """coremltools reads packages on every system; the model itself it runs on macOS alone."""
    pytest.importorskip("coremltools", reason="coremltools is not installed: pip install 'trimtab[coreml]'")
    folder = exported_folder("coreml")
    artifact = load_artifact(folder)
    stored = np.load(folder / "golden.npz", allow_pickle=False)
    image = stored["input:image"]
    session = runtimes.get("coreml").load(
        artifact.path(folder), artifact.contract, shapes={"image": image.shape}, threads=1, options=CARD.complete({})
    )
    with pytest.raises(RejectedError, match=r"coreml rejects model\.mlpackage: .*macOS"):
        session.run({"image": image})
    with pytest.raises(RejectedError, match=r"input 'image' is \(2, 5, 16, 16\)"):
        session.run({"image": np.zeros((2, 5, 16, 16), np.float32)})
    assert Path(session.path).name == "model.mlpackage"
