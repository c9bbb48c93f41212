"""The C runner against the Python one on the same artifacts, against junk (with sanitizers), and how it is built."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from native_kit import OPEN, SANITIZE, asked, host_argv, make_nets, staged

from trimtab.devices import native_build, native_wheel
from trimtab.devices.device import Item, Job
from trimtab.devices.job import run_job
from trimtab.devices.link import ProcessLink
from trimtab.devices.linked import Linked
from trimtab.export.manifest import LogProgress, UserError

PYTHON = [sys.executable, "-m", "trimtab.devices.runner"]


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    return make_nets(tmp_path_factory.mktemp("nets"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    return host_argv(tmp_path_factory.mktemp("sanitized"), *SANITIZE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return host_argv(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def net(nets, tflite_folder, tmp_path):
    """By its name a network, staged; "dense" has a free batch and golden outputs of two samples."""
    return lambda name: staged(tflite_folder() if name == "dense" else nets[name], tmp_path / f"staged-{name}")


def both(argv, requests):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return asked(argv, requests), asked(PYTHON, requests, env=environment)


@pytest.mark.parametrize("name", ["dense", "fp32", "int8", "two"])
@pytest.mark.parametrize("delegate", ["xnnpack", "none"])
def test_it_answers_as_the_python_runner_does(sanitized, net, name, delegate):
    loaded = net(name)
    requests = [
        {"do": "hello"},
        {**OPEN, "options": {"delegate": delegate}},
        loaded.load,
        loaded.check,
        {"do": "time", "order": [0, 0, 0], "blocks": [1, 2, 3], "warm": [1, 0, 8]},
        {"do": "each", "slot": 0, "repeats": 3},
        {"do": "ops", "slot": 0, "file": loaded.load["file"], "runs": 5},
        {"do": "snapshot"},
        {"do": "drop"},
    ]
    ours, theirs = both(sanitized, requests)
    for answer, other, request in zip(ours, theirs, requests, strict=True):
        assert "error" not in answer, answer
        assert answer.keys() == other.keys(), request["do"]
    assert ours[0]["machine"].keys() == theirs[0]["machine"].keys()
    assert ours[0]["usable_cpus"] == theirs[0]["usable_cpus"]
    assert ours[1] == theirs[1]  # the same version, the same CPUs
    facts, other = ours[2]["facts"], theirs[2]["facts"]
    assert facts.keys() == other.keys()
    assert (facts["runtime"], facts["threads"], facts["provider"]) == ("litert", 1, other["provider"])
    assert facts["hints"]["fully_delegated"] == ("yes" if delegate == "xnnpack" else "no")
    assert ours[2]["load_ns"] > 0
    assert ours[2]["first_ns"] > 0
    for row, same in zip(ours[3]["outputs"], theirs[3]["outputs"], strict=True):
        assert (row["name"], row["shape"], row["finite"]) == (same["name"], same["shape"], True)
        assert row["signal"] == pytest.approx(same["signal"], rel=1e-9)  # the same sum in another order
        assert row["max_abs_error"] == pytest.approx(same["max_abs_error"], abs=1e-5)  # the same kernels in the same library
    assert len(ours[4]["ns"]) == 3
    assert min(ours[4]["ns"]) > 0
    assert len(ours[5]["ns"]) == 1
    assert {op["where"] for op in ours[6]["ops"]} == {"XNNPACK" if delegate == "xnnpack" else "LiteRT kernel"}
    for op, same in zip(ours[6]["ops"], theirs[6]["ops"], strict=True):
        assert (op["name"], op["kind"], op["where"]) == (same["name"], same["kind"], same["where"])


@pytest.mark.parametrize("samples", [2, 4, 10])
def test_samples_of_any_number_give_what_the_python_runner_gives(sanitized, net, tmp_path, samples):
    loaded = net("dense")
    given = np.random.default_rng(samples).normal(size=(samples, 64)).astype(np.float32)
    given.tofile(tmp_path / "given.bin")
    feed = {"features": {"file": str(tmp_path / "given.bin"), "shape": [samples, 64], "dtype": "float32"}}
    found = []
    for argv, out in ((sanitized, "c.bin"), (PYTHON, "python.bin")):
        run = {"do": "run", "slot": 0, "feed": feed, "out": {"scores": str(tmp_path / out)}}
        answers = asked(argv, [OPEN, loaded.load, run, loaded.check], env=dict(os.environ))
        assert answers[2] == {"outputs": {"scores": {"shape": [samples, 10], "dtype": "float32"}}}
        assert answers[3]["outputs"][0]["max_abs_error"] < 1e-4  # what was bound before is bound again
        found.append(np.fromfile(tmp_path / out, np.float32))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)  # float32 sums over 64 products


def test_several_inputs_are_run_in_turn(sanitized, net):
    loaded = net("fp32")
    load = {**loaded.load, "feeds": loaded.load["feeds"] * 3}
    answers = asked(
        sanitized,
        [OPEN, load, {"do": "each", "slot": 0, "repeats": 5}, {"do": "time", "order": [0], "blocks": [4], "warm": [1]}],
    )
    assert len(answers[2]["ns"]) == 3
    assert answers[3]["ns"][0] > 2 * min(answers[2]["ns"])  # one call makes three inferences


def test_a_job_runs_over_it(plain, nets, tmp_path):
    class Native(Linked):
        def prepare(self, say):
            """Nothing."""

        def put(self, source, place):
            return str(source)

        def link(self):
            return ProcessLink(plain, where=self.name)

        def collect(self, place, target):
            return target

        def close(self):
            """Nothing."""

    items = []
    for name in ("fp32", "int8"):
        folder = tmp_path / name
        staged(nets[name], folder)
        items.append(Item(folder=str(folder), place=str(folder), label=name, dims={"N": 1}))
    device = Native("native")
    assert device.offers()["litert"].missing == ""
    result = run_job(Job(runtime="litert", items=tuple(items), budget_s=2.0, preset="quick", ops=5), device, LogProgress())
    assert [entry.label for entry in result.measurements] == ["fp32", "int8"]
    assert all(entry.outputs_ok for entry in result.measurements)
    assert result.measurements[0].conditions.runtime_version == native_wheel.litert_version()
    assert [bool(entry.ops) for entry in result.ops] == [True, True]


JUNK = [
    ("", "internal"),
    ("{", "internal"),
    ("[1, 2", "internal"),
    ("nul", "internal"),
    ('{"do": "hello"} {}', "internal"),
    ('{"do": "hello", "x": "\\ud800"}', "internal"),
    ('{"do": "hello", "x": 1e999}', "internal"),
    ("[" * 10_000, "internal"),
    ('"' + "a" * 100_000, "internal"),
    ("[]", "user"),
    ({"do": 7}, "user"),
    ({"do": "dance"}, "user"),
    ({"do": "load"}, "user"),
    ({"do": "open"}, "internal"),
    ({**OPEN, "runtime": "onnxruntime"}, "user"),
    ({**OPEN, "threads": 0}, "user"),
    ({**OPEN, "threads": 10_000}, "user"),
    ({**OPEN, "threads": 1.5}, "internal"),
    ({**OPEN, "affinity": []}, "user"),
    ({**OPEN, "affinity": [-1]}, "user"),
    ({**OPEN, "affinity": [1 << 20]}, "user"),
    ({**OPEN, "affinity": "all"}, "internal"),
    ({**OPEN, "options": {"delegate": "gpu"}}, "user"),
    ({**OPEN, "options": {"speed": "high"}}, "user"),
    ({"do": "check", "slot": 3, "expect": []}, "user"),
    ({"do": "time", "order": [9], "blocks": [1], "warm": [1]}, "user"),
    ({"do": "time", "order": [9], "blocks": [], "warm": [1]}, "internal"),
    ({"do": "run", "slot": 9, "feed": {}, "out": {}}, "user"),
]


def test_junk_is_answered_and_the_next_request_is_served(sanitized):
    answers = asked(sanitized, [*(line for line, _ in JUNK), {"do": "hello"}])
    assert [answer["error"]["kind"] for answer in answers[:-1]] == [kind for _, kind in JUNK]
    assert answers[-1]["protocol"] == 1


def test_requests_that_do_not_fit_the_artifact(sanitized, net, tmp_path):
    loaded = net("fp32")
    load, junk = loaded.load, tmp_path / "junk.tflite"
    junk.write_bytes(b"this is no model" * 100)
    short = tmp_path / "short.bin"
    short.write_bytes(b"12")
    feed = load["feeds"][0]["image"]
    (port,) = load["inputs"]
    wrong = [
        ({**load, "file": str(junk)}, "rejected"),
        ({**load, "file": str(tmp_path / "nothing.tflite")}, "rejected"),
        ({**load, "inputs": [{**port, "name": "picture"}], "feeds": [{"picture": feed}]}, "rejected"),
        ({**load, "inputs": [{**port, "dtype": "int32"}]}, "rejected"),
        ({**load, "inputs": [{**port, "dtype": "complex64"}]}, "rejected"),
        ({**load, "outputs": [{**load["outputs"][0], "name": "words"}]}, "rejected"),
        ({**load, "feeds": [{"image": {**feed, "shape": [1, 5, 5, 3], "file": str(short)}}]}, "internal"),
        ({**load, "feeds": [{"image": {**feed, "file": str(tmp_path / "nothing.bin")}}]}, "user"),
        ({**load, "feeds": [{"image": {**feed, "shape": [-1, 24, 24, 3]}}]}, "internal"),
        ({**load, "feeds": [{"image": {**feed, "shape": [2**31 - 1] * 8}}]}, "internal"),
        ({**load, "feeds": [{"image": {**feed, "shape": [1] * 9}}]}, "internal"),
        ({**load, "feeds": []}, "internal"),
        ({**load, "gaps": [-5]}, "internal"),
    ]
    answers = asked(sanitized, [OPEN, *(request for request, _ in wrong), load, loaded.check])
    assert [answer["error"]["kind"] for answer in answers[1:-2]] == [kind for _, kind in wrong]
    assert "junk.tflite" in answers[1]["error"]["what"]
    assert answers[-1]["outputs"][0]["finite"] is True


def test_a_reading_of_wrong_outputs_is_told_as_it_is(sanitized, net, tmp_path):
    loaded = net("dense")
    row = loaded.check["expect"][0]
    np.full((2, 10), np.nan, np.float32).tofile(tmp_path / "nan.bin")
    expect = [{**row, "file": str(tmp_path / "nan.bin")}, {**row, "shape": [10, 2]}]
    first, second = asked(sanitized, [OPEN, loaded.load, {"do": "check", "slot": 0, "expect": expect}])[2]["outputs"]
    assert first == {"name": "scores", "shape": [2, 10], "finite": False}
    assert second == {"name": "scores", "shape": [2, 10]}


def test_damaged_requests_never_bring_it_down(sanitized, net):
    loaded, rng = net("dense"), random.Random(4)
    sound = [json.dumps(request) for request in (OPEN, loaded.load, loaded.check, {"do": "each", "slot": 0, "repeats": 2})]
    damaged = []
    for _ in range(300):
        line = list(rng.choice(sound))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(line))
            line[place : place + rng.randint(0, 3)] = rng.choice(
                ['"', "{", "[", "]", "}", ",", ":", "\\", "\\u12", "-", "9", "e", "é", " ", "null"]
            )
        damaged.append("".join(line).replace("\n", " "))
    answers = asked(sanitized, [*sound, *damaged, OPEN, loaded.load, loaded.check])
    assert answers[-1]["outputs"][0]["max_abs_error"] < 1e-4
    assert sum("error" in answer for answer in answers) > 200


def test_a_library_that_is_not_there_is_a_missing_runtime(plain):
    hello, opened = asked([plain[0], "/nowhere/libLiteRt.so"], [{"do": "hello"}, OPEN])
    (missing,) = hello["runtimes"]["litert"]["missing"]
    assert "/nowhere/libLiteRt.so" in missing
    assert opened["error"]["kind"] == "user"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/trimtab/native"


def test_two_processes_build_at_once(cache):
    if gone := native_build.missing_for_host():
        pytest.skip(f"the C runner can't be built here: {native_build.install_hint(gone)}")
    code = "from trimtab.devices.native_build import host_bundle; print(host_bundle().folder)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len({out for out, _ in said}) == 1
    assert sorted(path.name for path in Path(said[0][0].strip()).iterdir()) == ["runner"]
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(said[0][0].strip()).name]


def test_what_must_be_installed_first_is_named(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native_build, "ARM_LIBRARIES", tmp_path)
    with pytest.raises(UserError, match="gcc, libc6-dev, not installed") as caught:
        native_build.host_bundle()
    assert caught.value.hint.endswith("apt-get install gcc libc6-dev")
    with pytest.raises(UserError, match="gcc-aarch64-linux-gnu, libc6-dev-arm64-cross") as caught:
        native_build.set_up(pytest.fail)
    assert "apt-get install gcc-aarch64-linux-gnu" in caught.value.hint
    with pytest.raises(UserError, match="not set up") as caught:
        native_build.arm64_bundle()
    assert caught.value.hint == "trimtab devices setup arm64"


def test_a_failed_download_leaves_nothing_and_says_what_pip_said(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="pip could not download ai-edge-litert"):
        native_wheel.fetch_library(cache / "litert", lambda line: None)
    assert not list(cache.glob("*"))


@pytest.mark.parametrize(
    ("name", "member", "data", "said"),
    [
        (
            "ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_x86_64.whl",
            native_wheel.MEMBER,
            b"",
            "not ai-edge-litert 2.3.0 for aarch64",
        ),
        ("ai_edge_litert-9.9.9-cp311-cp311-manylinux_2_27_aarch64.whl", native_wheel.MEMBER, b"", "not ai-edge-litert 2.3.0"),
        ("ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_aarch64.whl", "other.so", b"", "has no ai_edge_litert/libLiteRt.so"),
        (
            "ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_aarch64.whl",
            native_wheel.MEMBER,
            b"\x7fELF" + bytes(60),
            "no library for 64-bit Arm",
        ),
    ],
)
def test_a_wheel_that_is_something_else_is_refused(tmp_path, name, member, data, said):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr(member, data)
    with pytest.raises(UserError, match=said):
        native_wheel.library_in(tmp_path / name, "2.3.0")
