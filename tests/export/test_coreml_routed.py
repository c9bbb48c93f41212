"""Routed networks as Core ML packages that decide inside: every branch against torch, by the evaluator of saved packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools", reason="needs trimtab[coreml]")

from routed_nets import CONTRACT, routed_net, samples

from trimtab.export.coreml import CoremlExporter
from trimtab.export.coreml_eval import load_program
from trimtab.export.coreml_options import CoremlOptions
from trimtab.export.dynamic.coreml_routed import export_routed, routed_contract
from trimtab.export.exporter import ExportRequest
from trimtab.export.parity import GATES_DB, judge, probes, sqnr_db
from trimtab.models.contract import Contract, TensorSpec, image_classifier
from trimtab.models.edits import Edit
from trimtab.models.errors import UserError
from trimtab.models.routed import RoutedNet, RouteSpec, confidence

FORCED = ([-1.0, -1.0], [2.0, -1.0], [2.0, 2.0])
"""Thresholds that every score reaches, or none: the first, second and third branch answers."""
KINDS = [
    pytest.param("cascade", "", id="cascade"),
    pytest.param("router", "", id="router"),
    pytest.param("router", "stem", id="router-on-features"),
    pytest.param("cluster", "", id="cluster"),
]


def answers(net: RoutedNet, run, limits: list[float] | None, images: list[Tensor]) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """(torch's answers, the package's, the branches that gave torch's)."""
    given = None if limits is None else torch.tensor(limits)
    wanted, found, taken = [], [], set()
    for image in images:
        with torch.no_grad():
            wanted.append(net(image, given).numpy())
        taken.add(int(net.taken[0]))
        feeds = {"image": image.numpy()} | ({} if given is None else {"thresholds": given.numpy()})
        found.append(run(feeds)["logits"])
    return np.concatenate(wanted), np.concatenate(found), taken


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("rule", "at"), KINDS)
def test_every_branch_answers_as_in_torch(rule, at, precision, tmp_path):
    net = routed_net(rule, at=at, nested=not at)
    facts = export_routed(net, CONTRACT, tmp_path / "m.mlpackage", precision)
    run = CoremlExporter.runner(tmp_path / "m.mlpackage", facts.contract)
    assert facts.ops["cond"] == 2
    assert facts.spec_version == "mlprogram spec 7 (iOS16)"
    assert facts.warnings == ()
    for number, limits in enumerate(FORCED):
        if rule == "cluster":
            net.router.head[-1].bias.data = torch.eye(3)[number] * 1000  # this cluster whatever comes
            facts = export_routed(net, CONTRACT, tmp_path / "m.mlpackage", precision)
            run = CoremlExporter.runner(tmp_path / "m.mlpackage", facts.contract)
        wanted, found, taken = answers(net, run, None if rule == "cluster" else limits, samples(8))
        assert taken == {number}
        assert sqnr_db(wanted, found) >= GATES_DB[precision]


@pytest.mark.parametrize("precision", ["int8", "palette6"])
def test_packed_weights_answer_as_in_torch(precision, tmp_path):
    """Weights inside the choices' blocks are packed too; a random net keeps 40 dB in 8 bits, and nearly so in 64 values."""
    net = routed_net("cascade")
    facts = export_routed(net, CONTRACT, tmp_path / "m.mlpackage", precision)
    run = CoremlExporter.runner(tmp_path / "m.mlpackage", facts.contract)
    assert facts.ops["cond"] == 2
    assert sum(count for op, count in facts.ops.items() if op.startswith("constexpr")) >= 4
    assert f"float16 in the {precision} package" in facts.warnings[0]
    assert facts.audit.islands["linear"] == 3, "their heads are small"
    for number, limits in enumerate(FORCED):
        wanted, found, taken = answers(net, run, limits, samples(8))
        assert taken == {number}
        assert sqnr_db(wanted, found) >= 40


