"""The forms of a dynamic network on the command line: what each writes, what is refused, and what `auto` keeps."""

import json

import numpy as np
import pytest
import torch

from trimtab.app import main
from trimtab.export.artifact import load_artifact
from trimtab.export.parity import GATES_DB, gate_db
from trimtab.loading import open_task
from trimtab.models.bundle import load_bundle
from trimtab.models.routed import RoutedNet

TRAIN = ["--set", "epochs=6", "--set", "lr=0.1", "--set", "batch_size=40", "--set", "amp=off"]
COMMON = 'batch_size = 40\namp = "off"\nepochs = 2\n'
GATES = f'[[step]]\nkind = "ftwt"\nr = 0.8\nscale = "standardise"\ncalibrate = true\nestimate_images = 40\n{COMMON}'
ROUTE = f'[[step]]\nkind = "route"\nratios = [0.3, 1.0]\nround_to = 1\nmax_accuracy_drop = 0.2\n{COMMON}'


def made(folder, *args):
    assert main([str(a) for a in (*args, "-o", folder)]) == 0
    return folder


def recipe(folder, text):
    path = folder / "recipe.toml"
    path.write_text(f"format = 1\n{text}")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_npz):
    """A ResNet-8 trained for a moment on the squares."""
    return made(tmp_path_factory.mktemp("plain") / "plain", "train", "resnet8", "--data", f"npz:{tiny_npz}", *TRAIN)


@pytest.fixture(scope="module")
def gated(tmp_path_factory, plain):
    """The same with gates."""
    folder = tmp_path_factory.mktemp("gated")
    return made(folder / "gated", "compress", plain, "--recipe", recipe(folder, GATES))


@pytest.fixture(scope="module")
def routed(tmp_path_factory, plain):
    """The same with two branches."""
    folder = tmp_path_factory.mktemp("routed")
    return made(folder / "routed", "compress", plain, "--recipe", recipe(folder, ROUTE))


# ---------------------------------------------------------------- the forms


def test_masked_is_the_reference_in_every_format(cli, gated, tmp_path):
    code, out, err = cli("export", gated, "--dynamic", "masked", "--to", "onnx,tflite,coreml", "--precision", "fp32", "-o", "a")
    assert code == 0, out + err
    assert out.count("proven") == 3
    for name in ("onnx", "tflite", "coreml"):
        artifact = load_artifact(tmp_path / "a" / f"{name}-fp32")
        assert artifact.parity.sqnr_db >= GATES_DB["fp32"]
        assert artifact.source["dynamic"] == "masked"
        assert artifact.source["bundle_hash"] == load_bundle(gated).hash


def test_gathered_computes_the_masked_network(cli, gated, tmp_path):
    code, out, err = cli("export", gated, "--dynamic", "gathered", "--to", "onnx", "-o", "a")
    assert code == 0, out + err
    artifact = load_artifact(tmp_path / "a" / "onnx-fp32")
    assert artifact.dynamic["mode"] == "gathered"
    assert artifact.contract.inputs[0].shape[0] == 1
    assert artifact.ops["Gather"] > 0
    onnx = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "a/onnx-fp32/model.onnx"))
    net = load_bundle(gated).module().eval()
    x = np.load(tmp_path / "a/onnx-fp32/samples.npz")["inputs"][:8]
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    got = np.concatenate([onnx.run(None, {onnx.get_inputs()[0].name: image[None]})[0] for image in x])
    assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()


def test_static_is_a_plain_network_that_computes_less(cli, gated, tmp_path):
    code, out, err = cli("export", gated, "--dynamic", "static", "--to", "onnx,tflite", "-o", "a")
    assert code == 0, out + err
    artifact = load_artifact(tmp_path / "a" / "onnx-fp32")
    assert artifact.dynamic == {}
    assert artifact.source["dynamic"] == "static"
    assert artifact.source["parent_hash"] == load_bundle(gated).hash
    assert "N" in artifact.contract.symbols  # nothing that decides is left in it
    cli("export", gated, "--to", "onnx", "-o", "masked")
    assert artifact.size_bytes < load_artifact(tmp_path / "masked" / "onnx-fp32").size_bytes


