"""What every registered distillation objective keeps to, whatever it computes. A new one needs a line in `CASES`."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from terms_kit import distilled, wide_net
from torch import nn
from training_kit import make_net, make_task, same, weights

from trimtab.compress.distill.aspect_source import AspectCard, aspect_sources
from trimtab.compress.distill.objectives import objectives, parse_term
from trimtab.compress.distill.pupil import Pupil
from trimtab.models.architectures import architectures
from trimtab.models.files import digest_of
from trimtab.models.tasks.augment_points import Movement
from trimtab.models.tasks.images import ArrayImages
from trimtab.models.tasks.landmarks import LandmarksTask, Measure
from trimtab.models.tasks.splits import Splits

torch.set_num_threads(1)
POINTS = 3


@aspect_sources.register("contract-suite", AspectCard("For this suite", ("Is it bright?", "Is its left half brighter?")))
def answers(pixels, targets):
    left, right = pixels[..., :4].mean((1, 2, 3)), pixels[..., 4:].mean((1, 2, 3))
    return np.stack([(left + right) / 510, (left > right).astype(float)], axis=1)


def points_task():
    """Noise with POINTS points at random: nothing can be learnt from it, and every term still has to work."""
    rng = np.random.default_rng(0)

    def images(count):
        pixels = rng.integers(0, 255, (count, 1, 8, 8)).astype(np.uint8)
        return ArrayImages(pixels, rng.uniform(-0.4, 0.4, (count, 2 * POINTS)).astype(np.float32))

    splits = Splits(images(48), images(16), images(16), (), flips=False, data_id=digest_of(["points"]))
    movement = Movement(shift=0.1, rotation=10.0, zoom=0.1)
    return LandmarksTask(splits, data="noise", measure=Measure("diagonal", None), movement=movement)


def vit(seed, dropout):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        build = architectures.get("vit_nano")
        return build(in_channels=1, image_size=8, dim=16, depth=3, heads=2, num_classes=4)


@dataclass(frozen=True)
class World:
    """A task, and networks for it: (seed, dropout) → a network."""

    task: Callable[[], Any]
    student: Callable[[int, float], nn.Module]
    teacher: Callable[[], nn.Module]


def toy_task():
    return make_task(train=48, val=16)


IMAGES = World(toy_task, lambda seed, dropout: make_net(seed=seed, dropout=dropout), lambda: make_net(seed=3))
WIDER = World(toy_task, IMAGES.student, wide_net)
TOKENS = World(toy_task, vit, lambda: vit(3, 0.0))
MARKS = World(
    points_task,
    lambda seed, dropout: make_net(classes=2 * POINTS, seed=seed, dropout=dropout),
    lambda: make_net(classes=2 * POINTS, seed=3),
)


@dataclass(frozen=True)
class Case:
    """A term in its world. `teaches`: it alone moves the student. `scheduled`: its weight may rise. `calm`: settings that take its
    own randomness away."""

    world: World
    table: dict[str, Any]
    teaches: bool = True
    scheduled: bool = True
    calm: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.table["kind"]


HINTS = {"kind": "hints", "student_layer": "2", "teacher_layer": "2"}
CASES = {
    "aspects": Case(IMAGES, {"kind": "aspects", "source": "contract-suite"}),
    "assistive": Case(MARKS, {"kind": "assistive"}),
    "bias": Case(IMAGES, {"kind": "bias"}),
    "bias, shuffled": Case(IMAGES, {"kind": "bias", "normalisation": "local", "control": "shuffled"}),
    "binary-kl": Case(IMAGES, {"kind": "binary-kl"}),
    "binary-kl-norm": Case(IMAGES, {"kind": "binary-kl-norm"}),
    "binary-kl-norm, aligned": Case(IMAGES, {"kind": "binary-kl-norm", "align": True}),
    "cosine": Case(IMAGES, {"kind": "cosine"}),
    "cosine, projected": Case(WIDER, {"kind": "cosine"}),
    "dist": Case(IMAGES, {"kind": "dist"}),
    "dkd": Case(IMAGES, {"kind": "dkd"}),
    "dual-head": Case(IMAGES, {"kind": "dual-head"}),
    "dual-head, nonlinear": Case(IMAGES, {"kind": "dual-head", "head": "nonlinear", "align": False}),
    "hints": Case(IMAGES, HINTS),
    "hints, projected and hard": Case(WIDER, {**HINTS, "normalise": "channel", "hard_quantile": 0.9}),
    "kd": Case(IMAGES, {"kind": "kd"}),
    "kd, own average": Case(
        IMAGES, {"kind": "kd", "teacher": "ema"}, teaches=False
    ),  # at the first step there is no difference
    "landmark-main": Case(MARKS, {"kind": "landmark-main"}),
    "logit-mse": Case(IMAGES, {"kind": "logit-mse"}),
    "multi-sample-dropout": Case(IMAGES, {"kind": "multi-sample-dropout", "samples": 2}, calm={"p": 1e-9}),
    "nd": Case(IMAGES, {"kind": "nd"}),
    "nd, projected": Case(WIDER, {"kind": "nd"}),
    "nested-dropout": Case(IMAGES, {"kind": "nested-dropout"}),
    "relations": Case(TOKENS, {"kind": "relations"}),
    "token-masking": Case(
        TOKENS, {"kind": "token-masking"}, teaches=False, scheduled=False
    ),  # it drops tokens, and has no loss of its own
    "tokens": Case(TOKENS, {"kind": "tokens"}),
}
HAS_DROPOUT = ("cosine, projected", "nd, projected", "dual-head, nonlinear")
KINDS = objectives.names()
each = pytest.mark.parametrize("name", CASES)


def run(folder, case, *, task=None, student=None, teacher=None, seed=0, **more):
    """(the student, its Result) of 8 steps with augmentation, dropout, momentum and a weight that rises over half of them."""
    settings = {"epochs": 2, "batch_size": 12, "augment": True} | more
    return distilled(
        folder,
        task or case.world.task(),
        teacher if teacher is not None else case.world.teacher(),
        [{**case.table, **({"warmup": 0.5} if case.scheduled else {})}],
        student=student if student is not None else case.world.student(0, 0.3),
        seed=seed,
        **settings,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(name) → (the weights, the Result) of an undisturbed run, computed once."""

    @cache
    def of(name):
        student, result = run(tmp_path_factory.mktemp("whole"), CASES[name])
        return weights(student), result

    return of


