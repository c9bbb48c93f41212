"""Critical classes: scores, rates and thresholds against loops over samples; intervals against what they estimate; the task."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from trimtab.loading import keywords, open_task, task_ref
from trimtab.models.errors import UserError
from trimtab.models.tasks.critical import (
    area_under_roc,
    critical_classes,
    named_classes,
    rates,
    require_samples,
    threshold_for_fnr,
    threshold_for_fpr,
)
from trimtab.models.tasks.intervals import bootstrap, exact_limit, paired_difference

CLASSES = ("T-shirt/top", "Ankle boot", "Coat", "Bag")


def sample(count=300, *, share=0.3, shift=1.0, digits=1, seed=0):
    """Scores with ties, positives `shift` higher."""
    random = np.random.default_rng(seed)
    positive = random.random(count) < share
    return np.round(random.normal(size=count) + shift * positive, digits), positive


def slow_rates(score, positive, threshold):
    """(FNR, FPR) counted one sample at a time."""
    missed = sum(1 for s, p in zip(score, positive, strict=True) if p and not s >= threshold)
    alarms = sum(1 for s, p in zip(score, positive, strict=True) if not p and s >= threshold)
    return missed / positive.sum(), alarms / (~positive).sum()


class TestNames:
    def test_order_is_that_of_the_data(self):
        critical = critical_classes(["Bag", "T-shirt/top"], CLASSES)
        assert critical.names == ("T-shirt/top", "Bag")
        assert critical.indices == (0, 3)
        assert critical.positive(np.array([0, 1, 2, 3])).tolist() == [True, False, False, True]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ((), r"no critical class[\s\S]*T-shirt/top"),
            (("Bagg",), r"'Bagg' is not one of[\s\S]*did you mean 'Bag'"),
            (("Bag", "Bag"), r"'Bag' is named twice"),
            (CLASSES, r"all 4 classes"),
        ],
    )
    def test_bad_names(self, names, message):
        with pytest.raises(UserError, match=message):
            critical_classes(names, CLASSES)

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("critical=Ankle boot", ("Ankle boot",)),
            ("critical=T-shirt/top", ("T-shirt/top",)),
            ("critical=T-shirt/top, Bag", ("T-shirt/top", "Bag")),
            ("critical=('Bag', 'Coat')", ("Bag", "Coat")),
            ("critical=3", ("3",)),
            ("critical=3,4", ("3", "4")),
            ("critical=", ()),
        ],
    )
    def test_from_the_command_line(self, text, names):
        assert named_classes(keywords([text], "--data-arg")["critical"], CLASSES) == names

    def test_a_class_name_with_a_comma_is_one_class(self):
        assert named_classes("cat, black", ("cat, black", "dog")) == ("cat, black",)


class TestScore:
    def test_threshold_zero_is_the_argmax(self):
        logits = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
        critical = critical_classes(["Coat", "Ankle boot"], CLASSES)
        assert np.array_equal(critical.score(logits) >= 0, np.isin(logits.argmax(1), critical.indices))

    def test_a_shift_of_the_critical_logits_shifts_the_score(self):
        """The decision rule of the step "threshold"; small integers, so that sums are exact."""
        logits = np.random.default_rng(0).integers(-9, 9, (200, 4)).astype(np.float64)
        critical = critical_classes(["Coat", "Bag"], CLASSES)
        moved = logits - 2.5 * np.isin(np.arange(4), critical.indices)
        assert np.array_equal(critical.score(moved), critical.score(logits) - 2.5)

    def test_ties_are_critical(self):
        critical = critical_classes(["Bag"], CLASSES)
        assert rates(critical.score(np.zeros((3, 4))), np.array([True, True, False])).fnr == 0

    def test_other_columns_are_refused(self):
        with pytest.raises(UserError, match=r"\(5, 3\) do not have one column for each of the 4 classes"):
            critical_classes(["Bag"], CLASSES).score(np.zeros((5, 3)))


class TestRates:
    @pytest.mark.parametrize("threshold", [-9.0, -0.3, 0.0, 0.7, 9.0])
    def test_against_a_loop(self, threshold):
        score, positive = sample()
        found = rates(score, positive, threshold)
        assert (found.fnr, found.fpr) == slow_rates(score, positive, threshold)
        assert found.accuracy == pytest.approx(1 - (found.missed + found.false_alarms) / 300, abs=1e-15)
        assert (found.positives, found.negatives) == (positive.sum(), 300 - positive.sum())
        assert found.note == ""

    def test_auc_against_pairs_and_scikit_learn(self):
        for digits, seed in product((0, 1, 6), range(3)):
            score, positive = sample(80, digits=digits, seed=seed)
            pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
            found = area_under_roc(score, positive)
            assert found == pytest.approx(np.mean(pairs), abs=1e-12)  # float64 sums of some thousand halves
            assert found == pytest.approx(roc_auc_score(positive, score), abs=1e-12)

    @pytest.mark.parametrize(("value", "rate", "other"), [(True, "fpr", "fnr"), (False, "fnr", "fpr")])
    def test_an_absent_class_is_said(self, value, rate, other):
        found = rates(np.array([1.0, -1.0]), np.full(2, value))
        assert getattr(found, rate) is None
        assert getattr(found, other) == 0.5
        assert found.auc is None
        assert f"no sample of the {'other' if value else 'critical'} classes" in found.note

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_scores_that_are_not_finite(self, bad):
        score, positive = sample()
        score[7] = bad
        for judge in (rates, area_under_roc):
            with pytest.raises(UserError, match="1 of 300 scores are not finite"):
                judge(score, positive)
        with pytest.raises(UserError, match="not finite"):
            bootstrap(score, positive, 0.0)
        with pytest.raises(UserError, match="not a number"):
            rates(*sample(), threshold=np.nan)

    def test_shapes(self):
        with pytest.raises(UserError, match="equally long"):
            rates(np.zeros(3), np.zeros(4, bool))
        with pytest.raises(UserError, match="no sample"):
            rates(np.zeros(0), np.zeros(0, bool))


class TestThresholds:
    """Against every threshold that could matter: below all scores, above all, and halfway between each two neighbours."""

    @staticmethod
    def candidates(score):
        values = np.unique(score)
        return [values[0] - 1.0, *((values[1:] + values[:-1]) / 2), values[-1] + 1.0]

    @pytest.mark.parametrize("limit", [0, 0.001, 1 / 7, 0.05, 0.3, 0.5, 0.999, 1])
    def test_the_best_of_all(self, limit):
        for digits, seed in product((0, 1, 6), range(3)):
            score, positive = sample(90, digits=digits, seed=seed)
            judged = [(t, *slow_rates(score, positive, t)) for t in self.candidates(score)]
            low = threshold_for_fpr(score, positive, limit)
            assert low == pytest.approx(min(t for t, _, fpr in judged if fpr <= limit), abs=1e-12)  # midpoints in float64
            high = threshold_for_fnr(score, positive, limit)
            assert high == pytest.approx(max(t for t, fnr, _ in judged if fnr <= limit), abs=1e-12)

    def test_a_rate_of_its_own_is_always_met_exactly(self):
        """k/n as a limit allows k of n, whatever the division rounds to."""
        score, positive = sample(211, digits=6)
        for t in np.quantile(score, np.linspace(0, 1, 23)):
            found = rates(score, positive, float(t))
            assert rates(score, positive, threshold_for_fpr(score, positive, found.fpr)).false_alarms == found.false_alarms
            assert rates(score, positive, threshold_for_fnr(score, positive, found.fnr)).missed == found.missed

    def test_neighbouring_floats(self):
        one = np.nextafter(1.0, 2.0)
        score, positive = np.array([1.0, one]), np.array([False, True])
        for choose in (threshold_for_fpr, threshold_for_fnr):
            t = choose(score, positive, 0.0)
            assert (rates(score, positive, t).missed, rates(score, positive, t).false_alarms) == (0, 0)

    @pytest.mark.parametrize("choose", [threshold_for_fpr, threshold_for_fnr])
    def test_bad_input(self, choose):
        score, positive = sample()
        for bad in (-0.1, 1.1, np.nan):
            with pytest.raises(UserError, match=r"must be in 0 … 1"):
                choose(score, positive, bad)
        for absent, said in ((positive & False, "every critical class"), (positive | True, "every other class")):
            with pytest.raises(UserError, match=f"{said} is absent from validation"):
                choose(score, absent, 0.1)

    def test_absent_classes_are_named(self):
        critical = critical_classes(["Bag"], CLASSES)
        with pytest.raises(UserError, match="class 'Bag' is absent from validation"):
            require_samples(np.zeros(3, bool), "validation", critical=critical)
        with pytest.raises(UserError, match=r"every other class \('T-shirt/top', 'Ankle boot', 'Coat'\) is absent"):
            require_samples(np.ones(3, bool), "validation", critical=critical)


class TestIntervals:
    def test_rates_have_the_width_of_a_binomial(self):
        """Resampled rates are binomial: their spread is √(p(1 − p)/n), known to 2 % from 4 000 resamples (1/√(2·4000) ≈ 1.1 %)."""
        score, positive = sample(600, digits=6)
        found = rates(score, positive, 0.2)
        spans = bootstrap(score, positive, 0.2, resamples=4000)
        for name, rate, count in (("fnr", found.fnr, found.positives), ("fpr", found.fpr, found.negatives)):
            low, high = spans[name]
            assert low < rate < high
            # percentiles of a lattice of steps 1/n: up to one step off at either end
            assert high - low == pytest.approx(2 * 1.96 * np.sqrt(rate * (1 - rate) / count), rel=0.08, abs=1 / count)

    def test_auc_against_a_slow_bootstrap(self):
        score, positive = sample(120)
        random = np.random.default_rng(5)
        hits, others = score[positive], score[~positive]
        drawn = [
            roc_auc_score(
                positive[np.argsort(~positive)],
                np.concatenate([random.choice(hits, len(hits)), random.choice(others, len(others))]),
            )
            for _ in range(600)
        ]
        low, high = bootstrap(score, positive, 0.0)["auc"]
        # the ends of an interval from 600 resamples have a standard error of about 0.1 of its half-width: 0.005 here; four of them
        assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)

    def test_the_interval_covers_the_truth(self):
        """Of 100 data sets about 95 intervals hold the true FNR ½; 85 or fewer would happen once in 10 000."""
        held = 0
        for seed in range(100):
            score, positive = sample(200, share=0.5, shift=0.0, digits=6, seed=seed)
            low, high = bootstrap(score, positive, 0.0, resamples=300)["fnr"]
            held += low <= 0.5 <= high
        assert 86 <= held <= 100

    def test_seeds(self):
        score, positive = sample()
        assert bootstrap(score, positive, 0.3, seed=1) == bootstrap(score, positive, 0.3, seed=1)
        assert bootstrap(score, positive, 0.3, seed=1) != bootstrap(score, positive, 0.3, seed=2)

    def test_blocks_do_not_matter(self, monkeypatch):
        """Resamples drawn a few at a time are others, and just as good: the ends agree to a few lattice steps."""
        score, positive = sample()
        whole = bootstrap(score, positive, 0.3)
        monkeypatch.setattr("trimtab.models.tasks.intervals.CELLS", 300 * 7)
        for name, span in bootstrap(score, positive, 0.3).items():
            assert span == pytest.approx(whole[name], abs=0.03)  # two lattice steps of 1/90

    def test_paired_differences(self):
        score, positive = sample(400, digits=6)
        same = paired_difference(score, 0.1, score, 0.1, positive)
        assert all(span == (0.0, 0.0, 0.0) for span in same.values())
        moved = paired_difference(score, 0.1, score + 0.4, 0.1, positive)
        before, after = rates(score, positive, 0.1), rates(score + 0.4, positive, 0.1)
        for name in ("fnr", "fpr"):
            difference, low, high = moved[name]
            assert difference == pytest.approx(getattr(after, name) - getattr(before, name), abs=1e-12)
            assert low < difference < high
        assert moved["fnr"][2] <= 0 <= moved["fpr"][1]  # on the same resamples a lower threshold can't miss more
        assert moved["auc"] == (0.0, 0.0, 0.0)  # a shift changes no order

    def test_exact_limit_is_the_rule_of_three(self):
        low, high = exact_limit(0, 100)
        assert low == 0
        assert high == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-6)  # closed form of Clopper and Pearson at 0 errors

    def test_bad_input(self):
        score, positive = sample()
        with pytest.raises(UserError, match="every critical class is absent"):
            bootstrap(score, positive & False, 0.0)
        with pytest.raises(UserError, match="resamples=1 must be 100 or more"):
            bootstrap(score, positive, 0.0, resamples=1)
        with pytest.raises(UserError, match=r"confidence=95 must be between 0 and 1"):
            bootstrap(score, positive, 0.0, confidence=95)
        with pytest.raises(UserError, match="equally long"):
            paired_difference(score, 0.0, score[:-1], 0.0, positive)


class TestTask:
    def test_evaluate_with_and_without(self, tiny_npz):
        plain = open_task("classification", {"data": f"npz:{tiny_npz}"})
        task = open_task("classification", {"data": f"npz:{tiny_npz}", "critical": "3,7"})
        assert (plain.critical, task.critical) == ((), ("3", "7"))
        assert task.options["critical"] == ("3", "7")
        assert "critical" not in plain.options
        assert task.data_id == plain.data_id
        weight = torch.randn(3 * 16 * 16, 10, generator=torch.Generator().manual_seed(0))

        def predict(inputs):
            return inputs.flatten(1) @ weight

        figures = task.evaluate(predict, "test")
        assert {name: value for name, value in figures.items() if name in ("accuracy", "loss", "macro_f1")} == plain.evaluate(
            predict, "test"
        )
        batch = task.samples("test").__getitems__(range(100))
        guess, truth = predict(task.inputs(batch)).argmax(1).numpy(), batch.targets.numpy()
        critical = [3, 7]
        assert figures["fnr"] == np.mean([g not in critical for g, t in zip(guess, truth, strict=True) if t in critical])
        assert figures["fpr"] == np.mean([g in critical for g, t in zip(guess, truth, strict=True) if t not in critical])
        assert 0 < figures["auc"] < 1

    def test_it_travels(self, tiny_npz):
        task = open_task("classification", {"data": f"npz:{tiny_npz}", "critical": ("3",)})
        twin = task.normalised_by((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
        assert twin.critical == ("3",)
        reopened = open_task("classification", task_ref(twin).options)
        assert (reopened.critical, reopened.options) == (twin.critical, twin.options)

    def test_absent_from_what_is_evaluated(self, tiny_npz):
        task = open_task("classification", {"data": f"npz:{tiny_npz}", "critical": "3"})
        first = int(task.samples("test").targets[0])
        assert first != 3
        with pytest.raises(UserError, match=r"class '3' is absent from the 1 test samples of npz:"):
            task.evaluate(lambda inputs: torch.zeros(len(inputs), 10), "test", limit=1)

    @pytest.mark.parametrize(("names", "message"), [("33", "did you mean '3'"), (tuple("0123456789"), "all 10 classes")])
    def test_wrong_names(self, tiny_npz, names, message):
        with pytest.raises(UserError, match=message):
            open_task("classification", {"data": f"npz:{tiny_npz}", "critical": names})
