"""The life of a page: second tabs, closed tabs, hidden pages, and what a page counts with."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from browser_kit import open_device

from trimtab.devices.browser.device import BrowserConfig, BrowserDevice
from trimtab.devices.browser.link import PageLink
from trimtab.devices.job import load_request
from trimtab.devices.link import LinkLostError
from trimtab.devices.remote import remote_runner
from trimtab.devices.staging import at as files_at
from trimtab.devices.staging import read_staged
from trimtab.export.manifest import GOLDEN, UserError


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a device's page and closes the device at the end."""
    made = []

    def open_it(folder):
        made.append(open_device(browser, folder, into=tmp_path / "staged"))
        return made[-1]

    yield open_it
    for entry in made:
        entry.device.close()


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_any_number_of_samples_runs_there(opened, onnx_folder, tflite_folder, kind):
    folder = onnx_folder() if kind == "onnx" else tflite_folder()
    at = opened(folder)
    golden = dict(np.load(folder / GOLDEN, allow_pickle=False))
    (given,) = (value for key, value in golden.items() if key.startswith("input:"))
    (want,) = (value for key, value in golden.items() if key.startswith("output:"))
    name, out = ("image", "logits") if kind == "onnx" else ("features", "scores")
    with remote_runner(at.device, at.job, at.item) as run:
        for rows in ([0, 1, 1, 0, 0], [1], [1, 0]):  # again and again through files of the same names
            got = run({name: given[rows]})[out]
            np.testing.assert_allclose(got, want[rows], atol=1e-4)  # float32, sums of up to 64 products of the order of 1
    assert list(at.device.shelf.folder.iterdir()) == []  # what was collected is not kept


def test_a_second_tab_is_told_so_and_a_closed_one_makes_room(opened, browser, onnx_folder):
    at = opened(onnx_folder())
    second = browser.open(at.device.server.url())
    second.wait_for("#state", "another tab or device runs this job already")
    assert set(at.device.offers()) == {"onnxruntime-web", "litert-web"}  # the first one still works
    at.tab.close()
    with pytest.raises(LinkLostError, match="the page was closed or reloaded"):
        at.device.link().ask({"do": "snapshot"}, timeout_s=30)
    third = browser.open(at.device.server.url())
    third.wait_for("#state", "connected")
    told = at.device.link().ask({"do": "snapshot"}, timeout_s=30)["snapshot"]
    assert told["governor"]["reason"] == "a page is not told the governor"
    at.device.close()
    third.wait_for("#state", "done")


def test_every_job_starts_in_a_fresh_page(opened, onnx_folder):
    at = opened(onnx_folder())
    link = at.device.link()
    at.tab.evaluate("globalThis.mark = 1")
    link.ask({"do": "snapshot"})
    again = at.device.link()  # as for the next job
    again.ask({"do": "snapshot"})
    assert at.tab.evaluate("globalThis.mark === undefined")


SET = (
    "Object.defineProperty(document, 'visibilityState', {{value: '{}', configurable: true}});"
    "document.dispatchEvent(new Event('visibilitychange'))"
)
HIDE, SHOW = SET.format("hidden"), SET.format("visible")


def test_a_hidden_page_times_nothing_until_it_is_back(opened, onnx_folder):
    at, heard, told = opened(onnx_folder()), [], []
    at.device.desk.say = heard.append
    with remote_runner(at.device, at.job, at.item):  # leaves the artifact in slot 0
        link = PageLink(at.device.desk, at.device.shelf, backend="wasm", titles={})
        at.tab.evaluate(HIDE)
        request = {"do": "time", "order": [0], "blocks": [5], "warm": [1]}
        worker = threading.Thread(target=lambda: told.append(link.ask(request, timeout_s=60)))
        worker.start()
        at.tab.wait_for("#note", "in the background")
        worker.join(0.5)
        assert worker.is_alive()
        at.tab.evaluate(SHOW)
        worker.join(60)
        assert told[0]["ns"][0] > 0
        assert any("bring it back to the front" in line for line in heard)
        at.device.desk.hidden_s = 0.2
        at.tab.evaluate(HIDE)
        with pytest.raises(LinkLostError, match="was in the background") as caught:
            link.ask(request, timeout_s=60)
        assert "keep the page in front" in caught.value.hint
        at.tab.evaluate(SHOW)


def test_what_was_timed_while_the_page_was_hidden_is_timed_again(opened, onnx_folder):
    at = opened(onnx_folder())
    with remote_runner(at.device, at.job, at.item):
        turns = at.tab.evaluate(
            """async () => {
                const { Runner } = await import("./runner.js");
                let hidden = 0, turns = 0;
                const runner = new Runner({ seen: async () => hidden });
                await runner.inFront(async () => { if (turns++ < 2) hidden++; });
                return turns;
            }"""
        )
    assert turns == 3  # hidden during the first two


def test_a_page_that_dies_without_a_word_is_lost(opened, onnx_folder):
    at = opened(onnx_folder())
    at.device.desk.silence_s = 1.0
    at.tab.evaluate("navigator.sendBeacon = () => true")  # as when the system kills the browser
    at.tab.close()
    with pytest.raises(LinkLostError, match="the page has told nothing for 1 s"):
        at.device.link().ask({"do": "snapshot"}, timeout_s=60)


