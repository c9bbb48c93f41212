"""Norm, angle and margin against NumPy on a network made by hand; survival, redundancy and worst hits against formulas."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from training_kit import make_net, make_task

from trimtab.compress.analyse.geometry import Head, geometry_of
from trimtab.compress.analyse.survival import counted_auc, redundancy, resampled, survival_row
from trimtab.compress.analyse.worst import accuracy_by_class, worst_classes, worst_samples
from trimtab.models.errors import UserError


def by_hand(x, weight, bias, y):
    """Norm, angle, margin of one embedding, term by term."""
    logits = weight @ x + bias
    norm = np.sqrt((x**2).sum())
    angle = np.degrees(np.arccos(x @ weight[y] / (norm * np.sqrt((weight[y] ** 2).sum()))))
    margins = [
        ((weight[y] - weight[j]) @ x + bias[y] - bias[j]) / np.sqrt(((weight[y] - weight[j]) ** 2).sum())
        for j in range(len(weight))
        if j != y
    ]
    return norm, angle, min(margins), (np.exp(logits) / np.exp(logits).sum()).max(), logits.argmax()


def batch(count=400, features=7, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, features)),
        rng.normal(size=(classes, features)),
        rng.normal(size=classes),
        rng.integers(0, classes, count),
    )


def seen(x, weight, bias, y):
    logits = x @ weight.T + bias
    return geometry_of(*(torch.from_numpy(np.asarray(v)) for v in (x, logits, y, weight)))


def test_geometry_is_numpys():
    x, weight, bias, y = batch()
    found = seen(x, weight, bias, y)
    expected = np.array([by_hand(*row) for row in zip(x, [weight] * len(x), [bias] * len(x), y, strict=True)])
    for column, name in enumerate(("norm", "angle", "margin", "confidence", "predicted")):
        assert getattr(found, name).numpy() == pytest.approx(expected[:, column], rel=1e-9, abs=1e-9)  # float64 on both sides


def test_the_sign_of_the_margin_is_the_argmax():
    for seed in range(5):
        x, weight, bias, y = batch(count=1000, seed=seed)
        found = seen(x, weight, bias, y)
        assert torch.equal(found.margin > 0, found.predicted == torch.from_numpy(y))
        assert (found.margin != 0).all()
    tie = seen(np.ones((1, 2)), np.eye(2), np.zeros(2), np.array([1]))
    assert tie.margin.item() == 0


def test_moving_by_the_margin_reaches_the_boundary():
    x, weight, bias, y = batch(count=50)
    found = seen(x, weight, bias, y)
    for row, label, margin in zip(x, y, found.margin.numpy(), strict=True):
        gaps = (weight[label] - weight) @ row + bias[label] - bias
        apart = np.linalg.norm(weight[label] - weight, axis=1)
        nearest = min((j for j in range(len(weight)) if j != label), key=lambda j: gaps[j] / apart[j])
        moved = row - margin * (weight[label] - weight[nearest]) / apart[nearest]
        logits = weight @ moved + bias
        assert logits[label] == pytest.approx(logits[nearest], abs=1e-9)


def test_a_dead_embedding_and_pruned_rows_divide_by_nothing():
    weight = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    bias = np.array([0.0, 0.5, -0.5])
    x = np.array([[0.0, 0.0], [3.0, 4.0], [-2.0, 0.0], [-2.0, 0.0]])
    found = seen(x, weight, bias, np.array([0, 1, 1, 2]))
    assert found.norm.tolist() == [0, 5, 2, 2]
    assert found.angle.tolist() == [90, 90, 90, 90]  # X = 0, then rows of zeros
    # against row 0 the distance is 1; rows 1 and 2 have no boundary: 1 beats 2 always, 2 loses to 1 by a gap of 1
    assert found.margin.tolist() == [-0.5, -2.5, 2.5, -1.0]
    far = seen(np.array([[5.0, 0.0]]), weight * 0.1, bias, np.array([2]))
    assert far.margin.item() == pytest.approx(-10)  # row 0 is 10 away, a gap of 1: more than the gap of 1 to its twin
    none = seen(x[:1], np.zeros((3, 2)), bias, np.array([1]))
    assert none.margin.item() == 0.5  # no boundary anywhere: the smallest gap
    assert none.predicted.item() == 1


def test_the_head_sees_what_goes_into_the_classifier():
    task, net = make_task(), make_net(seed=3).eval()
    raw = task.samples("test").__getitems__(range(40))
    inputs = task.inputs(raw)
    head = Head(net, inputs[:1], name="net")
    found = head.look(inputs, raw.targets)
    head.close()
    with torch.no_grad():
        features = net[:-1](inputs).double().numpy()
        predicted = net(inputs).argmax(1)
    weight, bias = (p.detach().double().numpy() for p in (net[-1].weight, net[-1].bias))
    expected = np.array([by_hand(f, weight, bias, y) for f, y in zip(features, raw.targets.numpy(), strict=True)])
    # the margin comes from the network's float32 logits
    assert found.margin.numpy() == pytest.approx(expected[:, 2], rel=1e-4, abs=1e-5)
    assert found.angle.numpy() == pytest.approx(expected[:, 1], rel=1e-6)
    assert torch.equal(found.predicted, predicted)
    assert torch.equal(found.margin > 0, predicted == raw.targets)
    assert not net[-1]._forward_pre_hooks


class _Scaled(nn.Module):
    """A network that works on its classifier's answer in place."""

    def __init__(self):
        super().__init__()
        self.net = make_net()

    def forward(self, x):
        return self.net(x).mul_(3.0).add_(1.0)


