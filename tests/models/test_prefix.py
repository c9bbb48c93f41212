"""The linear layer that reads a prefix, as a module and as an edit of a surgery plan."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trimtab.models.errors import UserError
from trimtab.models.prefix import PrefixLinear
from trimtab.models.surgery import Edit, SurgeryPlan, describe

torch.set_num_threads(1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def prefix(k, size=12, path="2"):
    return SurgeryPlan(edits=(Edit(path=path, side="prefix", size=size, kept=tuple(range(k))),))


def masked(module, x, kept):
    """The logits by hand, from the features in `kept` alone."""
    features = module[1](module[0](x))
    return features[:, kept] @ module[2].weight[:, kept].T + module[2].bias


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_linear_layer_on_the_first_features(bias):
    linear = nn.Linear(12, 4, bias=bias)
    short = PrefixLinear.of(linear, 5)
    x = torch.randn(3, 12)
    expected = x[:, :5] @ linear.weight[:, :5].T + (linear.bias if bias else 0)
    torch.testing.assert_close(short(x), expected)
    torch.testing.assert_close(short(x[:, :5]), expected)  # an input that ends at k is read whole
    assert short(torch.randn(2, 7, 12)).shape == (2, 7, 4)
    assert list(short.state_dict()) == list(linear.state_dict())
    assert short.weight.data_ptr() != linear.weight.data_ptr()
    assert "in_features=5" in repr(short)


def test_what_is_not_read_gets_no_gradient():
    short, x = PrefixLinear.of(nn.Linear(12, 4), 5), torch.randn(3, 12, requires_grad=True)
    short(x).sum().backward()
    assert (x.grad[:, :5] != 0).all()
    assert (x.grad[:, 5:] == 0).all()
    assert short.weight.grad.shape == (4, 5)


def test_mode_and_frozen_weights_are_kept():
    linear = nn.Linear(12, 4).eval().requires_grad_(False)
    short = PrefixLinear.of(linear, 3)
    assert not short.training
    assert not any(p.requires_grad for p in short.parameters())


def test_a_plan_replays_on_a_fresh_network_and_its_weights_load():
    first, x = net(), torch.randn(6, 5)
    expected = masked(first, x, range(5))
    prefix(5).replay(first)
    torch.testing.assert_close(first(x), expected)
    assert isinstance(first[2], PrefixLinear)
    plan = SurgeryPlan.model_validate_json(prefix(5).model_dump_json())
    fresh = plan.replay(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4)))
    assert describe(fresh) == describe(first)
    assert list(describe(fresh)) == list(describe(net()))  # the names are the whole network's
    fresh.load_state_dict(first.state_dict())
    assert torch.equal(fresh(x), first(x))


def cut(kept, size, path="2"):
    """Channels of the first layer taken out, on both sides."""
    return SurgeryPlan(
        edits=(Edit(path="0", side="out", size=size, kept=kept), Edit(path=path, side="in", size=size, kept=kept))
    )


def test_prefix_after_prefix_is_one_edit():
    plan = prefix(8).then(prefix(3, size=8))
    assert plan == prefix(3)


def test_a_cut_then_a_prefix_then_a_shorter_one_compose():
    """Every order of the two ways to shorten one dimension: the plan in one piece does what its parts did one after the other."""
    x = torch.randn(6, 5)
    kept = (0, 2, 3, 5, 8, 11)
    plan = SurgeryPlan()
    stepwise, whole = net(), net()
    for step in (cut(kept, 12), prefix(4, size=6), prefix(3, size=4)):
        plan = plan.then(step)
        step.replay(stepwise)
    assert [e.side for e in plan.edits] == ["out", "in", "prefix"]
    replayed = plan.replay(copy.deepcopy(whole))
    assert describe(replayed) == describe(stepwise)
    torch.testing.assert_close(replayed(x), masked(whole, x, [0, 2, 3]))
    torch.testing.assert_close(replayed(x), stepwise(x))


def test_a_cut_behind_a_prefix_stays_behind_it():
    """ "in" of an already shortened layer counts on its k columns, not on the stock network's."""
    plan = prefix(5).then(SurgeryPlan(edits=(Edit(path="2", side="in", size=5, kept=(0, 1, 4)),)))
    assert [(e.side, e.size, e.kept) for e in plan.edits] == [("prefix", 12, (0, 1, 2, 3, 4)), ("in", 5, (0, 1, 4))]
    whole = net()
    replayed = plan.replay(copy.deepcopy(whole))
    assert torch.equal(replayed[2].weight, whole[2].weight[:, [0, 1, 4]])
    with pytest.raises(ValueError, match=r"2 \(in\): the later plan expects 5 channels, there are 3"):
        plan.then(SurgeryPlan(edits=(Edit(path="2", side="in", size=5, kept=(0, 1)),)))
    with pytest.raises(ValueError, match=r"2 \(prefix\): the later plan expects 12 channels, there are 5"):
        prefix(5).then(prefix(3))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"path": "9"}, "the surgery plan edits '9', which the network lacks"),
        ({"path": "1"}, "shortens '1', a ReLU: only a Linear inside a network can be"),
        ({"path": ""}, "shortens '', a Sequential"),
        ({"size": 10}, r"expects 10 channels at 2 \(prefix\), the network has 12"),
        ({"kept": (0, 2)}, "the surgery plan's prefix of '2' is not the first of its inputs"),
        ({"kept": ()}, "the surgery plan's prefix of '2' is not the first of its inputs"),
    ],
)
def test_a_plan_of_another_network_is_refused(edit, said):
    edit = Edit(**({"path": "2", "side": "prefix", "size": 12, "kept": (0, 1)} | edit))
    with pytest.raises(UserError, match=said):
        SurgeryPlan(edits=(edit,)).replay(net())
