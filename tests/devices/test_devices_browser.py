"""The browser device from end to end: Chromium opens the address that the device says, and both engines run there."""

from __future__ import annotations

import http.server
import threading
from functools import partial

import pytest
from browser_kit import Opener

from trimtab.devices.browser import address, engines
from trimtab.devices.profile import profile
from trimtab.export.manifest import UserError

BOTH = ("onnxruntime-web", "litert-web")


@pytest.fixture
def measure(browser):
    """A profile on a browser that opens the page as a user would; `then` acts on the tab once it is open."""

    def run(folders, *, then=lambda tab: None, settings=None, **wishes):
        def opened(url):
            tab = browser.open(url)
            then(tab)
            return tab

        opener = Opener(opened)
        wishes = {"budget_s": 0.5, "preset": "quick", **wishes}
        result = profile(folders, on="browser", say=opener, settings={"browser": settings or {}}, **wishes)
        tab = opener.tab.result(60)
        return result, tab, opener.said

    return run


def test_both_engines_measure_verified_artifacts(measure, onnx_folder, tflite_folder):
    folders = [onnx_folder("net"), onnx_folder("wide", width=24), tflite_folder("dense")]
    result, tab, said = measure(folders, ops=20, budget_s=1.0)
    assert [(m.label, m.runtime) for m in result.measurements] == [
        ("net", "onnxruntime-web"),
        ("wide", "onnxruntime-web"),
        ("dense", "litert-web"),
    ]
    for m in result.measurements:
        assert m.outputs_ok is True
        assert m.max_abs_error < 1e-3  # float32 sums of up to 64 products of the order of 1 in another order
        assert len(m.samples_ns) > 0
        assert min(m.samples_ns) > 0
        assert m.load_ms > 0
        hints = m.conditions.hints
        assert "Chrome" in hints["user_agent"]
        assert hints["cross_origin_isolated"] == "true"
        assert 0 < float(hints["timer_step_ms"]) < 1
        assert hints["engine_files"] == "served by trimtab"
        assert m.conditions.os.startswith("Chrome")
        assert m.conditions.emulated is False  # WebAssembly is compiled for this CPU; the software GPU has no part in it
        assert m.conditions.threads == 1
        assert m.peak_memory_bytes.value is None
        assert "not told" in m.peak_memory_bytes.reason
    assert [m.conditions.runtime_version for m in result.measurements] == ["1.30.0", "1.30.0", "2.5.3"]
    (comparison,) = result.comparisons
    assert (comparison.a, comparison.b, comparison.device) == ("net", "wide", "browser")
    assert tab.text("#state") == "done: this page can be closed"
    assert tab.text("#artifact") == "dense"
    assert int(tab.text("#calls").replace(",", "")) > 0
    own = [line for line in tab.said if not line.startswith(("INFO: ", "WARNING: ["))]  # LiteRT.js tells its start as errors
    assert own == []
    first, _, last = result.ops
    assert {op.kind for op in first.ops} >= {"FusedConv", "MatMul"}
    assert all(op.where == "CPUExecutionProvider" for op in first.ops)
    assert first.runs == 20
    assert last.reason == "LiteRT.js has no profiler"
    assert any("this address is for a browser on this machine" in line for line in said)


def test_an_exported_file_with_a_free_batch_is_fixed_for_litert(measure, exported_folder):
    """LiteRT.js can't resize inputs and refuses files that say that it might have to."""
    (measured,) = measure([exported_folder("tflite")])[0].measurements
    assert measured.outputs_ok is True
    assert measured.dims == {"N": 1}
    assert "fixed at the sizes" in measured.conditions.hints["free_dimensions"]


def test_two_threads(measure, onnx_folder, tflite_folder):
    result, *_ = measure([onnx_folder(), tflite_folder()], threads=2)
    assert [(m.runtime, m.conditions.threads, m.outputs_ok) for m in result.measurements] == [(name, 2, True) for name in BOTH]