def test_routed_is_control_flow_with_its_threshold_as_an_input(cli, routed, tiny_npz, tmp_path):
    code, out, err = cli(
        "export", routed, "--dynamic", "routed", "--to", "onnx,tflite,coreml", "--precision", "fp32", "-o", "a"
    )
    assert code == 0, out + err
    assert out.count("proven") == 3
    net = load_bundle(routed).module().eval()
    assert isinstance(net, RoutedNet)
    for name in ("onnx", "tflite", "coreml"):
        artifact = load_artifact(tmp_path / "a" / f"{name}-fp32")
        assert artifact.dynamic["mode"] == "routed"
        assert artifact.dynamic["thresholds"] == pytest.approx(net.thresholds.tolist())
        assert {case.branch for case in artifact.parity.cases} == {0, 1}
    assert load_artifact(tmp_path / "a" / "onnx-fp32").ops["If"] == 1
    runtime = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "a/onnx-fp32/model.onnx"))
    image, limits = (spec.name for spec in runtime.get_inputs())
    x = np.load(tmp_path / "a/onnx-fp32/samples.npz")["inputs"][:1]
    for limit, branch in ((0.0, 0), (1.01, 1)):  # the phone's own choice
        got = runtime.run(None, {image: x, limits: np.array([limit], np.float32)})[0]
        with torch.no_grad():
            expected = net.branches[branch](torch.from_numpy(x)).numpy()
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    # and the task's metric through the artifact is the network's own
    figures = []
    for what in (routed, "a/onnx-fp32", "a/tflite-fp32"):
        code, out, _ = cli("evaluate", what, "--data", f"npz:{tiny_npz}", "--json")
        assert code == 0
        figures.append(json.loads(out)["accuracy"])
    assert figures[0] == figures[1] == figures[2]


def test_a_profile_tells_how_latency_is_spread_over_inputs(cli, routed, tmp_path):
    assert cli("export", routed, "--to", "onnx,tflite", "-o", "a")[0] == 0
    code, out, err = cli("profile", "a/onnx-fp32", "a/tflite-fp32", "--preset", "quick", "-o", "latency.json")
    assert code == 0, err
    measured = json.loads((tmp_path / "latency.json").read_text())["measurements"]
    assert {m["runtime"] for m in measured} >= {"onnxruntime", "litert"}
    for m in measured:
        assert len(m["inputs_ns"]) == 64
        assert min(m["inputs_ns"]) > 0
        one = np.mean(m["inputs_ns"]) / np.mean(m["samples_ns"])
        assert 0.2 < one < 5  # the same calls, one by one and in turn: no more can be said beside other work
        assert f"p99 {np.percentile(m['inputs_ns'], 99) / 1e6:.3f} ms" in out


def test_auto_measures_the_forms_and_keeps_one_that_is_proven(cli, gated, tmp_path):
    code, out, err = cli("export", gated, "--dynamic", "auto", "--to", "onnx,tflite", "-o", "a")
    assert code == 0, out + err
    for name, modes in (("onnx", {"masked", "gathered", "static", "routed"}), ("tflite", {"masked", "static", "routed"})):
        said = {line.split()[2].rstrip(":"): line for line in out.splitlines() if line.startswith(f"{name} fp32")}
        assert said.keys() == modes
        times = {mode: float(line.split(": ")[1].split()[0]) for mode, line in said.items() if " ms, validation" in line}
        artifact = load_artifact(tmp_path / "a" / f"{name}-fp32")
        assert artifact.parity.ok
        assert artifact.name.split("-")[1] == min(times, key=times.get)
    assert "tflite gathered: left out: a convolution whose weights are picked at run time" in out
    assert "onnx gathered: left out" not in out
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["onnx-fp32", "tflite-fp32"]  # nothing else is left


