"""Multi-aspect distillation: the loss, the widened head it stands for, and where the answers come from."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import expit, log_expit
from terms_kit import CONFIG
from torch import nn
from torch.nn import functional as F
from training_kit import make_context, make_net, make_task, same, weights

from trimtab.compress.apply import file_hashes
from trimtab.compress.distill.aspect_source import answers_of, check_answers
from trimtab.compress.distill.aspects import AspectsConfig, aspects_loss, shuffled
from trimtab.compress.distill.method import DistillConfig, distill
from trimtab.compress.distill.objectives import objectives, parse_term
from trimtab.compress.distill.term import Signals
from trimtab.models.errors import UserError

torch.set_num_threads(1)
QUESTIONS = np.array(["Is it red?", "Does it fly?", "Größer als ein Haus?"])
Q = len(QUESTIONS)


@pytest.fixture
def task():
    return make_task()


@pytest.fixture
def answers(task):
    """P(yes) for the 96 training images: by class, plus something of the image's own."""
    targets = task.samples("train").targets
    rng = np.random.default_rng(0)
    return expit(rng.normal(0, 2, (4, Q))[targets] + rng.normal(0, 0.5, (96, Q)))


@pytest.fixture
def write(tmp_path, task, answers):
    """Writes an answers file with some arrays replaced, or left out (None)."""

    def file(**more):
        arrays = {"probabilities": answers, "questions": QUESTIONS, "data_id": np.array(task.data_id)} | more
        path = tmp_path / "aspects.npz"
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return file


class SmallSetup:
    """A student with an embedding of 6 numbers on the toy task."""

    def __init__(self, task, *, seed=0, positions=None):
        self.task, self.seed = task, seed
        self._positions = torch.arange(96) if positions is None else positions

    def student_shape(self, tap):
        assert tap == "embedding"
        return (6,)

    def positions(self):
        return self._positions

    def training_targets(self):
        return torch.as_tensor(self.task.samples("train").targets)[self._positions]


def built(setup, source, **more):
    table = {"kind": "aspects", "source": str(source), **more}
    return objectives.get("aspects").build(parse_term(table), setup)


def signals(index, head):
    return Signals(SimpleNamespace(index=torch.as_tensor(index)), {}, {}, head)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_loss_against_scipy(scale):
    """−q·log σ(z) − (1−q)·log σ(−z) in float64; logits of size up to 100 must not overflow. float32: 1e-5."""
    rng = np.random.default_rng(0)
    z, q = rng.normal(0, scale, (16, 5)), rng.uniform(0, 1, (16, 5))
    expected = -(q * log_expit(z) + (1 - q) * log_expit(-z)).mean()
    got = aspects_loss(torch.tensor(z, dtype=torch.float32), torch.tensor(q, dtype=torch.float32))
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_gradient_is_sigma_minus_q():
    """∂/∂z = (σ(z) − q)/(N·Q); zero where the student answers as the teacher. float32: 1e-7."""
    rng = np.random.default_rng(1)
    z, q = rng.normal(0, 3, (4, 5)), rng.uniform(0, 1, (4, 5))
    q[0] = expit(z[0])
    logits = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    aspects_loss(logits, torch.tensor(q, dtype=torch.float32)).backward()
    np.testing.assert_allclose(logits.grad.numpy(), (expit(z) - q) / 20, atol=1e-7)
    assert logits.grad[0].abs().max() < 1e-7


def test_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"aspect logits \(2, 3\), answers \(2, 4\): not alike"):
        aspects_loss(torch.zeros(2, 3), torch.zeros(2, 4))


