"""Several networks in one TFLite file: each signature against its network, and what is stored once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert", reason="needs trimtab[tflite]")

from routed_nets import CONTRACT, routed_net, samples

from trimtab.export.exporter import exporters
from trimtab.export.onnx import to_graph
from trimtab.export.tflite.signatures import Part, SignedFile, export_signatures
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.errors import UserError
from trimtab.models.routed import plain_branch

TOLERANCE = 2e-5
"""float32 sums of a few hundred products of order 1, in another order."""
IMAGE = TensorSpec(name="image", shape=("N", 3, 16, 16), layout="NCHW")
SCORES = Contract(inputs=(IMAGE,), outputs=(TensorSpec(name="scores", shape=("N", 2)),))
NAMES = ("serving_default", "middle", "large")


def part(module: nn.Module, contract: Contract) -> Part:
    return Part(to_graph(module, contract, (torch.zeros(2, *contract.inputs[0].shape[1:]),)), contract)


@pytest.fixture(scope="module")
def net():
    return routed_net("router")


@pytest.fixture(scope="module")
def written(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("signed") / "model.tflite"
    parts = {name: part(plain_branch(net, k), CONTRACT) for k, name in enumerate(NAMES)}
    return path, export_signatures({**parts, "router": part(net.router, SCORES)}, path)


def test_every_signature_computes_its_own_network(net, written):
    path, facts = written
    file = SignedFile(path)
    assert set(file.keys) == {*NAMES, "router"} == set(facts.contracts)
    modules = {**{name: net.branches[k] for k, name in enumerate(NAMES)}, "router": net.router}
    for images in (samples(1)[0], torch.cat(samples(3))):  # a batch of one and of three
        for key, module in modules.items():
            contract = facts.contracts[key]
            assert contract.inputs[0].layout == "NHWC"
            found = file.runner(key, contract)({"image": images.permute(0, 2, 3, 1).numpy()})
            wanted = module(images).detach().numpy()
            np.testing.assert_allclose(found[contract.outputs[0].name], wanted, atol=TOLERANCE, err_msg=key)


def test_a_host_that_follows_the_router_gets_the_routed_networks_answer(net, written):
    path, facts = written
    file = SignedFile(path)
    run = {key: file.runner(key, contract) for key, contract in facts.contracts.items()}
    taken = set()
    for image in samples(12):
        fed = {"image": image.permute(0, 2, 3, 1).numpy()}
        scores = run["router"](fed)["scores"][0]
        branch = next((k for k, score in enumerate(scores) if score >= 0.5), 2)
        np.testing.assert_allclose(run[NAMES[branch]](fed)["logits"], net(image).detach().numpy(), atol=TOLERANCE)
        assert branch == int(net.taken[0])
        taken.add(branch)
    assert len(taken) > 1


def test_the_first_signature_runs_where_none_is_named(net, written):
    path, facts = written
    run = exporters.get("tflite").runner(path, facts.contracts["serving_default"])
    (image,) = samples(1)
    found = run({"image": image.permute(0, 2, 3, 1).numpy()})["logits"]
    np.testing.assert_allclose(found, net.branches[0](image).detach().numpy(), atol=TOLERANCE)


def test_equal_tensors_are_stored_once_and_slices_are_not(tmp_path):
    torch.manual_seed(0)
    contract = image_classifier(channels=3, height=8, width=8, classes=("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3)
    trunk = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())

    def headed() -> nn.Module:
        return nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)).eval()

    parts = {name: part(headed(), contract) for name in ("a", "b", "c")}
    weights = 4 * sum(p.numel() for p in trunk.parameters())
    facts = export_signatures(parts, tmp_path / "three.tflite")
    alone = export_signatures({"a": parts["a"]}, tmp_path / "one.tflite")
    assert alone.shared_bytes == 0
    assert 2 * weights <= facts.shared_bytes < 2 * weights + 1000
    assert facts.size_bytes - alone.size_bytes < 10_000  # two more graphs and heads; the trunk alone is 155 kB
    assert facts.size_bytes == (tmp_path / "three.tflite").stat().st_size


def test_branches_that_decide_inside_keep_their_own_subgraphs(tmp_path):
    """A cascade and a plain network in one file: the cascade's branches follow it, and neither disturbs the other."""
    from routed_graphs import cascade
    from test_tflite_if import ROUTED, SINGLE, parts

    net = routed_net("cascade")
    model, plain = cascade(parts(net), 5), parts(net)[2]
    facts = export_signatures({"route": Part(model, ROUTED), "large": Part(plain, SINGLE)}, tmp_path / "both.tflite")
    assert facts.ops["route"]["IF"] == 2
    assert "IF" not in facts.ops["large"]
    file = SignedFile(tmp_path / "both.tflite")
    route, large = (file.runner(key, facts.contracts[key]) for key in ("route", "large"))
    for image in samples(4):
        fed = image.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(large({"image": fed})["logits"], net.branches[2](image).detach().numpy(), atol=TOLERANCE)
        for limits in ([-1.0, -1.0], [2.0, -1.0], [2.0, 2.0]):
            found = route({"image": fed, "thresholds": np.array(limits, np.float32)})["logits"]
            np.testing.assert_allclose(found, net(image, torch.tensor(limits)).detach().numpy(), atol=TOLERANCE)


def test_mistakes_are_told_with_the_signature(net, written, tmp_path):
    path, facts = written
    file = SignedFile(path)
    with pytest.raises(UserError, match=r"has no signature 'larg'\n.*did you mean 'large'"):
        file.runner("larg", facts.contracts["large"])
    with pytest.raises(UserError, match=r"signature 'large' of .* needs the input 'image', not given"):
        file.runner("large", facts.contracts["large"])({})
    with pytest.raises(UserError, match=r"LiteRT cannot run 'large' of .* on \{'image': \(1, 9, 9, 4\)\}"):
        file.runner("large", facts.contracts["large"])({"image": np.zeros((1, 9, 9, 4), np.float32)})
    with pytest.raises(UserError, match=r"the signatures are \[\]\n.*at least one"):
        export_signatures({}, tmp_path / "none.tflite")
    with pytest.raises(UserError, match=r"the signatures are \[''\]"):
        export_signatures({"": part(net.router, SCORES)}, tmp_path / "none.tflite")
    wrong = Part(part(net.router, SCORES).graph, CONTRACT)
    with pytest.raises(UserError, match="signature 'odd': the contract's output 'logits' is not in the ONNX graph"):
        export_signatures({"odd": wrong}, tmp_path / "none.tflite")
    assert not (tmp_path / "none.tflite").exists()
    with pytest.raises(UserError, match="does not exist"):
        SignedFile(tmp_path / "gone.tflite")
    (tmp_path / "noise.tflite").write_bytes(b"12345678")
    with pytest.raises(UserError, match="is not a TFLite model"):
        SignedFile(tmp_path / "noise.tflite")