def test_thresholds_keep_a_mean_latency(cli, routed, tiny_npz, tmp_path):
    def target(ms, folder, to="onnx"):
        code, out, err = cli("export", routed, "--to", to, "--max-latency", ms, "-o", folder)
        assert code == 0, out + err
        found = [load_artifact(path) for path in sorted((tmp_path / folder).iterdir())]
        for artifact in found:
            said = artifact.dynamic["latency_target"]
            assert artifact.parity.ok
            assert artifact.contract.inputs[1].default == pytest.approx(said["thresholds"])
            assert artifact.dynamic["thresholds"] == pytest.approx(said["thresholds"])
            assert said["expected_ms"] <= said["max_ms"] == ms
            mean = sum(s * t for s, t in zip(said["shares"], said["paths_ms"], strict=True))
            assert said["expected_ms"] == pytest.approx(mean)
            assert f"thresholds {said['thresholds'][0]:.4f}" in out
        return [artifact.dynamic["latency_target"] for artifact in found]

    ample = target(1000, "ample", "onnx,tflite")
    assert [t["runtime"] for t in ample] == ["onnxruntime", "litert"]
    small, whole = ample[0]["paths_ms"]
    assert 0 < small < whole  # a cascade's second way holds the first
    # time for everything: the most accurate thresholds of all
    assert all(t["accuracy"] >= t["reference"] for t in ample)
    # hardly more time than the small branch takes: it answers nearly everything, whatever this moment's speed
    tight = target(small + 0.3 * (whole - small), "tight")[0]
    assert tight["shares"][0] >= ample[0]["shares"][0]
    assert tight["accuracy"] <= ample[0]["accuracy"]
    # the artifact's own figure is the network's with these thresholds
    out = cli("evaluate", "tight/onnx-fp32", "--data", f"npz:{tiny_npz}", "--json")[1]
    net = load_bundle(routed).module()
    net.thresholds.copy_(torch.tensor(tight["thresholds"]))
    task = open_task("classification", {"data": f"npz:{tiny_npz}"})
    assert json.loads(out)["accuracy"] == pytest.approx(task.evaluate(net.eval(), "test")["accuracy"])


def test_a_latency_that_can_t_be_kept_is_refused(cli, plain, gated, routed, tmp_path):
    for bundle, options, message in (
        (routed, ["--to", "onnx", "--max-latency", "0.0001"], "ms is the least, with the smallest branch for every sample"),
        (routed, ["--to", "onnx", "--max-latency", "0"], "--max-latency 0 is not a time"),
        (routed, ["--to", "onnx", "--max-latency", "nan"], "--max-latency nan is not a time"),
        (routed, ["--to", "coreml", "--max-latency", "1"], "--max-latency times the artifact here, and it can't be for coreml"),
        (plain, ["--to", "onnx", "--max-latency", "1"], "and plain has no branches\n  → write --dynamic routed"),
        (gated, ["--to", "onnx", "--dynamic", "masked", "--max-latency", "1"], "and --dynamic masked was asked"),
    ):
        code, _, err = cli("export", bundle, *options, "-o", "x")
        assert (code, message in " ".join(err.split("\n")) or message in err) == (2, True), err
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------- what is refused


def test_forms_that_can_t_be_are_refused_with_the_way_out(cli, plain, gated, routed):
    for bundle, options, message in (
        (gated, ["--dynamic", "maskd", "--to", "onnx"], "--dynamic maskd is no mode\n  → did you mean 'masked'?"),
        (plain, ["--dynamic", "masked", "--to", "onnx"], "is for a network with gates, and plain has none"),
        (plain, ["--dynamic", "auto", "--to", "onnx"], "is for a network with gates, and plain has none"),
        (routed, ["--dynamic", "gathered", "--to", "onnx"], "routed is routed already"),
        (gated, ["--dynamic", "gathered", "--to", "onnx,tflite"], "--dynamic gathered cannot be written as tflite"),
        (gated, ["--dynamic", "gathered", "--to", "coreml"], "--dynamic routed, which every format holds"),
    ):
        code, _, err = cli("export", bundle, *options, "-o", "x")
        assert (code, message in " ".join(err.split("\n")) or message in err) == (2, True), err


def test_nothing_is_overwritten(cli, gated, tmp_path):
    (tmp_path / "x" / "onnx-fp32").mkdir(parents=True)
    (tmp_path / "x" / "onnx-fp32" / "mine.txt").write_text("keep")
    for mode in ("masked", "auto"):
        code, _, err = cli("export", gated, "--dynamic", mode, "--to", "onnx", "-o", "x")
        assert code == 2
        assert "--force" in err
    assert (tmp_path / "x" / "onnx-fp32" / "mine.txt").read_text() == "keep"


# ---------------------------------------------------------------- before training, and looking at what there is


