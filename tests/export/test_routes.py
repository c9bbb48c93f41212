"""Converters in environments of their own: how those are made and found, how scripts run in them, and what the routes write.

What needs no download runs always; the environments themselves, gigabytes from the package index, are made by the slow tests,
once, in the user's cache folder.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_convert import CONTRACT, lively
from test_onnx_precisions import images
from user_net import make

from trimtab.export.convert import module_source
from trimtab.export.exporter import ExportRequest, exporters
from trimtab.export.parity import run_in_layout, sqnr_db
from trimtab.export.routes import environment as environments
from trimtab.export.routes import tensorflow
from trimtab.export.routes.catalogue import ENVIRONMENTS, Environment
from trimtab.export.routes.conflicts import conflicts, distributions_of, refuse_conflicts
from trimtab.export.routes.environment import find, interpreter_for, python_of, setup
from trimtab.export.routes.flatbuffer import freed, named
from trimtab.export.routes.litert_torch import export_litert_torch
from trimtab.export.routes.process import run_script
from trimtab.export.routes.scripts.tf_ops import TABLE
from trimtab.export.routes.tensorflow import export_tensorflow, saved_model
from trimtab.export.tflite.exporter import nhwc
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError


@pytest.fixture(scope="module")
def source():
    return module_source(lively(make()), CONTRACT, label="user")


def request(source, precision, out, **given):
    return ExportRequest(source.contract, precision, out, graph=source.graph, module=source.module, **given)


def decibels(source, facts, path, batch, seed=5):
    """The SQNR of the file's logits against the module's, on smooth pictures."""
    inputs = {"image": images(batch, seed=seed)}
    runner = exporters.get("tflite").runner(path, facts.contract)
    got = run_in_layout(runner, inputs, module=source.contract, artifact=facts.contract)
    return sqnr_db(source.reference(inputs)["logits"], got["logits"])


# --- environments


@pytest.fixture
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trimtab" / "environments"


def made_up(requirements, **changed):
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    given = {"name": "made-up", "purpose": "a test", "pythons": (mine,), "size_gb": 0.02, "modules": ("tiny",), **changed}
    return Environment(requirements=tuple(map(str, requirements)), **given)


@pytest.fixture
def wheel(tmp_path):
    """A wheel of one module, that pip installs without any index."""
    path = tmp_path / "tiny-1.5-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.5\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "NUMBER = 7\n")
        archive.writestr("tiny-1.5.dist-info/METADATA", about)
        archive.writestr("tiny-1.5.dist-info/WHEEL", kind)
        archive.writestr("tiny-1.5.dist-info/RECORD", "")
    return path


def test_other_requirements_another_folder(private_cache):
    one, same, other = made_up(["a==1"]), made_up(["a==1"]), made_up(["a==2"])
    assert one.place == same.place != other.place
    assert one.place.parent == private_cache
    assert one.place.name.startswith("made-up-")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_missing_environment_says_how_it_is_made(private_cache, name):
    with pytest.raises(UserError, match=f"the environment {name} is not set up on this machine") as caught:
        find(name)
    assert caught.value.hint.startswith(f"trimtab export --setup {name} (about ")
    (private_cache / ENVIRONMENTS[name].place.name).mkdir(parents=True)  # a folder alone is not a finished environment
    with pytest.raises(UserError, match="not there or not whole"):
        find(name)
    with pytest.raises(UserError, match="there is no environment 'tensorflo'") as caught:
        find("tensorflo")
    assert "'tensorflow'" in caught.value.hint


@pytest.mark.parametrize("known", ENVIRONMENTS.values(), ids=list(ENVIRONMENTS))
def test_every_requirement_is_pinned(known):
    assert all(requirement.count("==") == 1 for requirement in known.requirements)
    assert known.pythons
    assert known.size_gb > 0


def test_an_environment_is_made_once_and_recorded(private_cache, wheel, monkeypatch):
    wanted = made_up([wheel])
    monkeypatch.setitem(ENVIRONMENTS, "made-up", wanted)
    lines = []
    place = setup("made-up", log=lines.append)
    assert place == wanted.place == find("made-up")
    assert any("tiny" in line for line in lines)
    ready = place / "ready.json"
    record = json.loads(ready.read_text())
    assert record["versions"]["tiny"] == "1.5"
    assert environments.versions("made-up")["tiny"] == "1.5"
    assert record["python"].startswith(wanted.pythons[0])
    before = ready.stat().st_mtime_ns
    assert setup("made-up") == place
    assert ready.stat().st_mtime_ns == before
    ready.unlink()  # as if it had been killed before its end
    (place / "left over").touch()
    setup("made-up")
    assert ready.exists()
    assert not (place / "left over").exists()
    with monkeypatch.context() as patch:
        patch.setattr(environments, "interpreter_for", lambda wanted: Path("/no/python"))
        assert setup("made-up") == place
        with pytest.raises(FileNotFoundError, match="/no/python"):
            setup("made-up", force=True)
    with pytest.raises(UserError, match="not there or not whole"):  # what was to be made anew is gone
        find("made-up")


def test_what_fails_while_it_is_made(private_cache, wheel, monkeypatch):
    for wanted, message in (
        (made_up([wheel.with_name("absent-1-py3-none-any.whl")]), r"pip can't install made-up \(exit code 1\)"),
        (
            made_up([wheel], modules=("tiny", "missing_one")),
            "made-up, just installed: ModuleNotFoundError: No module named 'missing_one'",
        ),
        (made_up([wheel], size_gb=1e9), "GB free; made-up takes about"),
    ):
        monkeypatch.setitem(ENVIRONMENTS, "made-up", wanted)
        with pytest.raises(UserError, match=message) as caught:
            setup("made-up")
        assert not (wanted.place / "ready.json").exists()
        if "pip" in message:
            assert "absent-1-py3-none-any.whl" in caught.value.hint


def test_two_processes_do_not_make_the_same_one(private_cache, wheel, monkeypatch):
    from filelock import FileLock

    wanted = made_up([wheel])
    monkeypatch.setitem(ENVIRONMENTS, "made-up", wanted)
    private_cache.mkdir(parents=True)
    with FileLock(private_cache / f"{wanted.place.name}.lock"), pytest.raises(UserError, match="another process is setting up"):
        setup("made-up")


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins for Python are shell scripts")
def test_another_python_is_looked_for_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = made_up([], pythons=("2.5", "2.6"))
    with pytest.raises(UserError, match=r"exist for Python 2\.5 or 2\.6; this is Python 3") as caught:
        interpreter_for(wanted)
    assert caught.value.hint.startswith("install Python 2.6")

    def program(name, text):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    program("python2.6", "exit 127")  # a version manager's stand-in for one that is not installed
    works = program("python2.5", f'exec {sys.executable} "$@"')
    assert interpreter_for(wanted) == works
    assert interpreter_for(made_up([])) == Path(sys.executable)


# --- scripts in another Python


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of a virtual environment with nothing in it."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=120)
    return python_of(place)


def run(bare, folder, body, *, seconds=60.0, **job):
    script = folder / "script_under_test.py"
    script.write_text(body)
    return run_script(bare, script, job, seconds=seconds, label="made-up")


def test_a_script_gets_its_job_and_gives_a_result(bare, tmp_path):
    (tmp_path / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    body = "from .beside import double\ndef main(job):\n    print('noise')\n    return {'out': double(job['number'])}\n"
    assert run(bare, tmp_path, body, number=21) == {"out": 42}


def test_it_sees_none_of_our_packages(bare, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    body = (
        "import importlib.util, sys\n"
        "def main(job):\n"
        "    found = [name for name in job['names'] if importlib.util.find_spec(name)]\n"
        "    return {'found': found, 'prefix': sys.prefix}\n"
    )
    told = run(bare, tmp_path, body, names=["trimtab", "numpy", "torch", "user_net"])
    assert told["found"] == []
    assert Path(told["prefix"]).resolve() == bare.parent.parent.resolve()


CRASH = "import os\ndef main(job):\n    os.write(2, b'about to fall\\n')\n    os.kill(os.getpid(), 11)\n"
LEAVE = "import os\ndef main(job):\n    os._exit(3)\n"
FAIL = "def main(job):\n    raise KeyError('Foo')\n"
REFUSE = "class RefusedError(Exception):\n    pass\ndef main(job):\n    raise RefusedError('no Foo', 'use Bar')\n"
ABSENT = "import absent\n"


@pytest.mark.parametrize(
    ("body", "message", "hint", "code"),
    [
        (CRASH, "crashed with SIGSEGV", "about to fall", 1),
        (LEAVE, r"ended without a result \(exit code 3\)", "it said nothing", 1),
        (FAIL, "KeyError: 'Foo'", "in main", 1),
        (REFUSE, "made-up: no Foo", "use Bar", 2),
        (ABSENT, "ModuleNotFoundError: No module named 'absent'", "it ended with", 1),
    ],
    ids=["crash", "exit", "exception", "refusal", "import"],
)
@pytest.mark.skipif(os.name == "nt", reason="crashes are told by signals")
def test_every_bad_end_is_an_error_in_words(bare, tmp_path, body, message, hint, code):
    with pytest.raises(UserError, match=message) as caught:
        run(bare, tmp_path, body)
    assert hint in caught.value.hint
    assert caught.value.exit_code == code


def test_it_is_stopped_with_its_children_when_its_time_is_up(bare, tmp_path):
    note = tmp_path / "child"
    body = (
        "import pathlib, subprocess, sys, time\n"
        "def main(job):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    pathlib.Path(job['note']).write_text(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    with pytest.raises(UserError, match="made-up: not finished after 3 s, and stopped"):
        run(bare, tmp_path, body, seconds=3.0, note=str(note))
    pid = int(note.read_text())
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


# --- packages that don't go together


class Package:
    def __init__(self, version, *requires):
        self.version, self.requires = version, list(requires)


def test_conflicts_are_found_through_what_packages_require():
    there = {
        "converter": Package(
            "2.0", "Proto_Buf<4,>=3.18", "helper", 'only-elsewhere; sys_platform == "plan9"', 'docs; extra == "doc"'
        ),
        "helper": Package("1.1", "numpy<2.0"),
        "proto-buf": Package("7.36.2"),
        "numpy": Package("2.3.5"),
        "bystander": Package("1", "numpy<1"),
    }
    found = [str(conflict) for conflict in conflicts(["Converter"], there)]
    assert found == [
        "converter 2.0 requires Proto_Buf<4,>=3.18, and 7.36.2 is installed",
        "helper 1.1 requires numpy<2.0, and 2.3.5 is installed",
    ]
    del there["helper"]
    assert "requires helper, and it is not installed" in str(conflicts(["converter"], there)[1])
    assert conflicts(["numpy"], there) == []


def test_a_conflict_is_refused_with_the_line_that_mends_it(tmp_path, monkeypatch):
    for name, version, requires in (("oldish", "0.4", "numpy<1.20"), ("needy", "1", "oldish>=2")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    assert distributions_of(["needy", "no_such_module"]) == ["needy"]
    with pytest.raises(UserError, match=r"needy 1 requires oldish>=2, and 0\.4 is installed") as caught:
        refuse_conflicts(["needy"])
    assert caught.value.hint == "pip install 'oldish>=2' 'numpy<1.20'"


def test_what_the_formats_need_goes_together_here():
    for entry in exporters:
        if not entry.card.missing():
            assert refuse_conflicts(entry.card.packages) is None


# --- what routes do without an environment


def test_a_file_gets_the_contracts_names(source, tmp_path):
    facts = exporters.get("tflite").export(request(source, "fp32", tmp_path / "a.tflite"))
    data = (tmp_path / "a.tflite").read_bytes()
    specs = {
        side: (getattr(facts.contract, side)[0].model_copy(update={"name": name}),)
        for side, name in (("inputs", "x"), ("outputs", "a b"))
    }
    renamed = facts.contract.model_copy(update=specs)
    made = named(data, renamed, inputs={"image": "x"}, outputs={"logits": "a b"}, by="a test")
    assert made.ops == facts.ops
    assert made.contract == renamed
    (tmp_path / "b.tflite").write_bytes(made.data)
    x = facts.contract.random_inputs({"N": 2}, seed=1)["image"]
    before = exporters.get("tflite").runner(tmp_path / "a.tflite", facts.contract)({"image": x})["logits"]
    after = exporters.get("tflite").runner(tmp_path / "b.tflite", renamed)({"x": x})["a b"]
    np.testing.assert_array_equal(before, after)
    with pytest.raises(UserError, match="a test wrote a tensor 'image' that the contract does not know"):
        named(data, renamed, inputs={}, outputs={"logits": "a b"}, by="a test")


def test_a_traced_batch_is_freed(source, tmp_path):
    fixed = CONTRACT.model_copy(
        update={
            side: tuple(spec.model_copy(update={"shape": (23, *spec.shape[1:])}) for spec in getattr(CONTRACT, side))
            for side in ("inputs", "outputs")
        }
    )
    traced = module_source(source.module, fixed, label="traced")
    facts = exporters.get("tflite").export(request(traced, "fp32", tmp_path / "fixed.tflite"))
    assert facts.ops["RESHAPE"] >= 1
    (tmp_path / "free.tflite").write_bytes(freed((tmp_path / "fixed.tflite").read_bytes(), 23))
    facts = dataclasses.replace(facts, contract=nhwc(CONTRACT))
    with pytest.raises(UserError, match="LiteRT cannot run"):
        decibels(source, facts, tmp_path / "fixed.tflite", 3)
    assert min(decibels(source, facts, tmp_path / "free.tflite", batch) for batch in (1, 3, 23)) >= 90


def test_operators_without_kernels_are_refused(source, tmp_path):
    from ai_edge_litert import schema_py_generated as schema

    from trimtab.export.tflite.writer import packed, unpacked

    exporters.get("tflite").export(request(source, "fp32", tmp_path / "a.tflite"))
    model = unpacked((tmp_path / "a.tflite").read_bytes())
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].customCode = "FlexErf"
    with pytest.raises(UserError, match="plain LiteRT cannot run: FlexErf"):
        named(packed(model), CONTRACT, inputs={"image": "image"}, outputs={"logits": "logits"}, by="a test")


def test_what_litert_torch_cannot_do_is_said_first(source, tmp_path, private_cache):
    out = tmp_path / "model.tflite"
    with pytest.raises(UserError, match="litert-torch writes fp32 only, not int8"):
        export_litert_torch(request(source, "int8", out))
    with pytest.raises(UserError, match="starts from a torch module"):
        export_litert_torch(ExportRequest(CONTRACT, "fp32", out, graph=source.graph))
    free = image_classifier(channels=3, height="H", width="W", classes=tuple("ab"), mean=(), std=())
    with pytest.raises(UserError, match="can't leave H and W free"):
        export_litert_torch(ExportRequest(free, "fp32", out, module=source.module))
    with pytest.raises(UserError, match="the environment litert-torch is not set up"):
        export_litert_torch(request(source, "fp32", out))


def test_what_tensorflow_cannot_do_is_said_first(source, tmp_path, private_cache, monkeypatch):
    out = tmp_path / "model.tflite"
    for precision, given, message in (
        ("int16x8", {}, "no precision 'int16x8'"),
        ("int8", {}, "takes int8's ranges from real inputs, and there are none"),
        ("fp32", {"io": "int8"}, "int8 inputs and outputs go with int8 alone"),
    ):
        with pytest.raises(UserError, match=message):
            export_tensorflow(request(source, precision, out), **given)
    with pytest.raises(UserError, match="a SavedModel is written as fp32, not fp16"):
        saved_model(request(source, "fp16", out))
    with pytest.raises(UserError, match="the environment tensorflow is not set up"):
        export_tensorflow(request(source, "fp32", out))
    monkeypatch.setattr(tensorflow, "TABLE", {kind: call for kind, call in TABLE.items() if kind not in ("MEAN", "LOGISTIC")})
    with pytest.raises(UserError, match=r"no TensorFlow call for LOGISTIC \(1×\), MEAN \(2×\)"):
        export_tensorflow(request(source, "fp32", out))
