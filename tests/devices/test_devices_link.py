"""The wire to a runner: what comes through, and every way for the other end to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trimtab.devices.greeting import greeted, numbers, snapshot_of
from trimtab.devices.link import LinkLostError, ProcessLink, ending
from trimtab.devices.pack import pack
from trimtab.devices.runtime import RejectedError
from trimtab.export.manifest import UserError


def link_to(code, **more):
    """A link to a runner made of `code`, which finds `answer(object)` and the requests as `lines`."""
    start = (
        "import json, os, signal, sys, time\n"
        "lines = iter(sys.stdin.readline, '')\n"
        "def answer(told): print('@trimtab ' + json.dumps(told), flush=True)\n"
    )
    return ProcessLink([sys.executable, "-c", start + code], where="the board", **more)


@pytest.fixture
def closing():
    links = []
    yield lambda link: links.append(link) or link
    for link in links:
        link.close(grace_s=0)


def test_answers_come_through_whatever_else_is_printed(closing):
    link = closing(
        link_to(
            "print('Welcome to Debian'); print('no newline', end='')\nfor line in lines: print(); print('{}'); answer(json.loads(line))"
        )
    )
    assert link.ask({"do": "x", "name": "grün\n"}) == {"do": "x", "name": "grün\n"}
    assert link.ask({"do": "y" * 200_000})["do"] == "y" * 200_000


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        ({"kind": "rejected", "what": "litert rejects it", "hint": "export again"}, RejectedError, 1),
        ({"kind": "user", "what": "threads=9", "hint": "fewer"}, UserError, 2),
        ({"kind": "internal", "what": "KeyError: 'slot'", "hint": ""}, UserError, 1),
    ],
)
def test_errors_there_are_errors_here(closing, error, kind, code):
    link = closing(link_to(f"for line in lines: answer({{'error': {error!r}}})"))
    with pytest.raises(kind) as caught:
        link.ask({"do": "load"})
    assert (caught.value.what, caught.value.hint, caught.value.exit_code) == (error["what"], error["hint"], code)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("next(lines); sys.stderr.write('bad things\\n'); sys.exit(3)", r"the runner ended \(exit code 3\): bad things"),
        ("next(lines); os.kill(os.getpid(), signal.SIGKILL)", "the runner was killed, as the kernel does when memory runs out"),
        ("next(lines); os.kill(os.getpid(), signal.SIGSEGV)", r"the runner crashed \(SIGSEGV\)"),
        ("next(lines); print('@trimtab [1, 2'); time.sleep(60)", r"answered with what is no JSON object: b'\[1, 2'"),
        ("next(lines); print('@trimtab 7', flush=True); time.sleep(60)", "answered with what is no JSON object: b'7'"),
        ("sys.exit(0)", r"the runner ended \(exit code 0\)"),
    ],
)
def test_the_end_of_a_runner_in_words(closing, code, said):
    link = closing(link_to(code))
    with pytest.raises(LinkLostError, match=r"^the board") as caught:
        link.ask({"do": "time"})
        link.ask({"do": "time"})
    assert caught.match(said)
    with pytest.raises(LinkLostError):
        link.ask({"do": "again"})


def test_a_runner_that_hangs_is_left_after_the_time_out(closing):
    link = closing(link_to("time.sleep(600)"))
    begin = time.monotonic()
    with pytest.raises(LinkLostError, match=r"the board gave no answer to 'time' within 0 s"):
        link.ask({"do": "time"}, timeout_s=0.2)
    assert link.process.wait(timeout=30) != 0
    assert time.monotonic() - begin < 60


def test_a_flood_without_end_of_line_is_cut(closing, monkeypatch):
    from trimtab.devices import link as module

    monkeypatch.setattr(module, "LARGEST", 1 << 20)
    link = closing(link_to("next(lines)\nwhile True: sys.stdout.write('x' * 65536)"))
    with pytest.raises(LinkLostError, match="more than 1 MiB in one line"):
        link.ask({"do": "hello"})


def test_a_program_that_is_not_there():
    with pytest.raises(LinkLostError, match="the board: no-such-program could not be started: No such file"):
        ProcessLink(["no-such-program"], where="the board")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (137, "killed"),
        (-9, "killed"),
        (139, "crashed (SIGSEGV)"),
        (-4, "crashed (SIGILL)"),
        (255, "exit code 255"),
        (1, "exit code 1"),
    ],
)
def test_exit_codes_in_words(code, words):
    assert words in ending(code, [])


class Said:
    """A link that gives one answer."""

    def __init__(self, answer):
        self.answer = answer

    def ask(self, request, **more):
        return self.answer


def test_a_damaged_greeting_is_no_runner():
    with pytest.raises(UserError, match="speaks version 9 of the protocol, this trimtab 1"):
        greeted(Said({"protocol": 9}))
    with pytest.raises(LinkLostError, match="the runner's answer to 'hello' is damaged: runner"):
        greeted(Said({"protocol": 1}))
    with pytest.raises(LinkLostError, match="the runner's answer to 'snapshot' is damaged"):
        snapshot_of(Said({"snapshot": {"governor": {}}}))
    with pytest.raises(LinkLostError, match=r"asked for 2 times and answered '\[1\]'"):
        numbers({"ns": [1]}, 2)
    with pytest.raises(LinkLostError, match="asked for 1 times"):
        numbers({"ns": [float("nan")]}, 1)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed") / "runner.pyz")


def test_the_packed_runner_needs_nothing_of_ours(packed, onnx_folder, closing):
    """It runs in a Python that has numpy and one runtime, and fails to import anything else that is not the standard library's."""
    bar = (
        "import sys, runpy\n"
        "for name in ('pydantic', 'torch', 'scipy', 'psutil', 'filelock', 'onnx', 'typer', 'rich', 'cloudpickle'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = [sys.argv[1]]\n"
        "sys.path.insert(0, sys.argv[0])\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    link = closing(ProcessLink([sys.executable, "-c", bar, str(packed)], where="packed"))
    hello = greeted(link)
    assert hello.runtimes["onnxruntime"].version
    assert hello.usable_cores >= 1
    link.ask({"do": "open", "runtime": "onnxruntime", "threads": 1, "options": {}, "affinity": None})
    folder = onnx_folder()
    image = np.zeros((1, 3, 16, 16), np.float32)
    image.tofile(folder / "in.bin")
    port = [{"name": "image", "shape": ["N", 3, 16, 16], "dtype": "float32"}]
    loaded = link.ask(
        {
            "do": "load",
            "slot": 0,
            "file": str(folder / "model.onnx"),
            "inputs": port,
            "outputs": [{"name": "logits", "shape": ["N", 10], "dtype": "float32"}],
            "feeds": [{"image": {"file": str(folder / "in.bin"), "shape": [1, 3, 16, 16], "dtype": "float32"}}],
            "gaps": [1000],
        }
    )
    assert loaded["facts"]["runtime"] == "onnxruntime"
    assert len(link.ask({"do": "time", "order": [0, 0], "blocks": [1, 5], "warm": [1, 1]})["ns"]) == 2
    for request in (
        {"do": "no"},
        {"do": "time", "order": [7], "blocks": [1], "warm": [1]},
        {},
        {"do": "load"},
        {"do": "each", "slot": 4},
    ):
        with pytest.raises(UserError):
            link.ask(request)
    assert link.ask({"do": "snapshot"})["snapshot"]["load_average"]["value"] is not None  # and it still serves


@pytest.mark.parametrize(("version", "said"), [((3, 8), "needs Python 3.10 or newer, this is 3.8"), ((3, 12), "has no numpy")])
def test_an_unfit_python_says_so_as_an_answer(packed, version, said):
    code = (
        f"import runpy, sys; sys.version_info = {(*version, 0)!r}; sys.modules['numpy'] = None\n"
        f"runpy.run_path({str(packed)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout.removeprefix("@trimtab "))
    assert said in answer["error"]["what"]
    assert "--set python=" in answer["error"]["hint"]
    assert done.returncode == 3


def test_the_first_answer_of_an_unfit_runner_is_the_error(closing, packed):
    code = f"import runpy, sys; sys.modules['numpy'] = None; runpy.run_path({str(packed)!r}, run_name='__main__')"
    link = closing(ProcessLink([sys.executable, "-c", code], where="the board", env=dict(os.environ)))
    with pytest.raises(UserError, match="this Python has no numpy"):
        greeted(link)


@pytest.mark.parametrize("way", ["trimtab", "packed"])
def test_onnxruntime_reports_to_nobody(packed, tmp_path, way):
    """Its wheels leave a session file, a device id and a queue of events from their import on, unless they are told not to."""
    places = {name: str(tmp_path / name) for name in ("TMPDIR", "XDG_CACHE_HOME", "HOME")}
    for place in places.values():
        Path(place).mkdir()
    start = (
        "import trimtab"
        if way == "trimtab"
        else f"sys.path.insert(0, {str(packed)!r}); exec(Path({str(tmp_path / 'start')!r}).read_text())"
    )
    if way == "packed":
        with zipfile.ZipFile(packed) as archive:
            (tmp_path / "start").write_text(archive.read("__main__.py").decode().replace("main()", ""))
    code = f"import sys; from pathlib import Path; {start}; import onnxruntime, os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | places
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    left = [path.relative_to(tmp_path) for place in places.values() for path in Path(place).rglob("*")]
    assert not [path for path in left if ".ses" in path.name or "Microsoft" in path.parts]
