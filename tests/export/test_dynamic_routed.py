"""Routed networks as ONNX graphs that decide: every branch against torch, in ONNX Runtime and OpenVINO, and what is shared."""

import collections
import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from routed_nets import CONTRACT, routed_net, samples

from trimtab.devices.staging import cycle_of
from trimtab.export.artifact import GOLDEN, SAMPLES, load_artifact
from trimtab.export.choices import EDGE, telling
from trimtab.export.convert import convert
from trimtab.export.dynamic.routed import assembled, forcing, routed_contract, routed_graph, routed_source
from trimtab.export.dynamic.share import graphs
from trimtab.models.contract import TensorSpec
from trimtab.models.errors import UserError
from trimtab.models.routed import confidence

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
"""float32 sums of at most 108 products of order 1 in another order, through four layers."""
KINDS = {
    "cascade": {"rule": "cascade"},
    "cascade, nothing shared": {"rule": "cascade", "shared": False},
    "cascade, nested": {"rule": "cascade", "nested": True},
    "router at pixels": {"rule": "router"},
    "router at features": {"rule": "router", "at": "stem"},
    "router, nested": {"rule": "router", "at": "stem", "nested": True},
    "cluster": {"rule": "cluster"},
    "cluster at features": {"rule": "cluster", "at": "stem"},
}
LIMITS = ([0.0, 0.0], [1.01, 0.0], [1.01, 1.01], [0.5, 0.5], [0.4, 0.7], [0.9, 0.3])


def in_onnxruntime(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def in_openvino(model):
    openvino = pytest.importorskip("openvino", reason="needs trimtab[openvino]")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: list(compiled(feeds).values())


def on_the_edge(net, image, limits, *, by=1e-4):
    """Whether float32's rounding could decide this image otherwise: a score within `by` of its threshold."""
    with torch.no_grad():
        if net.router is None:
            scores = torch.stack([confidence(branch(image))[0] for branch in net.branches[:-1]])
        else:
            scores = net.router(net.router_input(image))[0]
    if limits is None:
        top = scores.topk(2).values
        return bool(top[0] - top[1] < by)
    return bool(((scores - limits).abs() < by).any())


@pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino])
@pytest.mark.parametrize("kind", KINDS)
def test_every_branch_answers_as_in_torch(kind, runtime):
    net = routed_net(**KINDS[kind])
    model, contract = routed_graph(net, CONTRACT, with_branch=True)
    run = runtime(model)
    answered = collections.Counter()
    for image in samples(12):
        for limits in LIMITS if len(net.thresholds) else (None,):
            given = None if limits is None else torch.tensor(limits)
            if on_the_edge(net, image, given):
                continue
            with torch.no_grad():
                wanted = net(image, given).numpy()
            feeds = {"image": image.numpy()} | ({} if given is None else {"thresholds": given.numpy()})
            logits, branch = run(feeds)
            np.testing.assert_allclose(logits, wanted, **TOLERANCE)
            assert branch.tolist() == net.taken.tolist()
            answered[int(net.taken[0])] += 1
    assert sum(answered.values()) >= (40 if len(net.thresholds) else 8)
    assert len(answered) >= (3 if len(net.thresholds) else 2)
    assert [spec.name for spec in contract.outputs] == ["logits", "branch"]


def convolutions(model):
    """Names of the layers of all convolutions, in all branches."""
    nodes = [node for graph in graphs(model.graph) for node in graph.node if node.op_type == "Conv"]
    return collections.Counter(node.name.partition("/")[2].split("/")[0] for node in nodes)


@pytest.mark.parametrize("rule", ["cascade", "router", "cluster"])
def test_a_shared_prefix_is_computed_once(rule):
    shared = convolutions(routed_graph(routed_net(rule, at="" if rule == "cascade" else "stem"), CONTRACT)[0])
    own = convolutions(routed_graph(routed_net(rule, shared=False), CONTRACT)[0])
    prefix = "stem" if rule == "cascade" else "largest"  # who asks first computes it: the router, as its largest branch
    assert shared == {prefix: 1, "first": 3, "second": 3}
    assert own["first"] == own["second"] == 3
    assert own["stem"] == 3  # of their own, yet with equal weights: see below


