"""benchmark_model: its output read, version by version, and whole profiles by a program that makes its figures up."""

from __future__ import annotations

from pathlib import Path

import pytest
from adb_kit import Unplugging, add, fake_adb, settings

from trimtab.devices import benchmark_model as tool
from trimtab.devices.benchmark_model import Stats, Taken, arguments, check_program, parse
from trimtab.devices.benchmark_model_link import ToolLink
from trimtab.devices.profile import profile
from trimtab.devices.reading import Machine, Reading, Snapshot
from trimtab.devices.runtime import RejectedError
from trimtab.export.manifest import UserError

DATA = Path(__file__).parent / "data/benchmark_model"
FAST = {"budget_s": 0.2, "preset": "quick", "seed": 3}


def read(name: str) -> str:
    return (DATA / name).read_text()


def test_version_1_13():
    run = parse(read("old_1_13.txt"))
    assert (run.init_us, run.first_us) == (38467, 84210)
    assert run.runs == Stats(count=50, first=79449, min=77385, max=88213, avg=79760.9, std=1929)
    assert run.memory_bytes is None
    assert run.taken == ()


def test_gpu_takes_it_all():
    run = parse(read("gpu_whole_2_8.txt"))
    assert (run.init_us, run.first_us, run.runs.avg, run.runs.count) == (1009470, 21455, 14641.9, 20)
    assert (run.asked, run.extent, run.backend) == ("GPU", "completely", "OpenCL")
    assert run.taken == (Taken("TfLiteGpuDelegateV2", 31, None, 1),)
    assert run.memory_bytes == 118 * 1024**2


def test_nnapi_takes_a_part():
    run = parse(read("nnapi_part_2_5.txt"))
    assert (run.asked, run.extent) == ("NNAPI", "partially")
    assert run.runs == Stats(count=3, first=8413, min=8413, max=8413, avg=8413, std=0)
    assert run.first_us == 10013451
    assert run.memory_bytes == 9.25 * 1024**2


def test_levels_and_percentiles_of_newer_versions():
    run = parse(read("xnnpack_2_17.txt"))
    assert (run.runs.count, run.runs.avg, run.runs.std) == (110, 455.25, 9)
    assert run.taken == (Taken("TfLiteXNNPackDelegate", 29, 31, 2),)
    assert run.peak_bytes == 12.5 * 1024**2


def test_operations():
    ops = parse(read("ops_2_4.txt")).ops
    assert [(op.kind, op.ms) for op in ops] == [
        ("TfLiteNnapiDelegate", 1.5),
        ("AVERAGE_POOL_2D", 0.1),
        ("RESIZE_BILINEAR", 0.4),
    ]
    assert ops[0].name == "features/project/add_fold, aspp0/Relu"
    inside = parse(read("ops_2_18.txt")).ops
    # the delegate's own row, which holds its parts once more, is gone; 13 calls of 0.05 ms make one inference
    assert [(op.kind, pytest.approx(op.ms)) for op in inside] == [
        ("QUANTIZE", 0.1),
        ("Convolution (NHWC, QC8) IGEMM", 0.4),
        ("Convolution (NHWC, QC8) DWConv", 0.65),
    ]
    assert parse(read("xnnpack_2_17.txt")).ops == ()


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        (read("gpu_failed_2_8.txt"), RejectedError, "rejects net.tflite: TfLiteGpuDelegate Init: No selector for pad"),
        (read("model_missing_2_8.txt"), RejectedError, "Could not open"),
        (read("flags_unknown_2_17.txt"), UserError, "does not know --use_gpu=true"),
        (read("unlinked.txt"), UserError, "can't be started on the phone: CANNOT LINK EXECUTABLE"),
        (read("wrong_cpu.txt"), UserError, "not executable: 64-bit ELF file"),
        ("usage: benchmark_model <flags>\n", UserError, "does not take what it was given"),
        ("", UserError, "printed 'nothing'"),
        ("Hello\nworld\n", UserError, "printed 'world'"),
        (read("old_1_13.txt").replace("Init: 38467, ", ""), UserError, "can't read: 'Init'"),
        (read("old_1_13.txt").replace("count=", "number="), UserError, "gave no figures"),
        (read("ops_2_4.txt").replace("[times called]", "[calls]"), UserError, "can't read: 'times called'"),
    ],
)
def test_failures_and_junk_in_words(text, kind, what):
    with pytest.raises(UserError) as raised:
        parse(text, file="net.tflite")
    assert type(raised.value) is kind
    assert what in raised.value.what
    assert raised.value.hint


