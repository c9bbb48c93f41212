"""Decisions in Python on the values of the input are found, named by line and module, and nothing else is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trimtab.export.control_flow import refuse_decisions
from trimtab.export.convert import module_source
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError

CONTRACT = image_classifier(channels=3, height=8, width=8, classes=("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3)


class Inner(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):  # noqa: PLR0911
        if self.way == "sum" and x.sum() > 0:
            return x * 2
        if self.way == "slice":
            return x[:, :, : int(x.max().clamp(4, 4))]
        if self.way == "item":
            return x * F.relu(x).mean().item()
        if self.way == "buffer" and self.scale.item() > 1:
            return x * float(self.scale)
        if self.way == "size" and x.shape[-1] > 4 and len(x) > 0:
            return x * x.shape[-1]
        if self.way == "where":
            return torch.where(x > 0, x, x * 2)
        return x


class Net(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.first = nn.Conv2d(3, 2, 1)
        self.blocks = nn.Sequential(nn.ReLU(), Inner(way))

    def forward(self, image):
        return self.blocks(self.first(image)).mean((2, 3))


@pytest.mark.parametrize(
    ("way", "line"), [("sum", 'self.way == "sum" and x.sum() > 0'), ("slice", "int(x.max()"), ("item", ".mean().item()")]
)
def test_a_decision_on_the_input_is_named_by_line_and_module(way, line):
    with pytest.raises(
        UserError, match=r"decides on the values of its input in 'blocks\.1' \(test_control_flow\.py:\d+: "
    ) as caught:
        module_source(Net(way), CONTRACT, label="x")
    assert line in caught.value.what
    assert "torch.where" in caught.value.hint


@pytest.mark.parametrize("way", ["buffer", "size", "where", ""])
def test_sizes_parameters_and_selections_may_decide(way):
    refuse_decisions(Net(way).eval(), [torch.rand(2, 3, 8, 8)])
    assert module_source(Net(way), CONTRACT, label="x").graph.graph.node


def test_a_network_that_fails_is_left_to_the_tracer():
    refuse_decisions(nn.Linear(3, 4), [torch.rand(2, 5)])


def test_no_hook_stays_behind():
    net = Net("sum").eval()
    with pytest.raises(UserError):
        refuse_decisions(net, [torch.rand(2, 3, 8, 8)])
    net(torch.rand(2, 3, 8, 8))
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
