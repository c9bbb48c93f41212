"""Profiles of single operations: in each runtime, on nets whose costliest layer is known, and what will not be profiled."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from trimtab.devices import ops, ops_litert, ops_mnn, ops_ncnn, ops_onnxruntime
from trimtab.devices.ops_litert_c import Event
from trimtab.devices.runner import Runner
from trimtab.devices.runtime import RejectedError, runtimes
from trimtab.export.manifest import Contract, TensorSpec

SIZE, WIDE = 20, 96
FORMATS = {
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "litert": "tflite",
    "executorch": "executorch",
    "ncnn": "ncnn",
    "mnn": "mnn",
}
CONVOLUTION = "conv"
"""What the kinds of convolutions have in common in all six runtimes' words, case apart."""


@dataclass(frozen=True)
class Made:
    """An exported net: its file, its contract, and inputs of its shapes."""

    path: Path
    contract: Contract
    inputs: dict[str, np.ndarray]

    def profile(self, runtime, *, runs=5, path=None, threads=1, **options):
        complete = runtimes.entry(runtime).card.complete(options)
        return ops.profile_ops(
            runtime, path or self.path, self.contract, inputs=self.inputs, threads=threads, options=complete, runs=runs
        )


def spec(name, *shape, layout="NCHW"):
    return TensorSpec(name=name, shape=("N", *shape), layout=layout)


def with_inputs(path, contract, batch=2):
    rng = np.random.default_rng(5)
    shapes = {s.name: tuple(batch if d == "N" else d for d in s.shape) for s in contract.inputs}
    return Made(path, contract, {name: rng.uniform(size=shape).astype(np.float32) for name, shape in shapes.items()})


def dominated():
    """conv 3×3, 3→4 | conv 7×7, 4→96 | relu | mean | linear: the second convolution has 174 of 176 parts of the MACs."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.small, self.large = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, WIDE, 7, padding=3)
            self.head = nn.Linear(WIDE, 10)

        def forward(self, image):
            return self.head(torch.relu(self.large(self.small(image))).mean((2, 3)))

    return Net().eval(), Contract(inputs=(spec("image", 3, SIZE, SIZE),), outputs=(spec("logits", 10, layout="NC"),))


def two_sided():
    """Two inputs, each through a convolution, added; two outputs."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)
            self.head = nn.Linear(16, 10)

        def forward(self, image, mask):
            x = torch.relu(self.left(image) + self.right(mask))
            return self.head(x.mean((2, 3))), x

    inputs = (spec("image", 3, SIZE, SIZE), spec("mask", 1, SIZE, SIZE))
    return Net().eval(), Contract(inputs=inputs, outputs=(spec("logits", 10, layout="NC"), spec("map", 16, SIZE, SIZE)))


