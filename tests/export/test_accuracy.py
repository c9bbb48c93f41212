"""Layers kept in float so that the metric holds: the search, the ranking it starts from, and the road on the command line."""

import numpy as np
import pytest
import torch
from test_convert import CONTRACT, lively
from test_onnx_precisions import images
from torch import nn
from user_net import make

from trimtab.export.accuracy import fewest_in_float
from trimtab.export.artifact import MetricGate, RevertTrial, load_artifact
from trimtab.export.convert import convert, module_source
from trimtab.export.sensitivity import sensitivities
from trimtab.models.errors import UserError

LAYERS = tuple("abcdefghij")


def losing(costs):
    """A try whose loss is what the layers in integers cost together."""

    def trial(kept):
        drop = sum(cost for layer, cost in costs.items() if layer not in kept)
        return RevertTrial(kept=tuple(sorted(kept)), metric=1 - drop, drop=drop)

    return trial


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ({}, ""),
        ({"a": 0.1}, "a"),
        ({"c": 0.1}, "c"),  # the two before it in the ranking are put back
        ({"a": 0.1, "d": 0.1, "j": 0.1}, "adj"),
        (dict.fromkeys(LAYERS, 0.003), "abcdefgh"),  # two of them may stay in integers
    ],
)
def test_the_fewest_layers_are_kept(costs, kept):
    found, tried = fewest_in_float(LAYERS, losing(costs), max_drop=0.007)
    assert len(found) == len(kept)
    if len(set(costs.values())) == len(costs) or len(costs) < 5:
        assert found == set(kept)
    assert losing(costs)(found).drop <= 0.007
    assert len(tried) <= 20
    assert tried[0].kept == ()


def test_a_loss_that_no_layer_explains_is_said():
    with pytest.raises(UserError, match=r"with all 10 layers in float the artifact still loses 0\.5000.*0\.01 is allowed"):
        fewest_in_float(LAYERS, lambda kept: RevertTrial(kept=tuple(kept), metric=0.4, drop=0.5), max_drop=0.01)


class Outlier(nn.Module):
    """A net of which one convolution has a single huge output, so that 8 bits leave nothing for the others of its tensor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.loud = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.loud.weight[0] *= 3000
            self.last.weight[:, 0] = 0  # and nobody reads it

    def forward(self, image):
        x = torch.tanh(self.first(image))
        return self.head(torch.relu(self.last(self.loud(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def outlier():
    return module_source(Outlier().eval(), CONTRACT, label="outlier")


def feeds(count):
    return [{"image": image[None]} for image in images(count)]


def test_the_ranking_finds_the_layer_with_the_outlier(outlier):
    ranking = sensitivities(outlier.graph, feeds(8))
    assert ranking[0].node == "/loud/Conv"
    quiet = next(each for each in ranking if each.node == "/head/Gemm")
    assert ranking[0].sqnr_db < 20
    assert quiet.sqnr_db > 35
    assert [each.sqnr_db for each in ranking] == sorted(each.sqnr_db for each in ranking)


def test_a_layer_kept_in_float_is_float_and_its_error_gone(outlier, tmp_path):
    import onnx

    def worst(keep):
        folder = tmp_path / str(len(keep))
        (made,) = convert(
            outlier,
            [("onnx", "int8")],
            folder,
            real=images(16, seed=1),
            calibration=images(64),
            keep_float={("onnx", "int8"): keep},
        )
        return made

    plain, kept = worst(frozenset()), worst(frozenset({"/loud/Conv", "/last/Conv"}))
    assert not plain.ok
    assert kept.ok
    assert kept.artifact.parity.sqnr_db > plain.artifact.parity.sqnr_db + 10
    assert kept.artifact.kept_float == ("/last/Conv", "/loud/Conv")
    assert "2 of 4 convolutions and products stay in float" in " ".join(kept.artifact.warnings)
    model = onnx.load(kept.folder / kept.artifact.file)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    by_name = {node.name: makers.get(node.input[1]) for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    assert by_name["/loud/Conv"] is None  # its weight is a plain float constant
    assert by_name["/first/Conv"] == by_name["/head/Gemm"] == "DequantizeLinear"


def test_a_layer_that_is_not_there_is_named(outlier, tmp_path):
    keep = {("onnx", "int8"): frozenset({"/lout/Conv"})}
    with pytest.raises(UserError, match="'/lout/Conv', to be kept in float, is no node of the graph") as caught:
        convert(outlier, [("onnx", "int8")], tmp_path, calibration=images(64), keep_float=keep)
    assert "/loud/Conv" in caught.value.hint


def gate(drop):
    def score(runner, contract):
        outputs = runner({"image": images(2)})  # it is the saved artifact that is asked
        assert outputs["logits"].shape == (2, 5)
        return MetricGate(name="accuracy", samples=100, reference=0.9, artifact=0.9 - drop, drop=drop, allowed=0.01)

    return score


def test_the_metric_may_decide_where_the_sqnr_does_not(outlier, tmp_path):
    given = {"real": images(16, seed=1), "calibration": images(64)}
    (saved,) = convert(outlier, [("onnx", "int8")], tmp_path / "a", score=gate(0.004), **given)
    parity = load_artifact(saved.folder).parity
    assert saved.ok
    assert parity.sqnr_db < 25
    assert parity.metric.artifact == pytest.approx(0.896)
    assert "judged by the metric: accuracy 0.8960, the network's 0.9000, over 100 samples" in parity.reason
    (lost,) = convert(outlier, [("onnx", "int8")], tmp_path / "b", score=gate(0.03), **given)
    assert not lost.ok
    assert "0.0300 worse, 0.01 is allowed" in lost.artifact.parity.reason


def test_the_metric_saves_no_float_artifact_and_is_not_asked_when_the_sqnr_holds(tmp_path):
    def never(runner, contract):
        raise AssertionError("asked")

    torch.manual_seed(0)
    source = module_source(lively(make()), CONTRACT, label="user")
    made = convert(
        source, [("onnx", "fp32"), ("onnx", "int8")], tmp_path, real=images(16, seed=1), calibration=images(64), score=never
    )
    assert all(m.ok for m in made)
    assert all(m.artifact.parity.metric is None for m in made)


def test_the_drop_is_met_on_the_command_line(tmp_path, capsys):
    """Digits on which one loud channel ruins the integers: the layer is found, kept, and its price measured."""
    from trimtab.exporting import Settings, export_source
    from trimtab.models.tasks.task import tasks

    task = tasks.get("classification")(data="digits")
    spec = task.contract.inputs[0]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(spec.shape[1], 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
        nn.Tanh(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * 64, 10),
    )
    samples = task.samples("train")
    batch = samples.__getitems__(range(len(samples)))
    inputs, targets = task.inputs(batch)[:600], batch.targets[:600]
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimiser.step()
    with torch.no_grad():
        net[2].weight[0] *= 4000  # tanh hides it from the function, not from the range
    source = module_source(net.eval(), task.contract, label="digits")
    told = []
    (made,) = export_source(
        source, [("onnx", "int8")], tmp_path, task=task, settings=Settings(max_drop=0.01), on_reverted=told.append
    )
    assert made.ok
    record = load_artifact(made.folder).reverts
    assert record.trials[0].drop > 0.01
    assert 1 <= len(told[0].keep) <= 3
    assert set(made.artifact.kept_float) == told[0].keep
    last = next(trial for trial in reversed(record.trials) if set(trial.kept) == told[0].keep)
    assert last.drop <= 0.01
    assert record.runtime == "onnxruntime"
    assert record.latency > 0
    assert np.isfinite(record.over_fp32)