def test_a_branch_costs_what_it_and_its_decision_compute():
    macs = {
        "stem": 16 * 16 * 8 * 27,
        4: 64 * 4 * 9 * (8 + 4) + 20,
        8: 64 * 8 * 9 * (8 + 8) + 40,
        12: 64 * 12 * 9 * (8 + 12) + 60,
    }
    facts = assembled(routed_net("cascade"), CONTRACT).facts
    assert [b["macs"] for b in facts["branches"]] == [macs["stem"] + macs[width] for width in (4, 8, 12)]
    spent = [macs["stem"] + macs[4], macs["stem"] + macs[4] + macs[8], macs["stem"] + macs[4] + macs[8] + macs[12]]
    assert [b["macs_in_all"] for b in facts["branches"]] == spent
    once = assembled(routed_net("router", at="stem"), CONTRACT).facts["branches"]
    router = 8 * 8 + 8 * 2  # two linear layers on the stem's 8 channels
    assert [b["macs_in_all"] for b in once] == [macs["stem"] + macs[width] + router for width in (4, 8, 12)]


def test_the_contract_says_what_thresholds_are():
    net = routed_net("cascade")
    net.thresholds.copy_(torch.tensor([0.6, 0.8]))
    contract = routed_contract(net, CONTRACT)
    limits = contract.inputs[1]
    assert (limits.name, limits.shape, limits.value_range) == ("thresholds", (2,), (0.0, 1.0))
    np.testing.assert_array_equal(contract.defaults()["thresholds"], np.float32([0.6, 0.8]))
    assert contract.inputs[0].shape == (1, 3, 16, 16)
    assert [spec.name for spec in routed_contract(routed_net("cluster"), CONTRACT).inputs] == ["image"]
    assert assembled(net, CONTRACT).warnings == ("a routed network takes one sample at a time: the batch N is fixed at 1",)


def changed(**more):
    return CONTRACT.model_copy(update={"inputs": (CONTRACT.inputs[0].model_copy(update=more),)})


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        (changed(shape=("N", 3, "H", "W")), "the contract leaves H, W free"),
        (changed(shape=(4, 3, 16, 16)), "the batch of 'image' is fixed at 4"),
        (
            CONTRACT.model_copy(update={"outputs": (*CONTRACT.outputs, TensorSpec(name="more", shape=("N", 2)))}),
            "1 inputs and 2",
        ),
        (CONTRACT.model_copy(update={"outputs": (TensorSpec(name="map", shape=("N", 5, 8, 8)),)}), "'map' has 4 dimensions"),
    ],
)
def test_contracts_that_a_route_cannot_have(contract, said):
    with pytest.raises(UserError, match=said):
        routed_contract(routed_net("cascade"), contract)


# ---------------------------------------------------------------- the proof


def images(count=24):
    return torch.cat(samples(count)).numpy()


@pytest.mark.parametrize("rule", ["cascade", "router"])
def test_every_branch_is_proven_by_itself(rule, tmp_path):
    source = routed_source(routed_net(rule), CONTRACT, label="net")
    (made,) = convert(source, [("onnx", "fp32")], tmp_path, real=images())
    artifact = load_artifact(made.folder)
    assert artifact.parity.ok
    assert {case.branch for case in artifact.parity.cases} == {0, 1, 2}
    assert all(case.inputs >= 4 for case in artifact.parity.cases)
    assert artifact.dynamic["rule"] == rule
    assert sum(artifact.dynamic["samples"].values()) == 24
    assert artifact.warnings[0] == "a routed network takes one sample at a time: the batch N is fixed at 1"
    with np.load(made.folder / GOLDEN) as golden:
        np.testing.assert_array_equal(golden["input:thresholds"], np.float32([0.5, 0.5]))


def test_a_wrong_branch_is_rejected_whichever_it_is(tmp_path):
    source = routed_source(routed_net("cascade"), CONTRACT, label="net")
    for number in range(3):
        wrong = copy.deepcopy(source.graph)
        nodes = [n for g in graphs(wrong.graph) for n in g.node]
        head = next(n for n in nodes if n.op_type == "Gemm" and n.name.startswith(f"branch{number}/"))
        tensor = next(t for g in graphs(wrong.graph) for t in g.initializer if t.name == head.input[2])
        bias = onnx.numpy_helper.to_array(tensor) + 0.01
        tensor.CopyFrom(onnx.numpy_helper.from_array(bias.astype(np.float32), tensor.name))
        altered = type(source)(**{**vars(source), "graph": wrong})
        (made,) = convert(altered, [("onnx", "fp32")], tmp_path / str(number), real=images())
        assert not made.ok
        assert f"branch {number} is below" in made.artifact.parity.reason