def test_a_second_layer_is_the_widened_one_sliced(task, write):
    """One Linear(6, C + Q) as published against classifier and term: the same loss, the same gradients, rows and features.

    Two products instead of one: float32 rounding, 1e-6.
    """
    classes, batch = 4, 10
    setup = SmallSetup(task)
    path = write()
    term = built(setup, path)
    assert term.student == ("embedding",)
    wide, narrow = nn.Linear(6, classes + Q), nn.Linear(6, classes)
    with torch.no_grad():
        for mine, rows in ((narrow, slice(0, classes)), (term.head, slice(classes, None))):
            mine.weight.copy_(wide.weight[rows])
            mine.bias.copy_(wide.bias[rows])
    index = torch.arange(20, 20 + batch)
    targets = torch.as_tensor(task.samples("train").targets)[index]
    q = torch.tensor(np.load(path)["probabilities"], dtype=torch.float32)[index]
    h1 = torch.randn(batch, 6, requires_grad=True)
    h2 = h1.detach().clone().requires_grad_()
    out = wide(h1)
    published = F.cross_entropy(out[:, :classes], targets) + 4.0 * F.binary_cross_entropy_with_logits(out[:, classes:], q)
    ours = task.loss(narrow(h2), targets) + parse_term({"kind": "aspects", "source": "x.npz"}).weight * term.loss(
        signals(index, term.head({"embedding": h2}))
    )
    close = {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(ours, published, **close)
    published.backward()
    ours.backward()
    torch.testing.assert_close(h2.grad, h1.grad, **close)
    torch.testing.assert_close(torch.cat([narrow.weight.grad, term.head.weight.grad]), wide.weight.grad, **close)
    torch.testing.assert_close(torch.cat([narrow.bias.grad, term.head.bias.grad]), wide.bias.grad, **close)


# ---------------------------------------------------------------- the file


def test_all_three_forms_of_the_same_answers_agree(task, write, answers):
    """P, logit(P), and a pair of logits whose difference it is. float32 of the same numbers: 1e-6."""
    z = np.log(answers / (1 - answers))
    shift = np.random.default_rng(2).normal(0, 5, z.shape)
    forms = (
        {},
        {"probabilities": None, "logits": z},
        {"probabilities": None, "logits": np.stack([z + shift, shift], axis=2).astype(np.float32)},
    )
    for form in forms:
        found = answers_of(str(write(**form)), task)
        np.testing.assert_allclose(found.values.numpy(), answers, atol=1e-6)
        assert found.values.dtype == torch.float32
        assert found.questions == tuple(QUESTIONS)


def broken_rows(answers):
    values = answers.copy()
    values[7, 1] = values[9, 0] = np.nan
    return values


@pytest.mark.parametrize(
    ("more", "said", "hint"),
    [
        ({"questions": None}, r"aspects.npz lacks questions; it has data_id, probabilities", "needed: questions, data_id"),
        ({"data_id": None}, "lacks data_id", "optional: logits, probabilities"),
        ({"probabilities": None}, "holds neither logits nor probabilities", "give one"),
        ({"logits": np.ones((96, Q))}, "holds logits and probabilities", "give one"),
        ({"data_id": np.array("0123456789abcdef")}, r"belong to data_id 0123456789ab…, the task's is \w{12}…", "another seed"),
        (
            {"probabilities": lambda a: a[:90]},
            "has answers for 90 images, the training split has 96",
            "one row for every position",
        ),
        ({"probabilities": lambda a: a[:, :2]}, "answers 2 questions, there are 3 texts", "one column per question"),
        (
            {"probabilities": lambda a: a[0]},
            r"probabilities in .* has shape \(3,\) and type float64",
            r"expected numbers (n, Q)",
        ),
        ({"probabilities": lambda a: a > 0.5}, r"and type bool", "expected numbers"),
        (
            {"probabilities": broken_rows},
            r"2 of 288 answers \(probabilities in .*\) are NaN or infinite; the first is at position 7, question 2 \('Does it fly\?'\)",
            "ask for these again",
        ),
        (
            {"probabilities": lambda a: 20 * a - 10},
            r"probabilities in .* run from -\d.* they look like logits",
            "rename the array to logits",
        ),
        (
            {"probabilities": None, "logits": lambda a: a},
            r"all logits in .* lie in 0…1 \(.*\): they look like probabilities",
            "rename the array to probabilities (n, Q)",
        ),
        (
            {"probabilities": None, "logits": lambda a: np.stack([a, 1 - a], axis=2)},
            "they look like probabilities",
            "of pairs, take P(yes) = [..., 0]",
        ),
        ({"probabilities": None, "logits": lambda a: np.stack([a] * 3, axis=2)}, r"shape \(96, 3, 3\)", "(n, Q, 2) or (n, Q)"),
        ({"questions": np.array([1, 2, 3])}, r"questions in .* has shape \(3,\) and type int64", "a list of texts"),
        ({"questions": np.array(["a", None, "b"], dtype=object)}, "holds pickled objects", "save plain number arrays"),
    ],
)
def test_a_file_that_can_t_be_right_is_refused(task, write, answers, more, said, hint):
    path = write(**{key: value(answers) if callable(value) else value for key, value in more.items()})
    with pytest.raises(UserError, match=said) as caught:
        answers_of(str(path), task)
    assert hint in caught.value.hint


def test_infinite_logits_are_named_by_their_pair():
    values = np.random.default_rng(0).normal(0, 3, (4, 2, 2))
    values[2, 1, 0] = np.inf
    with pytest.raises(UserError, match=r"1 of 8 answers .* position 2, question 2 \('b'\)"):
        check_answers({"logits": values, "questions": np.array(["a", "b"])}, count=4, where="x")


def test_a_missing_file_and_an_unknown_source(task):
    with pytest.raises(UserError, match=r"nowhere\.npz does not exist") as caught:
        answers_of("nowhere.npz", task)
    assert "trimtab aspects pack" in caught.value.hint
    with pytest.raises(UserError, match=r"source 'fashion-orcle' is neither an \.npz file nor a registered source"):
        answers_of("fashion-orcle", task)


# ---------------------------------------------------------------- the controls


def test_shuffling_deals_the_same_answers_out_again(answers):
    values, targets = torch.tensor(answers), torch.as_tensor(make_task().samples("train").targets)
    every = torch.arange(96)
    dealt = shuffled(values, every, within=None, seed=1)
    assert not torch.equal(dealt, values)
    assert sorted(map(tuple, dealt.tolist())) == sorted(map(tuple, values.tolist()))  # whole rows
    assert torch.equal(dealt, shuffled(values, every, within=None, seed=1))
    assert not torch.equal(dealt, shuffled(values, every, within=None, seed=2))
    inside = shuffled(values, every, within=targets, seed=1)
    assert not torch.equal(inside, values)
    for c in range(4):
        mine = targets == c
        assert sorted(map(tuple, inside[mine].tolist())) == sorted(map(tuple, values[mine].tolist()))


def test_every_image_can_get_every_other_of_its_class():
    """Three of a class: over 200 seeds every one of the six orders comes, none above twice its share."""
    values, within = torch.arange(5.0)[:, None], torch.tensor([1, 0, 1, 0, 1])
    orders = [tuple(shuffled(values, torch.arange(5), within=within, seed=s)[[0, 2, 4], 0].tolist()) for s in range(200)]
    assert len(set(orders)) == 6
    assert max(orders.count(order) for order in set(orders)) < 2 * 200 / 6


def test_only_the_runs_own_images_are_shuffled(answers):
    values, positions = torch.tensor(answers), torch.tensor([5, 80, 17, 40])
    dealt = shuffled(values, positions, within=torch.tensor([0, 1, 0, 1]), seed=3)
    others = [i for i in range(96) if i not in positions.tolist()]
    assert torch.equal(dealt[others], values[others])
    assert {tuple(r) for r in dealt[[5, 17]].tolist()} == {tuple(r) for r in values[[5, 17]].tolist()}


def test_the_term_deals_by_seed_and_class(task, write):
    path, head = write(), torch.zeros(96, Q)
    head[:, 0] = torch.linspace(-3, 3, 96)  # so that the order matters
    losses = {
        (how, seed): built(SmallSetup(task, seed=seed), path, shuffle=how).loss(signals(range(96), head)).item()
        for how in ("no", "all", "class")
        for seed in (0, 1)
    }
    assert losses["no", 0] == losses["no", 1]
    assert len({round(v, 7) for v in losses.values()}) == 5
    setup = SmallSetup(task)
    setup.training_targets = lambda: torch.zeros(96, 10)
    with pytest.raises(UserError, match=r'shuffle = "class" needs one class per image.*shape \(96, 10\)') as caught:
        built(setup, path, shuffle="class")
    assert 'shuffle = "all"' in caught.value.hint


# ---------------------------------------------------------------- runs


def test_config():
    config = AspectsConfig(source="a.npz")
    assert (config.weight, config.shuffle) == (4.0, "no")
    with pytest.raises(ValidationError, match="Field required"):
        AspectsConfig()
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        AspectsConfig(source="a.npz", weight=-1)
    with pytest.raises(ValidationError, match="'no', 'all' or 'class'"):
        AspectsConfig(source="a.npz", shuffle="some")


def run(folder, source, *, net=None, task=None, seed=0, terms=None, **more):
    terms = terms or ({"kind": "aspects", "source": str(source)},)
    config = DistillConfig(**{**CONFIG.model_dump(exclude={"objectives"}), "objectives": terms, **more})
    net = net or make_net(dropout=0.0)
    return net, distill(net, task or make_task(), config, make_context(folder, seed=seed))


def test_a_run_learns_the_answers_and_leaves_its_head_behind(tmp_path, task, write):
    """Without the label loss: the aspects' loss falls to less than the answers' spread, and the student keeps its own names."""
    net = make_net(dropout=0.0)
    names = list(net.state_dict())
    _, result = run(tmp_path, write(), net=net, epochs=25, augment=False, label_weight=0.0)
    parts = [epoch["parts"]["aspects"] for epoch in result.figures["history"]["epochs"]]
    assert parts[-1] < parts[0] - 0.1
    q = answers_of(str(write()), task).values.double().numpy()
    floor = -(q * np.log(q) + (1 - q) * np.log(1 - q)).mean()  # the answers' own entropy
    constant = q.mean(0)
    flat = -(constant * np.log(constant) + (1 - constant) * np.log(1 - constant)).mean()  # the best without looking
    assert floor < parts[-1] < (floor + flat) / 2
    assert list(net.state_dict()) == names
    assert "aspects: 3 questions from aspects.npz, shuffled: no" in result.notes


def interrupted(task, at):
    """The task, which sends this process Ctrl-C in step `at`."""
    pair, calls = task.training_pair, []

    def interrupting(*args, **more):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return pair(*args, **more)

    task.training_pair = interrupting
    return task


def test_a_stopped_run_resumes_bit_exact_with_the_same_answers_and_starts_anew_with_others(tmp_path, write, answers):
    path = write()
    whole, _ = run(tmp_path / "whole", path)
    for name in ("same", "other"):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / name, path, task=interrupted(make_task(), 8))
    resumed, result = run(tmp_path / "same", path)
    assert result.figures["history"]["resumed_at"] == 8
    assert same(weights(whole), weights(resumed))
    write(probabilities=1 - answers)
    _, result = run(tmp_path / "other", path)
    assert result.figures["history"]["resumed_at"] == 0
    assert any("another run (terms" in note for note in result.notes)


def test_a_step_is_made_again_when_the_file_changed(write, answers):
    path = write()
    config = DistillConfig(objectives=({"kind": "aspects", "source": str(path)}, {"kind": "kd"}))
    assert config.files() == (str(path),)
    before = file_hashes(config)
    assert before == file_hashes(config)
    write(probabilities=1 - answers)
    assert file_hashes(config) != before
    assert file_hashes(DistillConfig(objectives=({"kind": "kd"},))) == []
