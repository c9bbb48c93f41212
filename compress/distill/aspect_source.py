"""Where answers to yes/no questions come from: an .npz file, or a registered function of the pixels.

The file holds these arrays (n = images of the task's training split, in its order; Q = questions):

    logits         (n, Q, 2): a language model's logits of "Yes" and of "No", in this order, for the first token of its answer,
                   or (n, Q): their difference, yes − no
    probabilities  (n, Q): P(yes) in 0…1, instead of logits
    questions      (Q,): their texts, unicode strings
    data_id        one string: the task's, which names the data, the split and the seed that the rows belong to

`trimtab aspects images` writes the images and the data_id, `trimtab aspects pack` makes this file of a table of answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from ...models.errors import UserError
from ...models.registry import Registry
from ...models.tasks.sources_npz import read_arrays

if TYPE_CHECKING:
    from ...models.tasks.task import Task

BATCH = 256
"""A registered source gets so many images at a time."""
MAKE = "`trimtab aspects images` writes the training images and `trimtab aspects pack` the file"

Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(pixels uint8 (N, C, H, W), targets (N, …)) → P(yes) (N, Q) in 0…1."""


@dataclass(frozen=True)
class AspectCard:
    """What a registered source asks: its title and the questions' texts."""

    title: str
    questions: tuple[str, ...]


aspect_sources: Registry[Answer, AspectCard] = Registry("aspect source")
"""Functions that answer: `@aspect_sources.register("name", AspectCard("Title", ("Is it long?", …)))`, before the run starts."""


@dataclass(frozen=True)
class Answers:
    """P(yes), `values` float32 (n, Q), by position in the training split; the questions; where they came from."""

    values: Tensor
    questions: tuple[str, ...]
    origin: str

    @property
    def digest(self) -> str:
        """The hex digest of questions and answers: what a run that learns from them depends on."""
        sha = hashlib.sha256(repr(self.questions).encode())
        sha.update(np.ascontiguousarray(self.values.numpy()).data)
        return sha.hexdigest()


def answers_of(source: str, task: Task) -> Answers:
    """The answers for the task's training split, from the file or the registered function that `source` names.

    Raises UserError for an unknown source, and for answers that are not the task's or not in range.
    """
    if source.endswith(".npz"):
        return read_answers(Path(source).expanduser(), task)
    if source not in aspect_sources:
        known = ", ".join(aspect_sources.names()) or "none is"
        raise UserError(
            f"aspects: source {source!r} is neither an .npz file nor a registered source",
            hint=f"registered: {known}; {MAKE}",
        )
    entry = aspect_sources.entry(source)
    return _asked(entry.value, entry.card, source, task)


def read_answers(path: Path, task: Task) -> Answers:
    """The answers in an .npz file; its schema is this module's docstring."""
    if not path.is_file():
        raise UserError(f"aspects: {path} does not exist", hint=MAKE)
    arrays = read_arrays(path, needed=("questions", "data_id"), optional=("logits", "probabilities"))
    data_id = str(arrays["data_id"].reshape(-1)[0]) if arrays["data_id"].size == 1 else str(arrays["data_id"].tolist())
    if data_id != task.data_id:
        raise UserError(
            f"the answers in {path} belong to data_id {data_id[:12]}…, the task's is {task.data_id[:12]}…",
            hint="they were given for other data, another split or another seed: open the task with the options of "
            "`trimtab aspects images`, or write the images again",
        )
    questions, values = check_answers(arrays, count=len(task.samples("train")), where=str(path))
    return Answers(torch.from_numpy(values), questions, path.name)