def test_options_are_refused_for_a_route(tmp_path):
    request = ExportRequest(
        contract=CONTRACT,
        precision="fp16",
        out=tmp_path / "m.mlpackage",
        module=routed_net("cascade"),
        options=CoremlOptions(image=True),
    )
    with pytest.raises(UserError, match="a routed Core ML package decides at one size, on arrays: it takes no options"):
        CoremlExporter.export(request)


def test_the_decision_is_torchs_own(tmp_path):
    net = routed_net("router")
    facts = export_routed(net, CONTRACT, tmp_path / "m.mlpackage", "fp32")
    run = CoremlExporter.runner(tmp_path / "m.mlpackage", facts.contract)
    wanted, found, taken = answers(net, run, [0.5, 0.5], samples(24))
    assert len(taken) >= 2
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # another branch is off by 0.1 and more


def test_a_shared_prefix_is_computed_once(tmp_path):
    convs = {
        shared: export_routed(routed_net(shared=shared), CONTRACT, tmp_path / f"{shared}.mlpackage", "fp32").ops["conv"]
        for shared in (True, False)
    }
    assert convs == {True: 1 + 3 * 2, False: 3 * 3}


class Chain(nn.Module):
    """Two convolutions whose inner width is cut, a normalisation that all branches share but feed with their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 6, 3)
        self.tail, self.head = nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.outer(torch.relu(self.inner(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.tail(x)).mean((2, 3)))


def test_what_branches_share_behind_a_difference_is_no_prefix(tmp_path):
    torch.manual_seed(0)
    slim = tuple(Edit(path=p, side=s, size=8, kept=(0, 1, 2)) for p, s in (("inner", "out"), ("outer", "in")))
    net = RoutedNet(Chain(), RouteSpec(branches=(slim, ()), shared=("stem", "tail"))).eval()
    facts = export_routed(net, CONTRACT, tmp_path / "m.mlpackage", "fp32")
    run = CoremlExporter.runner(tmp_path / "m.mlpackage", facts.contract)
    assert facts.ops["conv"] == 1 + 2 * 2
    for limits in ([-1.0], [2.0]):
        wanted, found, _ = answers(net, run, limits, samples(4))
        assert sqnr_db(wanted, found) >= GATES_DB["fp32"]


def kinds(program) -> dict[str, set[str]]:
    """Operation kind → the types of its outputs, outside the branches."""
    found: dict[str, set[str]] = {}
    for step in program.steps:
        found.setdefault(step.kind, set()).update(dtype for _, dtype in step.outputs)
    return found


@pytest.mark.parametrize("rule", ["cascade", "router", "cluster"])
def test_a_half_precision_package_decides_in_single_precision(rule, tmp_path):
    net = routed_net(rule)
    facts = export_routed(net, CONTRACT, tmp_path / "m.mlpackage", "fp16")
    program = load_program(tmp_path / "m.mlpackage")
    found = kinds(program)
    assert found["conv"] == {"fp16"}
    for kind in {"cascade": ("softmax", "reduce_max"), "router": ("sigmoid", "slice_by_index"), "cluster": ()}[rule]:
        assert found[kind] == {"fp32"}
    if rule != "cluster":
        assert program.dtypes["thresholds"] == "fp32"
        assert facts.contract.inputs[1].dtype == "float32"


def test_half_precision_decides_otherwise_only_beside_a_threshold(tmp_path):
    """Logits of size 4 carry 2⁻¹¹ each through four layers: a score moves by less than 0.005."""
    net = routed_net("cascade")
    facts = export_routed(net, CONTRACT, tmp_path / "m.mlpackage", "fp16")
    run = CoremlExporter.runner(tmp_path / "m.mlpackage", facts.contract)
    flipped = far = 0
    images = samples(12)
    with torch.no_grad():
        scores = [float(confidence(net.branches[0](image))) for image in images]
        every = [[branch(image).numpy() for branch in net.branches] for image in images]
    for limit in [*scores[:6], float(np.mean(scores))]:  # six thresholds lie on a sample's own score
        for image, score, said in zip(images, scores, every, strict=True):
            found = run({"image": image.numpy(), "thresholds": np.array([limit, -1.0], np.float32)})["logits"]
            nearest = int(np.argmin([np.abs(found - answer).max() for answer in said]))
            assert np.abs(found - said[nearest]).max() < 0.05  # the answer of some branch, whole
            flip = nearest != (0 if score >= np.float32(limit) else 1)
            flipped, far = flipped + flip, far + (flip and abs(score - limit) >= 0.005)
    assert far == 0
    assert flipped <= 12  # of 84; those on the thresholds themselves are a toss


def test_the_exporter_takes_a_routed_network_as_it_is(tmp_path):
    """Also with a contract that names the thresholds itself; parity is judged with thresholds that reach every branch."""
    net = routed_net()
    named = TensorSpec(name="limits", shape=(2,), value_range=(0.3, 0.8))
    given = routed_contract(net, CONTRACT)
    given = given.model_copy(update={"inputs": (given.inputs[0], named)})
    facts = CoremlExporter.export(ExportRequest(given, "fp32", tmp_path / "m.mlpackage", module=net))
    assert [s.name for s in facts.contract.inputs] == ["image", "limits"]
    assert facts.ops["cond"] == 2
    taken = set()

    def torchs(inputs):
        with torch.no_grad():
            out = net(torch.from_numpy(inputs["image"]), torch.from_numpy(inputs["limits"])).numpy()
        taken.add(int(net.taken[0]))
        return {"logits": out}

    found = probes(given, torchs, real=None, seed=0)
    run = CoremlExporter.runner(tmp_path / "m.mlpackage", facts.contract)
    verdict = judge(run, found, module=given, artifact=facts.contract, precision="fp32", inputs="random", evaluator="")
    assert verdict.ok
    assert taken == {0, 1, 2}


def test_the_contract_is_one_sample_and_the_thresholds():
    whole = routed_contract(routed_net(), CONTRACT)
    assert [(s.name, s.shape) for s in whole.inputs] == [("image", (1, 3, 16, 16)), ("thresholds", (2,))]
    assert whole.outputs[0].shape == (1, 5)
    assert whole.classes == CONTRACT.classes
    assert [s.name for s in routed_contract(routed_net("cluster"), CONTRACT).inputs] == ["image"]


class Odd(nn.Module):
    """A network with an operation that Core ML has not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(self.norm(self.stem(x))).mean((2, 3))