class _Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(x[:, 0])[:, 0]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()), "linear classifier"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)), "not that of a linear layer"),
        (_Scaled(), "not what its last linear layer 'net.6' returns"),
        (_Tokens(), r"classifier's input has shape \(1, 8, 8\)"),
    ],
)
def test_networks_without_one_linear_head_are_refused_by_name(net, words):
    with pytest.raises(UserError, match=f"(?s)pruned.*{words}.*leave this network out"):
        Head(net.eval(), torch.rand(1, 1, 8, 8), name="pruned")


def test_broken_weights_are_named():
    net = make_net().eval()
    head = Head(net, torch.rand(1, 1, 8, 8), name="broken")
    net[-1].weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="broken answers NaN"):
        head.look(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))


def test_counted_auc_is_scikit_learns_ties_and_counts_included():
    rng = np.random.default_rng(0)
    for scores in (rng.normal(size=200), rng.integers(0, 6, 200).astype(float)):
        survived = rng.integers(0, 4, 200)
        weights = resampled(200, 1, resamples=3)
        found = counted_auc(scores, survived, 3 - survived, weights)
        for row, value in zip(weights, found, strict=True):
            expected = roc_auc_score(
                np.repeat([1, 0], 200), np.tile(scores, 2), sample_weight=np.concatenate([row * survived, row * (3 - survived)])
            )
            assert value == pytest.approx(expected, abs=1e-12)


def row_of(survived, tries, **scores):
    count = len(survived)
    rng = np.random.default_rng(0)
    told = {name: rng.normal(size=count) for name in ("margin", "confidence", "norm", "angle")} | scores
    weights = resampled(count, 0)
    return survival_row("net", "fog", scores=told, survived=np.asarray(survived), tries=np.asarray(tries), weights=weights)


def test_a_score_that_tells_survival_has_auc_one_and_a_small_angle_counts_as_good():
    survived = np.array([3] * 30 + [0] * 30 + [0] * 5)
    tries = np.array([3] * 60 + [0] * 5)  # five samples were wrong when clean: they don't count
    score = np.r_[np.linspace(2, 3, 30), np.linspace(0, 1, 30), np.full(5, 9.0)]
    row = row_of(survived, tries, margin=score, angle=-score)
    assert (row["n"], row["survived"]) == (180, 90)
    assert row["auc_margin"] == row["auc_angle"] == 1
    assert row["difference"] == pytest.approx(1 - row["auc_confidence"])
    assert 0 < row["low"] <= row["difference"] <= row["high"]
    assert not row["reason"]