# ---------------------------------------------------------------- registration


def test_every_objective_has_a_case_and_every_case_an_objective():
    assert {case.kind for case in CASES.values()} == set(KINDS)
    assert set(KINDS) <= set(CASES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_and_the_config_tell_what_it_is(kind):
    entry = objectives.entry(kind)
    card, config = entry.card, entry.value.config
    assert card.title
    assert card.formula
    assert card.source
    assert config.model_fields["kind"].default == kind
    assert config.__doc__
    for key, about in config.model_fields.items():
        assert key == "kind" or about.description, f"{key} has no description"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wieght": 1.0}, r"unknown key 'wieght' \(did you mean 'weight'"),
        ({"weight": -0.5}, "weight = -0.5: Input should be greater than or equal to 0"),
        ({"weight": float("nan")}, "weight = nan: Input should be"),
        ({"weight": float("inf")}, "weight = inf: Input should be"),
        ({"warmup": 1.5}, "warmup = 1.5: Input should be less than or equal to 1"),
        ({"until": 0}, "until = 0: Input should be greater than 0"),
    ],
)
def test_the_config_refuses(kind, change, said):
    with pytest.raises(ValueError, match=f"{kind}: {said}"):
        parse_term({**CASES[kind].table, **change})


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_none_are_refused_in_every_field(kind):
    """No float of any config takes nan: a loss would be nan from the first step."""
    config = objectives.get(kind).config
    for key, about in config.model_fields.items():
        if about.annotation is float:
            with pytest.raises(ValueError, match=rf"{kind}: {key} = nan: Input should be"):
                parse_term({**CASES[kind].table, key: float("nan")})


# ---------------------------------------------------------------- a run