def test_no_prefix_of_an_output_is_taken_for_a_whole_one():
    text = read("xnnpack_2_17.txt")
    end = text.index("INFO: Inference timings")
    for cut in range(0, end, 97):
        with pytest.raises(UserError):
            parse(text[:cut])


def test_arguments():
    words = arguments(
        "/x/m.tflite", threads=2, options={"delegate": "gpu", "gpu_precision": "fp32"}, runs=7, warm_runs=3, shapes={}
    )
    assert words[:4] == ["--graph=/x/m.tflite", "--num_threads=2", "--num_runs=7", "--warmup_runs=3"]
    assert {"--min_secs=0", "--warmup_min_secs=0", "--use_gpu=true", "--gpu_precision_loss_allowed=false"} <= set(words)
    shaped = arguments("m", threads=1, options={}, runs=1, warm_runs=1, shapes={"serve:in": (4, 8), "b": (4,)})
    assert "--input_layer=serve_in,b" in shaped
    assert "--input_layer_shape=4,8:4" in shaped
    assert "--use_xnnpack=true" in shaped


def test_programs_for_another_processor(tmp_path):
    def elf(machine: int) -> str:
        path = tmp_path / f"elf{machine}"
        path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(11) + machine.to_bytes(2, "little"))
        return str(path)

    assert check_program(elf(183), "arm64-v8a").name == "elf183"
    assert check_program(elf(40), "arm64-v8a").name == "elf40"
    with pytest.raises(UserError, match="is made for x86_64, the phone runs arm64-v8a"):
        check_program(elf(62), "arm64-v8a")
    with pytest.raises(UserError, match="can't be read"):
        check_program(str(tmp_path / "none"), "arm64-v8a")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="is no program"):
        check_program(str(tmp_path / "text"), "arm64-v8a")


def a_link(output: str, *, code=0, cpus=(0, 1, 4)):
    """A link whose program prints `output`, and the list of what it was asked to run."""
    asked: list[list[str]] = []

    def execute(argv, timeout_s):
        asked.append(list(argv))
        return code, output

    none = Reading(reason="a test")
    machine = Machine(
        cpu_model=none,
        machine="aarch64",
        cores_online=3,
        cpu_quota=none,
        virtualised=none,
        emulated=False,
        power_source=none,
        os="Android 14",
        python="none",
    )
    link = ToolLink(
        program="/d/benchmark_model",
        version=Path(__file__),
        execute=execute,
        machine=lambda: machine,
        snapshot=lambda: Snapshot(none, none, none, none),
        cpus=cpus,
    )
    return link, asked


LOAD = {
    "do": "load",
    "slot": 0,
    "file": "/d/m.tflite",
    "gaps": [],
    "inputs": [{"name": "x", "shape": ["N", 8], "dtype": "float32"}],
    "outputs": [],
    "feeds": [{"x": {"file": "x.bin", "shape": [1, 8], "dtype": "float32"}}],
}


def test_placement_is_told():
    link, asked = a_link(read("gpu_whole_2_8.txt"))
    link.ask({"do": "open", "threads": 1, "options": {"delegate": "gpu"}, "affinity": [1, 4]})
    told = link.ask(dict(LOAD))
    assert told["facts"]["provider"] == "GPU by OpenCL (31 operations)"
    assert told["facts"]["reduced_precision"] is True
    assert told["load_ns"] == 1009470e3
    assert told["first_ns"] == 21455e3
    assert told["peak_bytes"]["value"] == 118 * 1024**2
    assert asked[0][:3] == ["taskset", "12", "/d/benchmark_model"]
    assert link.ask({"do": "time", "order": [0, 0], "blocks": [20, 20], "warm": [1, 1]})["ns"] == [14641.9e3] * 2
    assert "--warmup_runs=20" in asked[-1]
    link, _ = a_link(read("nnapi_part_2_5.txt"))
    link.ask({"do": "open", "threads": 1, "options": {"delegate": "nnapi"}, "affinity": None})
    assert link.ask(dict(LOAD))["facts"]["provider"] == "NNAPI (28 operations, the rest on the CPU)"


def test_a_delegate_that_takes_nothing_is_not_timed():
    link, _ = a_link(read("gpu_none_2_17.txt"))
    link.ask({"do": "open", "threads": 1, "options": {"delegate": "gpu"}, "affinity": None})
    with pytest.raises(RejectedError, match=r"the GPU delegate takes no operation of m\.tflite"):
        link.ask(dict(LOAD))


