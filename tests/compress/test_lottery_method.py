"""The step "lottery": rounds, budget, control, resumption, refusals."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from training_kit import make_task

from trimtab.compress.apply import run_recipe
from trimtab.compress.lottery.config import LotteryConfig
from trimtab.compress.recipe import parse_recipe
from trimtab.models.bundle import Bundle, Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.masks import density, masks_of
from trimtab.models.source import parse

FAST = {"epochs": 1, "batch_size": 32, "lr": 0.05, "augment": False, "max_eval": 0}
NET = """
from torch import nn

def net(classes=4):
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
                         nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, classes))
"""


@pytest.fixture
def parent(tmp_path: Path) -> Bundle:
    code = tmp_path / "net.py"
    code.write_text(NET)
    architecture = parse(f"{code}:net")
    torch.manual_seed(0)
    return save_bundle(
        tmp_path / "parent", architecture.build(), Manifest(architecture=architecture, contract=make_task().contract)
    )


def run(parent: Bundle, work: Path, task=None, **settings):
    recipe = parse_recipe({"format": 1, "step": [{"kind": "lottery", **FAST, **settings}]}, origin="test")
    return run_recipe(parent, recipe, task or make_task(), work, device="cpu")[0]


def rounds_of(work: Path) -> list[Path]:
    return sorted((work / "01-lottery" / "kept" / "rounds").iterdir())


def test_every_round_is_a_bundle_with_masks_inside_the_ones_before(parent, tmp_path):
    step = run(parent, tmp_path / "w", density=0.1)
    found = [masks_of(load_bundle(folder / "bundle").module()) for folder in rounds_of(tmp_path / "w")]
    assert [round(density(masks), 2) for masks in found] == [1.0, 0.5, 0.25, 0.12, 0.1]
    assert list(found[0]) == ["0.weight", "5.weight", "7.weight"]
    for before, after in itertools.pairwise(found):
        assert all(not bool((after[name] & ~before[name]).any()) for name in before)
    last = step.bundle.module()
    assert all(torch.equal(mask, found[-1][name]) for name, mask in masks_of(last).items())
    assert all(not last.get_parameter(name)[~mask].any() for name, mask in masks_of(last).items())
    assert step.figures["density"] == pytest.approx(0.1, abs=0.005)
    assert [r["round"] for r in step.figures["rounds"]] == [0, 1, 2, 3, 4]


def test_survivors_are_rewound_to_the_weights_that_entered(parent, tmp_path):
    """A round of no learning shows what it started from."""
    step = run(parent, tmp_path / "w", density=0.5, lr=1e-12, momentum=0.0, nesterov=False, criterion="magnitude")
    start, end, masks = parent.module(), step.bundle.module(), masks_of(step.bundle.module())
    for name, mask in masks.items():
        assert torch.allclose(start.get_parameter(name)[mask], end.get_parameter(name)[mask], atol=1e-7)


def test_rewinding_to_an_epoch_goes_back_to_the_weights_of_that_epoch(parent, tmp_path):
    settings = {"epochs": 2, "density": 0.5, "schedule": "constant", "weight_decay": 0.0}
    step = run(parent, tmp_path / "w", rewind_epoch=1, **settings)
    assert step.figures["rounds"][1]["metrics"]["val"]["accuracy"] >= 0
    from safetensors.torch import load_file

    rewound = (
        load_file(tmp_path / "w" / "01-lottery" / "kept" / "rounds" / "rewind.safetensors")
        if (tmp_path / "w" / "01-lottery" / "kept" / "rounds" / "rewind.safetensors").exists()
        else None
    )
    one = run(parent, tmp_path / "one", **{**settings, "epochs": 1})
    assert rewound is not None
    first = load_bundle(tmp_path / "one" / "01-lottery" / "kept" / "rounds" / "round-00" / "bundle").module().state_dict()
    assert one.figures["rounds"][0]["round"] == 0
    assert all(torch.equal(rewound[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "snip", "random"])
@pytest.mark.parametrize("one_shot", [True, False])
def test_every_criterion_runs_in_rounds_and_in_one_shot(parent, tmp_path, criterion, one_shot):
    step = run(parent, tmp_path / "w", density=0.2, criterion=criterion, one_shot=one_shot, scope="global")
    assert len(step.figures["rounds"]) == (2 if one_shot else 4)
    assert step.figures["density"] == pytest.approx(0.2, abs=0.005)


def test_a_pattern_reaches_the_weights(parent, tmp_path):
    step = run(parent, tmp_path / "w", pattern="2:4")
    masks = masks_of(step.bundle.module())
    assert (masks["5.weight"].reshape(-1, 4).sum(1) == 2).all()
    assert masks["0.weight"].all()
    assert any("do not take the pattern 2:4 and stay whole: 0.weight" in note for note in step.notes)


def test_a_killed_run_goes_on_with_the_round_it_was_in_and_ends_the_same(parent, tmp_path, monkeypatch):
    whole = run(parent, tmp_path / "a", density=0.2)
    from trimtab.compress.lottery.rounds import Lottery

    make, made = Lottery._make, []

    def dying(self, folder, number, cut):
        if number == 2 and not made:
            made.append(number)
            raise KeyboardInterrupt
        return make(self, folder, number, cut)

    monkeypatch.setattr(Lottery, "_make", dying)
    with pytest.raises(KeyboardInterrupt):
        run(parent, tmp_path / "b", density=0.2)
    finished = (rounds_of(tmp_path / "b")[0] / "round.json").stat().st_mtime_ns
    again = run(parent, tmp_path / "b", density=0.2)
    assert (rounds_of(tmp_path / "b")[0] / "round.json").stat().st_mtime_ns == finished
    assert again.bundle.hash == whole.bundle.hash


def test_later_steps_keep_the_masks(parent, tmp_path):
    steps = [{"kind": "lottery", **FAST, "density": 0.2}, {"kind": "finetune", **FAST, "optimizer": "adamw", "lr": 1e-3}]
    recipe = parse_recipe({"format": 1, "step": steps}, origin="test")
    done = run_recipe(parent, recipe, make_task(), tmp_path / "w", device="cpu")
    before, after = (masks_of(step.bundle.module()) for step in done)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert done[0].bundle.manifest.weights_sha256 != done[1].bundle.manifest.weights_sha256


# ------------------------------------------------------------ critical classes

CRITICAL = {"critical": ["class 1"], "density": 0.2, "epochs": 3}


def test_a_class_dependent_run_reports_rates_control_and_intervals(parent, tmp_path):
    step = run(parent, tmp_path / "w", **CRITICAL)
    rounds = step.figures["rounds"]
    assert [(r["gamma"], r["rank_weight"]) for r in rounds] == [(1, 5), (5, 5), (5, 5), (5, 5)]
    for row in rounds:
        for part in (row["critical"], row["control"]):
            point = part["operating_point"]
            assert point["val"]["fpr"] <= step.figures["max_fpr"] + 1e-9
            assert 0 <= point["test"]["fnr"] <= 1
            low, high = part["interval"]["auc"]
            assert low <= point["test"]["auc"] <= high
        gap, low, high = row["difference"]["auc"]
        assert gap == pytest.approx(row["critical"]["argmax"]["test"]["auc"] - row["control"]["argmax"]["test"]["auc"])
        assert low <= high


def test_the_control_is_the_plain_lottery_itself(parent, tmp_path):
    both = run(parent, tmp_path / "a", **CRITICAL)
    plain = run(parent, tmp_path / "b", **{**CRITICAL, "scenario": "plain"})
    assert [r["control"]["metrics"] for r in both.figures["rounds"]] == [r["metrics"] for r in plain.figures["rounds"]]
    assert any("is its own control" in note for note in plain.notes)


def test_the_budget_stops_and_goes_back_to_the_last_round_within_it(parent, tmp_path, monkeypatch):
    """Scores are made worse from round 2 on, on validation alone: the decision must rest on validation."""
    from trimtab.compress.lottery.judging import Judge

    measure, calls = Judge.measure, []

    def worse(self, module):
        metrics, scores = measure(self, module)
        calls.append(1)
        if len(calls) > 2:
            scores["val"] = np.where(self.positive("val"), -9.0, scores["val"])
        return metrics, scores

    monkeypatch.setattr(Judge, "measure", worse)
    step = run(parent, tmp_path / "w", **CRITICAL, max_fnr_increase=0.05, control=False)
    assert step.figures["chosen"] == 1
    assert len(step.figures["rounds"]) == 3
    assert density(masks_of(step.bundle.module())) == pytest.approx(0.5, abs=0.01)
    note = next(note for note in step.notes if "budget" in note)
    assert "round 2 (25.00% of the weights) misses" in note
    assert "the Bundle is round 1" in note
    assert any("control = false" in note for note in step.notes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"critical": ["clas 1"]}, "critical class 'clas 1' is not"),
        ({"critical": ["class 0", "class 1", "class 2", "class 3"]}, "all 4 classes are named critical"),
        ({"max_fnr_increase": 0.0}, "no class is critical"),
        ({"keep": ["nothing"]}, "keep names 'nothing'"),
    ],
)
def test_what_a_user_gets_wrong_is_said(parent, tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        run(parent, tmp_path / "w", **settings)


def test_a_class_that_validation_lacks_is_named(parent, tmp_path):
    task = make_task()
    task.samples("val").images.targets[:] = 0
    with pytest.raises(UserError, match="class 'class 1' is absent from the val split of 'toy'"):
        run(parent, tmp_path / "w", task, critical=["class 1"])


def test_a_network_that_is_as_sparse_already_is_refused(parent, tmp_path):
    steps = [{"kind": "lottery", **FAST, "density": 0.2}, {"kind": "lottery", **FAST, "density": 0.3}]
    recipe = parse_recipe({"format": 1, "step": steps}, origin="test")
    with pytest.raises(UserError, match=r"has 20\.\d+% of its weights left, and density = 0\.3"):
        run_recipe(parent, recipe, make_task(), tmp_path / "w", device="cpu")


def test_a_second_lottery_goes_on_from_the_masks_that_are_there(parent, tmp_path):
    steps = [{"kind": "lottery", **FAST, "density": 0.4}, {"kind": "lottery", **FAST, "density": 0.1}]
    recipe = parse_recipe({"format": 1, "step": steps}, origin="test")
    first, second = run_recipe(parent, recipe, make_task(), tmp_path / "w", device="cpu")
    before, after = masks_of(first.bundle.module()), masks_of(second.bundle.module())
    assert all(not bool((after[name] & ~before[name]).any()) for name in before)
    assert second.figures["rounds"][0]["density"] == pytest.approx(0.4, abs=0.01)
    assert density(after) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rewind_epoch": 12.0}, "rewind_epoch 12.0 lies beyond training, which ends after 10.0 epochs"),
        ({"rewind_epoch": 2.0, "rewind": "none"}, "says not to"),
        ({"pattern": "2:4", "density": 0.1}, "leaves 0.5 of the weights"),
        ({"pattern": "5:4"}, "is not known: none, N:M"),
        ({"density": 1.0}, "less than 1"),
        ({"critical_weight": [0.0]}, "every critical_weight must be above 0"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        LotteryConfig(**settings)


def test_scenarios_are_the_papers_curves():
    black, green = LotteryConfig(scenario="gamma-then-rank"), LotteryConfig(scenario="strong-gamma")
    assert [black.emphasis(n, critical=True).gamma for n in range(3)] == [1, 5, 5]
    assert {black.emphasis(n, critical=True).rank_weight for n in range(3)} == {5}
    assert {green.emphasis(n, critical=True).gamma for n in range(3)} == {10}
    assert LotteryConfig().emphasis(1, critical=False).plain
    assert LotteryConfig().emphasis(1, critical=True).gamma == 5
    assert LotteryConfig(critical_weight=(2, 3), rank_weight=(0,)).emphasis(7, critical=True).gamma == 3


def test_several_critical_classes_are_one_group_of_positives(parent, tmp_path):
    step = run(parent, tmp_path / "w", density=0.5, critical=["class 1", "class 3"], rank="pairwise", control=False)
    found = step.figures["rounds"][-1]["critical"]["argmax"]["test"]
    targets = make_task().samples("test").targets
    assert found["positives"] == int(np.isin(targets, (1, 3)).sum())
    assert found["positives"] + found["negatives"] == len(targets)


@pytest.mark.parametrize(("weights", "beta"), [("critical", 0.99997), ("effective", 0.9)])
def test_the_rounds_loss_is_the_papers_sum(weights, beta):
    """γ·cross-entropy + λ·hinge on real logits, against the pieces put together by hand."""
    from trimtab.compress.lottery.config import Emphasis
    from trimtab.compress.lottery.judging import Judge
    from trimtab.compress.lottery.losses import class_rank_loss, effective_weights, weighted_cross_entropy
    from trimtab.compress.lottery.rounds import round_loss
    from trimtab.compress.runtime import Runtime

    task = make_task()
    judge = Judge(task, ("class 2",), Runtime("cpu"))
    config = LotteryConfig(class_weights=weights, beta=beta, rank="pairwise")
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(64, 4, generator=generator), torch.randint(0, 4, (64,), generator=generator)
    counts = torch.bincount(torch.from_numpy(task.samples("train").targets), minlength=4)
    gamma = effective_weights(counts, beta).float() if weights == "effective" else torch.tensor([1.0, 1.0, 5.0, 1.0])
    loss, parts = round_loss(task, Emphasis(5.0, 2.0), config, judge)(logits, targets)
    label, rank = weighted_cross_entropy(logits, targets, gamma), class_rank_loss(logits, targets, (2,), "pairwise")
    assert parts["label"].item() == pytest.approx(label.item())
    assert parts["rank"].item() == pytest.approx(rank.item())
    assert loss.item() == pytest.approx(label.item() + 2 * rank.item())
    plain, nothing = round_loss(task, Emphasis(1.0, 0.0), config, judge)(logits, targets)
    assert plain.item() == task.loss(logits, targets).item()
    assert nothing == {}