@each
def test_gradients_reach_the_student_and_heads_and_no_teacher(tmp_path, monkeypatch, name):
    """One step of the term alone, without weight decay: what moves, moves by its gradient."""
    case, pupils = CASES[name], []

    class Seen(Pupil):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            pupils.append(self)

    monkeypatch.setattr("trimtab.compress.distill.pupil.Pupil", Seen)
    task, teacher, student = case.world.task(), case.world.teacher(), case.world.student(0, 0.0)
    before, start = weights(teacher), {n: p.detach().clone() for n, p in student.named_parameters()}
    label_weight = 0.0 if case.teaches else 1.0
    _, result = distilled(
        tmp_path,
        task,
        teacher,
        [case.table],
        student=student,
        epochs=1,
        batch_size=48,
        weight_decay=0.0,
        label_weight=label_weight,
    )
    assert same(before, weights(teacher))
    assert all(p.grad is None for p in teacher.parameters())
    moved = [n for n, p in student.named_parameters() if not torch.equal(p, start[n])]
    assert moved
    [pupil] = pupils
    for parameter in pupil.heads.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    learnt = sum(p.grad.abs().sum().item() for p in pupil.heads.parameters())
    assert (learnt > 0) == any(True for _ in pupil.heads.parameters())  # a head may hold buffers alone
    assert case.kind in result.figures["history"]["epochs"][0]["parts"]


@each
def test_the_student_comes_back_as_it_was_built(tmp_path, name):
    """Same object, same layers, same names and shapes, no hook left, in eval mode, and it runs by itself."""
    case = CASES[name]
    student, twin = case.world.student(0, 0.3), case.world.student(0, 0.3)
    returned, result = run(tmp_path, case, student=student)
    assert result.module is student is returned
    assert repr(student) == repr(twin)
    assert {n: (t.shape, t.dtype) for n, t in student.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in twin.state_dict().items()
    }
    for path, part in student.named_modules():
        assert not part.training
        assert not part._forward_hooks, path
        assert not part._forward_pre_hooks, path
        assert "forward" not in vars(part), path
    assert all(p.requires_grad for p in student.parameters())
    twin.load_state_dict(student.state_dict())
    task = case.world.task()
    x = task.inputs(task.samples("val").__getitems__(range(4)))
    assert torch.equal(student(x), twin.eval()(x))


@each
def test_a_run_stopped_in_the_middle_resumes_bit_exact(tmp_path, whole, name):
    """Ctrl-C in step 5 of 8: weights, running statistics and the record are those of the run that was not stopped."""
    case, task, calls = CASES[name], CASES[name].world.task(), []
    pair = task.training_pair

    def interrupting(*arguments, **named):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return pair(*arguments, **named)

    task.training_pair = interrupting
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, case, task=task)
    student, result = run(tmp_path, case)
    expected, told = whole(name)
    assert result.figures["history"]["resumed_at"] == 5
    assert same(weights(student), expected)
    records = [[(e["parts"], e["train_loss"]) for e in r.figures["history"]["epochs"]] for r in (result, told)]
    assert records[0] == records[1]


@each
def test_the_seed_decides(tmp_path, whole, name):
    """The same seed in another folder gives the same weights, another seed others."""
    expected, _ = whole(name)
    again, _ = run(tmp_path / "again", CASES[name])
    other, _ = run(tmp_path / "other", CASES[name], seed=1)
    assert same(weights(again), expected)
    assert not same(weights(other), expected)


@each
def test_the_gpu_computes_what_the_cpu_does(tmp_path, monkeypatch, name):
    """Two steps without dropout and augmentation, float32 on both (no TF32): losses to 1e-3 relative, weights to 1e-3 absolute.
    Sums come in another order on a GPU, and the second step's loss carries the first's rounding."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: CPU and GPU can't be compared here")
    if name in HAS_DROPOUT:
        pytest.skip("its head's dropout draws from the device's own generator: the two differ by design")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    case = CASES[name]
    case = replace(case, table={**case.table, **case.calm})
    found = []
    for device in ("cpu", "cuda"):
        student, result = run(
            tmp_path / device,
            case,
            student=case.world.student(0, 0.0),
            teacher=copy.deepcopy(case.world.teacher()),
            device=device,
            epochs=1,
            batch_size=24,
            augment=False,
        )
        found.append((weights(student), result.figures["history"]["epochs"][0]["parts"]))
    (cpu, parts), (gpu, other_parts) = found
    assert other_parts == pytest.approx(parts, rel=1e-3, abs=1e-5)
    for key, value in cpu.items():
        torch.testing.assert_close(gpu[key].float(), value.float(), atol=1e-3, rtol=1e-3)
