"""Answers from a function of the pixels, and the one that stands for a language model on Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_kit import make_task

from trimtab.compress.distill.aspect_source import AspectCard, answers_of, aspect_sources
from trimtab.models.errors import UserError

torch.set_num_threads(1)


@pytest.fixture
def register():
    """Registers a source for one test."""
    names = []

    def file_it(name, fn, questions=("a", "b")):
        aspect_sources.register(name, AspectCard("of a test", questions))(fn)
        names.append(name)
        return name

    yield file_it
    for name in names:
        del aspect_sources._entries[name]


def test_a_function_is_asked_about_every_clean_image_in_order(register):
    task, seen = make_task(train=600), []

    def bright(pixels, targets):
        seen.append((pixels.dtype, len(pixels)))
        mean = pixels.mean((1, 2, 3)) / 255
        return np.stack([mean, targets / 4], axis=1)

    found = answers_of(register("bright", bright), task)
    raw = task.samples("train").__getitems__(range(600))
    expected = torch.stack([raw.pixels.double().mean((1, 2, 3)) / 255, raw.targets / 4], 1)
    torch.testing.assert_close(found.values, expected.float())
    assert seen == [(np.uint8, 256), (np.uint8, 256), (np.uint8, 88)]
    assert found.questions == ("a", "b")


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda p, t: np.zeros((len(p), 3)), r"'odd' returned shape \(96, 3\) for 96 images and 2 questions"),
        (lambda p, t: np.full((len(p), 2), 1.5), r"'odd' returned values from 1.5 to 1.5 for the images from position 0"),
        (lambda p, t: np.full((len(p), 2), np.nan), r"'odd' returned values from nan to nan"),
    ],
)
def test_a_function_that_answers_nonsense_is_refused(register, fn, said):
    with pytest.raises(UserError, match=said):
        answers_of(register("odd", fn), make_task())


def test_the_oracle_measures_what_it_asks(monkeypatch):
    """Drawn pictures with known answers, one question each; and the answers do not depend on the batch."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import aspects_oracle as oracle

    blank = np.zeros((28, 28), np.uint8)

    def picture(*boxes, value=200):
        image = blank.copy()
        for top, bottom, left, right, ink in boxes:
            image[top:bottom, left:right] = value if ink else 0
        return image

    def shirt(*, long):
        bottom = 24 if long else 10
        return picture((2, 26, 9, 19, 1), (2, bottom, 1, 9, 1), (2, bottom, 19, 27, 1))

    yes_no = {
        "Does it fill much of the picture?": (picture((2, 26, 2, 26, 1)), picture((10, 18, 10, 18, 1))),
        "Is it of a light material?": (picture((4, 24, 4, 24, 1), value=240), picture((4, 24, 4, 24, 1), value=60)),
        "Is it clearly taller than wide?": (picture((2, 26, 10, 18, 1)), picture((10, 18, 2, 26, 1))),
        "Is the left half the mirror image of the right half?": (picture((4, 24, 8, 20, 1)), picture((4, 24, 2, 12, 1))),
        "Is the upper half heavier than the lower half?": (picture((2, 16, 6, 22, 1)), picture((14, 26, 6, 22, 1))),
        "Can one see through a hole in it, as under a handle?": (
            picture((4, 24, 4, 24, 1), (8, 12, 8, 20, 0)),
            picture((4, 24, 4, 24, 1), (8, 24, 8, 20, 0)),  # a bay, open below
        ),
        "Does its surface have a pattern?": (
            (picture((4, 24, 4, 24, 1)) * (0.4 + 0.6 * (np.arange(28) % 2))).astype(np.uint8),
            picture((4, 24, 4, 24, 1)),
        ),
        "Does it have long sleeves?": (shirt(long=True), shirt(long=False)),
        "Does it have two legs?": (
            picture((2, 26, 7, 12, 1), (2, 26, 16, 21, 1), (2, 8, 7, 21, 1)),
            picture((2, 26, 7, 21, 1)),
        ),
        "Is it wider at the bottom than at the top?": (
            picture((4, 14, 10, 18, 1), (14, 24, 4, 24, 1)),
            picture((4, 14, 4, 24, 1), (14, 24, 10, 18, 1)),
        ),
    }
    assert set(yes_no) == set(oracle.QUESTIONS)
    for question, (yes, no) in yes_no.items():
        i = oracle.QUESTIONS.index(question)
        measured = oracle.measurements(np.stack([yes, no])[:, None])[:, i]
        assert measured[0] > oracle.ASPECTS[i].at > measured[1], question
    pixels = np.random.default_rng(0).integers(0, 255, (40, 1, 28, 28), dtype=np.uint8)
    together, targets = oracle.answer(pixels, None), None
    alone = np.concatenate([oracle.answer(part, targets) for part in np.split(pixels[::-1], 8)])[::-1]
    np.testing.assert_array_equal(together, alone)
    assert ((together > 0) & (together < 1)).all()
    assert np.isfinite(oracle.answer(blank[None, None], None)).all()
    assert oracle.NAME in aspect_sources


def test_the_oracle_s_noise_is_normal_and_independent(monkeypatch):
    """4 000 random pictures: mean 0 and deviation 1 within 5 standard errors, columns uncorrelated within 5/√n."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from aspects_oracle import pixel_noise

    pixels = np.random.default_rng(0).integers(0, 255, (4000, 1, 6, 6), dtype=np.uint8)
    noise = pixel_noise(pixels, 6)
    assert np.abs(noise.mean(0)).max() < 5 / 4000**0.5
    assert np.abs(noise.std(0) - 1).max() < 5 / 8000**0.5
    assert np.abs(np.corrcoef(noise.T) - np.eye(6)).max() < 5 / 4000**0.5