def test_wrong_and_rejected_artifacts_are_reported_and_not_timed(measure, onnx_folder, tflite_folder, rewrite):
    wrong, broken = onnx_folder("wrong", golden_error=0.5), onnx_folder("broken")
    (broken / "model.onnx").write_bytes(b"no network at all")
    spoilt = tflite_folder("spoilt")
    (spoilt / "model.tflite").write_bytes(b"nor is this one" * 9)
    result, *_ = measure([wrong, rewrite(broken), onnx_folder("right"), rewrite(spoilt)])
    assert [m.label for m in result.measurements] == ["right"]
    found = {entry.label: entry for entry in result.skipped}
    assert found["wrong"].kind == "wrong outputs"
    assert found["wrong"].max_abs_error > 0.01
    assert found["broken"].kind == found["spoilt"].kind == "rejected"
    assert "onnxruntime-web rejects model.onnx" in found["broken"].reason
    assert "litert-web rejects model.tflite" in found["spoilt"].reason


def test_a_tab_closed_while_timing_leaves_what_was_measured(measure, onnx_folder):
    def then(tab):
        tab.wait_for("#state", "timing")
        tab.browser.do(
            lambda: tab.page.wait_for_function(
                "() => parseInt(document.querySelector('#calls').textContent.replaceAll(',', '')) > 3000"
            )
        )
        tab.close()

    result, _, _ = measure([onnx_folder("net"), onnx_folder("wide", width=16)], then=then, budget_s=60.0)
    assert result.partial
    lost = [line for line in result.warnings if "the page was closed or reloaded" in line]
    kept = [m for m in result.measurements if m.partial and m.stopped_because == "lost"]
    skipped = [entry for entry in result.skipped if entry.kind == "lost" and "closed or reloaded" in entry.reason]
    assert (len(kept) == 2 and lost) or len(skipped) == 2  # after a whole sitting, or before


def test_plain_http_over_the_network_is_measured_as_what_it_is(measure, onnx_folder):
    if address.lan_address() is None:
        pytest.skip("this machine has no address but loopback: connect it to a network")
    folder = onnx_folder()
    result, _, said = measure([folder], settings={"lan": True})
    hints = result.measurements[0].conditions.hints
    assert (hints["secure_context"], hints["cross_origin_isolated"]) == ("false", "false")
    assert "only to pages from https://" in hints["webgpu_adapter"]
    assert any("plain http" in line for line in said)
    assert max(len(line) for line in said if "█" in line) <= 40
    with pytest.raises(UserError, match="threads=2 needs an isolated page"):
        measure([folder], settings={"lan": True}, threads=2)
    with pytest.raises(UserError, match="backend webgpu: browsers give WebGPU only"):
        measure([folder], settings={"lan": True}, options={BOTH[0]: {"backend": "webgpu"}})


def test_https_with_a_certificate_of_its_own_isolates_the_page(measure, onnx_folder):
    if address.lan_address() is None:
        pytest.skip("this machine has no address but loopback: connect it to a network")
    result, _, said = measure([onnx_folder()], settings={"lan": True, "https": True}, threads=2)
    conditions = result.measurements[0].conditions
    assert (conditions.threads, conditions.hints["cross_origin_isolated"]) == (2, "true")
    assert any("iPhone" in line for line in said)


class _Elsewhere(http.server.SimpleHTTPRequestHandler):
    """A CDN as the page expects one: any origin may read, and versions are part of the path."""

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")
        super().end_headers()

    def translate_path(self, path):
        for package, version in engines.versions().items():
            path = path.replace(f"/npm/{package}@{version}/", f"/{package}/")
        return super().translate_path(path)

    def log_message(self, *_):
        pass


def test_without_engine_files_the_page_fetches_them_from_the_cdn(measure, onnx_folder, tflite_folder, monkeypatch):
    serve = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Elsewhere, directory=engines.engine_folder()))
    threading.Thread(target=serve.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(engines, "installed", lambda: False)
        monkeypatch.setattr(engines, "CDN", f"http://127.0.0.1:{serve.server_address[1]}/npm/")
        result, _, said = measure([onnx_folder(), tflite_folder()])
        assert [(m.runtime, m.outputs_ok) for m in result.measurements] == [(name, True) for name in BOTH]
        assert result.measurements[0].conditions.hints["engine_files"].startswith("127.0.0.1:")
        assert said[0].startswith("engine files are not installed; the phone will fetch them from 127.0.0.1")
        assert "trimtab devices setup browser" in said[0]
    finally:
        serve.shutdown()
        serve.server_close()