def test_the_estimate_is_of_the_frozen_network_and_writes_nothing(cli, plain, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, out, err = cli("compress", plain, "--estimate", "--json")
    assert code == 0, err
    found = json.loads(out)
    saved = [point["mac_reduction"] for point in found["points"]]
    assert [point["level"] for point in found["points"]][0::10] == [0.5, 1.0]
    assert saved == sorted(saved, reverse=True)
    assert saved[-1] == pytest.approx(-found["gate_macs"] / found["dense_macs"], abs=0.02)  # only dead filters go, gates cost
    assert sorted(tmp_path.iterdir()) == before
    code, out, _ = cli("compress", plain, "--estimate", "--recipe", recipe(tmp_path, GATES))
    assert code == 0
    assert "MACs saved" in out
    assert "target_mac_reduction" in out


def test_the_estimate_refuses_what_it_can_t_do(cli, plain, gated, tmp_path):
    for args, message in (
        ([plain, "--estimate", "-o", "x"], "-o says nothing with --estimate"),
        ([plain, "--estimate", "--recipe", recipe(tmp_path, ROUTE)], "the recipe has none: route"),
        ([gated, "--estimate"], "gates"),
        ([plain, "--recipe", "half"], "nothing says where the compressed network goes"),
    ):
        code, _, err = cli("compress", *args)
        assert (code, message in err) == (2, True), err


def test_inspect_says_what_can_be_gated_and_what_is(cli, plain, gated, routed):
    code, out, _ = cli("inspect", plain)
    assert code == 0
    assert "9 of 9 convolutions can be gated, linear layers never are" in out
    rows = json.loads(cli("inspect", plain, "--json")[1])["gates"]
    by_path = {row["path"]: row for row in rows}
    assert {row["state"] for row in rows} == {"can be gated"}
    assert "one sum with" in by_path["layer1.0.conv2"]["note"]
    assert by_path["layer1.0.conv1"]["saves"] > by_path["layer1.0.conv2"]["saves"] > 0  # its consumer's inputs as well
    rows = json.loads(cli("inspect", gated, "--json")[1])["gates"]
    assert {row["state"] for row in rows} == {"gated"}
    code, out, _ = cli("inspect", routed)
    assert code == 0
    assert "branches (cascade)" in out
    small, large = json.loads(cli("inspect", routed, "--json")[1])["branches"]
    assert large["path_macs"] == small["macs"] + large["macs"]
    assert 0 <= small["threshold"] <= 1.01
    assert large["threshold"] is None


def test_a_finished_step_is_said_in_a_line(cli, plain, tmp_path):
    code, out, err = cli("compress", plain, "--recipe", recipe(tmp_path, GATES + ROUTE), "-o", "both")
    assert code == 0, err
    first, second = (line for line in out.splitlines() if line[:2] in ("1.", "2."))
    assert "different masks for" in first
    assert "gates dynamic" in first
    assert "M expected (" in second
    assert "branches take" in second


@pytest.mark.slow
def test_the_demonstration_routes_a_network_and_proves_it(cli, tmp_path):
    """All of it on the digits: the exit code is the verdict on speed, the rest must hold on any machine."""
    code, out, err = cli("demo", "--dynamic", "--data", "digits", "-o", "demo", "--budget", "20")
    assert code in (0, 1), err
    record = json.loads((tmp_path / "demo" / "run.json").read_text())
    assert [step["kind"] for step in record["steps"]] == ["ftwt", "route"]
    before, after = record["models"]
    assert after["macs"] < 0.9 * before["macs"] < after["macs_worst"]
    assert after["metrics"]["accuracy"] > before["metrics"]["accuracy"] - 0.03
    assert {a["status"] for a in record["artifacts"]} == {"accepted"}
    assert all(a["artifact"]["dynamic"]["mode"] == "routed" for a in record["artifacts"] if a["model"] == "compressed")
    faster = {c["runtime"] for c in record["profile"]["comparisons"] if c["significant"] and c["speedup"] > 1}
    assert (code == 0) == (len(faster) >= 2)
    assert "dB, proven" in out
    assert 'id="dynamic"' in (tmp_path / "demo" / "report.html").read_text()


def test_int8_from_the_command_line_is_calibrated_on_training_images(cli, plain, routed, tmp_path):
    code, out, err = cli("export", plain, "--to", "onnx,tflite", "--precision", "int8", "--calibrate", "32", "-o", "a")
    assert code == 0, out + err
    for name in ("onnx", "tflite"):
        artifact = load_artifact(tmp_path / "a" / f"{name}-int8")
        assert artifact.parity.gate_db == gate_db("int8")
        assert artifact.parity.inputs == "real"
    code, _, err = cli("export", routed, "--to", "onnx", "--precision", "int8", "-o", "b")
    assert (code, "ONNX int8 of a network that decides (If)" in err) == (2, True), err