def test_equal_scores_have_a_difference_of_exactly_zero():
    rng = np.random.default_rng(2)
    score, survived = rng.normal(size=100), rng.integers(0, 3, 100)
    row = row_of(survived, np.full(100, 2), margin=score, confidence=np.exp(score))
    assert row["difference"] == row["low"] == row["high"] == 0  # the order is all that counts, the resamples are the same


@pytest.mark.parametrize(
    ("survived", "tries", "words"),
    [
        ([2, 2], [2, 2], "every sample survived"),
        ([0, 0], [2, 2], "no sample survived"),
        ([0, 0], [0, 0], "no sample was right"),
    ],
)
def test_one_fate_only_is_said_in_words(survived, tries, words):
    row = row_of(survived, tries)
    assert words in row["reason"]
    assert all(
        row[key] is None for key in ("auc_margin", "auc_confidence", "auc_norm", "auc_angle", "difference", "low", "high")
    )


def test_redundancy_is_pearsons_and_names_what_belongs_together():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2, 300))
    shift = np.stack([np.stack([base[0], 2 * base[0] + rng.normal(0, 0.1, 300), base[1], np.full(300, 0.7)]) for _ in range(2)])
    found = redundancy(shift, ["blur", "defocus", "noise", "nothing"])
    for model, matrix in enumerate(found["by_model"]):
        expected = np.corrcoef(shift[model, :3])
        assert np.array([row[:3] for row in matrix[:3]]) == pytest.approx(expected, abs=1e-12)
        assert matrix[3] == [None] * 4
    mean = np.mean([np.corrcoef(part[:3]) for part in shift], axis=0)
    assert np.array([row[:3] for row in found["mean"][:3]]) == pytest.approx(mean, abs=1e-12)
    assert sorted(map(sorted, found["clusters"])) == [["blur", "defocus"], ["noise"], ["nothing"]]
    assert found["nearest"] == ["blur", "defocus"]
    assert redundancy(shift[:, :1], ["blur"])["clusters"] == [["blur"]]
    assert redundancy(shift[:, :1], ["blur"])["nearest"] == []


def test_accuracy_by_class_and_the_worst_classes():
    targets = np.array([0, 0, 1, 1, 1])
    clean_right = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    by_class = accuracy_by_class(clean_right, targets, 3)
    assert by_class[:, :2].tolist() == [[1, 1], [1, pytest.approx(1 / 3)]]
    assert np.isnan(by_class[:, 2]).all()
    corrupted = by_class[:, None] - np.array([0.0, 0.5])[:, None, None] * [[[1.0, 0.0, 0.0]]]
    falls = worst_classes(by_class, corrupted, targets, models=["dense", "half"], kinds=["fog"], classes=["a", "b", "c"])
    assert [(f["name"], f["model"], f["benchmark"], f["n"]) for f in falls] == [
        ("b", "half", "clean", 3),
        ("b", "half", "fog", 3),
        ("a", "half", "fog", 2),
    ]
    assert falls[0]["fall"] == pytest.approx(2 / 3)
    assert {f["against"] for f in falls} == {"dense"}
    alone = worst_classes(by_class[1:], corrupted[1:], targets, models=["half"], kinds=["fog"], classes=["a", "b", "c"])
    assert [(f["name"], f["benchmark"], f["against"]) for f in alone] == [("a", "fog", "clean")]


def test_the_worst_samples_fell_from_the_reference_to_the_mean_of_the_others():
    corrupted = np.array([[1.0, 2.0, 3.0], [0.5, 2.0, 1.0], [0.5, 3.0, 0.0]])
    found = worst_samples(corrupted + 1, corrupted, np.array([4, 5, 6]), models=["dense", "a", "b"])
    assert [(f["index"], f["target"], f["fall"], f["before"]) for f in found] == [(2, 6, 2.5, 3.0), (0, 4, 0.5, 1.0)]
    assert found[0]["by_model"] == [0.0, 2.0, 3.0]
    alone = worst_samples(np.array([[2.0, 1.0]]), np.array([[1.0, 0.5]]), np.array([0, 1]), models=["dense"])
    assert [(f["index"], f["fall"], f["against"]) for f in alone] == [(0, 1.0, "clean"), (1, 0.5, "clean")]