def test_a_branch_that_never_answers_is_an_error(tmp_path):
    net = routed_net("cascade")
    net.branches[0].head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="branch 0 of the routed network never answers"):
        convert(routed_source(net, CONTRACT, label="net"), [("onnx", "fp32")], tmp_path, real=images())


def test_a_cluster_that_no_input_falls_into_is_said(tmp_path):
    net = routed_net("cluster")
    net.router.head[-1].bias.data[1] = -1e4
    (made,) = convert(routed_source(net, CONTRACT, label="net"), [("onnx", "fp32")], tmp_path, real=images())
    assert made.ok
    (said,) = (w for w in made.artifact.warnings if "answered none of the inputs that the file was judged on" in w)
    assert said.startswith("branch 1 answered none")
    assert said.endswith("not proven")


def test_inputs_on_the_edge_of_a_decision_prove_nothing():
    net = routed_net("cascade")
    real = images(16)
    scores = confidence(net.branches[0](torch.from_numpy(real)).detach())
    edge = 14  # samples lie on both sides of it, by more than EDGE
    net.thresholds.copy_(torch.stack([scores[edge], torch.tensor(0.0)]))
    source = routed_source(net, CONTRACT, label="net")
    kept = telling(source.contract, source.branch, real=real, seed=0)
    assert not any(np.array_equal(image, real[edge]) for image in kept)
    far = (torch.logit(scores) - torch.logit(scores[edge])).abs() > EDGE
    assert len(kept) == int(far.sum()) > 0
    first = {source.branch({"image": image[None], **source.contract.defaults()}) for image in kept[:2]}
    assert first == {0, 1}  # branches take turns


def test_thresholds_that_force_each_branch():
    assert [setting["thresholds"].tolist() for setting in forcing(2)] == [
        [0, 0],
        [pytest.approx(1.01), 0],
        [pytest.approx(1.01)] * 2,
    ]
    assert forcing(0) == ()


# ---------------------------------------------------------------- what profilers take


def test_profiles_take_the_real_inputs_in_turn(tmp_path):
    real = images(80)
    (made,) = convert(routed_source(routed_net("cascade"), CONTRACT, label="net"), [("onnx", "fp32")], tmp_path, real=real)
    cycle = cycle_of(made.folder, made.artifact, dims={}, seed=0)
    np.testing.assert_array_equal(np.concatenate([inputs["image"] for inputs in cycle]), real[:64])
    assert all(inputs["thresholds"].tolist() == [0.5, 0.5] for inputs in cycle)
    (made.folder / SAMPLES).unlink()
    (alone,) = cycle_of(made.folder, made.artifact, dims={}, seed=0)
    assert alone["thresholds"].tolist() == [0.5, 0.5]
    np.savez(made.folder / SAMPLES, inputs=real[:, :, :8])
    with pytest.raises(UserError, match=r"holds float32 \(80, 3, 8, 16\), input 'image' is float32 \(1, 3, 16, 16\)"):
        cycle_of(made.folder, made.artifact, dims={}, seed=0)


@pytest.mark.parametrize(("kind", "runtime"), [("onnx", "onnxruntime"), ("onnx", "openvino"), ("tflite", "litert")])
def test_a_cycle_runs_every_input(kind, runtime, tmp_path):
    from trimtab.devices.runtime import runtimes

    entry = runtimes.entry(runtime)
    if entry.card.missing():
        pytest.skip(f"needs {entry.card.install}")
    net = routed_net("cascade")
    (made,) = convert(routed_source(net, CONTRACT, label="net"), [(kind, "fp32")], tmp_path, real=images(8))
    cycle = cycle_of(made.folder, made.artifact, dims={}, seed=0)
    shapes = {name: array.shape for name, array in cycle[0].items()}
    path, contract = made.artifact.path(made.folder), made.artifact.contract
    session = entry.value.load(path, contract, shapes=shapes, threads=1, options=entry.card.complete({}))
    session.cycle(cycle)()
    for inputs, image in zip(cycle, images(8), strict=True):
        with torch.no_grad():
            wanted = net(torch.from_numpy(image[None])).numpy()
        np.testing.assert_allclose(session.run(inputs)["logits"], wanted, **TOLERANCE)