def test_what_it_can_not_do():
    link, asked = a_link(read("xnnpack_2_17.txt"))
    with pytest.raises(UserError, match="threads=4 is outside 1…3"):
        link.ask({"do": "open", "threads": 4, "options": {}, "affinity": None})
    with pytest.raises(UserError, match="no option delegate=npu"):
        link.ask({"do": "open", "threads": 1, "options": {"delegate": "npu"}, "affinity": None})
    link.ask({"do": "open", "threads": 1, "options": {}, "affinity": None})
    with pytest.raises(UserError, match="gives no outputs"):
        link.ask({"do": "run"})
    with pytest.raises(RejectedError, match="adapts to its input"):
        link.ask({**LOAD, "feeds": LOAD["feeds"] * 2})
    assert not asked
    link.ask({**LOAD, "feeds": [{"x": {"file": "x.bin", "shape": [4, 8], "dtype": "float32"}}]})
    assert "--input_layer_shape=4,8" in asked[0]
    killed, _ = a_link("count=1", code=137)
    killed.ask({"do": "open", "threads": 1, "options": {}, "affinity": None})
    with pytest.raises(UserError, match="was killed, as the kernel does when memory runs out"):
        killed.ask(dict(LOAD))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A fake phone with a fake benchmark_model in devices.toml; gives the fake adb's folder."""
    home = fake_adb(tmp_path, monkeypatch)
    add("pixel", **settings(tmp_path), cores="all", benchmark_model=str(tmp_path / "programs/benchmark_model"))
    return home


def test_a_whole_profile(fake, tflite_folder):
    folders = [tflite_folder("small"), tflite_folder("large", features=256)]
    result = profile(
        folders,
        on="pixel",
        runtimes=["benchmark_model"],
        options={"benchmark_model": {"delegate": "gpu"}},
        ops=20,
        sustained_s=1.0,
        **FAST,
    )
    small, large = result.measurements
    assert small.p50_ms == pytest.approx(
        (folders[0] / "model.tflite").stat().st_size / 1e3, abs=0.01
    )  # the stub's rule, and its jitter
    assert small.block == 50_000_000 // round(small.p50_ms * 1e6) + 1  # blocks of 50 ms
    assert len(small.sittings) >= 6
    assert small.outputs_ok is None
    assert small.conditions.provider == "GPU by OpenCL (1 of 1 operations)"
    assert small.conditions.hints == {"delegate": "gpu", "gpu_precision": "fp16"}
    assert small.conditions.runtime_version.startswith("sha256 ")
    assert result.comparisons[0].speedup == pytest.approx(small.p50_ms / large.p50_ms, rel=0.01)
    assert result.comparisons[0].significant
    assert result.aa[0].deviation < 0.01
    assert [(op.where, op.ns) for op in result.ops[0].ops] == [("GPU", 0.25e6)]
    assert any("does not give its outputs" in warning for warning in result.warnings)
    assert any("no sustained run" in warning for warning in result.warnings)


def test_beside_the_runner_and_what_the_program_rejects_is_skipped(fake, tflite_folder, rewrite):
    broken = tflite_folder("broken")
    data = (broken / "model.tflite").read_bytes()
    (broken / "model.tflite").write_bytes(data[:4] + b"XXXX" + data[8:])
    rewrite(broken)
    result = profile([tflite_folder("net"), broken], on="pixel", **FAST)
    assert [(m.label, m.runtime, m.outputs_ok) for m in result.measurements] == [
        ("net", "litert", True),
        ("net", "benchmark_model", None),
    ]
    skipped = {entry.runtime: entry for entry in result.skipped}
    assert all((entry.label, entry.kind) == ("broken", "rejected") for entry in skipped.values())
    assert "should be 'TFL3'" in skipped["benchmark_model"].reason


def test_flags_it_does_not_know(fake, tflite_folder):
    with pytest.raises(UserError, match="does not know --use_nnapi=true"):
        profile(
            [tflite_folder("net")],
            on="pixel",
            runtimes=["benchmark_model"],
            options={"benchmark_model": {"delegate": "nnapi"}},
            **FAST,
        )


def test_unplugged_while_measuring(fake, tflite_folder):
    pull = Unplugging(lambda: (fake / "devices.txt").write_text(""), after=6)
    result = profile(
        [tflite_folder("net")],
        on="pixel",
        runtimes=["benchmark_model"],
        progress=pull,
        **FAST | {"budget_s": 60, "preset": "standard"},
    )
    (measured,) = result.measurements
    assert measured.partial
    assert measured.stopped_because == "lost"
    assert any("no longer connected" in warning for warning in result.warnings)


def test_rules_of_single_queries_can_not_be_met(fake, tflite_folder):
    with pytest.raises(UserError, match="benchmark_model tells means of runs") as raised:
        profile([tflite_folder("net")], on="pixel", runtimes=["benchmark_model"], **FAST | {"preset": "mlperf"})
    assert "--preset" in raised.value.hint
    assert tool.OFFER.formats == ("tflite",)