def test_settings_that_a_page_cannot_meet(opened, onnx_folder):
    at = opened(onnx_folder())
    opening = {"do": "open", "runtime": "onnxruntime-web", "threads": 1, "options": {}, "affinity": None}
    for change, said in [
        ({"threads": 1000}, "threads=1000 is outside 1…"),
        ({"affinity": [0, 1]}, "a page can't choose its CPUs"),
        ({"options": {"backend": "npu"}}, "option backend cannot be npu"),
        ({"threads": 2, "options": {"backend": "webgpu"}}, "the GPU does the work"),
        ({"runtime": "tfjs"}, "this page has no runtime tfjs"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            PageLink(at.device.desk, at.device.shelf, backend="wasm", titles={}).ask({**opening, **change})
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_a_software_gpu_is_verified_and_marked_as_emulated(opened, onnx_folder, tflite_folder, kind):
    """A functional check: what SwiftShader takes is no GPU's time."""
    at = opened(onnx_folder() if kind == "onnx" else tflite_folder())
    link = PageLink(at.device.desk, at.device.shelf, backend="webgpu", titles={})
    assert link.ask({"do": "hello"})["machine"]["emulated"] is True
    link.ask({"do": "open", "runtime": at.job.runtime, "threads": 1, "options": {"backend": "webgpu"}, "affinity": None})
    staged, place = read_staged(Path(at.item.folder)), at.item.place
    loaded = link.ask({**load_request(staged, place), "slot": 0, "gaps": [], "feeds": [files_at(place, staged.golden)]})
    assert "swiftshader" in loaded["facts"]["provider"]
    assert "outputs copied back" in loaded["facts"]["timed_region"]
    expect = [{**row, "file": f"{place}/{row['file']}"} for row in staged.expected]
    (row,) = link.ask({"do": "check", "slot": 0, "expect": expect})["outputs"]
    assert row["finite"]
    assert row["max_abs_error"] < 1e-3  # float32, sums of up to 64 products of the order of 1 in another order
    told = link.ask({"do": "ops", "slot": 0, "file": f"{place}/{staged.file}", "runs": 2})
    assert (told["ops"], bool(told["reason"])) == ([], True)
    plain = PageLink(at.device.desk, at.device.shelf, backend="wasm", titles={})
    assert plain.ask({"do": "hello"})["machine"]["emulated"] is False


def test_a_batch_that_litert_cannot_make_is_checked_in_parts_but_never_timed(opened, tflite_folder):
    at = opened(tflite_folder())
    with remote_runner(at.device, at.job, at.item):
        link = PageLink(at.device.desk, at.device.shelf, backend="wasm", titles={})
        ports = {
            "inputs": [{"name": "features", "shape": ["N", 64], "dtype": "float32"}],
            "outputs": [{"name": "scores", "shape": ["N", 10], "dtype": "float32"}],
        }
        feed = {"features": {"file": f"{at.item.place}/golden-in-0.bin", "shape": [2, 64], "dtype": "float32"}}
        loaded = link.ask(
            {"do": "load", "slot": 3, "file": f"{at.item.place}/model.tflite", "feeds": [feed], "gaps": [], **ports}
        )
        assert loaded["facts"]["hints"]["batch"] == "2 runs in turn"
        with pytest.raises(UserError, match=r"can.t time .* for this many samples at once: it is made for 1×64"):
            link.ask({"do": "time", "order": [3], "blocks": [1], "warm": [1]})


def test_nobody_opens_the_page():
    device = BrowserDevice("browser", BrowserConfig(wait_s=0.2))
    try:
        with pytest.raises(UserError, match=r"no browser has opened http://127.0.0.1:\d+/.* within 0.2 s") as caught:
            device.prepare(lambda _: None)
        assert "--lan" in caught.value.hint
    finally:
        device.close()


def test_the_page_counts_as_numpy_does(opened, onnx_folder):
    tab = opened(onnx_folder()).tab

    def js(body: str):
        return tab.evaluate(f"async () => {{ const t = await import('./tensors.js'); {body} }}")

    bits = np.array([0, 1, 0x3FF, 0x400, 0x3C00, 0xC000, 0x7BFF, 0x8001, 0x3555], np.uint16)
    got = js(f"return [...t.real({{dtype: 'float16', data: new Uint16Array({bits.tolist()})}}, null, null)]")
    assert got == bits.view(np.float16).astype(float).tolist()
    assert js("return [...t.real({dtype: 'int8', data: new Int8Array([-128, 3])}, 0.5, 3)]") == [-65.5, 0.0]
    got = js(
        """
        const x = {
            a: { dtype: "float32", shape: [4, 2], data: new Float32Array([0, 1, 2, 3, 4, 5, 6, 7]) },
            b: { dtype: "float32", shape: [2], data: new Float32Array([8, 9]) },
        };
        const rows = { a: 2, b: 2 }, parts = [0, 1].map((k) => t.part(x, k, rows));
        return [t.partCount(x, rows), [...parts[1].a.data], [...parts[1].b.data], t.joined(parts.map((p) => p.a)).shape];
        """
    )
    assert got == [2, [4, 5, 6, 7], [8, 9], [4, 2]]
