"""Whole profiles of tiny real artifacts, and every way to ask for the impossible."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from trimtab.devices import conditions
from trimtab.devices.link import LinkLostError, ProcessLink
from trimtab.devices.measurement import ProfileResult
from trimtab.devices.profile import profile
from trimtab.devices.reading import Reading
from trimtab.devices.runtime import RejectedError
from trimtab.export.manifest import GOLDEN, MANIFEST, UserError

FAST = {"budget_s": 0.2, "preset": "quick", "seed": 3}


def test_two_formats_on_all_runtimes(onnx_folder, tflite_folder, tmp_path):
    pytest.importorskip("openvino", reason="pip install 'trimtab[openvino]'")
    folders = [onnx_folder("base", width=16), onnx_folder("small", width=4), tflite_folder("dense")]
    result = profile(folders, **FAST)
    assert [(m.label, m.runtime) for m in result.measurements] == [
        ("base", "onnxruntime"),
        ("small", "onnxruntime"),
        ("base", "openvino"),
        ("small", "openvino"),
        ("dense", "litert"),
    ]
    assert [(c.a, c.b, c.runtime) for c in result.comparisons] == [
        ("base", "small", "onnxruntime"),
        ("base", "small", "openvino"),
    ]
    assert [(p.runtime, p.artifact) for p in result.aa] == [("onnxruntime", "base"), ("openvino", "base"), ("litert", "dense")]
    for measured in result.measurements:
        assert measured.outputs_ok is True
        assert measured.max_abs_error < 1e-4
        assert len(measured.sittings) >= 6
        assert measured.dims == {"N": 1}
        assert not measured.partial
        assert measured.conditions.device == "local"
        assert measured.conditions.threads == 1
    for pair in result.aa:
        alone = next(m for m in result.measurements if m.runtime == pair.runtime and m.label == pair.artifact)
        assert pair.baseline_ns == alone.samples_ns
        assert pair.twin_ns != pair.baseline_ns
    path = result.write_json(tmp_path / "profile.json")
    assert ProfileResult.read_json(path) == result
    assert os.uname().nodename not in path.read_text().split('"')


def test_figures_are_computed_from_the_samples(onnx_folder):
    result = profile([onnx_folder("a"), onnx_folder("b", width=4)], runtimes=["onnxruntime"], **FAST)
    a, b = result.measurements
    assert a.p50_ms == pytest.approx(np.median(a.samples_ns) / 1e6)
    assert a.p90_ms == pytest.approx(np.percentile(a.samples_ns, 90) / 1e6)
    assert a.p99_ms == pytest.approx(np.percentile(a.samples_ns, 99) / 1e6)
    assert a.mean_ms == pytest.approx(sum(a.samples_ns) / len(a.samples_ns) / 1e6)
    assert a.median_low_ms <= a.median_high_ms
    (comparison,) = result.comparisons
    logs = np.log(a.samples_ns) - np.log(b.samples_ns)
    ends = np.cumsum(a.sittings)
    medians = [np.median(logs[end - length : end]) for end, length in zip(ends, a.sittings, strict=True)]
    assert comparison.speedup == pytest.approx(np.exp(np.median(medians)))
    assert comparison.rounds == a.rounds == b.rounds == sum(a.sittings)
    assert comparison.sittings == len(a.sittings) >= 6
    assert comparison.noise_floor == result.aa[0].noise_floor


def test_a_file_whose_figures_contradict_its_samples_is_refused(onnx_folder, tmp_path):
    path = profile([onnx_folder()], runtimes=["onnxruntime"], **FAST).write_json(tmp_path / "profile.json")
    data = json.loads(path.read_text())
    data["measurements"][0]["p50_ms"] /= 2
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"p50_ms .* does not follow from the samples"):
        ProfileResult.read_json(path)
    data["measurements"][0]["p50_ms"] *= 2
    data["aa"][0]["twin_ns"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="rounds are no pairs"):
        ProfileResult.read_json(path)
    data["measurements"][0]["sittings"][0] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"do not make \d+ samples"):
        ProfileResult.read_json(path)
    path.write_text(json.dumps({"schema_version": 3}))
    with pytest.raises(UserError, match="is not a profile of this version"):
        ProfileResult.read_json(path)


def test_symbolic_dimensions(onnx_folder):
    folder = onnx_folder(size="S")
    with pytest.raises(UserError, match="net has free dimensions S") as caught:
        profile([folder], **FAST)
    assert "S=224" in caught.value.hint
    result = profile([folder], dims={"S": 16, "N": 3}, runtimes=["onnxruntime"], **FAST)
    assert result.measurements[0].shapes == {"image": (3, 3, 16, 16)}
    with pytest.raises(UserError, match="no artifact has a symbolic dimension 'M'") as caught:
        profile([folder], dims={"S": 16, "M": 2}, **FAST)
    assert "known: N, S" in caught.value.hint
    with pytest.raises(UserError, match="dimension S=0 must be at least 1"):
        profile([folder], dims={"S": 0}, **FAST)


def test_an_artifact_with_fixed_shapes_is_left_out_by_name_when_dims_ask_for_others(onnx_folder):
    free, fixed = onnx_folder("free"), onnx_folder("fixed", batch=1)
    result = profile([free, fixed], dims={"N": 2}, runtimes=["onnxruntime"], **FAST)
    assert [m.label for m in result.measurements] == ["free"]
    assert [(s.label, s.kind) for s in result.skipped] == [("fixed", "dims")]
    assert "image 1×3×16×16" in result.skipped[0].reason
    both = profile([free, fixed], dims={"N": 1}, runtimes=["onnxruntime"], **FAST)
    assert [m.label for m in both.measurements] == ["free", "fixed"]
    with pytest.raises(UserError, match="no artifact has a symbolic dimension 'N'") as caught:
        profile([fixed], dims={"N": 1}, **FAST)
    assert "fixed shapes" in caught.value.hint


def test_wrong_outputs_are_reported_and_not_timed(onnx_folder):
    good, wrong = onnx_folder("good"), onnx_folder("wrong", golden_error=0.05)
    result = profile([wrong, good], runtimes=["onnxruntime"], **FAST)
    assert [m.label for m in result.measurements] == ["good"]
    (entry,) = result.skipped
    assert (entry.label, entry.runtime, entry.kind) == ("wrong", "onnxruntime", "wrong outputs")
    # golden is 5 % too large: 20·log10(1.05 / 0.05) = 26.4 dB
    assert entry.sqnr_db == pytest.approx(26.4, abs=0.1)
    assert "26.4 dB from golden, 57.0 dB are asked" in entry.reason
    assert result.comparisons == ()
    forced = profile([wrong, good], runtimes=["onnxruntime"], force=True, **FAST)
    assert [(m.label, m.outputs_ok) for m in forced.measurements] == [("wrong", False), ("good", True)]
    assert any("26.4 dB from golden" in text for text in forced.warnings)


def test_an_artifact_without_golden_is_timed_and_said_to_be_unchecked(onnx_folder):
    folder = onnx_folder()
    (folder / GOLDEN).unlink()
    result = profile([folder], runtimes=["onnxruntime"], **FAST)
    assert result.measurements[0].outputs_ok is None
    assert any("brings no golden.npz" in text for text in result.warnings)


def test_damaged_golden(onnx_folder):
    folder = onnx_folder()
    (folder / GOLDEN).write_bytes(b"PK")
    with pytest.raises(UserError, match=r"golden\.npz is damaged") as caught:
        profile([folder], runtimes=["onnxruntime"], **FAST)
    assert caught.value.hint == "export again"


def test_golden_with_pickled_objects_is_refused(onnx_folder):
    folder = onnx_folder()
    np.savez(folder / GOLDEN, **{"input:image": np.array([{}], dtype=object), "output:logits": np.zeros(1)})
    with pytest.raises(UserError, match=r"golden\.npz is damaged: .*allow_pickle=False"):
        profile([folder], runtimes=["onnxruntime"], **FAST)


def test_core_ml_is_named_as_skipped_with_the_reason(onnx_folder, rewrite):
    other = rewrite(onnx_folder("phone"), format="coreml")
    result = profile([other, onnx_folder("here")], runtimes=["onnxruntime"], **FAST)
    assert [m.label for m in result.measurements] == ["here"]
    (entry,) = result.skipped
    assert (entry.label, entry.runtime, entry.kind) == ("phone", None, "no runtime")
    assert "Apple" in entry.reason


def test_a_runtime_that_does_not_run_the_format(onnx_folder):
    (entry,) = profile([onnx_folder()], runtimes=["litert"], **FAST).skipped
    assert entry.reason == "litert does not run 'onnx' files; onnxruntime, openvino would"


def test_missing_package_is_a_skipped_entry_unless_asked_for_by_name(onnx_folder, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else real(name))
    folder = onnx_folder()
    result = profile([folder], **FAST)
    assert [m.runtime for m in result.measurements] == ["onnxruntime"]
    assert result.skipped[0].kind == "missing package"
    assert "pip install 'trimtab[openvino]'" in result.skipped[0].reason
    with pytest.raises(UserError, match="OpenVINO needs openvino, not installed"):
        profile([folder], runtimes=["openvino"], **FAST)


def test_a_corrupt_file_is_rejected_by_name(onnx_folder, rewrite):
    folder = onnx_folder("bad")
    (folder / "model.onnx").write_bytes(b"rubbish" * 30)
    rewrite(folder)
    with pytest.raises(RejectedError, match=r"onnxruntime rejects model\.onnx: ") as caught:
        profile([folder, onnx_folder("good")], runtimes=["onnxruntime"], **FAST)
    assert "export it again" in caught.value.hint
    result = profile([folder, onnx_folder("other")], **FAST)
    assert {(s.label, s.kind) for s in result.skipped} == {("bad", "rejected")}
    assert {m.label for m in result.measurements} == {"other"}


def test_tampered_file(onnx_folder):
    folder = onnx_folder()
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(UserError, match="its sha256 differs"):
        profile([folder], **FAST)


def test_failed_parity(onnx_folder):
    folder = onnx_folder(ok=False)
    with pytest.raises(UserError, match=r"failed its parity check: 12\.0 dB, 60 asked") as caught:
        profile([folder], **FAST)
    assert "--force" in caught.value.hint
    assert caught.value.exit_code == 1
    assert profile([folder], runtimes=["onnxruntime"], force=True, **FAST).measurements


@pytest.mark.parametrize("threads", [0, -1, 4096])
def test_threads_out_of_range(onnx_folder, threads):
    with pytest.raises(UserError, match=rf"threads={threads} is outside 1…{conditions.usable_cores()}"):
        profile([onnx_folder()], threads=threads, **FAST)


def test_threads_count_against_the_affinity(onnx_folder):
    if (allowed := conditions.allowed_cpus()) is None:
        pytest.skip("this platform has no CPU affinity")
    with pytest.raises(UserError, match="threads=2 is outside 1…1"):
        profile([onnx_folder()], threads=2, affinity=allowed[:1], **FAST)
    result = profile([onnx_folder("pinned")], affinity=allowed[:1], runtimes=["onnxruntime"], **FAST)
    assert result.measurements[0].conditions.affinity == allowed[:1]
    assert conditions.allowed_cpus() == allowed
    with pytest.raises(UserError, match="CPU affinity names 9999"):
        profile([onnx_folder("other")], affinity=(9999,), **FAST)


def test_asking_for_what_is_not_there(onnx_folder):
    folder = onnx_folder()
    with pytest.raises(UserError, match="unknown device 'locl'") as caught:
        profile([folder], on="locl", **FAST)
    assert caught.value.hint == "did you mean 'local'?"
    with pytest.raises(UserError, match="unknown runtime 'lite'") as caught:
        profile([folder], runtimes=["lite"], **FAST)
    assert "'litert'" in caught.value.hint
    with pytest.raises(UserError, match="an empty list of runtimes"):
        profile([folder], runtimes=[], **FAST)
    with pytest.raises(UserError, match="a time budget of 0 s"):
        profile([folder], budget_s=0)
    with pytest.raises(UserError, match="no artifact was given"):
        profile([], **FAST)
    with pytest.raises(UserError, match="OpenVINO has no option 'precison'") as caught:
        profile([folder], options={"openvino": {"precison": "bf16"}}, **FAST)
    assert "'precision'" in caught.value.hint


def test_labels_tell_namesakes_apart(onnx_folder, tmp_path):
    first, second = onnx_folder("one", name="net"), onnx_folder("two", name="net", precision="fp16")
    labels = [m.label for m in profile([first, second], runtimes=["onnxruntime"], **FAST).measurements]
    assert labels == ["net onnx fp32", "net onnx fp16"]
    same = [m.label for m in profile([first, first / MANIFEST], runtimes=["onnxruntime"], **FAST).measurements]
    assert same == ["net onnx fp32 #1", "net onnx fp32 #2"]


def interrupts(monkeypatch, error, *, runtime, at):
    """The asking side fails with `error` at the `at`-th load on `runtime`."""
    ask, seen = ProcessLink.ask, {"runtime": "", "loads": 0}

    def asks(self, request, **more):
        if request["do"] == "open":
            seen["runtime"] = request["runtime"]
        if request["do"] == "load" and seen["runtime"] == runtime:
            seen["loads"] += 1
            if seen["loads"] == at:
                raise error
        return ask(self, request, **more)

    monkeypatch.setattr(ProcessLink, "ask", asks)


# one cold load, one for the golden outputs, then two a sitting, the baseline's and its twin's: the seventh is in the third
@pytest.mark.parametrize(
    ("error", "stopped"), [(KeyboardInterrupt(), "interrupted"), (LinkLostError("unplugged", exit_code=1), "lost")]
)
def test_what_was_finished_is_kept_and_marked(onnx_folder, monkeypatch, error, stopped):
    pytest.importorskip("openvino", reason="pip install 'trimtab[openvino]'")
    interrupts(monkeypatch, error, runtime="openvino", at=7)
    result = profile([onnx_folder(), onnx_folder("other")], runtimes=["onnxruntime"], **FAST)
    assert not result.partial
    result = profile([onnx_folder("alone")], **FAST)
    assert result.partial
    whole, cut = result.measurements
    assert (whole.runtime, whole.partial) == ("onnxruntime", False)
    assert (cut.runtime, cut.partial, cut.stopped_because) == ("openvino", True, stopped)
    assert len(cut.sittings) == 2
    assert cut.median_precision is None  # two sittings give no interval
    assert result.aa[-1].noise_floor is None
    assert ("unplugged" in " ".join(result.warnings)) == (stopped == "lost")


@pytest.mark.parametrize(
    ("error", "kind"), [(KeyboardInterrupt(), "interrupted"), (LinkLostError("unplugged", exit_code=1), "lost")]
)
def test_what_was_not_reached_has_an_entry(onnx_folder, monkeypatch, error, kind):
    interrupts(monkeypatch, error, runtime="onnxruntime", at=1)
    result = profile([onnx_folder("a"), onnx_folder("b")], **FAST)
    assert result.partial
    assert result.measurements == ()
    assert {(s.label, s.runtime, s.kind) for s in result.skipped} == {
        (label, runtime, kind) for label in "ab" for runtime in ("onnxruntime", "openvino")
    }


def test_a_reading_without_value_must_say_why():
    with pytest.raises(ValueError, match="needs its reason"):
        Reading()
