"""MACs of a gated network, sample by sample, against the count of the network that is really cut that way."""

import copy

import pytest
import torch
from ftwt_kit import Chain, lively, random_masks, sliced
from training_kit import make_task
from user_net import make

from trimtab.compress.cost import count
from trimtab.compress.dynamic.accounting import MacModel, gate_macs
from trimtab.compress.dynamic.candidates import candidates, spec_of
from trimtab.models.architectures import architectures
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.gates import GateSpec, attach
from trimtab.models.source import Architecture
from trimtab.models.surgery import SurgeryPlan


def zoo(name, **more):
    torch.manual_seed(0)
    return lively(architectures.get(name)(num_classes=10, in_channels=3, **more))


def model(net, x, **more):
    found = candidates(net, [x])
    return found.found, MacModel(net, [x], [spec_of(c, **more) for c in found.found], found=found)


@pytest.mark.parametrize(
    ("net", "side"),
    [
        (zoo("vgg16_bn", width=0.125), 16),
        (zoo("mobilenet_v1", width=0.25, stem_stride=1), 32),
        (lively(Chain()), 12),
    ],
)
def test_every_samples_figure_is_the_count_of_the_sliced_network(net, side):
    x = torch.zeros(1, 3, side, side)
    found, macs = model(net, x)
    masks = random_masks(found, 4, on=0.4)
    figures = macs.per_sample(masks)
    for n in range(4):
        small = sliced(net, x, {path: mask[n] for path, mask in masks.items()})
        assert figures[n].item() - macs.gate_macs == count(small, [x]).macs  # exactly: whole numbers below 2⁵³


def test_squeeze_and_excitation_and_concatenation_too():
    torch.manual_seed(0)
    net, x = lively(make(width=16)), torch.zeros(1, 3, 16, 16)
    found, macs = model(net, x)
    chosen = [c for c in found if c.conv in ("inverted.expand.0", "left.0", "right.0")]
    masks = random_masks(chosen, 4)
    for n in range(4):
        small = sliced(net, x, {path: mask[n] for path, mask in masks.items()})
        assert macs.per_sample(masks)[n].item() - macs.gate_macs == count(small, [x]).macs


def test_a_residual_branch_scales_with_its_own_outputs():
    """By hand: conv2's outputs and inputs (conv1's mask), the rest of the block's stream dense."""
    net, x = zoo("resnet8"), torch.zeros(1, 3, 32, 32)
    found, macs = model(net, x)
    masks = random_masks(found, 5)
    dense = {layer.path: layer.macs for layer in count(net, [x]).layers}
    share = {path: mask.double().mean(1) for path, mask in masks.items()}
    expected = torch.full((5,), float(dense["fc"] + macs.gate_macs), dtype=torch.float64)
    for path in masks:
        before = path.replace("conv2", "conv1") if path.endswith("conv2") else None
        expected += dense[path] * share[path] * (share[before] if before else 1)
    assert torch.allclose(macs.per_sample(masks), expected, rtol=1e-12)


def test_all_on_costs_the_dense_network_and_the_gates():
    net, x = zoo("resnet8"), torch.zeros(1, 3, 32, 32)
    found, macs = model(net, x, hidden=12)
    everything = {c.conv: torch.ones(2, c.channels) for c in found}
    assert macs.dense == count(net, [x]).macs
    assert macs.gate_macs == sum(c.inputs * 12 + 12 * c.channels for c in found)
    assert macs.per_sample(everything).tolist() == [macs.dense + macs.gate_macs] * 2
    assert macs.per_sample({"conv1": everything["conv1"]}).tolist() == [macs.dense + macs.gate_macs] * 2


def test_a_gates_own_cost():
    assert gate_macs(GateSpec(conv="c", points=("c",), inputs=7, channels=5)) == 35
    assert gate_macs(GateSpec(conv="c", points=("c",), inputs=7, channels=5, hidden=3)) == 36


def test_a_network_from_a_bundle_is_counted_the_same(tmp_path):
    architecture = Architecture(
        name="mobilenet_v1", kwargs={"num_classes": 4, "in_channels": 1, "width": 0.25, "stem_stride": 1}
    )
    net, x = architecture.build(), torch.zeros(1, 1, 32, 32)
    found, macs = model(net, x)
    specs = tuple(spec_of(c) for c in found)
    attach(net, specs)
    manifest = Manifest(
        architecture=architecture,
        contract=make_task().contract,
        plan=SurgeryPlan(gates=specs).model_dump(mode="json"),
    )
    save_bundle(tmp_path / "b", net, manifest)
    again = load_bundle(tmp_path / "b").module()
    masks = random_masks(found, 6)
    assert torch.equal(MacModel.of(again, [x]).per_sample(masks), macs.per_sample(masks))


def test_a_mask_that_stands_elsewhere_than_proven_saves_its_own_outputs():
    """Depthwise outputs that the mask does not reach are computed, and so is what reads them."""
    net, x = zoo("mobilenet_v1", width=0.25, stem_stride=1), torch.zeros(1, 3, 32, 32)
    found = candidates(net, [x])
    spec = spec_of(found.found[0])
    short = spec.model_copy(update={"points": spec.points[:1]})
    masks = {spec.conv: torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0]])}
    dense = {layer.path: layer.macs for layer in count(net, [x]).layers}
    figure = MacModel(net, [x], [short], found=found).per_sample(masks).item()
    assert figure == sum(dense.values()) + 24 - dense["features.0.0"] * 6 / 8
    assert MacModel(net, [x], [spec], found=found).per_sample(masks).item() < figure


def test_the_model_leaves_the_network_alone():
    net = lively(Chain())
    found = candidates(net, [torch.zeros(1, 3, 12, 12)]).found
    attach(net, [spec_of(c) for c in found])
    before = copy.deepcopy(net.state_dict())
    MacModel.of(net, [torch.zeros(1, 3, 12, 12)])
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_no_masks_is_an_error():
    net = lively(Chain())
    _, macs = model(net, torch.zeros(1, 3, 12, 12))
    with pytest.raises(ValueError, match="no masks"):
        macs.per_sample({})
