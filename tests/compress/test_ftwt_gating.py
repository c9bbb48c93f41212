"""Gates on a network: how they start, what their loss is, and which loss reaches whom."""

import math

import numpy as np
import pytest
import torch
from ftwt_kit import Chain, X
from torch.nn import functional as F

from trimtab.compress.dynamic.candidates import candidates, spec_of
from trimtab.compress.dynamic.gating import choosing, gated, mask_loss, refuse_dynamic, taping
from trimtab.compress.dynamic.ground_truth import mass_mask
from trimtab.models.edits import Edit
from trimtab.models.errors import UserError
from trimtab.models.routed import RoutedNet, RouteSpec


def chain(**more):
    torch.manual_seed(0)
    net = Chain()
    specs = [
        spec_of(c, **{k: v for k, v in more.items() if k in ("scale", "hidden", "pool")}) for c in candidates(net, [X]).found
    ]
    gates = gated(net, specs, seed=1, **{k: v for k, v in more.items() if k in ("start", "means")})
    return net, gates


def images(count=8, seed=0):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def test_the_mask_loss_is_the_papers():
    """1/L Σ_l 1/N Σ_n Σ_c −g·log σ(p) − (1−g)·log(1−σ(p)), in NumPy."""
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 2, (5, c)) for c in (3, 7)]
    truths = [rng.random((5, c)) < 0.5 for c in (3, 7)]
    expected = 0.0
    for p, g in zip(logits, truths, strict=True):
        s = 1 / (1 + np.exp(-p))
        expected += -(g * np.log(s) + (~g) * np.log(1 - s)).sum() / 5 / 2
    found = mask_loss([torch.from_numpy(p) for p in logits], [torch.from_numpy(g) for g in truths])
    assert found.item() == pytest.approx(expected, rel=1e-6)  # float32


def test_every_start_gives_the_first_masks_it_promises():
    x = images()
    for start in ("random", "open"):
        net, gates = chain(start=start)
        net(x)
        on = torch.cat([gate.mask.flatten() for gate in gates.values()]).mean().item()
        assert (0.1 < on < 0.9) if start == "random" else on == 1
    net, gates = chain(start="mean", means={"a.0": torch.tensor([0.0, 0.2, 0.51, 0.8, 1.0, 0.4]), "b.0": torch.full((8,), 0.7)})
    net(x)
    assert gates["a.0"].mask[0].tolist() == [0, 0, 1, 1, 1, 0]
    assert torch.sigmoid(gates["b.0"].logits).flatten().tolist() == pytest.approx([0.7] * 64)
    assert torch.sigmoid(gates["a.0"].logits[0]).tolist() == pytest.approx([0.01, 0.2, 0.51, 0.8, 0.99, 0.4])


def test_first_weights_derive_from_the_seed_alone():
    first, _ = chain()
    torch.manual_seed(99)
    torch.rand(17)
    state = torch.get_rng_state()
    second, _ = chain()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.manual_seed(99)
    torch.rand(17)
    assert torch.equal(torch.get_rng_state(), state)


def losses(net, gates, x):
    with taping(gates):
        label = F.cross_entropy(net(x), torch.arange(8) % 5)
        truths = [mass_mask(gate.saliency, 0.7) for gate in gates.values()]
        return label, mask_loss([gate.logits for gate in gates.values()], truths)


def touched(net):
    """(gate parameters with a gradient, other parameters with one)."""
    ours = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return {n for n in ours if ".gate." in n}, {n for n in ours if ".gate." not in n}


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("scale", ["softmax", "standardise"])
def test_the_tasks_loss_never_reaches_a_gate(detach, scale):
    net, gates = chain(scale=scale, start="open")
    for gate in gates.values():
        gate.detach = detach
    losses(net, gates, images())[0].backward()
    of_gates, of_net = touched(net)
    assert not of_gates
    assert {"a.0.weight", "b.0.weight", "fc.weight"} <= of_net


def test_decoupled_the_mask_loss_reaches_gates_alone():
    net, gates = chain()
    losses(net, gates, images())[1].backward()
    of_gates, of_net = touched(net)
    assert of_gates == {f"{c}.0.gate.linear.{p}" for c in "ab" for p in ("weight", "bias")}
    assert not of_net


def test_jointly_it_reaches_the_layers_before_too():
    net, gates = chain()
    for gate in gates.values():
        gate.detach = False
    losses(net, gates, images())[1].backward()
    of_gates, of_net = touched(net)
    assert len(of_gates) == 4
    assert "a.0.weight" in of_net  # it made what b's gate looks at
    assert not {n for n in of_net if n.startswith(("b.0", "fc"))}  # nothing before a gate


def test_inside_choosing_masks_are_chosen_and_outside_predicted():
    net, gates = chain()
    x = images()
    with choosing(gates, lambda path, saliency: mass_mask(saliency, 0.5 if path == "a.0" else 1.0)):
        net(x)
        chosen = {path: gate.mask.clone() for path, gate in gates.items()}
        assert torch.equal(chosen["a.0"], mass_mask(gates["a.0"].saliency, 0.5).float())
        assert chosen["b.0"].sum() > chosen["a.0"].sum()
    net(x)
    assert torch.equal(gates["a.0"].mask, (gates["a.0"].logits > 0).float())
    assert all(gate.chooser is None for gate in gates.values())


def test_taping_forgets_when_it_ends():
    net, gates = chain()
    with taping(gates):
        net(images())
        assert gates["a.0"].saliency.shape == (8, 6)
    assert all(gate.saliency is None and gate.logits is None and not gate.taping for gate in gates.values())


def test_dynamic_networks_are_refused():
    net, _ = chain()
    with pytest.raises(UserError, match=r"has 2 gates already \(the first at a.0\)"):
        refuse_dynamic(net)
    torch.manual_seed(0)
    cut = (Edit(path="fc", side="in", size=288, kept=tuple(range(288))),)
    with pytest.raises(UserError, match="routed already"):
        refuse_dynamic(RoutedNet(Chain(), RouteSpec(branches=(cut, cut))))
    refuse_dynamic(Chain())


def test_a_hidden_layer_learns_from_a_constant_start():
    """The last weights start at zero: their gradient must not."""
    net, gates = chain(hidden=4, start="open", scale="standardise")
    losses(net, gates, images())[1].backward()
    assert all(gate.linear.weight.grad.abs().sum() > 0 for gate in gates.values())
    assert math.isfinite(sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None))