def test_what_a_route_cannot_be_is_refused(tmp_path):
    out = tmp_path / "m.mlpackage"
    net = routed_net()
    free = image_classifier(channels=3, height="H", width="W", classes=("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(UserError, match=r"leaves H, W free\n.*fix the image's size"):
        export_routed(net, free, out, "fp32")
    double = Contract(inputs=(*CONTRACT.inputs, TensorSpec(name="more", shape=(1,))), outputs=CONTRACT.outputs)
    with pytest.raises(UserError, match="2 inputs and 1 outputs; a route takes one of each"):
        export_routed(net, double, out, "fp32")
    with pytest.raises(UserError, match="cannot be written as int8-activations"):
        export_routed(net, CONTRACT, out, "int8-activations")
    renamed = CONTRACT.model_copy(update={"inputs": (CONTRACT.inputs[0].model_copy(update={"name": "my image"}),)})
    with pytest.raises(UserError, match="'my image' is not legal in Core ML"):
        export_routed(net, renamed, out, "fp32")
    slim = tuple(Edit(path=p, side="out", size=5, kept=(0, 1, 2, 3, 4)) for p in ("stem", "norm"))
    odd = RoutedNet(Odd(), RouteSpec(branches=(slim, ()))).eval()
    with pytest.raises(UserError, match=r"cannot convert this routed network: .*\n.*export the largest branch alone"):
        export_routed(odd, CONTRACT, out, "fp32")
    assert not out.exists()