def chain():
    """Six convolutions in a row, whose values can lie in each other's memory."""
    import torch
    from torch import nn

    torch.manual_seed(2)
    layers = [part for k in range(6) for part in (nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return net.eval(), Contract(inputs=(spec("image", 3, SIZE, SIZE),), outputs=(spec("logits", 10, layout="NC"),))


NETS = {"chain": chain, "dominated": dominated, "two_sided": two_sided}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(runtime, net, precision) → the exported net, each made once."""
    held = {}

    def make(runtime, net="dominated", precision="fp32"):
        from trimtab.export.convert import module_source
        from trimtab.export.exporter import ExportRequest, exporters

        card = runtimes.entry(runtime).card
        if gone := card.missing():
            pytest.skip(f"{card.title} is not installed ({', '.join(gone)}): {card.install}")
        kind = FORMATS[runtime]
        entry = exporters.entry(kind)
        if gone := entry.card.missing():
            pytest.skip(
                f"{kind} files cannot be written here, {', '.join(gone)} missing: pip install 'trimtab[{entry.card.extra}]'"
            )
        if (kind, net, precision) not in held:
            module, contract = NETS[net]()
            source = module_source(module, contract, label=net)
            path = tmp_path_factory.mktemp(kind) / f"model{entry.card.suffix}"
            feeds = tuple(contract.random_inputs({"N": 1}, seed=k) for k in range(16)) if precision == "int8" else ()
            request = ExportRequest(
                contract,
                precision,
                path,
                graph=source.graph,
                module=module,
                calibration=feeds,
                options=entry.card.configured({}),
            )
            held[kind, net, precision] = with_inputs(path, entry.value.export(request).contract)
        return held[kind, net, precision]

    return make


def listed(profile):
    return [(op.name, op.kind, op.where) for op in profile.ops]


def is_sound(profile, runs=5):
    assert profile.reason == ""
    assert profile.runs == runs
    assert profile.ops
    assert all(op.ns >= 0 and op.name and op.kind and op.where for op in profile.ops)
    assert sum(op.ns for op in profile.ops) > 0
    assert f"{runs} inferences" in profile.note
    assert "times as long" in profile.note
    assert len(set(listed(profile))) == len(profile.ops)


@pytest.mark.parametrize("runtime", FORMATS)
def test_the_layer_with_nearly_all_the_work_costs_the_most(runtime, made):
    """Of three profiles the least of each operation: other work on the CPU only ever adds, and a mean of five may hold a pause."""
    profiles = [made(runtime).profile(runtime) for _ in range(3)]
    for found in profiles:
        is_sound(found)
    least = [min(same, key=lambda op: op.ns) for same in zip(*(found.ops for found in profiles), strict=True)]
    convolutions = [op for op in least if CONVOLUTION in op.kind.lower()]
    # MNN makes a third convolution of the linear layer
    assert len(convolutions) >= 2
    assert max(least, key=lambda op: op.ns) is convolutions[1]


@pytest.mark.parametrize("runtime", FORMATS)
def test_a_second_profile_names_the_same_operations(runtime, made):
    net = made(runtime)
    assert listed(net.profile(runtime)) == listed(net.profile(runtime))


@pytest.mark.parametrize("runtime", FORMATS)
def test_several_inputs_and_outputs(runtime, made):
    found = made(runtime, "two_sided").profile(runtime, runs=3)
    is_sound(found, runs=3)
    assert sum(CONVOLUTION in op.kind.lower() for op in found.ops) >= 2


@pytest.mark.parametrize(
    ("runtime", "sign"), [("onnxruntime", "QLinearConv"), ("openvino", "I8"), ("litert", "QC8"), ("executorch", "QC8")]
)
def test_integer_artifacts(runtime, sign, made):
    found = made(runtime, precision="int8").profile(runtime, runs=3)
    is_sound(found, runs=3)
    assert any(sign in op.kind or sign in op.where for op in found.ops)


@pytest.mark.parametrize("runtime", FORMATS)
def test_a_corrupt_file_is_rejected(runtime, made, tmp_path):
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"\x07not a model" * 20)
    with pytest.raises(RejectedError, match=r"rejects broken\.bin"):
        made(runtime).profile(runtime, path=broken)


def test_onnxruntime_without_fusion_shows_the_relu(made):
    net = made("onnxruntime")
    fused, plain = net.profile("onnxruntime"), net.profile("onnxruntime", graph_optimizations="off")
    assert "Relu" in {op.kind for op in plain.ops}
    assert "Relu" not in {op.kind for op in fused.ops}
    assert {op.where for op in (*fused.ops, *plain.ops)} == {"CPU"}
    # whichever of the two runs: the optimiser may turn the linear layer's Gemm into one of its own kinds
    assert any("Gemm" in op.kind or "MatMul" in op.kind for op in fused.ops)


def test_openvino_profiles_in_the_precision_of_the_session(made):
    net = made("openvino")
    session = runtimes.entry("openvino").value.load(
        net.path, net.contract, shapes={k: v.shape for k, v in net.inputs.items()}, threads=1, options={"precision": "bf16"}
    )
    assert not any("bf16" in op.where for op in net.profile("openvino").ops)
    if session.describe().hints["inference_precision"] != "bf16":
        pytest.skip("this CPU has no bfloat16, so OpenVINO keeps to float32 whatever is asked")
    assert any("bf16" in op.where for op in net.profile("openvino", precision="bf16").ops)


def test_litert_tells_the_delegate_from_its_own_kernels(made):
    net = made("litert")
    delegated, own = net.profile("litert"), net.profile("litert", delegate="none")
    assert {op.where for op in delegated.ops} == {ops_litert.DELEGATE}
    assert {op.where for op in own.ops} == {ops_litert.KERNEL}
    assert [op.kind for op in own.ops].count("CONV_2D") == 2


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_more_threads_change_no_operation(runtime, made):
    net = made(runtime)
    assert listed(net.profile(runtime, threads=2, runs=2)) == listed(net.profile(runtime, threads=1, runs=2))


def test_executorch_tells_what_no_delegate_took(made, tmp_path):
    import torch
    from executorch.exir import to_edge

    net = made("executorch")
    assert "XNNPACK" in {op.where for op in net.profile("executorch").ops}
    module, _ = dominated()
    example = tuple(torch.from_numpy(array) for array in net.inputs.values())
    path = tmp_path / "plain.pte"
    path.write_bytes(to_edge(torch.export.export(module, example)).to_executorch().buffer)
    found = net.profile("executorch", path=path, runs=1, program_check="minimal")
    assert {op.where for op in found.ops} == {"ExecuTorch kernel"}
    assert [op.kind for op in found.ops].count("convolution.out") == 2
    assert f"{len(found.ops)} of {len(found.ops)} operations were not delegated" in found.note


def test_ncnn_and_mnn_in_the_precision_that_is_asked_for(made):
    for runtime, choice in (("ncnn", "default"), ("mnn", "low")):
        found = made(runtime).profile(runtime, runs=2, precision=choice)
        is_sound(found, runs=2)
        assert {op.where for op in found.ops} == {"CPU"}


def test_mnn_computes_from_its_inputs_every_time(made):
    """Its session reuses the memory of inputs for other values: what is profiled must not be an inference on those."""
    import MNN

    net = made("mnn", "chain")
    settings = {"backend": "CPU", "precision": "high", "numThread": 1}
    watched = ops_mnn._Watched(net.path, net.contract, net.inputs, settings)
    for _ in range(4):
        assert watched.call()
    held = MNN.Tensor((2, 10), MNN.Halide_Type_Float, np.zeros((2, 10), np.float32), MNN.Tensor_DimensionType_Caffe)
    watched.interpreter.getSessionOutputAll(watched.session)["logits"].copyToHostTensor(held)
    session = runtimes.get("mnn").load(net.path, net.contract, shapes={}, threads=1, options={"precision": "high"})
    # the same kernels on the same numbers: equal but for sums in another order
    np.testing.assert_allclose(np.array(held.getData()).reshape(2, 10), session.run(net.inputs)["logits"], rtol=1e-4, atol=1e-5)


def test_ncnn_profiles_what_the_outputs_need_and_nothing_else():
    from trimtab.export.ncnn_files import Layer

    def layer(kind, name, inputs, outputs):
        return Layer(kind, name, inputs, outputs, ())

    layers = [
        layer("Input", "in", (), ("image",)),
        layer("MemoryData", "table", (), ("t",)),
        layer("Split", "fork", ("image",), ("a", "b")),
        layer("ReLU", "dead", ("a",), ("nobody",)),
        layer("BinaryOp", "sum", ("b", "t"), ("y",)),
    ]
    assert [found.name for found in ops_ncnn.needed(layers, {"y"})] == ["fork", "sum"]


@pytest.fixture(scope="module")
def branching(tmp_path_factory):
    """image → If(mean > 0): relu(conv) or -conv, as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(2)
    weight = numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "w")

    def branch(name, kind):
        nodes = [
            helper.make_node("Conv", ["image", "w"], [f"{name}_c"], name=f"{name}/conv", pads=[1, 1, 1, 1]),
            helper.make_node(kind, [f"{name}_c"], [f"{name}_y"], name=f"{name}/end"),
        ]
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["N", 4, SIZE, SIZE])
        return helper.make_graph(nodes, name, [], [out])

    nodes = [
        helper.make_node("ReduceMean", ["image"], ["m"], name="mean", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["go"], name="positive"),
        helper.make_node(
            "If", ["go"], ["y"], name="choice", then_branch=branch("bright", "Relu"), else_branch=branch("dark", "Neg")
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, SIZE, SIZE])],
        [weight, numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = tmp_path_factory.mktemp("branching") / "model.onnx"
    onnx.save(model, path)
    return with_inputs(path, Contract(inputs=(spec("image", 3, SIZE, SIZE),), outputs=(spec("y", 4, SIZE, SIZE),)))


def test_onnxruntime_names_what_ran_in_the_branch_that_was_taken(branching):
    found = branching.profile("onnxruntime")
    is_sound(found)
    assert any(op.kind == "If" for op in found.ops)
    assert any(CONVOLUTION in op.kind.lower() for op in found.ops)
    assert not any("dark" in op.name for op in found.ops)


def test_openvino_says_that_a_branch_is_counted_as_one(branching):
    if gone := runtimes.entry("openvino").card.missing():
        pytest.skip(f"OpenVINO is not installed ({', '.join(gone)}): pip install 'trimtab[openvino]'")
    found = branching.profile("openvino")
    assert "If" in {op.kind for op in found.ops}
    assert "what runs inside If is counted as one" in found.note


def test_mnn_gives_a_reason_for_a_network_with_branches(branching, tmp_path):
    if gone := runtimes.entry("mnn").card.missing():
        pytest.skip(f"MNN is not installed ({', '.join(gone)}): pip install 'trimtab[mnn]'")
    import onnx

    from trimtab.export.exporter import ExportRequest, exporters

    path = tmp_path / "model.mnn"
    done = exporters.get("mnn").export(ExportRequest(branching.contract, "fp32", path, graph=onnx.load(branching.path)))
    found = with_inputs(path, done.contract).profile("mnn")
    assert found.ops == ()
    assert "cannot run this network (networks with branches are run as modules)" in found.reason


def trace(*nodes):
    """ONNX Runtime's events of two inferences; nodes are (name, kind, start, duration) in µs."""
    events = []
    for begin in (0, 1000):
        events.append({"cat": "Session", "name": "model_run", "ts": begin, "dur": 900})
        events += [
            {
                "cat": "Node",
                "name": f"{name}_kernel_time",
                "ts": begin + start,
                "dur": spent,
                "args": {"op_name": kind, "provider": "CPUExecutionProvider"},
            }
            for name, kind, start, spent in nodes
        ]
    return events


def test_a_branch_is_taken_off_the_operation_that_holds_it():
    nodes = [
        ("a", "Conv", 10, 50),
        ("choice", "If", 70, 100),
        ("in", "Conv", 75, 60),
        ("deep", "If", 140, 20),
        ("x", "Neg", 145, 5),
    ]
    found = ops_onnxruntime.operations(trace(*nodes, ("last", "Gemm", 170, 7)), 2)
    assert {op.name: op.ns for op in found} == {"a": 5e4, "choice": 2e4, "in": 6e4, "deep": 1.5e4, "x": 5e3, "last": 7e3}


def test_inferences_before_the_last_ones_do_not_count():
    events = trace(("a", "Conv", 10, 50))
    events[1]["dur"] = 800
    (only,) = ops_onnxruntime.operations(events, 1)
    assert only.ns == 5e4
    assert ops_onnxruntime.operations(events, 2)[0].ns == 42.5e4


def test_names_that_the_optimiser_numbers_anew_are_told_in_running_order():
    nodes = [("Reorder_token_7", "Reorder", 10, 1), ("a", "Conv", 20, 1), ("Reorder", "Reorder", 30, 1)]
    assert [op.name for op in ops_onnxruntime.operations(trace(*nodes), 2)] == ["Reorder", "a", "Reorder #2"]


def test_litert_takes_a_subgraph_off_the_operation_that_runs_it_and_keeps_partitions_apart():
    run = [
        Event("Invoke", 1, 100, 200, 0, 0),
        Event("Convolution", 8, 0, 30, 0, 0),
        Event("IF", 2, 140, 100, 4, 0),
        Event("AllocateTensors", 1, 141, 5, 0, 1),
        Event("Invoke", 1, 150, 70, 0, 1),
        Event("Convolution", 8, 0, 60, 0, 1),
        Event("Invoke", 32, 0, 1 << 32, 0, 1),
        Event("ADD", 2, 241, 3, 5, 0),
        Event("Convolution", 8, 0, 8, 0, 0),
    ]
    found = ops_litert.operations([run, run])
    assert [(op.name, op.kind, op.ns, op.where) for op in found] == [
        ("op 0", "Convolution", 3e4, "XNNPACK"),
        ("op 4", "IF", 3e4, "LiteRT kernel"),
        ("op 0 of subgraph 1", "Convolution", 6e4, "XNNPACK"),
        ("op 5", "ADD", 3e3, "LiteRT kernel"),
        ("op 0 #2", "Convolution", 8e3, "XNNPACK"),
    ]


def test_another_version_of_litert_is_not_touched(made, monkeypatch):
    net = made("litert")
    monkeypatch.setattr(ops_litert, "TESTED", ("1.0.0",))
    found = net.profile("litert")
    assert found.ops == ()
    assert "known for ai-edge-litert 1.0.0, this is" in found.reason


def test_litert_without_its_library(made, monkeypatch):
    net = made("litert")
    monkeypatch.setattr(ops_litert, "library_file", lambda: None)
    assert "has no C library here" in net.profile("litert").reason


def test_litert_gives_a_failed_call_as_the_reason(made, monkeypatch):
    net = made("litert")
    monkeypatch.setattr(ops_litert.WatchedModel, "watched", lambda self: self._do("LiteRtNoSuchThing"))
    assert "will not profile this: LiteRtNoSuchThing is not in the library" in net.profile("litert").reason


def test_a_full_trace_of_onnxruntime_is_a_reason(made, monkeypatch):
    import json

    net, real = made("onnxruntime"), json.loads
    monkeypatch.setattr(ops_onnxruntime.json, "loads", lambda text: real(text)[:20])
    assert "ask for fewer runs" in net.profile("onnxruntime").reason


def test_a_runtime_without_a_profiler_and_a_profile_of_nothing(made):
    net = made("onnxruntime")
    found = ops.profile_ops("abc", net.path, net.contract, inputs=net.inputs, threads=1, options={}, runs=5)
    assert found.reason == "abc has no profiler of single operations here"
    assert net.profile("onnxruntime", runs=0).reason == "a profile needs at least 1 inference, 0 were asked for"


def test_whatever_a_profiler_throws_is_a_reason(made, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full\nand more")

    net = made("onnxruntime")
    monkeypatch.setattr(ops_onnxruntime, "profile_ops", broken)
    assert net.profile("onnxruntime").reason == "onnxruntime's profiler failed: OSError: disk full"


def test_no_trace_is_left_behind(made, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    is_sound(made("onnxruntime").profile("onnxruntime"))
    assert list(tmp_path.iterdir()) == []


def test_a_runner_answers_with_the_operations_of_a_slot(made, tmp_path):
    net = made("onnxruntime")
    (name, array), sides = *net.inputs.items(), {}
    array.tofile(tmp_path / "in.bin")
    for side in ("inputs", "outputs"):
        sides[side] = [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in getattr(net.contract, side)]
    feed = {name: {"file": str(tmp_path / "in.bin"), "shape": list(array.shape), "dtype": str(array.dtype)}}
    runner = Runner()
    try:
        runner.answer({"do": "open", "runtime": "onnxruntime", "threads": 1, "options": {}, "affinity": None})
        runner.answer({"do": "load", "slot": 0, "file": str(net.path), "feeds": [feed], "gaps": [], **sides})
        told = runner.answer({"do": "ops", "slot": 0, "file": str(net.path), "runs": 4})
    finally:
        gc.unfreeze()  # a runner holds the collector for as long as it lives
        gc.enable()
    assert (told["runs"], told["reason"]) == (4, "")
    assert "Conv" in {op["kind"] for op in told["ops"]}
    assert set(told["ops"][0]) == {"name", "kind", "ns", "where"}