def check_answers(arrays: Mapping[str, np.ndarray], *, count: int, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """(questions, P(yes) float32 (n, Q)) of a file's arrays.

    Raises UserError when there are both or neither of logits and probabilities, for a wrong shape or length, for numbers that are
    not finite, and for logits that look like probabilities or the other way round.
    """
    kinds = [kind for kind in ("logits", "probabilities") if kind in arrays]
    if len(kinds) != 1:
        raise UserError(
            f"{where} holds {' and '.join(kinds) or 'neither logits nor probabilities'}",
            hint="give one: logits (n, Q, 2) or (n, Q), or probabilities (n, Q) in 0…1",
        )
    (kind,) = kinds
    questions, values = _questions(arrays["questions"], where), arrays[kind]
    _check_shape(values, kind, len(questions), count=count, where=where)
    values = values.astype(np.float64)
    _check_finite(values, questions, f"{kind} in {where}")
    inside = bool(((values >= 0) & (values <= 1)).all())
    low, high = float(values.min()), float(values.max())
    if kind == "probabilities":
        if not inside:
            raise UserError(
                f"probabilities in {where} run from {low:g} to {high:g}: they look like logits",
                hint="rename the array to logits, or apply the sigmoid first",
            )
        return questions, values.astype(np.float32)
    if inside:
        raise UserError(
            f"all logits in {where} lie in 0…1 ({low:g} to {high:g}): they look like probabilities",
            hint="rename the array to probabilities (n, Q)"
            + ("; of pairs, take P(yes) = [..., 0]" if values.ndim == 3 else "")
            + "; in a table, name the columns p_1, p_2, …",
        )
    # softmax over (yes, no) is the sigmoid of their difference
    return questions, expit(values[..., 0] - values[..., 1] if values.ndim == 3 else values).astype(np.float32)


def _questions(texts: np.ndarray, where: str) -> tuple[str, ...]:
    if texts.dtype.kind != "U" or texts.ndim != 1 or len(texts) == 0:
        raise UserError(
            f"questions in {where} has shape {texts.shape} and type {texts.dtype}", hint="a list of texts, one per question"
        )
    return tuple(str(text) for text in texts)


def _check_shape(values: np.ndarray, kind: str, questions: int, *, count: int, where: str) -> None:
    pairs = kind == "logits" and values.ndim == 3 and values.shape[2] == 2
    if values.dtype.kind not in "fiu" or (values.ndim != 2 and not pairs):
        wanted = "numbers (n, Q, 2) or (n, Q)" if kind == "logits" else "numbers (n, Q)"
        raise UserError(f"{kind} in {where} has shape {values.shape} and type {values.dtype}", hint=f"expected {wanted}")
    if values.shape[1] != questions:
        raise UserError(
            f"{kind} in {where} answers {values.shape[1]} questions, there are {questions} texts",
            hint="one column per question",
        )
    if len(values) != count:
        raise UserError(
            f"{where} has answers for {len(values)} images, the training split has {count}",
            hint="one row for every position of the training split, in its order; a run on a part of it picks its rows itself",
        )


def _check_finite(values: np.ndarray, questions: tuple[str, ...], where: str) -> None:
    broken = ~np.isfinite(values)
    broken = broken.any(2) if broken.ndim == 3 else broken
    if not broken.any():
        return
    row, question = (int(i) for i in np.argwhere(broken)[0])
    raise UserError(
        f"{int(broken.sum())} of {broken.size} answers ({where}) are NaN or infinite; the first is at position {row}, "
        f"question {question + 1} ({questions[question]!r})",
        hint="ask for these again, or leave the question out",
    )


def _asked(fn: Answer, card: AspectCard, name: str, task: Task) -> Answers:
    """A registered function's answers on the clean training images, a batch at a time."""
    samples = task.samples("train")
    values = np.empty((len(samples), len(card.questions)), np.float32)
    for start in range(0, len(samples), BATCH):
        raw = samples.__getitems__(range(start, min(start + BATCH, len(samples))))
        got = np.asarray(fn(raw.pixels.numpy(), raw.targets.numpy()))
        wanted = (len(raw.pixels), len(card.questions))
        if got.shape != wanted:
            raise UserError(
                f"the aspect source {name!r} returned shape {got.shape} for {wanted[0]} images and {wanted[1]} questions",
                hint="return P(yes) for each image and question: (N, Q)",
            )
        if not ((got >= 0) & (got <= 1)).all():  # NaN is not in range either
            raise UserError(
                f"the aspect source {name!r} returned values from {got.min():g} to {got.max():g} for the images from position "
                f"{start}",
                hint="return probabilities in 0…1, without NaN",
            )
        values[start : start + len(got)] = got
    return Answers(torch.from_numpy(values), card.questions, f"the source {name!r}")
