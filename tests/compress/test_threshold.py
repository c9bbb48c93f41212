"""The recipe step "threshold": what it changes, which operating point it takes, and what it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from training_kit import FakeBundle, make_context, make_net, make_task

from trimtab.compress.evaluation import measured
from trimtab.compress.recipe import parse_recipe
from trimtab.compress.runtime import Runtime
from trimtab.compress.threshold import ThresholdConfig, fold, head_with_bias, threshold
from trimtab.models.errors import UserError
from trimtab.models.masks import attach_masks
from trimtab.models.tasks.critical import critical_classes, rates, threshold_for_fnr, threshold_for_fpr

torch.set_num_threads(1)
NAMES = ("class 1", "class 3")


@pytest.fixture(scope="module")
def task():
    return make_task(val=200)


def logits_of(module, task, split="val"):
    return measured(module, task, split, runtime=Runtime("cpu", amp="off"))[1].numpy()


def step(module, task, folder, *, parent=None, steps=(), **config):
    context = make_context(folder, parent=FakeBundle(task.contract, parent or module))
    config = {"critical": NAMES, **config}
    return threshold(module, task, ThresholdConfig(**config), replace(context, steps=steps))


class TestFold:
    def test_the_critical_logits_lose_the_threshold_and_nothing_else_changes(self, task, tmp_path):
        module = make_net()
        before, logits = copy.deepcopy(module.state_dict()), logits_of(module, task)
        result = step(module, task, tmp_path, max_fpr=0.1)
        t = result.figures["threshold"]
        shift = t * np.isin(np.arange(4), [1, 3])
        # float32: the bias and the sum are each rounded once more, to 2^-24 of at most a few units
        np.testing.assert_allclose(logits_of(result.module, task), logits - shift, rtol=0, atol=1e-6)
        changed = [name for name, value in result.module.state_dict().items() if not torch.equal(value, before[name])]
        assert changed == ["6.bias"]
        assert t != 0
        assert result.plan is None

    def test_argmax_decides_as_the_threshold_did(self, task, tmp_path):
        module = make_net()
        critical, logits = critical_classes(NAMES, task.contract.classes), logits_of(module, task)
        result = step(module, task, tmp_path, max_fpr=0.1)
        decided = np.isin(logits_of(result.module, task).argmax(1), critical.indices)
        assert np.array_equal(decided, critical.score(logits) >= result.figures["threshold"])

    def test_a_convolution_can_make_the_logits(self, task, tmp_path):
        torch.manual_seed(0)
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 4, 1), nn.Flatten())
        result = step(module, task, tmp_path, max_fnr=0.2)
        assert result.figures["classifier"] == "1"
        assert result.figures["after"]["fnr"] <= 0.2


class TestRules:
    @pytest.fixture
    def judged(self, task):
        critical = critical_classes(NAMES, task.contract.classes)
        score = critical.score(logits_of(make_net(), task))
        return score, critical.positive(task.samples("val").targets)

    def test_max_fpr_and_max_fnr(self, task, judged, tmp_path):
        score, positive = judged
        for name, choose in (("fpr", threshold_for_fpr), ("fnr", threshold_for_fnr)):
            figures = step(make_net(), task, tmp_path, **{f"max_{name}": 0.15}).figures
            assert figures["threshold"] == choose(score, positive, 0.15)
            assert figures["after"][name] <= 0.15
            assert figures["rule"] == f"{name.upper()} ≤ 0.15"

    def test_the_parents_rate_is_the_default(self, task, judged, tmp_path):
        other = make_net(seed=5)
        critical = critical_classes(NAMES, task.contract.classes)
        score, positive = judged
        own = rates(critical.score(logits_of(other, task)), positive).fpr
        assert own != rates(score, positive).fpr
        entered = FakeBundle(task.contract, other)
        for match in ({}, {"match": "parent"}):
            figures = step(make_net(), task, tmp_path, parent=other, steps=(entered,), **match).figures
            assert figures["threshold"] == threshold_for_fpr(score, positive, own)
            assert figures["after"]["fpr"] <= own

    def test_without_a_step_before_it_the_network_is_its_own_parent(self, task, judged, tmp_path):
        """The same false alarms, and possibly fewer misses: the threshold may fall as long as no false alarm is added."""
        figures = step(make_net(), task, tmp_path).figures
        assert figures["after"]["false_alarms"] == figures["before"]["false_alarms"]
        assert figures["after"]["missed"] <= figures["before"]["missed"]
        assert figures["threshold"] <= 0

    def test_the_tasks_own_classes(self, tmp_path):
        task = make_task(val=200)
        task.critical = ("class 2",)
        assert step(make_net(), task, tmp_path, critical=(), max_fpr=0.1).figures["critical"] == ["class 2"]

    @pytest.mark.parametrize("pair", [{"max_fpr": 0.1, "max_fnr": 0.1}, {"max_fnr": 0.1, "match": "parent"}])
    def test_one_rule(self, pair):
        with pytest.raises(UserError, match=r"different rules for one threshold"):
            parse_recipe({"format": 1, "step": [{"kind": "threshold", **pair}]}, origin="test")

    def test_rules_in_range(self):
        with pytest.raises(UserError, match="max_fpr"):
            parse_recipe({"format": 1, "step": [{"kind": "threshold", "max_fpr": 1.5}]}, origin="test")


class TestFigures:
    def test_rates_intervals_and_words(self, task, tmp_path):
        result = step(make_net(), task, tmp_path, max_fnr=0.0)
        figures = result.figures
        json.dumps(figures)
        for name in ("fnr", "fpr", "auc"):
            low, high = figures["before"]["interval"][name]
            assert low <= figures["before"][name] <= high
            assert figures["val_after"][name] == figures["after"][name]
        assert figures["before"]["auc"] == pytest.approx(figures["after"]["auc"], abs=1e-3)  # ties that float32 makes or parts
        assert figures["val_before"]["accuracy"] > 0
        assert "'class 1', 'class 3'" in result.notes[0]
        assert "the test split, which this step has not seen" in result.notes[1]
        assert figures["after"]["missed"] == 0
        assert "still allows an FNR of up to" in result.notes[2]

    def test_the_test_split_is_not_touched(self, task, tmp_path, monkeypatch):
        seen = []
        samples = task.samples
        monkeypatch.setattr(task, "samples", lambda split: seen.append(split) or samples(split))
        step(make_net(), task, tmp_path, max_fpr=0.1)
        assert set(seen) == {"val"}

    def test_max_eval(self, task, tmp_path):
        figures = step(make_net(), task, tmp_path, max_fpr=0.1, max_eval=50).figures
        assert figures["after"]["positives"] + figures["after"]["negatives"] == 50


class TestRefusals:
    def refused(self, module, task, tmp_path, message, **config):
        with pytest.raises(UserError, match=message):
            step(module, task, tmp_path, **config)

    def test_no_data(self, tmp_path):
        with pytest.raises(UserError, match="threshold needs data"):
            threshold(make_net(), None, ThresholdConfig(), make_context(tmp_path))

    def test_classes(self, task, tmp_path):
        self.refused(make_net(), task, tmp_path, r"none is named[\s\S]*class 0, class 1", critical=())
        self.refused(make_net(), task, tmp_path, r"'class 9' is not one of[\s\S]*did you mean", critical=("class 9",))

    def test_a_class_absent_from_validation(self, task, tmp_path):
        absent = int(task.samples("val").targets[0] == 0)  # the first sample is of another class
        name = f"class {absent}"
        self.refused(
            make_net(),
            task,
            tmp_path,
            f"class '{name}' is absent from the 1 validation samples of toy",
            critical=(name,),
            max_eval=1,
        )

    def test_no_bias(self, task, tmp_path):
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
        self.refused(module, task, tmp_path, r"'1' makes the logits without a bias[\s\S]*build the network with a bias")

    def test_something_after_the_classifier(self, task, tmp_path):
        self.refused(nn.Sequential(make_net(), nn.Softmax(1)), task, tmp_path, r"classifier can't be found[\s\S]*'0\.6'")
        self.refused(
            nn.Sequential(make_net(), nn.Softmax(1)),
            task,
            tmp_path,
            r"does not reach the network's outputs as it is",
            classifier="0.6",
            max_fpr=0.1,
        )

    def test_wrong_layers(self, task, tmp_path):
        self.refused(make_net(), task, tmp_path, r"'1' is a BatchNorm2d", classifier="1")
        self.refused(make_net(), task, tmp_path, r"no module 'head'", classifier="head")
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 4))
        self.refused(module, task, tmp_path, r"'1' makes 16 outputs and the task has 4 classes", classifier="1")

    def test_a_pruned_bias_stays_pruned(self, task, tmp_path):
        module = make_net()
        attach_masks(module, {"6.bias": torch.tensor([True, True, True, False])})
        self.refused(module, task, tmp_path, r"bias of a critical class in '6' was pruned")
        attach_masks(module, {"6.bias": torch.tensor([False, True, True, True])})
        assert step(module, task, tmp_path, max_fpr=0.1).figures["classifier"] == "6"

    def test_a_routed_network(self, task, tmp_path, monkeypatch):
        monkeypatch.setattr("trimtab.models.routed.RoutedNet", type(make_net()))  # any network counts as routed
        self.refused(make_net(), task, tmp_path, "a routed network has a classifier in every branch")

    def test_weights_that_are_not_finite(self, task, tmp_path):
        module = make_net()
        module[6].weight.data[1] = torch.nan
        self.refused(module, task, tmp_path, "scores are not finite")


def test_the_network_may_be_one_layer(task):
    critical = critical_classes(NAMES, task.contract.classes)
    layer = nn.Linear(7, 4)
    path, found = head_with_bias(layer, torch.randn(1, 7), critical)
    assert (path, found) == ("", layer)
    bias = layer.bias.detach().clone()
    fold(layer, critical, 0.5)
    assert torch.allclose(layer.bias, bias - torch.tensor([0.0, 0.5, 0.0, 0.5]), atol=1e-7)  # one rounding of float32 below 1
