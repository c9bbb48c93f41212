"""One contract suite over every registered runtime, on tiny real models, and what is particular to each."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from trimtab.devices.profile import profile
from trimtab.devices.runtime import RejectedError, fitting, require, runtimes, why_none
from trimtab.export.manifest import UserError, load_artifact

NAMES = runtimes.names()


@pytest.fixture
def load(onnx_folder, tflite_folder, exported_folder):
    """Loads a tiny artifact of the runtime's first format: (session, golden inputs, golden outputs)."""

    def loader(name, threads=1, batch=2, **options):
        card = runtimes.entry(name).card
        if not card.at_home:
            pytest.skip(f"{card.title} runs on {' and '.join(card.systems)} alone; run these tests there")
        if gone := card.missing():
            pytest.skip(f"{card.title} is not installed ({', '.join(gone)}): {card.install}")
        build = {"onnx": onnx_folder, "tflite": tflite_folder}.get(card.formats[0])
        folder = build(f"for-{name}") if build else exported_folder(card.formats[0])
        artifact = load_artifact(folder)
        stored = np.load(folder / "golden.npz", allow_pickle=False)
        inputs = {key[6:]: stored[key] for key in stored if key.startswith("input:")}
        outputs = {key[7:]: stored[key] for key in stored if key.startswith("output:")}
        shapes = {key: (batch, *value.shape[1:]) for key, value in inputs.items()}
        path = artifact.path(folder)
        session = require(name).load(path, artifact.contract, shapes=shapes, threads=threads, options=card.complete(options))
        return session, inputs, outputs

    return loader


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_an_independent_evaluator(name, load):
    session, inputs, outputs = load(name)
    got = session.run(inputs)
    assert set(got) == set(outputs)
    for key, want in outputs.items():
        # float32 sums of up to 27·64 terms of order 1 in another order
        np.testing.assert_allclose(got[key], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_another_batch_than_it_was_loaded_for_runs_too(name, load):
    session, inputs, outputs = load(name, batch=1)
    (key,), (out,) = inputs, outputs
    got = session.run({key: inputs[key][1:]})
    np.testing.assert_allclose(got[out], outputs[out][1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(session.run(inputs)[out], outputs[out], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bound_call_computes_every_time_from_the_bound_inputs(name, load):
    session, inputs, outputs = load(name)
    call = session.bind(inputs)
    for _ in range(3):
        call()
    (out,) = outputs
    np.testing.assert_allclose(session.run(inputs)[out], outputs[out], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_describes_what_is_in_force(name, load):
    facts = load(name)[0].describe()
    assert facts.runtime == name
    assert facts.version == require(name).version()
    assert facts.threads == 1
    assert facts.provider
    assert facts.timed_region
    assert not facts.reduced_precision


@pytest.mark.parametrize("name", NAMES)
def test_refuses_unknown_options_with_a_hint(name):
    card = runtimes.entry(name).card
    option, choices = next(iter(card.options.items()))
    assert card.complete({}) == {key: values[0] for key, values in card.options.items()}
    assert card.complete({option: choices[-1]})[option] == choices[-1]
    with pytest.raises(UserError, match=f"has no option '{option}s'") as caught:
        card.complete({option + "s": "x"})
    assert option in caught.value.hint
    with pytest.raises(UserError, match=f"option {option} cannot be 'x'") as caught:
        card.complete({option: "x"})
    assert caught.value.hint == "one of " + ", ".join(choices)


@pytest.mark.parametrize("name", NAMES)
def test_rejects_a_corrupt_file_by_name_without_its_path(name, load, tmp_path, onnx_folder):
    session, inputs, _ = load(name)
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"\x07not a model" * 20)
    shapes = {key: value.shape for key, value in inputs.items()}
    card = runtimes.entry(name).card
    with pytest.raises(RejectedError, match=f"{name} rejects broken.bin: .+") as caught:
        require(name).load(broken, session.contract, shapes=shapes, threads=1, options=card.complete({}))
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", NAMES)
def test_rejects_inputs_the_model_cannot_take(name, load):
    session, inputs, _ = load(name)
    (key,) = inputs
    wrong = np.zeros((2, 5, *inputs[key].shape[2:]), np.float32)
    with pytest.raises(RejectedError, match=f"{name} rejects"):
        session.run({key: wrong})
    with pytest.raises(RejectedError, match=f"{name} rejects"):
        session.bind({key: wrong})


@pytest.mark.parametrize("name", NAMES)
def test_rejects_a_contract_that_names_other_tensors(name, load):
    if name == "executorch":
        pytest.skip("ExecuTorch's programs hold no tensor names: the contract's order is all they have")
    session, inputs, _ = load(name)
    spec = session.contract.outputs[0]
    other = session.contract.model_copy(update={"outputs": (spec.model_copy(update={"name": "elsewhere"}),)})
    shapes = {key: value.shape for key, value in inputs.items()}
    options = runtimes.entry(name).card.complete({})
    with pytest.raises(RejectedError, match=f"it has no output elsewhere; it has .*{spec.name}"):
        require(name).load(session.path, other, shapes=shapes, threads=1, options=options)


def test_openvino_computes_in_f32_unless_asked_otherwise(load):
    facts = load("openvino")[0].describe()
    assert facts.hints["inference_precision"] == "f32"
    assert facts.hints["num_streams"] == "1"


def test_openvino_says_when_bfloat16_is_in_force(load):
    facts = load("openvino", precision="bf16")[0].describe()
    if facts.hints["inference_precision"] != "bf16":
        pytest.skip("this CPU has no bfloat16, so OpenVINO keeps " + facts.hints["inference_precision"])
    assert facts.reduced_precision


def test_litert_names_its_delegate_and_does_without(load):
    assert load("litert")[0].describe().provider == "XNNPACK"


def test_litert_without_the_delegate(load):
    facts = load("litert", delegate="none")[0].describe()
    assert (facts.provider, facts.hints["delegate_partitions"]) == ("builtin kernels", "0")


def test_onnxruntime_tells_its_optimisation_level(load):
    assert load("onnxruntime", graph_optimizations="off")[0].describe().hints["graph_optimizations"] == "off"


def test_executorch_tells_the_threads_of_the_whole_process(load):
    """The pool is one for all sessions: the second one's wish is the first one's fact, until the first runs again."""
    first, inputs, _ = load("executorch", threads=1)
    assert first.describe().threads == 1
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(2)
    assert first.describe().threads == 2
    first.bind(inputs)
    assert first.describe().threads == 1


def test_ncnn_in_its_own_precision_says_so(load):
    facts = load("ncnn", precision="default")[0].describe()
    assert facts.hints["precision"] == "default"
    assert facts.reduced_precision == (facts.hints["fp16_storage"] == "True" or facts.hints["fp16_arithmetic"] == "True")


@pytest.mark.parametrize("name", ["executorch", "mnn", "ncnn"])
def test_what_only_torch_and_graphs_become_is_profiled(name, exported_folder):
    card = runtimes.entry(name).card
    if gone := card.missing():
        pytest.skip(f"{card.title} is not installed ({', '.join(gone)}): {card.install}")
    found = profile([exported_folder(name)], preset="quick", budget_s=0.5)
    assert [(m.runtime, m.outputs_ok) for m in found.measurements] == [(name, True)]


@pytest.fixture
def openvino_folder(onnx_folder, rewrite):
    """The tiny ONNX network as an artifact in OpenVINO's own files, with the same golden outputs."""
    import onnx

    from trimtab.export.openvino import CARD, read, write

    if CARD.missing():
        pytest.skip("the openvino extra is not installed")

    folder = onnx_folder("for-folder")
    write(read(onnx.load(folder / "model.onnx")), folder / "model.openvino", half=False)
    manifest = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps({**manifest, "format": "openvino", "file": "model.openvino"}))
    return rewrite(folder)


def test_openvino_reads_its_own_folders(openvino_folder):
    artifact = load_artifact(openvino_folder)
    stored = np.load(openvino_folder / "golden.npz", allow_pickle=False)
    image, logits = stored["input:image"], stored["output:logits"]
    options = runtimes.entry("openvino").card.complete({})
    session = require("openvino").load(
        artifact.path(openvino_folder), artifact.contract, shapes={"image": image.shape}, threads=1, options=options
    )
    np.testing.assert_allclose(session.run({"image": image})["logits"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(session.run({"image": image[1:]})["logits"], logits[1:], rtol=1e-4, atol=1e-5)
    session.bind({"image": image})()
    assert session.describe().hints["inference_precision"] == "f32"


def test_openvino_folders_are_profiled(openvino_folder):
    found = profile([openvino_folder], preset="quick", budget_s=0.5)
    assert [(m.runtime, m.outputs_ok) for m in found.measurements] == [("openvino", True)]


def test_openvino_rejects_a_folder_without_a_graph(openvino_folder, rewrite):
    (openvino_folder / "model.openvino" / "model.xml").unlink()
    rewrite(openvino_folder)
    artifact = load_artifact(openvino_folder)
    options = runtimes.entry("openvino").card.complete({})
    with pytest.raises(RejectedError, match=r"openvino rejects model\.openvino: .+") as caught:
        path = artifact.path(openvino_folder)
        require("openvino").load(path, artifact.contract, shapes={"image": (1, 3, 16, 16)}, threads=1, options=options)
    assert str(openvino_folder) not in str(caught.value)


def test_openvino_reports_nothing_to_anyone(openvino_folder, tmp_path):
    """In a process of its own, with a home folder of its own: no identifier is left there, and what would send is not loaded."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(home)}
    code = (
        "import sys; from pathlib import Path\n"
        "from trimtab.devices.profile import profile\n"
        "profile([Path(sys.argv[1])], runtimes=['openvino'], budget_s=0.2)\n"
        "print('openvino_telemetry' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(openvino_folder)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
    assert not (home / "intel").exists()


def test_unknown_runtime():
    with pytest.raises(UserError, match="unknown runtime 'onnxruntine'") as caught:
        require("onnxruntine")
    assert caught.value.hint == "did you mean 'onnxruntime'?"


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="OpenVINO needs openvino, not installed") as caught:
        require("openvino")
    assert caught.value.hint == "pip install 'trimtab[openvino]'"


def test_formats_and_the_reason_for_none():
    assert fitting("onnx") == ["onnxruntime", "openvino"]
    assert fitting("openvino") == ["openvino"]
    assert fitting("coreml") == []
    assert "Apple" in why_none("coreml")
    assert why_none("abc") == "no runtime here runs 'abc' files; they run executorch, mnn, ncnn, onnx, openvino, tflite"


def test_ctrl_c_after_openvino_is_a_keyboard_interrupt_not_a_crash(onnx_folder):
    """In a process of its own: a model is loaded, run and dropped, everything collected, and then the signal comes.

    The handler is set by hand: a background job inherits SIGINT as ignored.
    """
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    code = (
        "import gc, signal, sys; from pathlib import Path\n"
        "from trimtab.devices.profile import profile\n"
        "profile([Path(sys.argv[1])], runtimes=['openvino'], budget_s=0.2); gc.collect()\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('caught')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(onnx_folder())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "caught"), done.stderr
